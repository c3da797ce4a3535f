package notifier

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gobwas/ws"
	"github.com/mailbell/mailbell/internal/auth"
	"github.com/mailbell/mailbell/schema"
)

// succeed starts a notifier that takes over from r, and waits for the end of r.
func (r *rig) succeed(change func(*Config)) *rig {
	r.t.Helper()
	cfg := Config{Addr: "127.0.0.1:0", Bus: []string{r.bus.addr}, Keys: r.keys.keys, Logger: quiet(), Shards: 3, Takeover: r.cfg.Takeover}
	if change != nil {
		change(&cfg)
	}
	next := startWith(r.t, cfg, r.bus, r.keys)
	if err := r.wait(); !errors.Is(err, ErrTakenOver) {
		r.t.Fatalf("the former ended with %v", err)
	}
	return next
}

func startHand(t *testing.T, change func(*Config)) *rig {
	t.Helper()
	path := filepath.Join(t.TempDir(), "take")
	r := start(t, func(c *Config) {
		c.NodeID, c.Takeover = "", path
		if change != nil {
			change(c)
		}
	})
	eventually(t, "it stands by", func() bool { _, err := os.Stat(path); return err == nil })
	return r
}

// Everything that a connection can be in the midst of goes on in the next process, and in the one after it.
func TestTakeover(t *testing.T) {
	patient := func(c *Config) {
		c.HandshakeTimeout, c.FrameTimeout, c.WriteTimeout = time.Minute, time.Minute, time.Minute
	}
	r := startHand(t, patient)
	node := r.cfg.NodeID
	idle := r.dial("idle")
	idle.subscribe("1", "idle")
	before := r.bus.publish("idle", event("idle", "INBOX", "before"))
	idle.expect(schema.FrameEvent)

	half := r.dial("half")
	half.subscribe("1", "half")
	frame := masked(textFrame(`{"type":"ping","id":77}`))
	half.conn.Write(frame[:9])

	fragments := r.dial("fragments")
	fragments.conn.Write(masked(ws.NewFrame(ws.OpText, false, []byte(`{"type":"ping",`))))

	token := r.keys.token(t, auth.Claims{Account: "boss", Accounts: []auth.Grant{{Account: "team", Mailboxes: []schema.Mailbox{"INBOX"}}}})
	boss := r.dialToken(token)
	boss.subscribe("1", "team")

	head := "GET /v1/ws HTTP/1.1\r\n" + upgradeHeaders + "Sec-WebSocket-Protocol: mailbell.v1\r\nAuthorization: Bearer " + r.keys.token(t, auth.Claims{Account: "late"}) + "\r\n\r\n"
	late, err := net.Dial("tcp", r.Addr())
	if err != nil {
		t.Fatal(err)
	}
	defer late.Close()
	io.WriteString(late, head[:40])

	ticket, err := r.bus.signer.Sign(auth.Access{Subject: "t", Grants: []auth.Grant{{Account: "t"}}}, node, 20*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	byTicket := "GET /v1/ws?ticket=" + ticket + " HTTP/1.1\r\n" + upgradeHeaders + "Sec-WebSocket-Protocol: mailbell.v1\r\n\r\n"
	r.dialRaw(byTicket)

	slow := r.dialNarrow("slow")
	slow.subscribe("1", "slow")
	big := event("slow", strings.Repeat("x", 900), "big")
	for r.backlog.Load() == 0 {
		r.bus.publish("slow", big)
	}
	eventually(t, "all six and a half are read", func() bool { return r.admit.handshakes.Load() == 1 && r.open.Load() == 6 })

	for generation := range 2 {
		r = r.succeed(patient)
		if r.cfg.NodeID != node {
			t.Fatalf("the next one calls itself %s, not %s", r.cfg.NodeID, node)
		}
		pos := r.bus.publish("idle", event("idle", "INBOX", "after"))
		if f := idle.expect(schema.FrameEvent); f.Position != pos || f.Position == before {
			t.Fatalf("generation %d: %+v", generation, f)
		}
		r.bus.publish("team", event("team", "Private", "no"))
		r.bus.publish("team", event("team", "INBOX", "yes"))
		if f := boss.expect(schema.FrameEvent); idOf(t, f.Event) != "yes" {
			t.Fatalf("%+v", f)
		}
		if got := r.request(byTicket); status(got) != 401 {
			t.Fatalf("a used ticket got %s", got)
		}
		fresh := fmt.Sprint("fresh", generation)
		r.dial(accountOf(fresh)).subscribe("1", fresh)
	}
	half.conn.Write(frame[9:])
	if f := half.expect(schema.FramePong); f.ID != 77 {
		t.Fatalf("%+v", f)
	}
	fragments.conn.Write(masked(ws.NewFrame(ws.OpContinuation, true, []byte(`"id":78}`))))
	if f := fragments.expect(schema.FramePong); f.ID != 78 {
		t.Fatalf("%+v", f)
	}
	io.WriteString(late, head[40:])
	if got := (&client{t: t, conn: late, r: late}).head(); status(got) != 101 {
		t.Fatalf("%s", got)
	}
	boss.send(`{"type":"subscribe","id":5,"account":"boss"}`)
	boss.expect(schema.FrameSubscribed)
	boss.send(`{"type":"subscribe","id":6,"account":"idle"}`)
	boss.expect(schema.FrameErr)
	// The slow one reads at last: whole frames, in order.
	n := r.bus.log.head(schema.PartitionOf("slow", 8)).Offset
	for last := int64(0); last < n; {
		f := slow.next()
		if f.Position.Offset <= last {
			t.Fatalf("%d after %d", f.Position.Offset, last)
		}
		last = f.Position.Offset
	}
	if _, err := os.Stat(r.cfg.Takeover); err != nil {
		t.Error(err)
	}
	if err := r.stop(); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(r.cfg.Takeover); err == nil {
		t.Error("the socket is still there")
	}
}

// A subscribe that waits for an owner is answered by the next process.
func TestTakeoverOfPendingSubscribes(t *testing.T) {
	r := startHand(t, nil)
	c := r.dial("a")
	c.silent()
	r.bus.own(2)
	eventually(t, "nobody owns anything", func() bool { return r.ownedParts() == 0 })
	c.send(`{"type":"subscribe","id":1,"account":"a"}`)
	c.send(`{"type":"unsubscribe","id":2,"account":"a"}`)
	c.send(`{"type":"subscribe","id":3,"account":"a"}`)
	eventually(t, "it waits", func() bool { return r.pendingSubscribes() == 1 })
	c.expect(schema.FrameErr)
	c.expect(schema.FrameUnsubscribed)
	done := make(chan *rig)
	go func() { done <- r.succeed(nil) }()
	eventually(t, "the next one is linked", func() bool { r.bus.mu.Lock(); defer r.bus.mu.Unlock(); return len(r.bus.links) == 2 })
	r.bus.own(3, 0, 1, 2, 3, 4, 5, 6, 7)
	<-done
	if f := c.expect(schema.FrameSubscribed); f.ID != 3 {
		t.Fatalf("%+v", f)
	}
	r.bus.publish("a", event("a", "INBOX", "e"))
	c.expect(schema.FrameEvent)
}

// ownedParts and pendingSubscribes ask the hub.
func (r *rig) ownedParts() (n int) {
	r.inHub(func() {
		for i := range r.hub.core.parts {
			if r.hub.core.parts[i].owner != 0 {
				n++
			}
		}
	})
	return n
}

func (r *rig) pendingSubscribes() (n int) {
	r.inHub(func() { n = len(r.hub.core.pending) })
	return n
}

func (r *rig) inHub(fn func()) {
	done := make(chan struct{})
	r.hub.calls <- func() { fn(); close(done) }
	<-done
}

// A successor that fails at any step leaves the former as it was.
func TestTakeoverFails(t *testing.T) {
	r := startHand(t, nil)
	c := r.dial("a")
	c.subscribe("1", "a")
	dial := func() handConn {
		conn, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: r.cfg.Takeover, Net: "unix"})
		if err != nil {
			t.Fatal(err)
		}
		conn.SetDeadline(time.Now().Add(patience))
		return handConn{conn}
	}
	hello := func(version uint64) []byte {
		var f fields
		f.num(1, version)
		return f
	}
	steps := []struct {
		name string
		do   func(handConn)
	}{
		{"says nothing", func(handConn) {}},
		{"says no", func(c handConn) { c.send(handNo, []byte("not today")) }},
		{"a wrong message", func(c handConn) { c.send(handGo, nil) }},
		{"another version", func(c handConn) {
			c.send(handHello, hello(99))
			if _, _, err := c.expect(handWelcome); err == nil || !strings.Contains(err.Error(), "version 99") {
				t.Errorf("%v", err)
			}
		}},
		{"leaves after the welcome", func(c handConn) {
			c.send(handHello, hello(handVersion))
			_, fds, err := c.expect(handWelcome)
			if err != nil || len(fds) != 1 {
				t.Errorf("%v %v", fds, err)
			}
			closeDescriptors(fds)
		}},
		{"leaves with all it got", func(c handConn) {
			c.send(handHello, hello(handVersion))
			_, fds, _ := c.expect(handWelcome)
			closeDescriptors(fds)
			c.send(handTake, nil)
			for kind := handTake; kind != handEnd; {
				var err error
				if kind, _, fds, err = c.receive(); err != nil {
					t.Errorf("%v", err)
					break
				}
				closeDescriptors(fds)
			}
		}},
	}
	for _, step := range steps {
		t.Run(step.name, func(t *testing.T) {
			conn := dial()
			step.do(conn)
			conn.Close()
			r.bus.publish("a", event("a", "INBOX", "e"))
			c.expect(schema.FrameEvent)
			c.silent()
			other := r.dial("b")
			other.subscribe("1", "b")
			other.conn.Close()
		})
	}
	for name, change := range map[string]func(*Config){
		"another name":     func(c *Config) { c.NodeID = "other" },
		"another port":     func(c *Config) { c.Addr = "127.0.0.1:1" },
		"too little room":  func(c *Config) { c.MaxConnections = 1 },
		"not that version": nil,
	} {
		if change == nil {
			continue
		}
		r.dial("room").silent()
		cfg := Config{Addr: "127.0.0.1:0", Bus: []string{r.bus.addr}, Keys: r.keys.keys, Logger: quiet(), Takeover: r.cfg.Takeover}
		change(&cfg)
		if _, err := New(cfg); err == nil || !strings.Contains(err.Error(), "take over") {
			t.Errorf("%s: %v", name, err)
		}
	}
	r.succeed(nil)
	r.bus.publish("a", event("a", "INBOX", "e"))
	c.expect(schema.FrameEvent)
}

