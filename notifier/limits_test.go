package notifier

import (
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/gobwas/ws"
	"github.com/mailbell/mailbell/schema"
	"github.com/prometheus/client_golang/prometheus"
)

// Each limit has a metric that says why: what is beyond the limit counts there. Descriptors that run out are in
// TestDescriptorsRunOut, keys that are waited for in TestInventedKeys.
func TestLimitsAreCounted(t *testing.T) {
	dial := func(r *rig, account string) { r.dial(accountOf(account)) }
	send := func(frame []byte, times int) func(*rig) {
		return func(r *rig) { r.dial("a").conn.Write([]byte(strings.Repeat(string(frame), times))) }
	}
	for _, tt := range []struct {
		name    string
		limit   func(*Config)
		beyond  func(*rig)
		counter func(*metrics) prometheus.Counter
	}{
		{"perAddress", func(c *Config) { c.MaxPerAddress = 1 },
			func(r *rig) { dial(r, "a"); r.request(r.head("b")) },
			func(m *metrics) prometheus.Counter { return m.handshakes.WithLabelValues("perAddress") }},
		{"perAccount", func(c *Config) { c.MaxPerAccount = 1 },
			func(r *rig) { dial(r, "a"); r.request(r.head("a")) },
			func(m *metrics) prometheus.Counter { return m.handshakes.WithLabelValues("perAccount") }},
		{"full", func(c *Config) { c.MaxConnections = 1 },
			func(r *rig) { dial(r, "a"); r.request(r.head("b")) },
			func(m *metrics) prometheus.Counter { return m.handshakes.WithLabelValues("full") }},
		{"full beyond what is answered", func(c *Config) { c.MaxConnections, c.CloseTimeout = 1, time.Hour },
			func(r *rig) { hold(r, overflow+10, "") },
			func(m *metrics) prometheus.Counter { return m.pauses.WithLabelValues(pauseFull) }},
		{"busy", func(c *Config) { c.MaxHandshakes, c.HandshakeTimeout = 10, time.Hour },
			func(r *rig) { hold(r, 30, "") },
			func(m *metrics) prometheus.Counter { return m.handshakes.WithLabelValues("busy") }},
		{"handshakes", func(c *Config) { c.MaxHandshakes, c.HandshakeTimeout = 10, time.Hour },
			func(r *rig) { hold(r, 30, "") },
			func(m *metrics) prometheus.Counter { return m.pauses.WithLabelValues(pauseHandshakes) }},
		{"accept rate", func(c *Config) { c.AcceptRate = 20 },
			func(r *rig) { hold(r, 10, "") },
			func(m *metrics) prometheus.Counter { return m.pauses.WithLabelValues(pauseRate) }},
		{"headTooLarge", nil,
			func(r *rig) { hold(r, 1, "GET /v1/ws HTTP/1.1\r\nX: "+strings.Repeat("x", maxHead)) },
			func(m *metrics) prometheus.Counter { return m.handshakes.WithLabelValues("headTooLarge") }},
		{"timeout", func(c *Config) { c.HandshakeTimeout = 100 * time.Millisecond },
			func(r *rig) { hold(r, 1, "GET ") },
			func(m *metrics) prometheus.Counter { return m.handshakes.WithLabelValues("timeout") }},
		{"tooMany", func(c *Config) { c.MaxSubscriptions = 1 },
			send(masked(textFrame(`{"type":"subscribe","id":1,"account":"a"}`)), 3),
			func(m *metrics) prometheus.Counter { return m.errors.WithLabelValues(string(schema.CodeTooMany)) }},
		{"too_big", nil, send(masked(textFrame(strings.Repeat("x", 4097))), 1),
			func(m *metrics) prometheus.Counter { return m.closes.WithLabelValues("too_big") }},
		{"rate", func(c *Config) { c.FrameBurst = 5 }, send(masked(ws.NewPingFrame(nil)), 20),
			func(m *metrics) prometheus.Counter { return m.closes.WithLabelValues("rate") }},
		{"half_frame", func(c *Config) { c.FrameTimeout = 100 * time.Millisecond }, send(masked(textFrame("xxx"))[:5], 1),
			func(m *metrics) prometheus.Counter { return m.closes.WithLabelValues("half_frame") }},
		{"silent", func(c *Config) { c.PingInterval, c.PongTimeout = 100*time.Millisecond, 100*time.Millisecond }, send(nil, 0),
			func(m *metrics) prometheus.Counter { return m.closes.WithLabelValues("silent") }},
		{"stalled", func(c *Config) { c.WriteTimeout = 100 * time.Millisecond }, pour,
			func(m *metrics) prometheus.Counter { return m.closes.WithLabelValues("stalled") }},
		{"missed", func(c *Config) { c.Backlog, c.WriteTimeout = 2<<10, time.Hour },
			func(r *rig) {
				slow := pourInto(r)
				eventually(r.t, "events are dropped", func() bool { return r.metrics.allDropped() > 0 })
				go io.Copy(io.Discard, slow.conn)
			},
			func(m *metrics) prometheus.Counter { return m.missed.WithLabelValues(string(schema.MissedSlow)) }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := start(t, tt.limit)
			tt.beyond(r)
			eventually(t, "it is counted", func() bool { return counterOf(t, tt.counter(r.metrics)) > 0 })
		})
	}
}

