package notifier

import (
	"bytes"
	"time"
	"unicode/utf8"
	"unsafe"

	"github.com/gobwas/ws"
	"github.com/mailbell/mailbell/internal/auth"
	"github.com/mailbell/mailbell/schema"
	"golang.org/x/sys/unix"
)

// readSocket reads without waiting. The raw call does not tell the scheduler, which is right for a call that can't block.
func readSocket(fd int32, b []byte) (int, error) {
	for {
		n, _, e := unix.RawSyscall6(unix.SYS_RECVFROM, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)), unix.MSG_DONTWAIT, 0, 0)
		switch e {
		case 0:
			return int(n), nil
		case unix.EINTR:
		default:
			return 0, e
		}
	}
}

// readHead collects the request's head. The upgrade itself runs without mu.
func (sh *shard) readHead(h handle, c *slot) {
	n, err := readSocket(c.fd, sh.scratch)
	if err == unix.EAGAIN {
		return
	}
	if err != nil || n == 0 {
		sh.drop(h.index(), c, endPeer)
		return
	}
	x := sh.extra(c)
	b := sh.scratch[:n]
	if len(x.in) > 0 {
		x.in = sh.buffers.add(x.in, b)
		b = x.in
	}
	if c.flags&flagProxied != 0 {
		size, bad := sh.introduced(c, b)
		if bad != nil {
			sh.refuse(h.index(), c, bad)
			return
		}
		if b = b[size:]; len(x.in) > 0 {
			x.in = append(x.in[:0], b...)
			b = x.in
		}
		if c.flags&flagProxied != 0 || len(b) == 0 {
			if len(x.in) == 0 && len(b) > 0 {
				x.in = append(sh.buffers.get(len(b)), b...)
			}
			return
		}
	}
	end := headEnd(b, x.scanned)
	switch {
	case end > maxHead, end == 0 && len(b) > maxHead:
		sh.refuse(h.index(), c, refuseHead)
	case end > 0:
		owned := x.in
		x.in = nil
		sh.upgrade(h, c, b[:end], b[end:])
		sh.buffers.put(owned)
	default:
		x.scanned = len(b)
		if len(x.in) == 0 {
			x.in = append(sh.buffers.get(len(b)), b...)
		}
	}
}

// upgrade runs the handshake, on the pool if the token's key has to be fetched.
func (sh *shard) upgrade(h handle, c *slot, head, rest []byte) {
	c.state, sh.upgrading = slotChecking, true
	sh.mu.Unlock()
	response, access, err := sh.upgrader.upgrade(head)
	sh.mu.Lock()
	sh.upgrading = false
	sh.upgraded.Signal()
	if c.gen != h.gen() || c.state != slotChecking {
		return
	}
	if err != errWait {
		sh.finish(h, c, response, access, err, rest)
		return
	}
	x := sh.extra(c) // for who may take over meanwhile
	x.in = append(append(sh.buffers.get(len(head)+len(rest)), head...), rest...)
	sh.poll.mod(c.fd, 0, h) // what follows waits in the kernel; only HUP and ERR are told
	sh.submit(h, head, rest)
}

// submit gives the pool a copy: the buffer that the request came in is used again when its handshake has been decided,
// before the bytes that followed it are looked at.
func (sh *shard) submit(h handle, head, rest []byte) {
	sh.pool.submit(job{shard: sh, h: h, head: bytes.Clone(head), rest: bytes.Clone(rest)})
}

// finishJob is called by a worker when the handshake has been decided.
func (sh *shard) finishJob(j job, response []byte, access auth.Access, err error) {
	sh.enter()
	defer sh.leave()
	c := sh.slots.of(j.h)
	if c == nil || c.state != slotChecking {
		return
	}
	sh.poll.mod(c.fd, pollIn, j.h)
	sh.finish(j.h, c, response, access, err, j.rest)
}