// Without anybody on the path a notifier starts as any other, also where one that crashed has left its socket.
func TestTakeoverOfNobody(t *testing.T) {
	path := filepath.Join(t.TempDir(), "take")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	l.Close()
	r := start(t, func(c *Config) { c.Takeover = path })
	r.dial("a").subscribe("1", "a")
	if f, err := callFormer(Config{Takeover: path + "x"}); f != nil || err != nil {
		t.Error(f, err)
	}
}

// Two handovers between processes, with events all the while. MAILBELL_TAKEOVER=10000 is the long one.
func TestTakeoverUnderLoad(t *testing.T) {
	n := 500
	if v := os.Getenv("MAILBELL_TAKEOVER"); v != "" {
		n, _ = strconv.Atoi(v)
	}
	if openFiles() < n+500 {
		t.Skipf("%d connections, and %d open files are allowed", n, openFiles())
	}
	bus := newFakeBus(t, "b1", 8)
	keys := newKeyring(t)
	env := "MAILBELL_TEST_TAKEOVER=" + filepath.Join(t.TempDir(), "take")
	first := spawnNode(t, bus, keys, env)
	var got, doubled, lost atomic.Int64
	var readers sync.WaitGroup
	conns := make([]net.Conn, n)
	last := make([]atomic.Int64, n) // offsets
	name := func(i int) string { return fmt.Sprintf("user%05d", i) }
	for i := range n {
		c := first.dial(name(i))
		conns[i] = c.conn
		readers.Go(func() {
			for {
				f, err := readFrame(c.r)
				if err != nil {
					if !errors.Is(err, net.ErrClosed) {
						lost.Add(1)
						t.Errorf("client %d: %v", i, err)
					}
					return
				}
				if f.Header.OpCode == ws.OpPing {
					_ = ws.WriteFrame(c.conn, ws.MaskFrame(ws.NewPongFrame(nil))) // a socket that is lost shows when it is read
					continue
				}
				s, err := schema.DecodeServerFrame(f.Payload)
				if err != nil || s.Type != schema.FrameEvent {
					t.Errorf("client %d: %s", i, f.Payload)
					return
				}
				if s.Position.Offset <= last[i].Load() {
					doubled.Add(1)
					continue
				}
				last[i].Store(s.Position.Offset)
				got.Add(1)
			}
		})
	}
	var sent atomic.Int64
	ctx, stop := context.WithCancel(context.Background())
	var publisher sync.WaitGroup
	publisher.Go(func() {
		rng := rand.New(rand.NewPCG(1, 2))
		for ctx.Err() == nil {
			for range 10 {
				a := name(rng.IntN(n))
				bus.publish(a, event(a, "INBOX", "e"))
				sent.Add(1)
			}
			time.Sleep(2 * time.Millisecond) // the load's pace
		}
	})
	flows := func(more int64) {
		from := got.Load()
		eventually(t, "events flow", func() bool { return got.Load() > from+more })
	}
	flows(int64(max(1000, 2*n)))
	node := first
	for range 2 {
		began := time.Now()
		next := spawnNode(t, bus, keys, env)
		<-node.ended
		t.Logf("from the start of the next process to the end of the former: %v", time.Since(began))
		node = next
		flows(int64(max(1000, 2*n)))
	}
	stop()
	publisher.Wait()
	eventually(t, "every event has come", func() bool { return got.Load() == sent.Load() })
	for _, c := range conns {
		c.Close()
	}
	readers.Wait()
	if doubled.Load() > 0 {
		t.Errorf("%d events came twice over one connection", doubled.Load())
	}
	t.Logf("%d connections, %d events sent, %d received, %d doubled, %d disconnected", n, sent.Load(), got.Load(), doubled.Load(), lost.Load())
}

