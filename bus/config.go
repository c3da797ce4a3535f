package bus

import (
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"time"
	"unicode/utf8"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/mailbell/mailbell/bus/placement"
	"github.com/mailbell/mailbell/bus/routing"
	"github.com/mailbell/mailbell/internal/auth"
	"github.com/mailbell/mailbell/internal/trace"
)

// Config says what a node is. NodeID and Log are required; the rest has defaults.
type Config struct {
	// NodeID is the node's stable name, unique among the bus nodes.
	NodeID string
	// Log is where the events are: an *eventlog.Log.
	Log Log
	// Group is the consumer group of the bus nodes. Empty means the log's default.
	Group string

	// LinkAddr is where notifiers connect to. Empty means ":7481".
	LinkAddr string
	// LinkTLS encrypts the links; for mutual TLS it demands the notifiers' certificates. nil means plain TCP.
	LinkTLS *tls.Config
	// LinkQueueBytes bounds what waits for one slow notifier; past it the link is cut. 0 means 64 MiB.
	LinkQueueBytes int
	// MaxLinks bounds the notifiers. 0 means 4,096.
	MaxLinks int

	// WindowBytes bounds the memory of all windows together. 0 means 512 MiB.
	WindowBytes int64
	// WindowAge is how far back events are replayed at most. 0 means 15 minutes.
	WindowAge time.Duration
	// ReachRecords is how many records a reader begins before the end of its partition, at most. 0 means 100,000.
	ReachRecords int64
	// IndexAccounts bounds the accounts whose last position the node remembers,
	// some 13 bytes each. 0 means 8 million.
	IndexAccounts int
	// IndexReach is how far back the log is read, in the background, to fill that
	// index after a start. 0 means 72 hours, negative not at all.
	IndexReach time.Duration
	// FetchesPerSecond is what the mail store bears of resyncs; their delays are made of it. 0 means 2,000.
	FetchesPerSecond float64
	// Linger is how long a partition that went to another node, or all of them at a
	// shutdown, are still served. 0 means 2 seconds, negative not at all.
	Linger time.Duration

	// Keys verify the users' tokens at the gateway. nil: GET /v1/connect is refused.
	Keys *auth.Keys
	// ServiceTokens are of those who may ask for users. nil: POST /v1/connect is refused.
	ServiceTokens *auth.ServiceTokens
	// Origins are the pages that may call the gateway.
	Origins auth.Origins
	// TrustedProxies are the networks whose word counts for whom they forward to the gateway (X-Forwarded-For, Forwarded).
	TrustedProxies []netip.Prefix
	// CookieName is the cookie in which a user's token may come. Empty means "mailbell_token".
	CookieName string
	// SessionTTL ends connections that a service asked for. 0 means 24 hours.
	SessionTTL time.Duration
	// Placement picks the notifier for a client. nil means [placement.Default].
	Placement placement.Policy
	// ProbeInterval is how often each notifier's public address is tried with a connection. A notifier is given clients
	// once that has worked, and no more within 3 seconds after it stops to. 0 means 1 second, which is the longest; negative not at all.
	ProbeInterval time.Duration
	// ProbeTLS is for public addresses that begin with wss; nil means the system's authorities.
	ProbeTLS *tls.Config
	// MovesPerSecond is how many connections are moved from full notifiers to empty ones, over the
	// whole fleet. 0 means 200, negative none.
	MovesPerSecond float64
	// Evenness is what counts as even; the zero value is for policies that go by connections.
	Evenness placement.Evenness
	// MoveAfter is how long the fleet must have been unchanged before connections are moved. 0 means 10 seconds.
	MoveAfter time.Duration
	// AgentAddr is where load balancers ask for a notifier's state in the text of HAProxy's agent-check. Empty means nowhere.
	AgentAddr string

	// Logger takes what happens; nil means slog.Default().
	Logger *slog.Logger
	// Tracer follows sampled events; nil means none.
	Tracer *trace.Tracer
	// Registerer takes the metrics; nil means none.
	Registerer prometheus.Registerer
}