// finish answers the handshake, and goes on with the bytes that followed it.
func (sh *shard) finish(h handle, c *slot, response []byte, access auth.Access, err error, rest []byte) {
	i := h.index()
	if err != nil {
		sh.refuse(i, c, refusalOf(err))
		return
	}
	if sh.draining.Load() {
		sh.refuse(i, c, refuseDrain)
		return
	}
	subject, ok := sh.accounts.hold(string(access.Subject), max(0, sh.cfg.MaxPerAccount))
	if !ok {
		sh.refuse(i, c, refuseAccount)
		return
	}
	c.subject = subject
	// Counted before the client hears of it: whoever comes after that finds it counted.
	if sh.open.Add(1) > int64(sh.cfg.MaxConnections) {
		sh.open.Add(-1)
		sh.refuse(i, c, refuseFull)
		return
	}
	if n, err := sendSocket(c.fd, response); err != nil || n < len(response) {
		sh.open.Add(-1)
		sh.drop(i, c, endError)
		return
	}
	sh.admit.done()
	sh.freeExtras(c)
	c.state = slotOpen
	c.born, c.rate = sh.tick(), sh.millis()
	sh.metrics.handshakes.WithLabelValues("ok").Inc()
	if len(access.Grants) != 1 || access.Grants[0].Account != access.Subject || access.Grants[0].Mailboxes != nil {
		if sh.grants == nil {
			sh.grants = make(map[uint32]auth.Access)
		}
		sh.grants[i] = access
		c.flags |= flagGrants
	}
	if !access.Expires.IsZero() {
		c.expires = sh.tick() + max(1, ticks(time.Until(access.Expires)))
	}
	*sh.slots.due.at(i) = 0
	sh.setDue(i, c.expires)
	sh.heard(i, c)
	sh.setDue(i, c.quiet)
	sh.setDue(i, sh.retireAt(c))
	if len(rest) > 0 {
		sh.frames(h, c, rest)
	}
}

// refuse answers the handshake with an error.
func (sh *shard) refuse(i uint32, c *slot, r *refusal) {
	sh.metrics.handshakes.WithLabelValues(r.code).Inc()
	sh.admit.done()
	response := sh.admit.answer(r)
	c.state = slotLingering
	if n, err := sendSocket(c.fd, response); err != nil || n < len(response) {
		sh.drop(i, c, endRefused)
		return
	}
	if sh.lingering.Load() >= maxLingers {
		sh.drop(i, c, endRefused)
		return
	}
	sh.linger(i, c)
}

// readFrames reads what has come, once: the poller is level-triggered, and the next connection
// has its turn.
func (sh *shard) readFrames(h handle, c *slot) {
	n, err := readSocket(c.fd, sh.scratch)
	if err == unix.EAGAIN {
		return
	}
	if err != nil || n == 0 {
		sh.drop(h.index(), c, endPeer)
		return
	}
	b := sh.scratch[:n]
	if x := sh.busy(c); x != nil && len(x.in) > 0 {
		owned := sh.buffers.add(x.in, b)
		x.in = nil
		sh.frames(h, c, owned)
		sh.buffers.put(owned)
		return
	}
	sh.frames(h, c, b)
}

// frames handles the whole frames in b and parks the rest, with a deadline.
func (sh *shard) frames(h handle, c *slot, b []byte) {
	used := sh.wholeFrames(h, c, b)
	if c.gen != h.gen() || c.state != slotOpen {
		return
	}
	x := sh.busy(c)
	if rest := b[used:]; len(rest) > 0 {
		x = sh.extra(c)
		x.in = append(sh.buffers.get(len(rest)), rest...)
	}
	if x == nil {
		return
	}
	switch {
	case len(x.in) == 0 && !x.fragmented:
		x.half = 0
		sh.calm(c)
	case x.half == 0 || used > 0 && !x.fragmented:
		x.half = sh.tick() + ticks(sh.cfg.FrameTimeout)
		sh.setDue(h.index(), x.half)
	}
}

func (sh *shard) wholeFrames(h handle, c *slot, b []byte) (used int) {
	for used < len(b) {
		state, assembled := ws.StateServerSide, 0
		if x := sh.busy(c); x != nil && x.fragmented {
			state, assembled = state.Set(ws.StateFragmented), len(x.message)
		}
		header, size, more, bad := sh.parser.next(b[used:], state, assembled)
		if bad != nil {
			sh.fail(h.index(), c, bad)
			return used
		}
		if more {
			return used
		}
		payload := b[used+size : used+size+int(header.Length)]
		ws.Cipher(payload, header.Mask, 0)
		used += size + len(payload)
		sh.frame(h, c, header, payload)
		if c.gen != h.gen() || c.state != slotOpen {
			return used
		}
	}
	return used
}

