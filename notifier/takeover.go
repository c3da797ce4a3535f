package notifier

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"slices"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/encoding/protowire"
)

// ErrTakenOver is what Run returns when another process has all connections now: nothing is left to do.
var ErrTakenOver = errors.New("notifier: another process has taken over")

const (
	handTimeout  = 10 * time.Second // for the part during which clients wait, and for each greeting
	handPatience = time.Minute      // for the successor's links
	maxHandPath  = 100              // bytes; the kernel's limit less the suffix of a socket not ready yet
)

// standBy waits on Config.Takeover for a successor. It returns nil when ctx ends, and ErrTakenOver.
func (s *Server) standBy(ctx context.Context) error {
	l, mine, err := listenHand(s.cfg.Takeover)
	if err != nil {
		return err
	}
	defer context.AfterFunc(ctx, func() { l.Close() })()
	defer l.Close()
	for {
		c, err := l.AcceptUnix()
		if ctx.Err() != nil {
			if now, err := os.Stat(s.cfg.Takeover); err == nil && os.SameFile(mine, now) {
				os.Remove(s.cfg.Takeover)
			}
			return nil
		}
		if err != nil {
			s.cfg.Logger.Warn("a successor was not heard", "error", err)
			select {
			case <-ctx.Done():
			case <-time.After(100 * time.Millisecond):
			}
			continue
		}
		began := time.Now()
		held := s.admit.sockets.Load()
		if err = s.attend(ctx, handConn{c}); err == nil {
			s.cfg.Logger.Info("handed over to a successor", "connections", held, "took", time.Since(began))
			return ErrTakenOver
		}
		s.cfg.Logger.Warn("a successor did not take over; this process goes on", "error", err)
	}
}

// listenHand listens on path in one step, whoever listened there before.
func listenHand(path string) (*net.UnixListener, fs.FileInfo, error) {
	fresh := path + ".new"
	os.Remove(fresh)
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: fresh, Net: "unix"})
	if err != nil {
		return nil, nil, fmt.Errorf("listen for a successor: %w", err)
	}
	l.SetUnlinkOnClose(false)
	var mine fs.FileInfo
	if err = os.Chmod(fresh, 0o600); err == nil {
		if mine, err = os.Stat(fresh); err == nil {
			err = os.Rename(fresh, path)
		}
	}
	if err != nil {
		l.Close()
		return nil, nil, fmt.Errorf("listen for a successor: %w", err)
	}
	return l, mine, nil
}

// attend hands over to the successor on c. Until it returns nil this process serves.
func (s *Server) attend(ctx context.Context, c handConn) (err error) {
	defer c.Close()
	defer context.AfterFunc(ctx, func() { c.SetDeadline(time.Unix(1, 0)) })()
	defer func() {
		if _, told := errors.AsType[handError](err); err != nil && !told {
			c.send(handNo, []byte(err.Error()))
		}
	}()
	c.SetDeadline(time.Now().Add(handTimeout))
	if err := c.sameUser(); err != nil {
		return err
	}
	hello, _, err := c.expect(handHello)
	if err != nil {
		return err
	}
	if version := firstNumber(hello); version != handVersion {
		return fmt.Errorf("version %d is asked for, this process hands over in version %d: restart it", version, handVersion)
	}
	if err := s.sendWelcome(c); err != nil {
		return err
	}
	c.SetDeadline(time.Now().Add(handPatience))
	if _, _, err := c.expect(handTake); err != nil {
		return err
	}
	done := make(chan error, 1)
	select {
	case s.hub.calls <- func() { done <- s.handOver(c) }:
		return <-done
	case <-ctx.Done():
		return errors.New("this process ends")
	}
}

func (s *Server) sendWelcome(c handConn) error {
	s.acceptor.mu.Lock()
	defer s.acceptor.mu.Unlock()
	if s.acceptor.fd < 0 || s.draining.Load() {
		return errors.New("this process is being drained")
	}
	var f fields
	f.num(1, handVersion)
	f.text(2, []byte(s.cfg.NodeID))
	f.num(3, uint64(s.admit.sockets.Load()))
	return c.send(handWelcome, f, s.acceptor.fd)
}

