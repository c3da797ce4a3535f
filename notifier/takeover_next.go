package notifier

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"net"
	"strconv"
	"syscall"
	"time"

	"github.com/mailbell/mailbell/internal/auth"
	"github.com/mailbell/mailbell/schema"
	"github.com/mailru/easygo/netpoll"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/encoding/protowire"
)

// former is the notifier that runs, as its successor sees it.
type former struct {
	conn        handConn
	node        string
	connections int
	fd          int // the listening descriptor
}

// callFormer greets the notifier that listens on cfg.Takeover. It returns nil if there is none.
func callFormer(cfg Config) (*former, error) {
	if cfg.Takeover == "" {
		return nil, nil
	}
	c, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: cfg.Takeover, Net: "unix"})
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("take over: %w", err)
	}
	f := &former{conn: handConn{c}, fd: -1}
	if err := f.greet(cfg); err != nil {
		if f.fd >= 0 {
			unix.Close(f.fd)
		}
		c.Close()
		return nil, fmt.Errorf("take over from the notifier on %s, which goes on: %w", cfg.Takeover, err)
	}
	return f, nil
}

func (f *former) greet(cfg Config) error {
	f.conn.SetDeadline(time.Now().Add(handTimeout))
	if err := f.conn.sameUser(); err != nil {
		return err
	}
	var hello fields
	hello.num(1, handVersion)
	if err := f.conn.send(handHello, hello); err != nil {
		return err
	}
	welcome, fds, err := f.conn.expect(handWelcome)
	if err == nil && len(fds) != 1 {
		err = errors.New("it has no listening socket")
	}
	if err != nil {
		closeDescriptors(fds)
		return err
	}
	f.fd = fds[0]
	err = eachField(welcome, func(n protowire.Number, v uint64, b []byte) error {
		switch n {
		case 2:
			f.node = string(b)
		case 3:
			f.connections = int(min(v, maxSlots))
		}
		return nil
	})
	switch {
	case err != nil:
		return err
	case cfg.NodeID != "" && cfg.NodeID != f.node:
		return fmt.Errorf("it is node %q, this one is %q: a successor has the same name", f.node, cfg.NodeID)
	case f.connections > cfg.MaxConnections:
		return fmt.Errorf("it holds %d connections, this one may hold %d: raise its limit of open files, or --max-connections", f.connections, cfg.MaxConnections)
	}
	return nil
}

// listen returns the former's port, or opens one if there is no former.
func (f *former) listen(cfg Config) (fd int, addr net.Addr, err error) {
	if f == nil {
		return listen(cfg)
	}
	defer func() {
		if err != nil {
			unix.Close(f.fd)
			f.conn.Close()
		}
	}()
	sa, err := unix.Getsockname(f.fd)
	if err != nil {
		return -1, nil, fmt.Errorf("take over: %w", err)
	}
	tcp := &net.TCPAddr{}
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		tcp.IP, tcp.Port = sa.Addr[:], sa.Port
	case *unix.SockaddrInet6:
		tcp.IP, tcp.Port = sa.Addr[:], sa.Port
	}
	if _, port, err := net.SplitHostPort(cfg.Addr); err == nil && port != "0" && port != strconv.Itoa(tcp.Port) {
		return -1, nil, fmt.Errorf("take over: the notifier on %s listens on %v, not on %s: a successor keeps the address", cfg.Takeover, tcp, cfg.Addr)
	}
	return f.fd, tcp, nil
}

// takeOver receives everything from the former and begins to serve. On an error the former goes on.
func (s *Server) takeOver(ctx context.Context) error {
	f := s.former
	defer f.conn.Close()
	defer context.AfterFunc(ctx, func() { f.conn.SetDeadline(time.Unix(1, 0)) })()
	err := s.linked(ctx)
	var all *inheritance
	if err == nil {
		all, err = s.receiveAll(f.conn)
	}
	if err != nil {
		if ctx.Err() != nil {
			return nil
		}
		f.conn.send(handNo, []byte(err.Error()))
		return fmt.Errorf("take over from the notifier on %s, which goes on: %w", s.cfg.Takeover, err)
	}
	done := make(chan struct{})
	call := func() {
		s.settleAll(all)
		close(done)
	}
	select {
	case s.hub.calls <- call:
		<-done
		s.cfg.Logger.Info("took over", "connections", len(all.conns))
		return nil
	case <-ctx.Done():
		closeDescriptors(all.fds())
		return nil
	}
}

