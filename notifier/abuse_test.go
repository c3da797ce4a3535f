package notifier

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gobwas/ws"
	"github.com/mailbell/mailbell/internal/auth"
	"github.com/mailbell/mailbell/schema"
	"golang.org/x/sys/unix"
)

// reset closes a connection with a reset instead of a FIN.
func reset(c net.Conn) {
	if tcp, ok := c.(*net.TCPConn); ok {
		tcp.SetLinger(0)
	}
	c.Close()
}

// honest is a client that must not notice what others do.
func (r *rig) honest(name string) *client {
	r.t.Helper()
	c := r.dial(accountOf(name))
	c.subscribe("1", name)
	return c
}

// hears publishes an event, and fails unless it comes.
func (r *rig) hears(c *client, name string) {
	r.t.Helper()
	r.bus.publish(name, event(name, "INBOX", "e"))
	c.expect(schema.FrameEvent)
}

// Connections that say nothing, or almost nothing, take all the room for handshakes: who has something to say gets in
// all the same, long before they time out.
func TestHalfOpenConnections(t *testing.T) {
	for name, say := range map[string]string{
		"nothing":             "",
		"half a request line": "GET /v1/",
		"half a header":       "GET /v1/ws HTTP/1.1\r\nHost: x\r\nX-Slow: ",
	} {
		t.Run(name, func(t *testing.T) {
			r := start(t, func(c *Config) { c.MaxHandshakes, c.HandshakeTimeout = 40, time.Hour })
			good := r.honest("good")
			for range 200 {
				c, err := net.Dial("tcp", r.Addr())
				if err != nil {
					t.Fatal(err)
				}
				defer c.Close()
				io.WriteString(c, say)
			}
			for i := range 10 {
				r.hears(r.honest(fmt.Sprint("other", i)), fmt.Sprint("other", i))
			}
			r.hears(good, "good")
			if r.admit.handshakes.Load() > 40 {
				t.Errorf("%d handshakes at a time", r.admit.handshakes.Load())
			}
		})
	}
}

// One byte at a time does not keep a handshake alive.
func TestDribble(t *testing.T) {
	r := start(t, func(c *Config) { c.HandshakeTimeout = 300 * time.Millisecond })
	c, err := net.Dial("tcp", r.Addr())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	began := time.Now()
	for _, b := range []byte(strings.Repeat("GET ", 1000)) {
		if _, err := c.Write([]byte{b}); err != nil || r.admit.handshakes.Load() == 0 && time.Since(began) > time.Second {
			break
		}
		time.Sleep(10 * time.Millisecond) // the attack's pace
	}
	eventually(t, "it is cut off", func() bool { return r.admit.sockets.Load() == 0 })
	if time.Since(began) > 8*time.Second {
		t.Errorf("after %v", time.Since(began))
	}
}

// Connect and reset as fast as possible, before and within the handshake and after it.
func TestResets(t *testing.T) {
	r := start(t, func(c *Config) { c.MaxPerAccount = -1 })
	good := r.honest("good")
	head := r.head("a")
	var wg sync.WaitGroup
	for worker := range 8 {
		wg.Go(func() {
			for i := range 200 {
				c, err := net.Dial("tcp", r.Addr())
				if err != nil {
					t.Errorf("%v", err)
					return
				}
				switch (worker + i) % 4 {
				case 1:
					io.WriteString(c, head[:len(head)/2])
				case 2:
					io.WriteString(c, head)
				case 3:
					io.WriteString(c, head)
					(&client{t: t, conn: c, r: c}).head()
					c.Write(masked(textFrame(`{"type":"subscribe","id":1,"account":"a"}`)))
				}
				reset(c)
			}
		})
	}
	for range 50 {
		r.hears(good, "good")
	}
	wg.Wait()
	eventually(t, "only the honest one is left", func() bool { return r.admit.sockets.Load() == 1 && r.admit.handshakes.Load() == 0 })
	eventually(t, "and its subscription", func() bool { _, _, wants := r.accounts.counts(); return wants == 1 })
	r.hears(good, "good")
}

// What over-limit clients are told reaches them, also when their request is on its way.
func TestTurnedAway(t *testing.T) {
	r := start(t, func(c *Config) { c.MaxPerAddress = 1; c.CloseTimeout = 300 * time.Millisecond })
	good := r.honest("good")
	for range 20 {
		c, err := net.Dial("tcp", r.Addr())
		if err != nil {
			t.Fatal(err)
		}
		io.WriteString(c, strings.Repeat("GET /v1/ws HTTP/1.1\r\n", 100))
		c.SetDeadline(time.Now().Add(patience))
		b, err := io.ReadAll(c)
		if status(string(b)) != 429 || !strings.Contains(string(b), "Retry-After: 30") {
			t.Fatalf("%q %v", b, err)
		}
		c.Close()
	}
	eventually(t, "none of them is left", func() bool { return r.admit.sockets.Load() == 1 && r.lingering.Load() == 0 })
	r.hears(good, "good")
}