// firstNumber is field 1 of a record.
func firstNumber(record []byte) (first uint64) {
	_ = eachField(record, func(n protowire.Number, v uint64, _ []byte) error { // a broken one has no version
		if n == 1 {
			first = v
		}
		return nil
	})
	return first
}

// handOver runs in the hub. From the first lock to the last unlock nothing happens to any connection: no
// event is delivered, nothing is read or accepted, no ticket is used. What the successor was told is true
// when it begins; if it does not, all goes on from here.
func (s *Server) handOver(c handConn) error {
	c.SetDeadline(time.Now().Add(handTimeout))
	s.hub.handleOps()
	s.hub.flushEvents()
	s.acceptor.mu.Lock()
	defer s.acceptor.mu.Unlock()
	if s.acceptor.fd < 0 || s.draining.Load() {
		return errors.New("this process is being drained")
	}
	for _, sh := range s.shards {
		sh.freeze()
		defer sh.leave()
	}
	if err := s.tellAll(c); err != nil {
		return err
	}
	if _, _, err := c.expect(handReady); err != nil {
		return err
	}
	if err := c.send(handGo, nil); err != nil {
		return err
	}
	for _, sh := range s.shards {
		sh.release()
	}
	s.acceptor.shut()
	return nil
}

// tellAll sends the state of everything.
func (s *Server) tellAll(c handConn) error {
	var f fields
	for i := range s.hub.core.parts {
		p := &s.hub.core.parts[i]
		var part fields
		(&movedPart{p.fence, p.known, p.epoch, p.offset}).append(&part)
		f.item(1, part)
	}
	if err := c.send(handParts, f); err != nil {
		return err
	}
	tickets, err := s.gate.tickets.State()
	if err != nil {
		return err
	}
	for id, state := range tickets {
		f = f[:0]
		f.text(1, []byte(s.linker.keys.nodeOf(id)))
		f.text(2, []byte(id))
		f.text(3, state)
		if err := c.send(handTicket, f); err != nil {
			return err
		}
	}
	ops := s.waitingOps()
	out := handBatchOf{c: c, index: make(map[handle]int)}
	for i := range ops {
		out.index[ops[i].h] = -1
	}
	for _, sh := range s.shards {
		if err := sh.tell(&out); err != nil {
			return err
		}
	}
	if err := out.flush(); err != nil {
		return err
	}
	if err := sendOps(c, ops, out.index); err != nil {
		return err
	}
	f = f[:0]
	f.num(1, uint64(out.count))
	return c.send(handEnd, f)
}

// waitingOps are the subscribes that have no answer, in order, and unsubscribes behind them. What else waits
// in the inbox follows from the state.
func (s *Server) waitingOps() []op {
	var waiting []*pending
	for _, p := range s.hub.core.pending {
		waiting = append(waiting, p)
	}
	slices.SortFunc(waiting, func(a, b *pending) int { return cmp.Compare(a.request, b.request) })
	var ops []op
	for _, p := range waiting {
		ops = append(ops, op{kind: opSubscribe, h: p.h, id: p.id, account: p.account, boxes: p.boxes, since: p.since, sinceInvalid: p.sinceInvalid})
	}
	for _, o := range s.inbox.waiting() {
		if o.kind == opSubscribe || o.kind == opCancel {
			ops = append(ops, o)
		}
	}
	return ops
}

func sendOps(c handConn, ops []op, index map[handle]int) error {
	var f fields
	for i := range ops {
		o := &ops[i]
		at := index[o.h]
		if at < 0 {
			continue // it has gone
		}
		m := movedOp{conn: at, kind: o.kind, id: o.id, account: o.account, filtered: o.boxes != nil, boxes: o.boxes, sinceInvalid: o.sinceInvalid}
		if o.since != nil {
			m.since = o.since.String()
		}
		var one fields
		m.append(&one)
		f.item(1, one)
		if len(f) > handFull || i == len(ops)-1 {
			if err := c.send(handOps, f); err != nil {
				return err
			}
			f = f[:0]
		}
	}
	if len(f) > 0 {
		return c.send(handOps, f)
	}
	return nil
}

