package notifier

import (
	"bytes"
	"encoding/binary"
	"unsafe"

	"github.com/gobwas/ws"
	"github.com/mailbell/mailbell/schema"
	"golang.org/x/sys/unix"
)

// sendSocket sends without waiting and without SIGPIPE.
func sendSocket(fd int32, b []byte) (int, error) {
	for {
		n, _, e := unix.RawSyscall6(unix.SYS_SENDTO, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)), unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL, 0, 0)
		switch e {
		case 0:
			return int(n), nil
		case unix.EINTR:
		default:
			return 0, e
		}
	}
}

// send sends of a frame to a connection without backlog what its socket takes, and reports whether the socket still works.
func (sh *shard) send(i uint32, c *slot, frame []byte) (n int, ok bool) {
	n, err := sendSocket(c.fd, frame)
	if err != nil && err != unix.EAGAIN {
		sh.doom(i, c, endPeer)
		return 0, false
	}
	return n, true
}

// park keeps what the socket did not take of a frame, which has been reserved; begun says that it took some.
func (sh *shard) park(i uint32, c *slot, rest []byte, begun bool) {
	x := sh.blocked(i, c)
	if begun {
		x.partial = len(rest)
	}
	sh.buffers.put(x.out) // empty since overflow
	x.out = append(sh.buffers.get(len(rest)), rest...)
}

// blocked notes that the socket is full: EPOLLOUT tells when to go on, and who takes nothing until then has stalled.
func (sh *shard) blocked(i uint32, c *slot) *extra {
	x := sh.extra(c)
	if c.flags&flagArmedOut == 0 {
		c.flags |= flagArmedOut
		sh.poll.mod(c.fd, pollOut, sh.handleOf(i, c))
	}
	if x.stalled == 0 {
		x.stalled = sh.tick() + ticks(sh.cfg.WriteTimeout)
		sh.setDue(i, x.stalled)
	}
	return x
}

// reserve counts bytes that are about to be parked, unless all shards together would have more than they may.
func (sh *shard) reserve(n int) bool {
	for {
		parked := sh.backlog.Load()
		if parked+int64(n) > int64(sh.cfg.TotalBacklog) {
			return false
		}
		if sh.backlog.CompareAndSwap(parked, parked+int64(n)) {
			return true
		}
	}
}

// setBacklog changes the length of the backlog, counting it.
func (sh *shard) setBacklog(x *extra, n int) {
	sh.backlog.Add(int64(n - len(x.out)))
	x.out = x.out[:n]
}

// pushControl sends what is no event: it is never dropped. Where twice the client's backlog, or that of all, has no room
// for it, the client's own events make room; if that is not enough, its connection ends.
func (sh *shard) pushControl(i uint32, c *slot, frame []byte) {
	x := sh.busy(c)
	if x == nil || len(x.out) == 0 {
		n, ok := sh.send(i, c, frame)
		switch {
		case !ok || n == len(frame):
		case sh.reserve(len(frame) - n):
			sh.park(i, c, frame[n:], n > 0)
		default:
			sh.doom(i, c, endUnread)
		}
		return
	}
	if sh.queue(x, frame, 2*sh.cfg.Backlog) {
		return
	}
	sh.overflow(c, x)
	if !sh.queue(x, frame, 2*sh.cfg.Backlog) {
		sh.doom(i, c, endUnread)
	}
}

// queue parks a frame behind what is parked, if there is room for it.
func (sh *shard) queue(x *extra, frame []byte, limit int) bool {
	if len(x.out)+len(frame) > limit || !sh.reserve(len(frame)) {
		return false
	}
	x.out = sh.buffers.add(x.out, frame)
	return true
}

// pushEvent sends an event of subscription n, or parks it behind what is parked. Past the caps the
// backlog's events go, and their subscriptions will be told that they missed something.
func (sh *shard) pushEvent(i uint32, c *slot, n uint32, frame []byte) {
	s := sh.subs.all.at(n)
	if s.filter&subMissed != 0 {
		sh.metrics.dropped[dropMissed].Inc()
		return
	}
	x := sh.busy(c)
	if x == nil || len(x.out) == 0 {
		sh.pushFirst(i, c, s, frame)
		return
	}
	s.filter |= subQueued
	if !sh.queue(x, frame, sh.cfg.Backlog) {
		sh.metrics.dropped[sh.noRoom(len(x.out)+len(frame))].Inc()
		sh.overflow(c, x)
		return
	}
	sh.metrics.eventsOut.Inc()
}