// Refused clients that do not go away hold no more than a bounded number of descriptors.
func TestLingerers(t *testing.T) {
	r := start(t, func(c *Config) { c.CloseTimeout = time.Hour })
	good := r.honest("good")
	for range maxLingers + 200 {
		c, err := net.Dial("tcp", r.Addr())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		io.WriteString(c, "POST / HTTP/1.1\r\nHost: x\r\n\r\n")
		(&client{t: t, conn: c, r: c}).head()
	}
	eventually(t, "the rest is closed", func() bool { return r.admit.sockets.Load() <= maxLingers+1 })
	r.hears(good, "good")
}

// Thousands of subscribes, and thousands of pings a second, cost their sender the connection and nobody else anything.
func TestFloods(t *testing.T) {
	r := start(t, nil)
	good := r.honest("good")
	for name, frame := range map[string][]byte{
		"pings":      masked(ws.NewPingFrame([]byte("x"))),
		"subscribes": masked(textFrame(`{"type":"subscribe","id":1,"account":"bad"}`)),
		"errors":     masked(textFrame(`{"type":"subscribe","id":1,"account":"good"}`)),
		"nonsense":   masked(textFrame(`{{{`)),
		"fragments":  masked(ws.NewFrame(ws.OpText, false, []byte(`{`)))[:7],
	} {
		t.Run(name, func(t *testing.T) {
			c := r.dial("bad")
			go c.conn.Write(bytes.Repeat(frame, 10000))
			if code, reason := c.closed(); code != ws.StatusPolicyViolation && code != ws.StatusProtocolError {
				t.Errorf("%d %s", code, reason)
			}
			c.conn.Close()
			r.hears(good, "good")
		})
	}
	eventually(t, "only the honest one is left", func() bool { return r.admit.sockets.Load() == 1 })
	eventually(t, "and its subscription", func() bool { _, _, wants := r.accounts.counts(); return wants == 1 })
}

// The bucket refills at its rate: after a restart, so many get in each second, and all in the end.
func TestAdmissionRefills(t *testing.T) {
	const clients, rate = 250, 100
	r := start(t, func(c *Config) { c.AcceptRate = rate })
	began := time.Now()
	var wg sync.WaitGroup
	for i := range clients {
		token := r.keys.token(t, auth.Claims{Account: accountOf(fmt.Sprint("a", i))})
		wg.Go(func() {
			c, err := r.tryDial(token)
			if err != nil {
				t.Errorf("%v", err)
				return
			}
			c.conn.Close()
		})
	}
	wg.Wait()
	took := time.Since(began).Seconds()
	least := float64(clients-rate/4) / rate // the burst is a quarter
	if took < 0.9*least || took > 3*least+1 {
		t.Errorf("%d clients at %d a second took %.2f s, want %.2f", clients, rate, took, least)
	}
	// An idle bucket holds no more than the burst.
	a := newAdmission(Limits{AcceptRate: rate}.withDefaults(), func() bool { return false })
	now, got := time.Now().Add(time.Hour), 0
	for {
		if reason, _ := a.ask(now); reason != "" {
			break
		}
		a.accepted()
		got++
	}
	if got != rate/4 {
		t.Errorf("a burst of %d, want %d", got, rate/4)
	}
}

// Without descriptors left the notifier waits, without spinning, and goes on when some come back.
func TestDescriptorsRunOut(t *testing.T) {
	bus := newFakeBus(t, "b1", 8)
	p := spawnNode(t, bus, newKeyring(t), "MAILBELL_TEST_FILES=80")
	good := p.dial("good")
	var all []net.Conn
	for range 150 {
		c, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", p.port))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		all = append(all, c)
	}
	eventually(t, "no descriptor is left", func() bool {
		entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", p.pid))
		return err == nil && len(entries) >= 80
	})
	before := p.cpu()
	time.Sleep(time.Second) // the time that is measured
	if used := p.cpu() - before; used > 300*time.Millisecond {
		t.Errorf("%v of CPU in a second without descriptors", used)
	}
	bus.publish("good", event("good", "INBOX", "e"))
	good.expect(schema.FrameEvent)
	for _, c := range all {
		c.Close()
	}
	p.dial("later")
}

// cpu is what the process has used.
func (p *node) cpu() time.Duration {
	p.t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.pid))
	if err != nil {
		p.t.Fatal(err)
	}
	f := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
	var user, system int64
	fmt.Sscan(f[11], &user)
	fmt.Sscan(f[12], &system)
	return time.Duration(user+system) * 10 * time.Millisecond
}

// limitFiles is for a process of a test's own.
func limitFiles(n uint64) error {
	return unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: n, Max: n})
}
