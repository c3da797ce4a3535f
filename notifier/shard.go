package notifier

import (
	"math"
	"sync"
	"sync/atomic"
	"time"

	"github.com/mailbell/mailbell/internal/auth"
	"github.com/mailru/easygo/netpoll"
	"golang.org/x/sys/unix"
)

const (
	readSize   = 16 << 10  // bytes read at a time
	lingerSize = 256 << 10 // bytes thrown away at most after we have closed
	maxLingers = 1024      // refused connections that may linger; further ones are closed at once
)

// shared is what all shards use. Static after construction; each part has locks of its own, and
// none of them is held while a shard's is taken.
type shared struct {
	cfg       Config
	born      time.Time
	accounts  *names
	addrs     *names
	inbox     *inbox
	gate      *gate
	pool      *pool
	admit     *admission
	metrics   *metrics
	backlog   atomic.Int64 // bytes parked in all shards
	open      atomic.Int64 // WebSockets, closing ones not among them
	lingering atomic.Int64 // connections that we have closed and the peer has not
	draining  atomic.Bool
	waiting   atomic.Bool // for what another process hands over
}

// A tick is a tenth of a second since a year before the start, so that a connection taken over may be older than the
// process; 0 is never.
const (
	ticksPerSecond = 10
	headStart      = 365 * 24 * time.Hour
)

func (s *shared) tick() uint32 {
	return uint32(time.Since(s.born)/(time.Second/ticksPerSecond)) + 1
}

// millis is the clock of slot.rate, which wraps.
func (s *shared) millis() uint32 { return uint32(time.Since(s.born) / time.Millisecond) }

// ticks is d rounded up.
func ticks(d time.Duration) uint32 {
	const tick = time.Second / ticksPerSecond
	if d > math.MaxInt32*tick {
		return math.MaxInt32
	}
	return uint32((d + tick - 1) / tick)
}

// extra is what a connection has only while it is busy.
type extra struct {
	in      []byte // half a head, or half a frame
	scanned int    // bytes of a half head that hold no blank line
	until   uint32 // tick at which the head must be whole, or lingering ends

	message    []byte // fragments so far
	fragmented bool
	half       uint32 // tick at which a half frame or message must be whole; 0 is none

	out     []byte // backlog: the rest of a frame, then whole frames
	partial int    // bytes of out that belong to the frame that has been begun
	stalled uint32 // tick at which something must have been taken

	discarded int // bytes thrown away while lingering
}

// doom is a connection whose end has to wait until nobody walks over the lists that it is on.
type doom struct {
	h     handle
	label string
}

// shard owns some of the connections: their slots, subscriptions and descriptors. Its
// poller's goroutine reads, its sweeper looks at deadlines, and the hub delivers, all under mu;
// a descriptor is closed only under mu, so that none can be used again while one of them sends.
type shard struct {
	*shared
	id   uint8
	poll watcher
	wake chan struct{} // to the sweeper: an earlier deadline

	// Owned by the poller's goroutine.
	scratch  []byte
	upgrader *upgrader
	parser   parser

	mu       sync.Mutex
	upgraded sync.Cond // upgrading has become false; on mu
	// Guarded by mu.
	upgrading bool // the poller's goroutine runs a handshake, without mu
	slots     slots
	subs      subs
	filters   filters
	grants    map[uint32]auth.Access // of slots with flagGrants
	extras    []*extra               // extras[0] is not used
	freeExtra []uint32
	buffers   buffers
	doomed    []doom // to be dropped when mu is given back
	nextSweep uint32
	tmp       []byte // frames are built here
}

func newShard(s *shared, id uint8) *shard {
	sh := &shard{
		shared: s, id: id, wake: make(chan struct{}, 1), nextSweep: math.MaxUint32,
		scratch: make([]byte, readSize), upgrader: newUpgrader(s.gate), parser: parser{maxSize: s.cfg.MaxFrame},
		extras: make([]*extra, 1),
	}
	sh.upgraded.L = &sh.mu
	return sh
}

// enter takes mu; leave ends the connections whose sockets failed and gives it back.
func (sh *shard) enter() { sh.mu.Lock() }

func (sh *shard) leave() {
	for _, d := range sh.doomed { // drop dooms no further ones
		if c := sh.slots.of(d.h); c != nil {
			sh.drop(d.h.index(), c, d.label)
		}
	}
	sh.doomed = sh.doomed[:0]
	sh.mu.Unlock()
}

func (sh *shard) doom(i uint32, c *slot, label string) {
	sh.doomed = append(sh.doomed, doom{sh.handleOf(i, c), label})
}

func (sh *shard) handleOf(i uint32, c *slot) handle { return makeHandle(sh.id, i, c.gen) }

// adopt makes a connection of an accepted descriptor; with a refusal it is answered at once, whatever it asks for. It owns
// fd and the hold on addr, whatever happens.
func (sh *shard) adopt(fd int, addr nameID, flags uint8, r *refusal) {
	sh.enter()
	defer sh.leave()
	i := sh.slots.take()
	if i == 0 {
		unix.Close(fd)
		sh.addrs.release(addr)
		sh.admit.done()
		sh.admit.closed()
		return
	}
	c := sh.slots.all.at(i)
	c.fd, c.addr, c.state, c.flags = int32(fd), addr, slotHead, flags
	x := sh.extra(c)
	x.until = sh.tick() + ticks(sh.cfg.HandshakeTimeout)
	sh.setDue(i, x.until)
	if err := sh.poll.add(c.fd, pollIn, sh.handleOf(i, c)); err != nil {
		sh.drop(i, c, endError)
		return
	}
	if r != nil {
		sh.refuse(i, c, r)
	}
}