// pushFirst is pushEvent where nothing is parked.
func (sh *shard) pushFirst(i uint32, c *slot, s *sub, frame []byte) {
	n, ok := sh.send(i, c, frame)
	switch left := len(frame) - n; {
	case !ok:
		return
	case left == 0:
	case n == 0 && left > sh.cfg.Backlog, !sh.reserve(left):
		if n > 0 { // what has been begun can't be taken back
			sh.doom(i, c, endUnread)
			return
		}
		s.filter |= subMissed
		sh.metrics.dropped[sh.noRoom(left)].Inc()
		sh.blocked(i, c)
		return
	default:
		sh.park(i, c, frame[n:], n > 0)
		s.filter |= subQueued
	}
	sh.metrics.eventsOut.Inc()
}

// noRoom is why a backlog of n bytes may not be.
func (sh *shard) noRoom(n int) dropReason {
	if n > sh.cfg.Backlog {
		return dropConnection
	}
	return dropTotal
}

// overflow drops the events of a backlog; answers stay.
func (sh *shard) overflow(c *slot, x *extra) {
	kept := x.partial
	for at := x.partial; at < len(x.out); {
		size, payload := frameAt(x.out[at:])
		if bytes.HasPrefix(payload, []byte(`{"type":"event"`)) {
			sh.metrics.dropped[dropDiscarded].Inc()
		} else {
			kept += copy(x.out[kept:], x.out[at:at+size])
		}
		at += size
	}
	sh.setBacklog(x, kept)
	for n := c.subs; n != 0; n = sh.subs.all.at(n).ofSlot {
		if s := sh.subs.all.at(n); s.filter&subQueued != 0 {
			s.filter = s.filter&^subQueued | subMissed
		}
	}
	if len(x.out) == 0 {
		// Nothing of a frame is under way: EPOLLOUT, which is armed, tells when to go on.
		x.partial = 0
	}
}

// frameAt returns the size and payload of the unmasked frame at the start of b.
func frameAt(b []byte) (size int, payload []byte) {
	size, head := frameSize(b)
	return size, b[head:size]
}

// frameSize is the size of the unmasked frame whose header is at the start of b, and the header's.
func frameSize(b []byte) (size, head int) {
	head, n := 2, int(b[1])
	switch n {
	case 126:
		head, n = 4, int(binary.BigEndian.Uint16(b[2:]))
	case 127:
		head, n = 10, int(binary.BigEndian.Uint64(b[2:]))
	}
	return head + n, head
}

// flush sends of the backlog what the socket takes.
func (sh *shard) flush(i uint32, c *slot) {
	x := sh.extra(c)
	if len(x.out) > 0 {
		n, err := sendSocket(c.fd, x.out)
		if err == unix.EAGAIN {
			return
		}
		if err != nil {
			sh.drop(i, c, endPeer)
			return
		}
		at := x.partial
		for at < n {
			size, _ := frameAt(x.out[at:])
			at += size
		}
		x.partial = at - n
		left := copy(x.out, x.out[n:])
		sh.setBacklog(x, left)
		x.stalled = sh.tick() + ticks(sh.cfg.WriteTimeout)
		if left > 0 {
			return
		}
	}
	sh.flushed(i, c, x)
}

// flushed is when the backlog is empty.
func (sh *shard) flushed(i uint32, c *slot, x *extra) {
	sh.buffers.put(x.out)
	x.out, x.partial, x.stalled = nil, 0, 0
	c.flags &^= flagArmedOut
	sh.poll.mod(c.fd, pollIn, sh.handleOf(i, c))
	if c.state == slotLingering {
		unix.Shutdown(int(c.fd), unix.SHUT_WR)
		return
	}
	missed := false
	for n := c.subs; n != 0; n = sh.subs.all.at(n).ofSlot {
		s := sh.subs.all.at(n)
		s.filter &^= subQueued
		missed = missed || s.filter&subMissed != 0
	}
	if missed {
		sh.inbox.post(op{kind: opMissed, h: sh.handleOf(i, c)})
	}
	sh.calm(c)
}

// sendError answers a frame with an error.
func (sh *shard) sendError(i uint32, c *slot, id uint64, hasID bool, code schema.ErrorCode, message string) {
	sh.metrics.errors.WithLabelValues(string(code)).Inc()
	sh.tmp = schema.AppendError(newFrame(sh.tmp), id, hasID, code, message)
	sh.pushControl(i, c, seal(sh.tmp, ws.OpText))
}
