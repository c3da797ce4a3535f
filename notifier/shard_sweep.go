package notifier

import (
	"context"
	"math"
	"time"

	"golang.org/x/sys/unix"
)

// runSweeper looks at the connections whose deadline has come. Without deadlines nothing runs.
func (sh *shard) runSweeper(ctx context.Context) {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	next := sh.sweep()
	for {
		wait := time.Hour
		if next != math.MaxUint32 {
			wait = time.Until(sh.born.Add(time.Duration(next) * (time.Second / ticksPerSecond)))
			wait = max(wait, time.Second/ticksPerSecond)
		}
		timer.Reset(wait)
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
			next = sh.sweep()
		case <-sh.wake:
			sh.enter()
			next = sh.nextSweep
			sh.leave()
		}
	}
}

// lookAtOnce is how many connections the sweeper pings or ends before it gives mu back: some 0.3 ms.
const lookAtOnce = 64

// sweep looks at all that is due, giving mu back between, and returns when the next one is.
func (sh *shard) sweep() (next uint32) {
	sh.enter()
	sh.nextSweep = math.MaxUint32 // setDue lowers it for what comes while we sweep
	now := sh.tick()
	next = math.MaxUint32
	for part := 0; part < len(sh.slots.due.parts); part++ {
		if part > 0 {
			sh.breathe()
		}
		next = min(next, sh.sweepChunk(part, now))
	}
	sh.nextSweep = min(sh.nextSweep, next)
	next = sh.nextSweep
	sh.leave()
	return next
}

// breathe lets others have mu.
func (sh *shard) breathe() {
	sh.leave()
	sh.enter()
}

func (sh *shard) sweepChunk(part int, now uint32) (next uint32) {
	next = math.MaxUint32
	chunk := sh.slots.due.parts[part]
	looked := 0
	for j := range chunk {
		if chunk[j] == 0 {
			continue
		}
		if chunk[j] <= now {
			i := uint32(part<<chunkShift + j)
			c := sh.slots.all.at(i)
			chunk[j] = 0
			looked++
			gen := c.gen
			sh.overdue(i, c, now)
			if c.gen == gen && c.state != slotFree {
				sh.setDue(i, sh.dueOf(c))
			}
		}
		if chunk[j] != 0 {
			next = min(next, chunk[j])
		}
		if looked == lookAtOnce {
			sh.breathe()
			looked = 0
		}
	}
	return next
}

// dueOf is the earliest deadline of the connection, 0 if it has none.
func (sh *shard) dueOf(c *slot) uint32 {
	x := sh.busy(c)
	if c.state != slotOpen {
		if x == nil {
			return 0
		}
		return x.until
	}
	due := earlier(earlier(c.expires, c.quiet), sh.retireAt(c))
	if x != nil {
		due = earlier(earlier(due, x.half), x.stalled)
	}
	return due
}

// earlier is the smaller of two ticks; 0 is never.
func earlier(a, b uint32) uint32 {
	if a == 0 || b != 0 && b < a {
		return b
	}
	return a
}

func past(tick, now uint32) bool { return tick != 0 && tick <= now }

// overdue does what the connection's deadlines ask for.
func (sh *shard) overdue(i uint32, c *slot, now uint32) {
	x := sh.busy(c)
	switch c.state {
	case slotHead, slotChecking:
		switch {
		case !past(x.until, now):
		case c.state == slotChecking: // the client has done its part
			sh.refuse(i, c, refuseKeys)
		default:
			sh.refuse(i, c, refuseSlow)
		}
	case slotLingering:
		if x == nil || past(x.until, now) {
			sh.drop(i, c, endTimeout)
		}
	case slotOpen:
		switch {
		case past(c.expires, now):
			sh.fail(i, c, &closeExpired)
		case x != nil && past(x.half, now):
			sh.fail(i, c, &closeHalf)
		case x != nil && past(x.stalled, now):
			sh.fail(i, c, &closeStalled)
		case past(c.quiet, now):
			sh.silent(i, c)
		case past(sh.retireAt(c), now):
			sh.retire(i, c)
		}
	}
}

// shed gives up the older half of the connections whose request has not come, but for those that have only just
// come, and returns how many. The acceptor calls it, so that nobody comes while mu is given back.
func (sh *shard) shed() (n int) {
	const oldest = 64 // ticks; who is older counts as of that age
	sh.enter()
	defer sh.leave()
	start := sh.tick() + ticks(sh.cfg.HandshakeTimeout)
	age := func(c *slot) uint32 { return min(start-sh.busy(c).until, oldest) }
	var ages [oldest + 1]int
	half := 0
	for i := uint32(1); i < sh.slots.all.next; i++ {
		if c := sh.slots.all.at(i); c.state == slotHead {
			ages[age(c)]++
			half++
		}
	}
	want := (half + 1) / 2
	least := uint32(oldest) // give up those of this age, and older ones first
	for left := want - ages[least]; left > 0 && least > 1; left -= ages[least] {
		least--
	}
	older := 0
	for a := least + 1; a <= oldest; a++ {
		older += ages[a]
	}
	same := want - older
	for i := uint32(1); i < sh.slots.all.next; i++ {
		c := sh.slots.all.at(i)
		if c.state != slotHead || age(c) < least || age(c) == least && same <= 0 {
			continue
		}
		if age(c) == least {
			same--
		}
		sendSocket(c.fd, sh.admit.answer(refuseBusy))
		sh.drop(i, c, refuseBusy.code)
		if n++; n%lookAtOnce == 0 {
			sh.leave()
			time.Sleep(nap)
			sh.enter()
		}
	}
	return n
}

// silent pings, or closes who did not answer the ping or has been sent away.
func (sh *shard) silent(i uint32, c *slot) {
	switch {
	case c.flags&flagLeaving != 0:
		sh.fail(i, c, &closeMoved)
		return
	case c.flags&flagArmedOut != 0:
		// A ping would wait behind what is parked, and its pong behind that: WriteTimeout judges who takes nothing.
		c.quiet = sh.tick() + ticks(sh.cfg.PongTimeout)
		return
	case c.flags&flagPinged != 0:
		sh.fail(i, c, &closeSilent)
		return
	}
	c.flags |= flagPinged
	c.quiet = sh.tick() + ticks(sh.cfg.PongTimeout)
	sh.metrics.pings.Inc()
	sh.tmp = append(sh.tmp[:0], 0x89, 0) // RFC 6455, section 5.5.2
	sh.pushControl(i, c, sh.tmp)
}

// stop ends all connections: with 1001 where a close frame fits, and without waiting for the peers'.
func (sh *shard) stop() {
	sh.enter()
	defer sh.leave()
	for i := uint32(1); i < sh.slots.all.next; i++ {
		c := sh.slots.all.at(i)
		if c.state == slotFree {
			continue
		}
		if c.state == slotOpen {
			if x := sh.busy(c); x == nil || len(x.out) == 0 {
				sendSocket(c.fd, closeShutdown.frame())
			}
		} else if c.state == slotHead || c.state == slotChecking {
			sendSocket(c.fd, sh.admit.answer(refuseDrain))
		}
		unix.Shutdown(int(c.fd), unix.SHUT_WR)
		sh.drop(i, c, endStop)
	}
}