// Validate returns an error that names the field and what it may be.
func (c Config) Validate() error {
	switch {
	case c.NodeID == "" || len(c.NodeID) > maxNodeID || !utf8.ValidString(c.NodeID):
		return fmt.Errorf("bus config: NodeID %q: want a name of 1 to %d bytes, such as bus-1", c.NodeID, maxNodeID)
	case c.Log == nil:
		return errors.New("bus config: Log is nil")
	case c.LinkTLS != nil && len(c.LinkTLS.Certificates) == 0 && c.LinkTLS.GetCertificate == nil && c.LinkTLS.GetConfigForClient == nil:
		return errors.New("bus config: LinkTLS has no certificate")
	}
	if c.LinkAddr != "" {
		if _, _, err := net.SplitHostPort(c.LinkAddr); err != nil {
			return fmt.Errorf("bus config: LinkAddr %q: want host:port, such as :7481: %w", c.LinkAddr, err)
		}
	}
	if c.AgentAddr != "" {
		if _, _, err := net.SplitHostPort(c.AgentAddr); err != nil {
			return fmt.Errorf("bus config: AgentAddr %q: want host:port, such as :7482: %w", c.AgentAddr, err)
		}
	}
	if c.LinkQueueBytes != 0 && c.LinkQueueBytes < 1<<20 {
		return fmt.Errorf("bus config: LinkQueueBytes %d: want at least 1 MiB, or 0 for the default", c.LinkQueueBytes)
	}
	if c.ProbeInterval > time.Second {
		return fmt.Errorf("bus config: ProbeInterval %v: want at most 1s, so that a dead notifier is noticed within 3 seconds, or a negative one for no probes", c.ProbeInterval)
	}
	for _, f := range []struct {
		name string
		bad  bool
	}{
		{"MaxLinks", c.MaxLinks < 0}, {"WindowBytes", c.WindowBytes < 0}, {"WindowAge", c.WindowAge < 0},
		{"ReachRecords", c.ReachRecords < 0}, {"IndexAccounts", c.IndexAccounts < 0},
		{"FetchesPerSecond", !(c.FetchesPerSecond >= 0)}, {"SessionTTL", c.SessionTTL < 0},
		{"MoveAfter", c.MoveAfter < 0},
	} {
		if f.bad {
			return fmt.Errorf("bus config: %s must not be negative; leave it 0 for the default", f.name)
		}
	}
	return nil
}

const maxNodeID = 255

func (c Config) withDefaults() Config {
	if c.LinkAddr == "" {
		c.LinkAddr = ":7481"
	}
	orInt := func(p *int, v int) {
		if *p == 0 {
			*p = v
		}
	}
	orDuration := func(p *time.Duration, v time.Duration) {
		if *p == 0 {
			*p = v
		}
	}
	orInt(&c.LinkQueueBytes, 64<<20)
	orInt(&c.MaxLinks, 4096)
	orInt(&c.IndexAccounts, 8<<20)
	orDuration(&c.WindowAge, 15*time.Minute)
	orDuration(&c.IndexReach, 72*time.Hour)
	orDuration(&c.Linger, 2*time.Second)
	orDuration(&c.SessionTTL, 24*time.Hour)
	if c.WindowBytes == 0 {
		c.WindowBytes = 512 << 20
	}
	if c.ReachRecords == 0 {
		c.ReachRecords = 100_000
	}
	if c.FetchesPerSecond == 0 {
		c.FetchesPerSecond = 2000
	}
	if c.CookieName == "" {
		c.CookieName = "mailbell_token"
	}
	if c.Placement == nil {
		c.Placement, _ = placement.New(placement.Default, rand.New(rand.NewPCG(rand.Uint64(), rand.Uint64())))
	}
	orDuration(&c.ProbeInterval, time.Second)
	orDuration(&c.MoveAfter, 10*time.Second)
	if c.MovesPerSecond == 0 {
		c.MovesPerSecond = 200
	}
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
	return c
}

// routing returns the bounds of one partition, when the node has so many.
func (c Config) routing(owned, partitions int) routing.Config {
	owned = max(1, owned)
	return routing.Config{
		WindowBytes:   max(1<<20, c.WindowBytes/int64(owned)),
		WindowAge:     c.WindowAge,
		IndexAccounts: max(1024, c.IndexAccounts/owned),
		ReattachBytes: min(8<<20, c.LinkQueueBytes/4),
		// All partitions together ask the store for so many fetches, whoever owns them.
		FetchesPerSecond: c.FetchesPerSecond / float64(max(1, partitions)),
	}
}
