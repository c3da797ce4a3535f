package notifier

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gobwas/ws"
	"github.com/mailbell/mailbell/internal/auth"
	"github.com/mailbell/mailbell/schema"
	"golang.org/x/sys/unix"
)

// slotOf runs fn for the only connection of the account, with its shard's lock.
func (r *rig) slotOf(account string, fn func(sh *shard, i uint32, c *slot)) {
	r.t.Helper()
	id := r.accounts.wanted(account)
	for _, sh := range r.shards {
		sh.enter()
		if n := sh.subs.first(id); n != 0 {
			i := sh.subs.all.at(n).slot
			fn(sh, i, sh.slots.all.at(i))
		}
		sh.leave()
	}
}

// Who does not read for a while, and listens only, is not taken for dead when a ping is due meanwhile.
func TestSlowIsNotSilent(t *testing.T) {
	r := start(t, func(c *Config) { c.PingInterval, c.WriteTimeout = time.Hour, time.Hour })
	const a = "alice@example.com"
	slow := r.dialNarrow(a)
	slow.subscribe("1", a)
	var last schema.Position
	for r.backlog.Load() == 0 {
		last = r.bus.publish(a, event(a, strings.Repeat("m", 1000), "e"))
	}
	due := func() {
		r.slotOf(a, func(sh *shard, i uint32, c *slot) {
			c.quiet = 1
			sh.overdue(i, c, sh.tick())
		})
	}
	due()
	due() // and the time for a pong has passed
	for f := slow.next(); f.Position != last; {
		f = slow.next()
	}
	eventually(t, "nothing is parked", func() bool { return r.backlog.Load() == 0 })
	due()
	if f, err := slow.read(); err != nil || f.Header.OpCode != ws.OpPing {
		t.Fatalf("%+v %v", f, err)
	}
	slow.conn.Write(masked(ws.NewPongFrame(nil)))
	slow.silent()
}

// However many do not read, all of them together have no more parked than they may, and each is told, or ends.
func TestTotalBacklog(t *testing.T) {
	const total, clients = 4 << 10, 12
	r := start(t, func(c *Config) { c.TotalBacklog, c.WriteTimeout = total, time.Hour })
	token := func(i int) string {
		return r.keys.token(t, auth.Claims{Account: accountOf(fmt.Sprint("a", i)), Accounts: []auth.Grant{{Account: "shared"}}})
	}
	var slow []*client
	for i := range clients {
		c, err := r.dialBy(token(i), narrow())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.conn.Close() })
		c.subscribe("1", "shared")
		slow = append(slow, c)
	}
	quick := r.dialToken(token(clients))
	quick.subscribe("1", "shared")
	var last schema.Position
	for n := 0; r.metrics.allDropped() < 50; n++ {
		if n == 20000 {
			t.Fatal("nothing is ever dropped")
		}
		last = r.bus.publish("shared", event("shared", strings.Repeat("m", 1500), "e"))
		if f := quick.expect(schema.FrameEvent); f.Position != last {
			t.Fatalf("%+v", f)
		}
		if parked := r.backlog.Load(); parked > total {
			t.Fatalf("%d bytes are parked, %d may be", parked, total)
		}
	}
	ended := 0
	for i, c := range slow {
		for {
			f, err := c.read()
			if err != nil {
				if ne, ok := errors.AsType[net.Error](err); ok && ne.Timeout() {
					t.Fatalf("client %d was not told", i)
				}
				ended++
				break
			}
			s, err := schema.DecodeServerFrame(f.Payload)
			if err != nil {
				t.Fatal(err)
			}
			if s.Position == last {
				break
			}
		}
	}
	if unread := counterOf(t, r.metrics.closes.WithLabelValues(endUnread)); ended == clients || int(unread) != ended {
		t.Errorf("%d of %d ended, %v are counted", ended, clients, unread)
	}
}

// Answers count in the total as well: who does not read them is closed when there is no room for one more.
func TestAnswersInTotal(t *testing.T) {
	r := start(t, func(c *Config) { c.FrameRate, c.FrameBurst, c.Backlog, c.TotalBacklog = 1000, 1<<20, 1<<20, 1<<10 })
	c := r.dialNarrow("alice@example.com")
	c.conn.SetWriteDeadline(time.Now().Add(patience))
	many := []byte(strings.Repeat(string(masked(ws.NewPingFrame(make([]byte, 125)))), 100))
	for {
		if _, err := c.conn.Write(many); err != nil {
			break
		}
		if parked := r.backlog.Load(); parked > 1<<10 {
			t.Fatalf("%d bytes are parked", parked)
		}
	}
	eventually(t, "it is closed", func() bool { return r.admit.sockets.Load() == 0 })
	if counterOf(t, r.metrics.closes.WithLabelValues(endUnread)) != 1 {
		t.Error("not counted")
	}
}