// dial opens a WebSocket at the node, subscribed to its account.
func (p *node) dial(account string) *client {
	p.t.Helper()
	conn, err := net.Dial("tcp", "127.0.0.1:"+strconv.Itoa(p.port))
	if err != nil {
		p.t.Fatal(err)
	}
	c := &client{t: p.t, conn: conn, r: conn}
	io.WriteString(conn, "GET /v1/ws HTTP/1.1\r\n"+upgradeHeaders+"Sec-WebSocket-Protocol: mailbell.v1\r\nAuthorization: Bearer "+p.keys.token(p.t, auth.Claims{Account: accountOf(account)})+"\r\n\r\n")
	if got := c.head(); status(got) != 101 {
		p.t.Fatalf("%s", got)
	}
	c.subscribe("1", account)
	conn.SetDeadline(time.Time{})
	return c
}

func FuzzTakeoverRecords(f *testing.F) {
	m := movedConn{state: slotOpen, subject: "a", peer: "\x7f\x00\x00\x01", subs: []movedSub{{account: "a", floor: -1, filtered: true, boxes: []schema.Mailbox{"INBOX"}}},
		grants: []auth.Grant{{Account: "b", Mailboxes: []schema.Mailbox{}}}, in: []byte("in"), out: []byte("\x01\x81\x01x"), partial: 1, expires: 3}
	var record fields
	m.append(&record)
	f.Add([]byte(record))
	f.Add([]byte("\x0f"))
	f.Fuzz(func(t *testing.T, b []byte) {
		got, err := readConn(b)
		if err == nil {
			var again fields
			got.append(&again)
			if _, err := readConn(again); err != nil {
				t.Errorf("what was read can't be read again: %v", err)
			}
		}
		readOp(b)
		readPart(b)
	})
}
