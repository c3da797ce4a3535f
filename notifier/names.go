package notifier

import (
	"encoding/binary"
	"hash/maphash"
	"math"
	"sync"
)

// nameID stands for a name while someone holds or wants it; 0 is none. After
// that it may come to stand for another name.
type nameID uint32

// What the owner of an account's partition knows of our interest; every other value is the low half of the
// request that is to be answered.
const (
	askedNot    uint32 = iota // nothing
	askedQueued               // will be asked with the next flush
	askedLive                 // it has answered: events flow
	askedFirst                // the first value that is a request

	// It was live at the owner before, and this one has not answered yet. No request either.
	askedAgain uint32 = math.MaxUint32
)

// nameEntry is 24 bytes without pointers.
type nameEntry struct {
	hash  uint32
	off   uint32 // of the name in the arena; the next free entry when free
	holds uint32 // connections
	wants uint32 // subscriptions, and subscribes that wait for an answer; changed only by the hub
	asked uint32 // see askedNot; used only by the hub
	size  uint16 // bytes of the name; 0 when free
	_     uint16
}

// names counts who uses a name: each name is stored once, in an arena with a free
// list for every size, and found by open addressing. There are two: the accounts and the
// peers' addresses.
//
// A name lives while holds or wants is above zero. Only the hub changes wants, and only it
// delivers by id: an id with wants can't change its meaning under a delivery.
type names struct {
	// Static after construction.
	seed maphash.Seed

	mu sync.Mutex
	// Guarded by mu.
	entries chunks[nameEntry]
	free    nameID
	count   int
	holds   uint64 // of all names
	wants   uint64
	index   []nameID // a power of two; 0 is empty
	arena   arena
}

func newNames() *names { return &names{seed: maphash.MakeSeed()} }

// hold counts one more connection, unless the name has limit of them (0: no limit).
func (n *names) hold(name string, limit int) (nameID, bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	id := n.intern(name)
	e := n.entries.at(uint32(id))
	if limit > 0 && int(e.holds) >= limit {
		return 0, false
	}
	e.holds++
	n.holds++
	return id, true
}

// release takes back one hold.
func (n *names) release(id nameID) {
	n.mu.Lock()
	defer n.mu.Unlock()
	e := n.entries.at(uint32(id))
	e.holds--
	n.holds--
	n.collect(id, e)
}

// want counts one more subscription, unless the name has limit of them (0: no limit).
func (n *names) want(name string, limit int) (nameID, bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	id := n.intern(name)
	e := n.entries.at(uint32(id))
	if limit > 0 && int(e.wants) >= limit {
		n.collect(id, e)
		return 0, false
	}
	e.wants++
	n.wants++
	return id, true
}

// unwant takes back one want and returns how many are left. The name, for the caller who has
// to tell the owner, is valid when none is.
func (n *names) unwant(id nameID) (left uint32, asked uint32, name string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	e := n.entries.at(uint32(id))
	e.wants--
	n.wants--
	if e.wants > 0 {
		return e.wants, e.asked, ""
	}
	asked = e.asked
	if asked != askedNot {
		name = string(n.arena.bytes(e.off, int(e.size)))
	}
	e.asked = askedNot
	n.collect(id, e)
	return 0, asked, name
}

// wanted returns the id of a name that someone wants, or 0.
func (n *names) wanted(name string) nameID {
	id, _ := n.hears(name)
	return id
}

// hears is wanted, and what the owner knows of the name.
func (n *names) hears(name string) (id nameID, asked uint32) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if id = n.find(name, n.hash(name)); id == 0 {
		return 0, askedNot
	}
	e := n.entries.at(uint32(id))
	if e.wants == 0 {
		return 0, askedNot
	}
	return id, e.asked
}

// asked returns what the owner knows, and setAsked changes it if it is still `from`.
func (n *names) asked(id nameID) uint32 {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.entries.at(uint32(id)).asked
}

func (n *names) setAsked(id nameID, from, to uint32) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	e := n.entries.at(uint32(id))
	if e.asked != from {
		return false
	}
	e.asked = to
	return true
}

// is reports whether the id stands for the name.
func (n *names) is(id nameID, name string) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	e := n.entries.at(uint32(id))
	return string(n.arena.bytes(e.off, int(e.size))) == name
}

// name returns a copy of the name.
func (n *names) name(id nameID) string {
	n.mu.Lock()
	defer n.mu.Unlock()
	e := n.entries.at(uint32(id))
	return string(n.arena.bytes(e.off, int(e.size)))
}

// each calls fn for all names that someone wants. fn may not use n; it may change asked through the entry's
// pointer.
func (n *names) each(fn func(name string, asked *uint32)) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for i := uint32(1); i < n.entries.next; i++ {
		if e := n.entries.at(i); e.size > 0 && e.wants > 0 {
			fn(string(n.arena.bytes(e.off, int(e.size))), &e.asked)
		}
	}
}

