package bench

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"runtime"
	"slices"
	"time"

	"github.com/gobwas/ws"

	"github.com/mailbell/mailbell/notifier"
	"github.com/mailbell/mailbell/schema"
)

// UpgradeConfig says how `mailbell bench upgrade` compares handshakes.
type UpgradeConfig struct {
	Rounds   int           // of each kind, in turn; 0 = 10
	Round    time.Duration // 0 = 500 ms
	Progress Progress
}

// Validate says what is wrong with the configuration.
func (c UpgradeConfig) Validate() error {
	if c.Rounds < 0 || c.Rounds > 1000 || c.Round < 0 || c.Round > time.Minute {
		return errors.New("bench upgrade: --rounds must be at most 1000, --round at most 1m")
	}
	return nil
}

// UpgradeCost is what one handshake costs.
type UpgradeCost struct {
	NsPerOp     float64 `json:"nsPerOp"`
	AllocsPerOp float64 `json:"allocsPerOp"`
	BytesPerOp  float64 `json:"bytesPerOp"`
}

// UpgradeResult is what the upgrade bench found: the middle round of each kind.
type UpgradeResult struct {
	Ours    UpgradeCost `json:"ours"`
	NetHTTP UpgradeCost `json:"netHTTP"`
	Ratio   float64     `json:"ratio"`
}

// What is promised of the handshake.
const (
	leastUpgradeRatio = 5.3
	mostUpgradeAllocs = 1
)

// Broken says whether the promise was broken.
func (r UpgradeResult) Broken() error {
	if r.Ratio < leastUpgradeRatio || r.Ours.AllocsPerOp > mostUpgradeAllocs {
		return fmt.Errorf("bench upgrade: %.1f times as fast as net/http with %.1f allocations, %.1f times with at most %d is promised",
			r.Ratio, r.Ours.AllocsPerOp, leastUpgradeRatio, mostUpgradeAllocs)
	}
	return nil
}

const upgradeHead = "GET " + schema.SocketPath + " HTTP/1.1\r\nHost: mail.example.com\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n" +
	"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: " + schema.Subprotocol + "\r\nOrigin: https://mail.example.com\r\n\r\n"

// Upgrade runs the bench: the same request, over memory, by the notifier's handshake and through net/http's parser and
// gobwas/ws's HTTPUpgrader. Neither checks a token. net/http's server would add its goroutine and two buffers per
// connection, which are not counted.
func Upgrade(ctx context.Context, cfg UpgradeConfig) (r UpgradeResult, err error) {
	if err := cfg.Validate(); err != nil {
		return r, err
	}
	if cfg.Rounds == 0 {
		cfg.Rounds = 10
	}
	if cfg.Round == 0 {
		cfg.Round = 500 * time.Millisecond
	}
	ours, err := oursUpgrade()
	if err != nil {
		return r, fmt.Errorf("bench upgrade: %w", err)
	}
	kinds := []func() error{ours, netHTTPUpgrade()}
	costs := make([][]UpgradeCost, 2)
	for round := range cfg.Rounds {
		for k, f := range kinds {
			if err := ctx.Err(); err != nil {
				return r, fmt.Errorf("bench upgrade: %w", err)
			}
			cfg.Progress.say("round %d of %d", round+1, cfg.Rounds)
			cost, err := costOf(f, cfg.Round)
			if err != nil {
				return r, fmt.Errorf("bench upgrade: %w", err)
			}
			costs[k] = append(costs[k], cost)
		}
	}
	r.Ours, r.NetHTTP = middleCost(costs[0]), middleCost(costs[1])
	r.Ratio = round1(r.NetHTTP.NsPerOp / r.Ours.NsPerOp)
	return r, nil
}

func middleCost(costs []UpgradeCost) UpgradeCost {
	slices.SortFunc(costs, func(a, b UpgradeCost) int { return int(a.NsPerOp - b.NsPerOp) })
	return costs[len(costs)/2]
}

// costOf calls f again and again for a while.
func costOf(f func() error, d time.Duration) (UpgradeCost, error) {
	for range 1000 {
		if err := f(); err != nil {
			return UpgradeCost{}, err
		}
	}
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	n, start := 0, time.Now()
	for time.Since(start) < d {
		for range 100 {
			if err := f(); err != nil {
				return UpgradeCost{}, err
			}
		}
		n += 100
	}
	took := time.Since(start)
	runtime.ReadMemStats(&after)
	per := func(x uint64) float64 { return round1(float64(x) / float64(n)) }
	return UpgradeCost{NsPerOp: round1(float64(took.Nanoseconds()) / float64(n)), AllocsPerOp: per(after.Mallocs - before.Mallocs), BytesPerOp: per(after.TotalAlloc - before.TotalAlloc)}, nil
}

func oursUpgrade() (func() error, error) {
	h, err := notifier.NewHandshake()
	if err != nil {
		return nil, err
	}
	head := []byte(upgradeHead)
	return func() error {
		_, err := h.Upgrade(head)
		return err
	}, nil
}

func netHTTPUpgrade() func() error {
	up := ws.HTTPUpgrader{Protocol: func(p string) bool { return p == schema.Subprotocol }}
	conn := &memoryConn{}
	reader := bufio.NewReaderSize(nil, 4096)
	head := []byte(upgradeHead)
	return func() error {
		conn.in.Reset(head)
		reader.Reset(conn)
		req, err := http.ReadRequest(reader)
		if err != nil {
			return err
		}
		_, _, _, err = up.Upgrade(req, &hijacked{conn: conn, reader: reader})
		return err
	}
}

// memoryConn reads from memory and forgets what is written.
type memoryConn struct {
	net.Conn
	in bytes.Reader
}

func (c *memoryConn) Read(p []byte) (int, error)       { return c.in.Read(p) }
func (c *memoryConn) Write(p []byte) (int, error)      { return len(p), nil }
func (c *memoryConn) SetDeadline(time.Time) error      { return nil }
func (c *memoryConn) SetWriteDeadline(time.Time) error { return nil }

// hijacked is a ResponseWriter that hands out its connection as net/http does, with a new writer.
type hijacked struct {
	http.ResponseWriter
	conn   net.Conn
	reader *bufio.Reader
}

func (h *hijacked) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	return h.conn, bufio.NewReadWriter(h.reader, bufio.NewWriter(h.conn)), nil
}
