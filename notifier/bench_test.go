package notifier

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"net"
	"net/http"
	"runtime"
	runtimemetrics "runtime/metrics"
	"testing"
	"time"

	"github.com/gobwas/ws"
	"github.com/mailbell/mailbell/internal/auth"
	"github.com/mailbell/mailbell/schema"
	"github.com/mailru/easygo/netpoll"
	"golang.org/x/sys/unix"
)

const benchHead = "GET /v1/ws HTTP/1.1\r\nHost: mail.example.com\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n" +
	"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: mailbell.v1\r\nOrigin: https://mail.example.com\r\n\r\n"

// anyone lets everybody in: what tokens cost is not the handshake's.
type anyone struct{}

func (anyone) VerifyNow(string) (auth.Access, error) {
	return auth.Access{Subject: "alice@example.com"}, nil
}
func (anyone) Verify(context.Context, string) (auth.Access, error) { return anyone{}.VerifyNow("") }

// BenchmarkUpgrade compares our handshake with the same one through net/http and gobwas's HTTPUpgrader.
func BenchmarkUpgrade(b *testing.B) {
	b.Run("ours", func(b *testing.B) {
		up := newUpgrader(&gate{keys: anyone{}, tickets: new(auth.TicketKeys), now: time.Now, admit: func() *refusal { return nil }})
		head := []byte(benchHead)
		b.ReportAllocs()
		for b.Loop() {
			if _, _, err := up.upgrade(head); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("netHTTP", func(b *testing.B) {
		up := ws.HTTPUpgrader{Protocol: func(p string) bool { return p == schema.Subprotocol }}
		conn := &memoryConn{}
		reader := bufio.NewReaderSize(nil, 4096)
		head := []byte(benchHead)
		b.ReportAllocs()
		for b.Loop() {
			conn.in.Reset(head)
			reader.Reset(conn)
			req, err := http.ReadRequest(reader)
			if err != nil {
				b.Fatal(err)
			}
			if _, _, _, err := up.Upgrade(req, &hijacked{conn: conn, reader: reader}); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// A handshake costs one allocation at most: the account's name.
func TestUpgradeAllocations(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector allocates as well")
	}
	up := newUpgrader(&gate{keys: anyone{}, tickets: new(auth.TicketKeys), now: time.Now, admit: func() *refusal { return nil }})
	head := []byte(benchHead)
	if n := testing.AllocsPerRun(1000, func() { up.upgrade(head) }); n > 1 {
		t.Errorf("%v allocations", n)
	}
}

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

// noPoller knows no descriptors.
type noPoller struct{}

func (noPoller) add(int32, netpoll.EpollEvent, handle) error { return nil }
func (noPoller) mod(int32, netpoll.EpollEvent, handle)       {}
func (noPoller) del(int32)                                   {}

// mapPoller is what netpoll.Epoll would keep in memory, if each connection were added to it: a map from descriptor to
// callback.
type mapPoller struct {
	noPoller
	shard     *shard
	callbacks map[int]func(netpoll.EpollEvent)
}

func (p *mapPoller) add(fd int32, _ netpoll.EpollEvent, h handle) error {
	sh := p.shard
	p.callbacks[int(fd)] = func(ev netpoll.EpollEvent) { sh.event(h, ev) }
	return nil
}

// newBench is a shared state with shards that nobody runs.
func newBench(b testing.TB, shards int) (*shared, []*shard) {
	b.Helper()
	s := newShared(Config{Keys: new(auth.Keys), Logger: quiet()}.withDefaults())
	s.cfg.MaxPerAccount = -1
	var all []*shard
	for i := range shards {
		sh := newShard(s, uint8(i))
		sh.poll = noPoller{}
		all = append(all, sh)
	}
	return s, all
}

// fill adds an open, subscribed connection with the descriptor.
func (sh *shard) fill(fd int, account string) handle {
	addr, _ := sh.addrs.hold("\x7f\x00\x00\x01", 0)
	sh.enter()
	defer sh.leave()
	i := sh.slots.take()
	c := sh.slots.all.at(i)
	c.fd, c.addr, c.state = int32(fd), addr, slotOpen
	c.subject, _ = sh.accounts.hold(account, 0)
	sh.heard(i, c)
	sh.setDue(i, c.quiet)
	aid, _ := sh.accounts.want(account, 0)
	sh.subs.add(i, c, aid, 0, -1)
	h := sh.handleOf(i, c)
	sh.poll.add(c.fd, pollIn, h)
	return h
}

// deafSocket is a datagram socket whose peer reads nothing: what is sent is thrown away by the kernel.
func deafSocket(b testing.TB) int {
	b.Helper()
	sink, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { sink.Close() })
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { unix.Close(fd) })
	if err := unix.Connect(fd, &unix.SockaddrInet4{Port: sink.LocalAddr().(*net.UDPAddr).Port, Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		b.Fatal(err)
	}
	return fd
}

// BenchmarkPush sends one event to a connection of each of 10,000 accounts, by the notifier's path and by a bare loop of
// send(2). An iteration is one event.
func BenchmarkPush(b *testing.B) {
	const n = 10000
	body := event("alice@example.com", "INBOX", "01J0000000000000000000000")
	b.Run("notifier", func(b *testing.B) {
		s, shards := newBench(b, 2)
		h := newHub(s, shards)
		fd := deafSocket(b)
		ids, names := make([]nameID, n), make([]string, n)
		for i := range n {
			names[i] = fmt.Sprintf("user%d@example.com", i)
			shards[i%2].fill(fd, names[i])
			ids[i] = s.accounts.wanted(names[i])
		}
		b.ReportAllocs()
		offset, i := int64(0), 0
		for b.Loop() {
			if i%n == 0 {
				offset++
			}
			a := s.accounts.wanted(names[i%n])
			h.event(a, names[i%n], schema.Position{Epoch: 1, Offset: offset}, body)
			i++
		}
		h.flushEvents()
	})
	b.Run("send", func(b *testing.B) {
		fd := deafSocket(b)
		frame := seal(schema.AppendEvent(newFrame(nil), "alice@example.com", schema.Position{Epoch: 1}, body), ws.OpText)
		for b.Loop() {
			sendSocket(int32(fd), frame)
		}
	})
}

// BenchmarkDeliver sends one event to many connections of one account. An iteration is one connection's.
func BenchmarkDeliver(b *testing.B) {
	const n = 1000
	s, shards := newBench(b, 1)
	fd := deafSocket(b)
	for range n {
		shards[0].fill(fd, "shared@example.com")
	}
	id := s.accounts.wanted("shared@example.com")
	frame := seal(schema.AppendEvent(newFrame(nil), "shared@example.com", schema.Position{Epoch: 1}, event("shared@example.com", "INBOX", "e")), ws.OpText)
	b.ReportAllocs()
	offset, left := int64(0), 0
	for b.Loop() {
		if left == 0 {
			offset++
			shards[0].deliver([]delivery{{account: id, offset: offset, frame: frame}})
			left = n
		}
		left--
	}
}

// BenchmarkSweep looks at the deadlines of 500,000 connections of which none is due.
func BenchmarkSweep(b *testing.B) {
	_, shards := newBench(b, 1)
	for i := range 500000 {
		shards[0].fill(-1, fmt.Sprintf("user%d@example.com", i))
	}
	for b.Loop() {
		shards[0].sweep()
	}
}

// BenchmarkGC is what a collection costs with 1,000,000 subscribed connections: in slots, in slots with a callback
// each in netpoll's map, which is why they are not there, and in one heap object each. cpu-ms/op counts the
// collector's time on all cores.
func BenchmarkGC(b *testing.B) {
	const n = 1000000
	name := func(i int) string { return fmt.Sprintf("user%d@example.com", i) }
	slots := func(poll func(*shard) watcher) func(*testing.B) {
		return func(b *testing.B) {
			s, shards := newBench(b, 2)
			for _, sh := range shards {
				sh.poll = poll(sh)
			}
			for i := range n {
				shards[i%2].fill(i, name(i))
			}
			collect(b)
			runtime.KeepAlive(s)
			runtime.KeepAlive(shards)
		}
	}
	b.Run("slots", slots(func(*shard) watcher { return noPoller{} }))
	b.Run("slotsAndCallbacks", slots(func(sh *shard) watcher {
		return &mapPoller{shard: sh, callbacks: make(map[int]func(netpoll.EpollEvent))}
	}))
	b.Run("objects", func(b *testing.B) {
		type conn struct { // a slot's and a subscription's state, with pointers where Go would have them
			fd      int
			account string
			quiet   uint32
			offset  int64
			next    *conn // of the account
		}
		all := make(map[int]*conn)
		byAccount := make(map[string]*conn)
		for i := range n {
			c := &conn{fd: i, account: name(i), quiet: uint32(i), offset: int64(i)}
			c.next = byAccount[c.account]
			all[i], byAccount[c.account] = c, c
		}
		collect(b)
		runtime.KeepAlive(all)
		runtime.KeepAlive(byAccount)
	})
}

func collect(b *testing.B) {
	cpu := func() float64 {
		s := []runtimemetrics.Sample{{Name: "/cpu/classes/gc/total:cpu-seconds"}}
		runtimemetrics.Read(s)
		return s[0].Value.Float64()
	}
	runtime.GC()
	before := cpu()
	for b.Loop() {
		runtime.GC()
	}
	b.ReportMetric((cpu()-before)*1000/float64(b.N), "cpu-ms/op")
}

// BenchmarkFrame is a client's ping from its bytes to the pong's.
func BenchmarkFrame(b *testing.B) {
	_, shards := newBench(b, 1)
	sh := shards[0]
	sh.cfg.FrameRate, sh.cfg.FrameBurst = 1000, 1<<20
	fd := deafSocket(b)
	h := sh.fill(fd, "alice@example.com")
	wire := raw(0x81, `{"type":"ping","id":1}`, true)
	buf := make([]byte, len(wire))
	b.ReportAllocs()
	for b.Loop() {
		copy(buf, wire)
		sh.enter()
		sh.slots.of(h).rate = 0
		sh.frames(h, sh.slots.of(h), buf)
		sh.leave()
	}
}
