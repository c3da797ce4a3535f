package notifier

import "math/bits"

// sub is one subscription: 32 bytes without pointers. It is on two lists: the account's within the
// shard (both ways), and its connection's.
type sub struct {
	floor   int64 // offset up to which its client has been told; it never gets a record twice
	account nameID
	slot    uint32
	ofSlot  uint32 // next of the connection; next free when free
	next    uint32 // of the account
	prev    uint32
	filter  uint32 // index in shard.filters, 0 is all mailboxes; and the two bits below
}

const (
	subQueued  uint32 = 1 << 31 // it has events in the connection's backlog
	subMissed  uint32 = 1 << 30 // its backlog was dropped: nothing more until it has been told
	filterMask        = subMissed - 1
)

// subs finds the subscriptions of an account in a shard by open addressing over the heads of their lists.
type subs struct {
	all   chunks[sub]
	free  uint32
	count int

	heads    []uint32 // a power of two; 0 is empty
	accounts int
}

func (s *subs) home(a nameID) uint32 {
	return uint32(a) * 0x9E3779B1 >> (32 - uint32(bits.TrailingZeros32(uint32(len(s.heads)))))
}

// place returns where the account's head is, or where it would go.
func (s *subs) place(a nameID) uint32 {
	mask := uint32(len(s.heads) - 1)
	i := s.home(a)
	for s.heads[i] != 0 && s.all.at(s.heads[i]).account != a {
		i = (i + 1) & mask
	}
	return i
}

// first returns the first subscription of the account, 0 if it has none.
func (s *subs) first(a nameID) uint32 {
	if s.accounts == 0 {
		return 0
	}
	return s.heads[s.place(a)]
}

// add makes a subscription of the connection in slot i.
func (s *subs) add(i uint32, c *slot, a nameID, filter uint32, floor int64) uint32 {
	if (s.accounts+1)*4 > len(s.heads)*3 {
		s.rehash()
	}
	n := s.free
	if n != 0 {
		s.free = s.all.at(n).ofSlot
	} else {
		n = s.all.grow()
	}
	at := s.place(a)
	head := s.heads[at]
	*s.all.at(n) = sub{floor: floor, account: a, slot: i, ofSlot: c.subs, next: head, filter: filter}
	if head != 0 {
		s.all.at(head).prev = n
	} else {
		s.accounts++
	}
	s.heads[at] = n
	c.subs = n
	c.nsubs++
	s.count++
	return n
}

// find returns the connection's subscription to the account, 0 if it has none.
func (s *subs) find(c *slot, a nameID) uint32 {
	for n := c.subs; n != 0; n = s.all.at(n).ofSlot {
		if s.all.at(n).account == a {
			return n
		}
	}
	return 0
}

// remove ends a subscription of the connection and returns its filter.
func (s *subs) remove(c *slot, n uint32) (filter uint32) {
	gone := *s.all.at(n)
	if c.subs == n {
		c.subs = gone.ofSlot
	} else {
		p := c.subs
		for s.all.at(p).ofSlot != n {
			p = s.all.at(p).ofSlot
		}
		s.all.at(p).ofSlot = gone.ofSlot
	}
	c.nsubs--
	if gone.next != 0 {
		s.all.at(gone.next).prev = gone.prev
	}
	switch {
	case gone.prev != 0:
		s.all.at(gone.prev).next = gone.next
	case gone.next != 0:
		s.heads[s.place(gone.account)] = gone.next
	default:
		s.unplace(gone.account)
	}
	*s.all.at(n) = sub{ofSlot: s.free}
	s.free = n
	s.count--
	return gone.filter & filterMask
}

// unplace empties the account's place and moves later ones up. The account's last
// subscription is still in all.
func (s *subs) unplace(a nameID) {
	mask := uint32(len(s.heads) - 1)
	i := s.place(a)
	for j := (i + 1) & mask; s.heads[j] != 0; j = (j + 1) & mask {
		if home := s.home(s.all.at(s.heads[j]).account); (j-home)&mask >= (j-i)&mask {
			s.heads[i] = s.heads[j]
			i = j
		}
	}
	s.heads[i] = 0
	s.accounts--
}

func (s *subs) rehash() {
	old := s.heads
	s.heads = make([]uint32, max(64, 2*len(old)))
	for _, n := range old {
		if n != 0 {
			s.heads[s.place(s.all.at(n).account)] = n
		}
	}
}