// linked waits until every partition's owner is known, so that what happens while the connections are between the
// two processes is asked for at once.
func (s *Server) linked(ctx context.Context) error {
	ticker := time.NewTicker(5 * time.Millisecond)
	defer ticker.Stop()
	began := time.Now()
	for {
		up, waited := s.linker.up.Load() > 0, time.Since(began)
		switch {
		case up && (s.hub.owners.Load() || waited > handPatience/6):
			return nil
		case waited > handPatience/2:
			return fmt.Errorf("no bus node of %v is linked", s.cfg.Bus)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-ticker.C:
		}
	}
}

// inheritance is all that a former hands over.
type inheritance struct {
	parts []movedPart
	conns []movedConn
	bytes int
}

// inheritBytes bounds what is received in all: the backlog of a node at its default is 64 MiB.
const inheritBytes = 1 << 30

func (in *inheritance) fds() []int {
	fds := make([]int, len(in.conns))
	for i := range in.conns {
		fds[i] = in.conns[i].fd
	}
	return fds
}

// receiveAll has the former stand still, and returns what it had when that has let go of everything. On an
// error no socket has been touched.
func (s *Server) receiveAll(c handConn) (all *inheritance, err error) {
	all = new(inheritance)
	defer func() {
		if err != nil {
			closeDescriptors(all.fds())
		}
	}()
	c.SetDeadline(time.Now().Add(handTimeout))
	if err := c.send(handTake, nil); err != nil {
		return all, err
	}
	for end := false; !end; {
		kind, body, fds, err := c.receive()
		if err == nil {
			if all.bytes += len(body); all.bytes > inheritBytes {
				err = fmt.Errorf("it hands over more than %d bytes", inheritBytes)
			}
		}
		if err != nil {
			closeDescriptors(fds)
			return all, err
		}
		if end, err = s.receive(all, kind, body, fds); err != nil {
			return all, err
		}
	}
	if err := c.send(handReady, nil); err != nil {
		return all, err
	}
	_, _, err = c.expect(handGo)
	return all, err
}

// receive takes one message; the descriptors become those of all.
func (s *Server) receive(all *inheritance, kind handKind, body []byte, fds []int) (end bool, err error) {
	if kind == handConns {
		return false, all.addConns(body, fds, s.cfg.MaxConnections+overflow)
	}
	closeDescriptors(fds)
	switch kind {
	case handParts:
		err = eachField(body, func(n protowire.Number, _ uint64, b []byte) error {
			if n != 1 {
				return nil
			}
			p, err := readPart(b)
			all.parts = append(all.parts, p)
			return err
		})
		if n := int(s.hub.partitions.Load()); err == nil && n > 0 && len(all.parts) > 0 && n != len(all.parts) {
			err = fmt.Errorf("it knows %d partitions, the bus %d: restart the notifiers after the topic was changed", len(all.parts), n)
		}
	case handTicket:
		err = s.receiveTicket(body)
	case handOps:
		err = all.addOps(body)
	case handEnd:
		if n := firstNumber(body); n != uint64(len(all.conns)) {
			err = fmt.Errorf("%d of its %d connections came", len(all.conns), n)
		}
		end = true
	}
	return end, err // a kind of message that is not known here can be done without, or the version would be another
}

// addConns takes connections; the descriptors are those of all whatever happens.
func (in *inheritance) addConns(body []byte, fds []int, limit int) error {
	first := len(in.conns)
	for _, fd := range fds {
		in.conns = append(in.conns, movedConn{fd: fd})
	}
	if len(in.conns) > limit {
		return fmt.Errorf("it holds more than the %d connections that this process may hold", limit)
	}
	at := first
	err := eachField(body, func(n protowire.Number, _ uint64, b []byte) error {
		if n != 1 {
			return nil
		}
		if at == len(in.conns) {
			return errors.New("a connection has no descriptor")
		}
		m, err := readConn(b)
		m.fd = in.conns[at].fd
		in.conns[at] = m
		at++
		return err
	})
	if err == nil && at < len(in.conns) {
		err = errors.New("a descriptor has no connection")
	}
	return err
}

func (in *inheritance) addOps(body []byte) error {
	return eachField(body, func(n protowire.Number, _ uint64, b []byte) error {
		if n != 1 {
			return nil
		}
		m, err := readOp(b)
		if err != nil {
			return err
		}
		if m.conn >= len(in.conns) {
			return errors.New("a subscribe is of no connection")
		}
		in.conns[m.conn].ops = append(in.conns[m.conn].ops, m)
		return nil
	})
}

func (s *Server) receiveTicket(body []byte) error {
	var node, id string
	var state []byte
	err := eachField(body, func(n protowire.Number, _ uint64, b []byte) error {
		switch n {
		case 1:
			node = string(b)
		case 2:
			id = string(b)
		case 3:
			state = b
		}
		return nil
	})
	if err != nil {
		return err
	}
	return s.linker.keys.inherit(node, id, state)
}