// frame handles one frame of an open connection.
func (sh *shard) frame(h handle, c *slot, header ws.Header, payload []byte) {
	i := h.index()
	sh.metrics.framesIn.Inc()
	if !sh.inRate(c) {
		sh.fail(i, c, &closeRate)
		return
	}
	sh.heard(i, c)
	switch header.OpCode {
	case ws.OpPing:
		sh.tmp = append(newFrame(sh.tmp), payload...)
		sh.pushControl(i, c, seal(sh.tmp, ws.OpPong))
	case ws.OpPong:
	case ws.OpClose:
		sh.peerCloses(h, c, payload)
	case ws.OpBinary:
		sh.fail(i, c, &closeBinary)
	case ws.OpText, ws.OpContinuation:
		if header.Fin && header.OpCode == ws.OpText {
			sh.message(h, c, payload)
			return
		}
		x := sh.extra(c)
		x.fragmented = true
		x.message = sh.buffers.add(x.message, payload)
		if header.Fin {
			whole := x.message
			x.message, x.fragmented = nil, false
			sh.message(h, c, whole)
			sh.buffers.put(whole)
		}
	}
}

// peerCloses answers a client's close frame (RFC 6455, section 5.5.1) and lets go.
func (sh *shard) peerCloses(h handle, c *slot, payload []byte) {
	i := h.index()
	if bad := checkClose(payload); bad != nil {
		sh.fail(i, c, bad)
		return
	}
	sh.hangUp(i, c, closeNormal.label)
	sh.tmp = append(newFrame(sh.tmp), payload[:min(2, len(payload))]...)
	sh.pushControl(i, c, seal(sh.tmp, ws.OpClose))
	if c.gen != h.gen() {
		return
	}
	if x := sh.busy(c); x != nil && len(x.out) > 0 {
		sh.linger(i, c)
		return
	}
	sh.drop(i, c, endPeer)
}

// heard notes a sign of life.
func (sh *shard) heard(i uint32, c *slot) {
	if c.flags&flagLeaving != 0 {
		return
	}
	c.flags &^= flagPinged
	c.quiet = sh.quietAt(i, sh.cfg.PingInterval)
}

// Pings are sent in rounds, all shards' at once, and their pongs are read together: as few rounds in an interval as keep each
// below inRound connections, and at most maxRounds. A round wakes threads here and clients there, beside what its pings cost.
const (
	maxRounds = 16
	inRound   = 8192
)

// quietAt is when a connection that is silent from now on is pinged: with its round, in an interval at the latest. Who has
// just come may have to answer sooner.
func (sh *shard) quietAt(i uint32, interval time.Duration) uint32 {
	if interval < 0 {
		return 0
	}
	return sh.roundAt(i, sh.tick(), ticks(interval))
}

// roundAt is the last round of a connection in the n ticks after now.
func (sh *shard) roundAt(i, now, n uint32) uint32 {
	rounds := min(maxRounds, 1+uint32(sh.open.Load())/inRound)
	phase := i % rounds * (n / rounds)
	last := now + n
	return last - (last-phase)%n
}

// inRate is the generic cell rate algorithm: a frame is due 1/FrameRate after the one before, and may come
// FrameBurst of these early.
func (sh *shard) inRate(c *slot) bool {
	now := sh.millis()
	step := uint32(max(1, 1000/sh.cfg.FrameRate))
	slack := step * uint32(sh.cfg.FrameBurst)
	ahead := c.rate - now
	if ahead > slack { // in the past, or long since wrapped
		c.rate, ahead = now, 0
	}
	if ahead+step > slack {
		return false
	}
	c.rate += step
	return true
}

// message handles one whole text message.
func (sh *shard) message(h handle, c *slot, b []byte) {
	i := h.index()
	if !utf8.Valid(b) {
		sh.fail(i, c, &closeUTF8)
		return
	}
	f, err := schema.DecodeClientFrame(b)
	if err != nil {
		fe, ok := err.(*schema.FrameError)
		if !ok {
			fe = &schema.FrameError{Message: err.Error()}
		}
		sh.sendError(i, c, fe.ID, fe.HasID, schema.CodeBadRequest, fe.Message)
		return
	}
	switch f.Type {
	case schema.FramePing:
		sh.tmp = schema.AppendPong(newFrame(sh.tmp), f.ID)
		sh.pushControl(i, c, seal(sh.tmp, ws.OpText))
	case schema.FrameSubscribe:
		sh.askSubscribe(h, c, &f)
	case schema.FrameUnsubscribe:
		if c.pending > 0 { // one of them may be for this account
			sh.inbox.post(op{kind: opCancel, h: h, id: f.ID, account: f.Account})
			return
		}
		sh.endSubscription(i, c, f.ID, f.Account)
	}
}
