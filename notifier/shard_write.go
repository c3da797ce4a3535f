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

// sendOrPark sends a frame to a connection without backlog, parks what the socket does not take, and reports
// whether the socket still works.
func (sh *shard) sendOrPark(i uint32, c *slot, frame []byte) (parked, ok bool) {
	n, err := sendSocket(c.fd, frame)
	if n == len(frame) {
		return false, true
	}
	if err != nil && err != unix.EAGAIN {
		sh.doom(i, c, endPeer)
		return false, false
	}
	x := sh.extra(c)
	if n > 0 {
		x.partial = len(frame) - n
	}
	x.out = append(sh.buffers.get(len(frame)-n), frame[n:]...)
	sh.backlog.Add(int64(len(x.out)))
	x.stalled = sh.tick() + ticks(sh.cfg.WriteTimeout)
	sh.setDue(i, x.stalled)
	c.flags |= flagArmedOut
	sh.poll.Mod(int(c.fd), pollOut)
	return true, true
}

// setBacklog changes the length of the backlog, counting it.
func (sh *shard) setBacklog(x *extra, n int) {
	sh.backlog.Add(int64(n - len(x.out)))
	x.out = x.out[:n]
}

// pushControl sends what is no event: it is never dropped, and a client that lets twice the backlog
// of answers pile up is closed.
func (sh *shard) pushControl(i uint32, c *slot, frame []byte) {
	x := sh.busy(c)
	if x == nil || len(x.out) == 0 {
		sh.sendOrPark(i, c, frame)
		return
	}
	if len(x.out)+len(frame) > 2*sh.cfg.Backlog {
		sh.doom(i, c, endUnread)
		return
	}
	sh.queue(x, frame)
}

func (sh *shard) queue(x *extra, frame []byte) {
	x.out = sh.buffers.add(x.out, frame)
	sh.backlog.Add(int64(len(frame)))
}

// pushEvent sends an event of subscription n, or parks it behind what is parked. Past the caps the
// backlog's events go, and their subscriptions will be told that they missed something.
func (sh *shard) pushEvent(i uint32, c *slot, n uint32, frame []byte) {
	s := sh.subs.all.at(n)
	if s.filter&subMissed != 0 {
		sh.metrics.dropped.Inc()
		return
	}
	x := sh.busy(c)
	if x == nil || len(x.out) == 0 {
		parked, ok := sh.sendOrPark(i, c, frame)
		if parked {
			s.filter |= subQueued
		}
		if ok {
			sh.metrics.eventsOut.Inc()
		}
		return
	}
	if len(x.out)+len(frame) > sh.cfg.Backlog || sh.backlog.Load()+int64(len(frame)) > int64(sh.cfg.TotalBacklog) {
		s.filter |= subQueued
		sh.metrics.dropped.Inc()
		sh.overflow(c, x)
		return
	}
	s.filter |= subQueued
	sh.queue(x, frame)
	sh.metrics.eventsOut.Inc()
}

// overflow drops the events of a backlog; answers stay.
func (sh *shard) overflow(c *slot, x *extra) {
	kept := x.partial
	for at := x.partial; at < len(x.out); {
		size, payload := frameAt(x.out[at:])
		if bytes.HasPrefix(payload, []byte(`{"type":"event"`)) {
			sh.metrics.dropped.Inc()
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
	sh.poll.Mod(int(c.fd), pollIn)
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