// handBatchOf gathers connections for messages.
type handBatchOf struct {
	c     handConn
	index map[handle]int // of the connections asked for, their place in the order
	body  fields
	fds   []int
	count int
	one   fields
}

func (b *handBatchOf) add(h handle, m *movedConn) error {
	if _, asked := b.index[h]; asked {
		b.index[h] = b.count
	}
	b.count++
	b.one = b.one[:0]
	m.append(&b.one)
	b.body.item(1, b.one)
	b.fds = append(b.fds, m.fd)
	if len(b.fds) == handBatch || len(b.body) > handFull {
		return b.flush()
	}
	return nil
}

func (b *handBatchOf) flush() error {
	if len(b.fds) == 0 {
		return nil
	}
	err := b.c.send(handConns, b.body, b.fds...)
	b.body, b.fds = b.body[:0], b.fds[:0]
	return err
}

// freeze takes mu when the poller's goroutine is not in the midst of a handshake, which may just be using a ticket.
func (sh *shard) freeze() {
	sh.enter()
	for sh.upgrading {
		sh.upgraded.Wait()
	}
}

// tell adds all connections. The caller has frozen the shard.
func (sh *shard) tell(b *handBatchOf) error {
	now := sh.tick()
	ms := sh.millis()
	var m movedConn
	for i := uint32(1); i < sh.slots.all.next; i++ {
		c := sh.slots.all.at(i)
		if c.state == slotFree {
			continue
		}
		sh.describe(&m, i, c, now, ms)
		if err := b.add(sh.handleOf(i, c), &m); err != nil {
			return err
		}
	}
	return nil
}

// describe fills m with parts of the shard's state: it is valid while the shard stands still.
func (sh *shard) describe(m *movedConn, i uint32, c *slot, now, ms uint32) {
	*m = movedConn{fd: int(c.fd), state: c.state, flags: c.flags, subs: m.subs[:0], peer: sh.addrs.name(c.addr),
		expires: left(c.expires, now), quiet: left(c.quiet, now), age: now - c.born}
	if c.subject != 0 {
		m.subject = sh.accounts.name(c.subject)
	}
	if ahead := c.rate - ms; int32(ahead) > 0 {
		m.ahead = ahead
	}
	if c.flags&flagGrants != 0 {
		m.grants = sh.grants[i].Grants
	}
	for n := c.subs; n != 0; n = sh.subs.all.at(n).ofSlot {
		s := sh.subs.all.at(n)
		sub := movedSub{account: sh.accounts.name(s.account), floor: s.floor, flags: s.filter &^ filterMask}
		if f := s.filter & filterMask; f != 0 {
			sub.filtered, sub.boxes = true, sh.filters.all[f].boxes
		}
		m.subs = append(m.subs, sub)
	}
	if x := sh.busy(c); x != nil {
		m.in, m.message, m.out = x.in, x.message, x.out
		m.fragmented, m.partial, m.discarded = x.fragmented, x.partial, x.discarded
		m.until, m.half, m.stalled = left(x.until, now), left(x.half, now), left(x.stalled, now)
	}
}

// left is how many ticks are left, at least 1; 0 is never.
func left(tick, now uint32) uint32 {
	if tick == 0 {
		return 0
	}
	return uint32(max(1, int32(tick-now)))
}

// release lets go of all connections without touching them: they are another process's.
func (sh *shard) release() {
	for i := uint32(1); i < sh.slots.all.next; i++ {
		c := sh.slots.all.at(i)
		switch c.state {
		case slotFree:
			continue
		case slotHead, slotChecking:
			sh.admit.done()
		case slotOpen:
			sh.open.Add(-1)
		}
		if c.flags&flagLingers != 0 {
			sh.lingering.Add(-1)
		}
		sh.poll.del(c.fd) // the sockets live on, and would be told of here too
		unix.Close(int(c.fd))
		sh.freeExtras(c)
		sh.slots.give(i)
		sh.admit.closed()
	}
	sh.subs, sh.grants = subs{}, nil // the hub may still deliver
}