// settleAll runs in the hub: the connections become this process's, and everything that their clients may not have
// got yet is asked for.
func (s *Server) settleAll(all *inheritance) {
	for i := range all.conns {
		s.shards[i%len(s.shards)].settle(&all.conns[i])
	}
	s.metrics.takenOver.Add(uint64(len(all.conns)))
	s.hub.core.inherit(all.parts)
	s.hub.core.flush()
}

// settle makes a connection that was handed over one of this shard's.
func (sh *shard) settle(m *movedConn) {
	sh.enter()
	defer sh.leave()
	i := sh.slots.take()
	if i == 0 {
		unix.Close(m.fd)
		return
	}
	c := sh.slots.all.at(i)
	c.fd, c.state, c.flags = int32(m.fd), m.state, m.flags&(flagPinged|flagGrants|flagLeaving|flagProxied)
	c.addr, _ = sh.addrs.hold(m.peer, 0)
	if m.subject != "" {
		c.subject, _ = sh.accounts.hold(m.subject, 0)
	}
	sh.admit.sockets.Add(1)
	switch c.state {
	case slotHead, slotChecking:
		sh.admit.handshakes.Add(1)
	case slotOpen:
		sh.open.Add(1)
		sh.settleOpen(i, c, m)
	case slotLingering:
		c.flags |= flagLingers
		sh.lingering.Add(1)
	}
	events := sh.settleExtra(c, m)
	sh.setDue(i, sh.dueOf(c))
	h := sh.handleOf(i, c)
	if err := sh.poll.add(c.fd, events, h); err != nil {
		sh.drop(i, c, endError)
		return
	}
	if c.state == slotChecking {
		end := headEnd(m.in, 0)
		sh.submit(h, m.in[:end], m.in[end:])
	}
	sh.settleOps(h, c, m)
}

func (sh *shard) settleOpen(i uint32, c *slot, m *movedConn) {
	now := sh.tick()
	c.expires, c.quiet, c.born = later(m.expires, now), later(m.quiet, now), now-min(m.age, now)
	c.rate = sh.millis() + min(m.ahead, math.MaxInt32)
	if c.flags&flagGrants != 0 {
		if sh.grants == nil {
			sh.grants = make(map[uint32]auth.Access)
		}
		sh.grants[i] = auth.Access{Subject: schema.Account(m.subject), Grants: m.grants}
	}
	for k := len(m.subs) - 1; k >= 0; k-- { // the list's first is the one added last
		s := &m.subs[k]
		a, _ := sh.accounts.want(s.account, 0)
		sh.accounts.setAsked(a, askedNot, askedLive)
		sh.subs.add(i, c, a, sh.filters.take(boxesOf(s.filtered, s.boxes))|s.flags, s.floor)
	}
}

// settleExtra restores what a connection has only while it is busy, and returns what to ask the poller for.
func (sh *shard) settleExtra(c *slot, m *movedConn) netpoll.EpollEvent {
	if c.state == slotChecking && headEnd(m.in, 0) == 0 {
		c.state = slotHead
	}
	if c.state == slotOpen && len(m.in) == 0 && !m.fragmented && len(m.out) == 0 {
		return pollIn
	}
	now := sh.tick()
	x := sh.extra(c)
	x.in, x.message, x.fragmented, x.discarded = m.in, m.message, m.fragmented, m.discarded
	x.until, x.half, x.stalled = later(m.until, now), later(m.half, now), later(m.stalled, now)
	x.out, x.partial = m.out, m.partial
	sh.backlog.Add(int64(len(x.out)))
	switch {
	case len(x.out) > 0:
		c.flags |= flagArmedOut
		return pollOut
	case c.state == slotChecking:
		return 0
	}
	return pollIn
}

// settleOps asks the hub again for what the former was asked for, and for what follows from the state.
func (sh *shard) settleOps(h handle, c *slot, m *movedConn) {
	if c.state != slotOpen {
		return
	}
	for k := range m.ops {
		if m.ops[k].kind == opSubscribe {
			c.pending++
		}
		sh.inbox.post(m.ops[k].op(h))
	}
	if len(m.out) > 0 {
		return
	}
	for _, s := range m.subs {
		if s.flags&subMissed != 0 {
			sh.inbox.post(op{kind: opMissed, h: h})
			return
		}
	}
}

// later is the tick that lies so far ahead; 0 is never.
func later(left, now uint32) uint32 {
	if left == 0 {
		return 0
	}
	return now + min(left, math.MaxInt32)
}
