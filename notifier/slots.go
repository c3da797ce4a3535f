package notifier

import "fmt"

// handle names one connection for its whole life: shard (8 bits), index in
// the shard (24 bits), generation (32 bits). A handle kept longer names
// nothing, even when its slot and its descriptor have new owners.
type handle uint64

const maxSlots = 1 << 24 // a shard's

func makeHandle(shard uint8, index, gen uint32) handle {
	return handle(uint64(shard)<<56 | uint64(index)<<32 | uint64(gen))
}

func (h handle) shard() int    { return int(h >> 56) }
func (h handle) index() uint32 { return uint32(h>>32) & (maxSlots - 1) }
func (h handle) gen() uint32   { return uint32(h) }

func (h handle) String() string { return fmt.Sprintf("%d/%d/%d", h.shard(), h.index(), h.gen()) }

type slotState uint8

const (
	slotFree      slotState = iota
	slotHead                // its request head is being collected
	slotChecking            // a worker has its request
	slotOpen                // a WebSocket
	slotLingering           // we have closed; what the peer still sends is thrown away
)

// Flags of a slot.
const (
	flagPinged   uint8 = 1 << iota // a ping waits for any sign of life
	flagGrants                     // shard.grants has what it may subscribe to, beside its own account
	flagLeaving                    // it was sent `reconnect`; its quiet is when we close
	flagArmedOut                   // EPOLLOUT is asked for
	flagLingers                    // it is counted in lingering
	flagProxied                    // a trusted proxy is to say first who comes (PROXY protocol)
)

// slot is one connection: 44 bytes without pointers. What only busy
// connections need is in an extra.
type slot struct {
	gen     uint32 // odd while in use
	fd      int32
	subs    uint32 // its subscriptions' list; the next free slot when free
	subject nameID // the account that it is authenticated as
	addr    nameID // of the peer, in the addresses
	extra   uint32 // index in shard.extras, 0 is none
	expires uint32 // tick at which the token ends, 0 is never
	quiet   uint32 // tick at which a ping is due if nothing is heard till then
	born    uint32 // tick at which it became a WebSocket
	rate    uint32 // ms at which the frames heard so far would have been due (GCRA)
	nsubs   uint8
	pending uint8 // subscribes that the hub has not answered
	state   slotState
	flags   uint8
}

// slots holds the connections of a shard and, in an array of its own that is swept, the
// tick at which each has to be looked at.
type slots struct {
	all  chunks[slot]
	due  chunks[uint32] // 0 is never
	free uint32
	used int
}

// take returns a free slot's index, its generation already odd, or 0 when the shard is full.
func (s *slots) take() uint32 {
	i := s.free
	if i != 0 {
		s.free = s.all.at(i).subs
	} else {
		if s.all.next >= maxSlots {
			return 0
		}
		i = s.all.grow()
		s.due.grow()
	}
	c := s.all.at(i)
	*c = slot{gen: c.gen + 1}
	s.used++
	return i
}

// give frees a slot. From now on no handle names it.
func (s *slots) give(i uint32) {
	c := s.all.at(i)
	*c = slot{gen: c.gen + 1, subs: s.free}
	*s.due.at(i) = 0
	s.free = i
	s.used--
}

// of returns the slot that the handle names, or nil when its connection is gone.
func (s *slots) of(h handle) *slot {
	if !s.all.has(h.index()) {
		return nil
	}
	c := s.all.at(h.index())
	if c.gen != h.gen() || c.state == slotFree {
		return nil
	}
	return c
}