// Tokens with invented keys keep no more than half of the workers waiting: the others are answered at once, and whoever
// needs no key gets in.
func TestInventedKeys(t *testing.T) {
	keys := slowKeys{make(chan struct{}, 100), make(chan struct{})}
	ring := newKeyring(t)
	bus := newFakeBus(t, "b1", 4)
	r := startWith(t, Config{NodeID: "n1", Addr: "127.0.0.1:0", Bus: []string{bus.addr}, Keys: ring.keys, Logger: quiet(), Workers: 8}, bus, ring,
		func(s *Server) { s.gate.keys = keys })
	for range 4 {
		conn := mustDial(t, r.Addr())
		io.WriteString(conn, r.head("a"))
		<-keys.asked
	}
	for range 20 {
		got := r.request(r.head("a"))
		if status(got) != 503 || !strings.Contains(got, "Retry-After: ") || !strings.Contains(got, "keysBusy") {
			t.Fatalf("%s", got)
		}
	}
	ticket, err := r.bus.signer.Sign(auth.Access{Subject: "t", Grants: []auth.Grant{{Account: "t"}}}, "n1", 20*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	r.dialRaw("GET /v1/ws?ticket="+ticket+" HTTP/1.1\r\n"+upgradeHeaders+"Sec-WebSocket-Protocol: mailbell.v1\r\n\r\n").subscribe("1", "t")
	close(keys.release)
}

// Whose key does not come in time has done nothing wrong.
func TestKeyDoesNotCome(t *testing.T) {
	keys := slowKeys{make(chan struct{}, 100), make(chan struct{})}
	ring := newKeyring(t)
	bus := newFakeBus(t, "b1", 4)
	r := startWith(t, Config{NodeID: "n1", Addr: "127.0.0.1:0", Bus: []string{bus.addr}, Keys: ring.keys, Logger: quiet(), HandshakeTimeout: 200 * time.Millisecond}, bus, ring,
		func(s *Server) { s.gate.keys = keys })
	if got := r.request(r.head("a")); status(got) != 503 || !strings.Contains(got, "Retry-After: ") {
		t.Fatalf("%s", got)
	}
	close(keys.release)
}

// What followed the request of a connection that was handed over in mid handshake does not change while it is answered,
// not even when the answers have to be parked.
func TestTakenOverWhileChecking(t *testing.T) {
	s, shards := newBench(t, 1)
	sh := shards[0]
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(pair[1])
	unix.SetsockoptInt(pair[0], unix.SOL_SOCKET, unix.SO_SNDBUF, 1) // the least there is
	const frames = 20
	in := []byte("GET /v1/ws HTTP/1.1\r\n" + upgradeHeaders + "\r\n")
	for id := range frames {
		in = append(in, masked(textFrame(fmt.Sprintf(`{"type":"what","id":%d}`, id+1)))...)
	}
	in = append(make([]byte, 0, 1<<10), in...) // of the pool's sizes
	sh.settle(&movedConn{fd: pair[0], state: slotChecking, peer: "\x7f\x00\x00\x01", in: in})
	j, ok := s.pool.next()
	if !ok {
		t.Fatal("nobody checks its token")
	}
	sh.finishJob(j, []byte("HTTP/1.1 101\r\n\r\n"), auth.Access{Subject: "a", Grants: []auth.Grant{{Account: "a"}}}, nil)
	if s.backlog.Load() == 0 {
		t.Fatal("no answer had to be parked")
	}
	var out []byte
	buf := make([]byte, 64<<10)
	for drained := false; !drained; {
		n, err := readSocket(int32(pair[1]), buf)
		out = append(out, buf[:n]...)
		drained = err == nil && n == 0 || err != nil && s.backlog.Load() == 0
		sh.event(j.h, pollOut&^pollIn)
	}
	for id := range frames {
		if !strings.Contains(string(out), fmt.Sprintf(`"id":%d,"code":"badRequest"`, id+1)) {
			t.Errorf("frame %d was not answered: %q", id+1, out)
			break
		}
	}
	sh.enter()
	defer sh.leave()
	if c := sh.slots.of(j.h); c == nil || c.state != slotOpen {
		t.Error("it has been closed")
	} else {
		sh.drop(j.h.index(), c, endStop)
	}
}

// A shard lets others in while it sends one event to many; whoever leaves meanwhile takes nothing from those behind.
func TestDeliverTakesTurns(t *testing.T) {
	const clients, events = 3000, 30
	_, shards := newBench(t, 1)
	sh := shards[0]
	deaf := deafSocket(t)
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(pair[0])
	defer unix.Close(pair[1])
	handles := []handle{sh.fill(pair[0], "shared")} // the list's last
	for range clients {
		handles = append(handles, sh.fill(deaf, "shared"))
	}
	id := sh.accounts.wanted("shared")
	var wg sync.WaitGroup
	wg.Go(func() {
		for k := 1; k < len(handles); k += 2 {
			sh.enter()
			c := sh.slots.of(handles[k])
			sh.unsubscribe(c, c.subs)
			sh.leave()
		}
	})
	for offset := range int64(events) {
		sh.deliver([]delivery{{account: id, offset: offset, frame: []byte("frame")}})
	}
	wg.Wait()
	got := 0
	for buf := make([]byte, 100); ; got++ {
		if n, err := readSocket(int32(pair[1]), buf); err != nil || n == 0 {
			break
		}
	}
	if got != events {
		t.Errorf("the last of the list got %d events, want %d", got, events)
	}
	for k := 2; k < len(handles); k += 2 {
		if c := sh.slots.of(handles[k]); sh.subs.all.at(c.subs).floor != events-1 {
			t.Fatalf("connection %d has floor %d", k, sh.subs.all.at(c.subs).floor)
		}
	}
}

// A handshake that nobody finishes does not hold a drain up.
func TestDrainOfHalfOpen(t *testing.T) {
	r := start(t, func(c *Config) { c.HandshakeTimeout = time.Hour })
	conn := mustDial(t, r.Addr())
	io.WriteString(conn, "GET /v1/")
	eventually(t, "it has come", func() bool { return r.admit.handshakes.Load() == 1 })
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := r.Drain(ctx, 100*time.Millisecond); err != nil {
		t.Fatal(err)
	}
	if got := (&client{t: t, conn: conn, r: conn}).head(); status(got) != 503 || !strings.Contains(got, "Retry-After: ") {
		t.Errorf("%s", got)
	}
}

// A new connection may send its burst, also when the clock of the rates is about to wrap.
func TestRateAtWrap(t *testing.T) {
	s, shards := newBench(t, 1)
	sh := shards[0]
	s.born = time.Now().Add(-(1<<32 - 1000) * time.Millisecond)
	fd, err := unix.Dup(deafSocket(t))
	if err != nil {
		t.Fatal(err)
	}
	sh.settle(&movedConn{fd: fd, state: slotChecking, peer: "\x7f\x00\x00\x01", in: []byte("GET / HTTP/1.1\r\n\r\n")})
	j, _ := s.pool.next()
	sh.finishJob(j, []byte("HTTP/1.1 101\r\n\r\n"), auth.Access{Subject: "a", Grants: []auth.Grant{{Account: "a"}}}, nil)
	sh.enter()
	defer sh.leave()
	c := sh.slots.of(j.h)
	for n := range s.cfg.FrameBurst {
		if !sh.inRate(c) {
			t.Fatalf("frame %d is one too many", n+1)
		}
	}
	sh.drop(j.h.index(), c, endStop)
}

// The kernel keeps no more than a bounded part of what a client does not read: the rest is parked here, where it counts.
func TestKernelKeepsLittle(t *testing.T) {
	r := start(t, func(c *Config) { c.WriteTimeout = time.Hour })
	const a = "alice@example.com"
	deaf := r.dialNarrow(a)
	deaf.subscribe("1", a)
	big := event(a, strings.Repeat("m", 900), "e")
	sent := 0
	for r.backlog.Load() == 0 {
		sent += len(big)
		before := r.metrics.eventsOut.Load()
		r.bus.publish(a, big)
		eventually(t, "it is sent", func() bool { return r.metrics.eventsOut.Load() > before })
		if sent > 4*notSent {
			t.Fatalf("the kernel has taken %d bytes", sent)
		}
	}
	t.Logf("the kernel took %d bytes", sent)
	r.slotOf(a, func(_ *shard, _ uint32, c *slot) {
		if n, err := unix.GetsockoptInt(int(c.fd), unix.IPPROTO_TCP, unix.TCP_NOTSENT_LOWAT); err != nil || n != notSent {
			t.Errorf("TCP_NOTSENT_LOWAT is %d %v", n, err)
		}
	})
}

// allDropped is the events dropped for any reason.
func (m *metrics) allDropped() (n uint64) {
	for reason := range m.dropped {
		n += m.dropped[reason].Load()
	}
	return n
}