// counts returns how many names are in use, and all their holds and wants.
func (n *names) counts() (inUse int, holds, wants uint64) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.count, n.holds, n.wants
}

func (n *names) hash(name string) uint32 {
	h := maphash.String(n.seed, name)
	return uint32(h ^ h>>32)
}

func (n *names) find(name string, hash uint32) nameID {
	if len(n.index) == 0 {
		return 0
	}
	mask := uint32(len(n.index) - 1)
	for i := hash & mask; n.index[i] != 0; i = (i + 1) & mask {
		e := n.entries.at(uint32(n.index[i]))
		if e.hash == hash && string(n.arena.bytes(e.off, int(e.size))) == name {
			return n.index[i]
		}
	}
	return 0
}

// intern returns the id of the name, a new one if need be. The name is 1 to 65,535 bytes.
func (n *names) intern(name string) nameID {
	if name == "" || len(name) > math.MaxUint16 {
		panic("notifier: a name of " + name + " has a length that can't be stored")
	}
	hash := n.hash(name)
	if id := n.find(name, hash); id != 0 {
		return id
	}
	id := n.free
	if id != 0 {
		n.free = nameID(n.entries.at(uint32(id)).off)
	} else {
		id = nameID(n.entries.grow())
	}
	*n.entries.at(uint32(id)) = nameEntry{hash: hash, off: n.arena.store(name), size: uint16(len(name))}
	n.count++
	if n.count*4 > len(n.index)*3 {
		n.rehash()
	} else {
		n.place(id, hash)
	}
	return id
}

// collect frees the name when nobody uses it.
func (n *names) collect(id nameID, e *nameEntry) {
	if e.holds > 0 || e.wants > 0 {
		return
	}
	n.unplace(id, e.hash)
	n.arena.drop(e.off, int(e.size))
	*e = nameEntry{off: uint32(n.free)}
	n.free = id
	n.count--
}

func (n *names) place(id nameID, hash uint32) {
	mask := uint32(len(n.index) - 1)
	i := hash & mask
	for n.index[i] != 0 {
		i = (i + 1) & mask
	}
	n.index[i] = id
}

// unplace empties the id's place and moves later ones up, so that no search ends too soon.
func (n *names) unplace(id nameID, hash uint32) {
	mask := uint32(len(n.index) - 1)
	i := hash & mask
	for n.index[i] != id {
		i = (i + 1) & mask
	}
	for j := (i + 1) & mask; n.index[j] != 0; j = (j + 1) & mask {
		home := n.entries.at(uint32(n.index[j])).hash & mask
		if (j-home)&mask >= (j-i)&mask {
			n.index[i] = n.index[j]
			i = j
		}
	}
	n.index[i] = 0
}

func (n *names) rehash() {
	n.index = make([]nameID, max(64, len(n.index)*2))
	for i := uint32(1); i < n.entries.next; i++ {
		if e := n.entries.at(i); e.size > 0 {
			n.place(nameID(i), e.hash)
		}
	}
}

// An arena stores strings in chunks of 64 KiB, in units of 8 bytes, with a free list
// per number of units. Offsets count units and start at 1.
type arena struct {
	parts []*[arenaChunk]byte
	used  uint32 // units
	free  []uint32
}

const (
	arenaChunk = 64 << 10
	arenaUnit  = 8
	arenaUnits = arenaChunk / arenaUnit
)

func (a *arena) bytes(off uint32, size int) []byte {
	start := off % arenaUnits * arenaUnit
	return a.parts[off/arenaUnits][start : start+uint32(size)]
}

func unitsOf(size int) uint32 { return uint32(size+arenaUnit-1) / arenaUnit }

func (a *arena) store(s string) uint32 {
	units := unitsOf(len(s))
	if int(units) < len(a.free) && a.free[units] != 0 {
		off := a.free[units]
		a.free[units] = binary.NativeEndian.Uint32(a.bytes(off, 4))
		copy(a.bytes(off, len(s)), s)
		return off
	}
	if a.used == 0 {
		a.used = 1
	}
	if a.used%arenaUnits+units > arenaUnits { // does not fit what is left of the chunk
		a.used = (a.used/arenaUnits + 1) * arenaUnits
	}
	if int(a.used/arenaUnits) >= len(a.parts) {
		a.parts = append(a.parts, new([arenaChunk]byte))
	}
	off := a.used
	a.used += units
	copy(a.bytes(off, len(s)), s)
	return off
}

func (a *arena) drop(off uint32, size int) {
	units := int(unitsOf(size))
	for len(a.free) <= units {
		a.free = append(a.free, 0)
	}
	binary.NativeEndian.PutUint32(a.bytes(off, 4), a.free[units])
	a.free[units] = off
}