// hold opens connections that say no more than this, and keeps them.
func hold(r *rig, n int, say string) {
	for range n {
		io.WriteString(mustDial(r.t, r.Addr()), say)
	}
}

func pour(r *rig) { pourInto(r) }

// pourInto publishes to a client that does not read until its socket is full, and a little more.
func pourInto(r *rig) *client {
	slow := r.dialNarrow("a")
	slow.subscribe("1", "a")
	big := event("a", strings.Repeat("m", 1000), "e")
	for r.backlog.Load() == 0 && r.Connections() > 0 {
		r.bus.publish("a", big)
	}
	for range 10 {
		r.bus.publish("a", big)
	}
	return slow
}

// What can't be is refused before anything starts.
func TestConfigRefuses(t *testing.T) {
	for want, change := range map[string]func(*Config){
		"frames a second":           func(c *Config) { c.FrameRate = 1001 },
		"1048577 at once":           func(c *Config) { c.FrameBurst = 1<<20 + 1 },
		"must be positive":          func(c *Config) { c.FrameRate = -1 },
		"a frame limit of -1":       func(c *Config) { c.MaxFrame = -1 },
		"a backlog of -1":           func(c *Config) { c.Backlog = -1 },
		"a handshake timeout of":    func(c *Config) { c.HandshakeTimeout = -1 },
		"a frame timeout of 1ms":    func(c *Config) { c.FrameTimeout = time.Millisecond },
		"a write timeout of":        func(c *Config) { c.WriteTimeout = -time.Second },
		"a close timeout of":        func(c *Config) { c.CloseTimeout = time.Millisecond },
		"subscriptions per connect": func(c *Config) { c.MaxSubscriptions = 201 },
	} {
		c := Config{Bus: []string{"127.0.0.1:1"}, Keys: newKeyring(t).keys}
		if err := c.Validate(); err != nil {
			t.Fatal(err)
		}
		change(&c)
		if err := c.Validate(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
	c := Config{Bus: []string{"127.0.0.1:1"}, Keys: newKeyring(t).keys, Limits: Limits{
		MaxConnections: -1, MaxPerAddress: -1, MaxPerAccount: -1, MaxHandshakes: -1, AcceptRate: -1, MaxSubscriptions: -1, TotalBacklog: -1}}
	if err := c.Validate(); err != nil {
		t.Error(err)
	}
}

// Those who are turned away together are told to come back one after the other, as fast as there is room.
func TestTurnedAwayTakeTurns(t *testing.T) {
	retryAfter := func(a *admission, r *refusal) (n int) {
		_, after, ok := strings.Cut(string(a.answer(r)), "Retry-After: ")
		if !ok {
			return 0
		}
		fmt.Sscan(after, &n)
		return n
	}
	a := newAdmission(Limits{AcceptRate: 1000}.withDefaults(), func() bool { return false })
	first := retryAfter(a, refuseDrain)
	a.free.Store(10)
	for range 99 {
		retryAfter(a, refuseDrain)
	}
	last := retryAfter(a, refuseDrain)
	if first != refuseDrain.retry || last < first+9 || last > first+10 {
		t.Errorf("the first is told %d s, the one after a hundred at 10 a second %d s", first, last)
	}
	for range 10_000 {
		last = retryAfter(a, refuseFull)
	}
	if last != longestRetry {
		t.Errorf("told to wait %d s, %d are the most", last, longestRetry)
	}
	if got := retryAfter(a, refuseAccount); got != refuseAccount.retry {
		t.Errorf("a limit of the account: %d s", got)
	}
	if got := retryAfter(a, refusePath); got != 0 {
		t.Errorf("a wrong path: %d s", got)
	}
}