// event is called by the poller. What it says is a hint: it may be about a former owner of the
// descriptor, so only what the socket itself answers counts.
func (sh *shard) event(h handle, ev netpoll.EpollEvent) {
	sh.enter()
	defer sh.leave()
	c := sh.slots.of(h)
	if c == nil {
		return
	}
	if ev&netpoll.EPOLLOUT != 0 && c.flags&flagArmedOut != 0 {
		if sh.flush(h.index(), c); c.gen != h.gen() {
			return
		}
	}
	if ev&^netpoll.EPOLLOUT == 0 {
		return
	}
	switch c.state {
	case slotHead:
		sh.readHead(h, c)
	case slotChecking:
		if ev&pollGone != 0 {
			sh.drop(h.index(), c, endPeer)
		}
	case slotOpen:
		sh.readFrames(h, c)
	case slotLingering:
		sh.discard(h.index(), c)
	}
}

// extra returns the connection's extra, a new one if it has none.
func (sh *shard) extra(c *slot) *extra {
	if c.extra != 0 {
		return sh.extras[c.extra]
	}
	if n := len(sh.freeExtra); n > 0 {
		c.extra = sh.freeExtra[n-1]
		sh.freeExtra = sh.freeExtra[:n-1]
		sh.extras[c.extra] = new(extra)
	} else {
		c.extra = uint32(len(sh.extras))
		sh.extras = append(sh.extras, new(extra))
	}
	return sh.extras[c.extra]
}

// busy returns the connection's extra, or nil.
func (sh *shard) busy(c *slot) *extra { return sh.extras[c.extra] }

// calm gives an open connection's extra back when nothing needs it.
func (sh *shard) calm(c *slot) {
	x := sh.busy(c)
	if x == nil || c.state != slotOpen || len(x.in) > 0 || x.fragmented || c.flags&flagArmedOut != 0 {
		return
	}
	sh.freeExtras(c)
}

func (sh *shard) freeExtras(c *slot) {
	x := sh.busy(c)
	if x == nil {
		return
	}
	sh.buffers.put(x.in)
	sh.buffers.put(x.message)
	sh.setBacklog(x, 0)
	sh.buffers.put(x.out)
	sh.extras[c.extra] = nil
	sh.freeExtra = append(sh.freeExtra, c.extra)
	c.extra = 0
}

// drop ends a connection at once and frees its slot.
func (sh *shard) drop(i uint32, c *slot, label string) {
	if c.state == slotHead || c.state == slotChecking {
		sh.admit.done()
		if label != endRefused {
			sh.metrics.handshakes.WithLabelValues(label).Inc()
		}
	}
	sh.hangUp(i, c, label)
	if c.flags&flagLingers != 0 {
		sh.lingering.Add(-1)
	}
	sh.poll.del(c.fd) // before close: another process may hold the socket too, and it would be told of here
	unix.Close(int(c.fd))
	sh.freeExtras(c)
	if c.subject != 0 {
		sh.accounts.release(c.subject)
	}
	sh.addrs.release(c.addr)
	sh.slots.give(i)
	sh.admit.closed()
}

// hangUp takes away what an open connection has: it hears nothing more.
func (sh *shard) hangUp(i uint32, c *slot, label string) {
	if c.state != slotOpen {
		return
	}
	for c.subs != 0 {
		sh.unsubscribe(c, c.subs)
	}
	if c.flags&flagGrants != 0 {
		delete(sh.grants, i)
	}
	c.state = slotLingering
	sh.open.Add(-1)
	sh.metrics.closed(label)
}

// fail closes an open connection in the way of RFC 6455, section 7: our close frame, then what the
// peer still sends is thrown away until it has closed too, for CloseTimeout at most.
func (sh *shard) fail(i uint32, c *slot, why *closing) {
	gen := c.gen
	sh.hangUp(i, c, why.label)
	sh.pushControl(i, c, why.frame())
	if c.gen == gen {
		sh.linger(i, c)
	}
}

// linger lets the peer read what we sent last before the descriptor is closed: closing with unread
// bytes would reset the connection, and the reset overtakes what we sent.
func (sh *shard) linger(i uint32, c *slot) {
	c.state = slotLingering
	if c.flags&flagLingers == 0 {
		c.flags |= flagLingers
		sh.lingering.Add(1)
	}
	x := sh.extra(c)
	sh.buffers.put(x.in)
	sh.buffers.put(x.message)
	x.in, x.message, x.fragmented, x.half = nil, nil, false, 0
	x.until = sh.tick() + ticks(sh.cfg.CloseTimeout)
	*sh.slots.due.at(i) = 0
	sh.setDue(i, x.until)
	if len(x.out) == 0 {
		unix.Shutdown(int(c.fd), unix.SHUT_WR)
	}
}

// discard reads what a peer sends after we have closed.
func (sh *shard) discard(i uint32, c *slot) {
	n, err := readSocket(c.fd, sh.scratch)
	x := sh.extra(c)
	x.discarded += n
	if err == unix.EAGAIN {
		return
	}
	if n <= 0 || x.discarded > lingerSize {
		sh.drop(i, c, endPeer)
	}
}

// setDue has the connection looked at not later than at the tick.
func (sh *shard) setDue(i uint32, tick uint32) {
	due := sh.slots.due.at(i)
	if tick == 0 || *due != 0 && *due <= tick {
		return
	}
	*due = tick
	if tick < sh.nextSweep {
		sh.nextSweep = tick
		select {
		case sh.wake <- struct{}{}:
		default:
		}
	}
}
