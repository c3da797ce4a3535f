// Package swarm is the clients of the benches: thousands of WebSocket connections in one
// process, on one epoll descriptor and one goroutine, at a few dozen bytes each. A bench starts swarms as processes
// of their own (see Serve) so that what clients cost never counts as the server's.
//
// A swarm speaks just enough of RFC 6455 and mailbell.v1 for the servers of a bench. It is not a
// client to learn from: that is internal/wsclient.
package swarm

import (
	"errors"
	"fmt"
	"time"
)

// Config says what a swarm connects to and as whom.
type Config struct {
	Run         uint32 `json:"run"`         // of the ledger
	Connections int    `json:"connections"` // in this process
	First       uint32 `json:"first"`       // account number of the first connection
	Accounts    uint32 `json:"accounts"`    // account numbers wrap around here; 0 = no wrap

	Targets  []string `json:"targets,omitempty"`  // host:port of notifiers, used in turn, or
	Gateways []string `json:"gateways,omitempty"` // base URLs, such as http://127.0.0.1:8480, asked for tickets
	// Credentials: a key file of HS256 or Ed25519 to mint tokens with (Targets), or a service token (Gateways).
	KeyFile      string `json:"keyFile,omitempty"`
	ServiceToken string `json:"serviceToken,omitempty"`

	SourceIP  string  `json:"sourceIP,omitempty"`  // a loopback address to connect from; empty = any
	PerSecond float64 `json:"perSecond,omitempty"` // connections started per second; 0 = as fast as they come up
	Pending   int     `json:"pending,omitempty"`   // connections coming up at once; 0 = 256
	Reconnect bool    `json:"reconnect,omitempty"` // come back, as the web client does, and resume by position

	// PingSeconds is the silence after which a connection is asked whether it lives, and the time that one may take to come
	// up; 0 = it is trusted for ever.
	PingSeconds float64 `json:"pingSeconds,omitempty"`
	// Reports says that events were made of reports (publisher.Config.Reports) where they have no id of a bench.
	Reports bool `json:"reports,omitempty"`

	ReportMs int  `json:"reportMs,omitempty"` // between reports; 0 = 200
	LateMs   int  `json:"lateMs,omitempty"`   // an event that took longer is reported by itself; 0 = 1,000
	Sparse   bool `json:"sparse,omitempty"`   // the final report leaves out connections that heard nothing
}

// Validate says what is wrong with the configuration.
func (c *Config) Validate() error {
	switch {
	case c.Connections <= 0:
		return errors.New("swarm: connections must be positive")
	case len(c.Targets) == 0 && len(c.Gateways) == 0:
		return errors.New("swarm: neither targets nor gateways are given")
	case len(c.Targets) > 0 && len(c.Gateways) == 0 && c.KeyFile == "":
		return errors.New("swarm: targets need a key file to mint tokens with")
	case len(c.Gateways) > 0 && c.ServiceToken == "":
		return errors.New("swarm: gateways need a service token")
	}
	return nil
}

func (c *Config) account(conn int) uint32 {
	n := c.First + uint32(conn)
	if c.Accounts > 0 {
		n %= c.Accounts
	}
	return n
}

func (c *Config) pending() int {
	if c.Pending > 0 {
		return c.Pending
	}
	return 256
}

func (c *Config) report() time.Duration {
	if c.ReportMs > 0 {
		return time.Duration(c.ReportMs) * time.Millisecond
	}
	return 200 * time.Millisecond
}

func (c *Config) late() time.Duration {
	if c.LateMs > 0 {
		return time.Duration(c.LateMs) * time.Millisecond
	}
	return time.Second
}

// Times after which a connection that does not come up is given up, and between tries.
const (
	connectTimeout = 20 * time.Second
	retryBase      = 250 * time.Millisecond
	retryMax       = 8 * time.Second
)

// Counts is what a swarm has seen so far. Counters only grow, but for Live.
type Counts struct {
	Live         int            `json:"live"` // subscribed now
	Peak         int            `json:"peak"` // most ever subscribed at once
	Subscribed   int            `json:"subscribed"`
	Events       int            `json:"events"`
	BytesIn      int64          `json:"bytesIn"`  // read from sockets
	BytesOut     int64          `json:"bytesOut"` // written to sockets
	Missed       int            `json:"missed"`
	Closed       int            `json:"closed"` // connections that ended though the swarm did not want it
	Lookups      int            `json:"lookups"`
	Waited       int            `json:"waited"` // lookups that were told to wait before they connect
	CatchUp      map[string]int `json:"catchUp,omitempty"`
	Failures     map[string]int `json:"failures,omitempty"` // by kind
	ConnectNanos int64          `json:"connectNanos"`       // from the first connect to the last first subscribe
}

func (c *Counts) fail(kind string, args ...any) {
	if c.Failures == nil {
		c.Failures = make(map[string]int)
	}
	if len(c.Failures) < 64 {
		c.Failures[fmt.Sprintf(kind, args...)]++
	}
}
