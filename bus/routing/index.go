package routing

import (
	"math"
	"slices"
)

const (
	indexShards = 16 // bounds the pause of a growing or forgetting table
	minTable    = 16
)

// index remembers the offset of each account's last event by a 32-bit hash, eight
// bytes each in tables without pointers. For an account that it does not name,
// nothing happened after the floor.
type index struct {
	tables [indexShards]table
}

// table is one shard: linear probing, an entry's home in proportion to its hash, so
// that a table grows by any factor in one pass.
type table struct {
	slots []slot
	used  int
	max   int
	base  int64 // slot.offset counts from here
	floor int64 // what happened later than this is known
}

type slot struct {
	hash   uint32
	offset uint32 // from the table's base; 0: empty
}

func (x *index) reset(floor int64, maxAccounts int) {
	for i := range x.tables {
		x.tables[i] = table{base: floor, floor: floor, max: max(1, maxAccounts/indexShards)}
	}
}

func (x *index) bound(maxAccounts int) {
	for i := range x.tables {
		t := &x.tables[i]
		t.max = max(1, maxAccounts/indexShards)
		for t.used > t.max {
			t.forget()
		}
	}
}

func (x *index) of(hash uint32) *table { return &x.tables[hash%indexShards] }

// len returns the number of entries.
func (x *index) len() int {
	n := 0
	for i := range x.tables {
		n += x.tables[i].used
	}
	return n
}

// bytes returns the memory of the tables.
func (x *index) bytes() int64 {
	n := int64(0)
	for i := range x.tables {
		n += int64(len(x.tables[i].slots)) * 8
	}
	return n
}

// floor returns where the least reaching table begins.
func (x *index) floor() int64 {
	lowest := int64(math.MinInt64)
	for i := range x.tables {
		lowest = max(lowest, x.tables[i].floor)
	}
	return lowest
}

// quietSince reports whether it is certain that nothing happened to the account
// after the offset.
func (x *index) quietSince(hash uint32, offset int64) bool {
	t := x.of(hash)
	return offset >= t.floor && t.last(hash) <= offset
}

// add notes the event at offset, which is later than all before it.
func (x *index) add(hash uint32, offset int64) {
	t := x.of(hash)
	if offset-t.base > math.MaxUint32 {
		t.rebase(offset - math.MaxUint32/2)
	}
	for !t.put(hash, offset) {
		t.forget()
	}
}

// last returns the offset of the last event noted for the hash, or the lowest number.
func (t *table) last(hash uint32) int64 {
	if len(t.slots) == 0 {
		return math.MinInt64
	}
	if s := t.find(hash); s.offset != 0 {
		return t.base + int64(s.offset)
	}
	return math.MinInt64
}

// find returns the slot of the hash, or the empty one where it belongs.
func (t *table) find(hash uint32) *slot {
	i := int(uint64(hash) * uint64(len(t.slots)) >> 32)
	for {
		s := &t.slots[i]
		if s.offset == 0 || s.hash == hash {
			return s
		}
		if i++; i == len(t.slots) {
			i = 0
		}
	}
}

// put notes the offset unless a later one is known. It reports false when the table is full.
func (t *table) put(hash uint32, offset int64) bool {
	if len(t.slots) == 0 {
		t.slots = make([]slot, minTable)
	}
	s := t.find(hash)
	if s.offset == 0 {
		if t.used >= t.max {
			return false
		}
		if t.used >= len(t.slots)/4*3 {
			t.rebuild(len(t.slots)+len(t.slots)/4+minTable, 0, t.base)
			s = t.find(hash)
		}
		t.used++
		s.hash = hash
	}
	s.offset = max(s.offset, uint32(offset-t.base))
	return true
}

// rebuild moves the entries later than cut (counted from the base) to n slots and a new base.
func (t *table) rebuild(n int, cut uint32, base int64) {
	old, oldBase := t.slots, t.base
	t.slots, t.used, t.base = make([]slot, n), 0, base
	for _, s := range old {
		if s.offset > cut {
			*t.find(s.hash) = slot{s.hash, uint32(oldBase + int64(s.offset) - base)}
			t.used++
		}
	}
}

// rebase moves the base up and forgets what happened up to there.
func (t *table) rebase(base int64) {
	cut := uint32(min(base-t.base, math.MaxUint32))
	t.rebuild(max(minTable, len(t.slots)), cut, base)
	t.floor = max(t.floor, base)
}

// forget drops the entries that have been quiet for longest, so that a quarter of what may be there is free, as far as a
// sample tells, and raises the floor to the latest of them.
func (t *table) forget() {
	const samples = 512
	step := max(1, len(t.slots)/samples)
	offsets := make([]uint32, 0, 2*samples)
	for i := 0; i < len(t.slots); i += step {
		if o := t.slots[i].offset; o != 0 {
			offsets = append(offsets, o)
		}
	}
	var cut uint32
	if n := len(offsets); n > 0 {
		slices.Sort(offsets)
		drop := t.used - t.max/4*3
		cut = offsets[min(n-1, int(int64(n)*int64(drop)/int64(t.used)))]
	} else { // the sample has missed them: all of them go
		cut = uint32(t.newest() - t.base)
	}
	left := 0
	for _, s := range t.slots {
		if s.offset > cut {
			left++
		}
	}
	// Slots for what is left, and no more than a table of this bound ever grows to.
	most := t.max + t.max/4*3 + 2*minTable
	t.rebuild(min(len(t.slots), max(most, left+left/2+minTable)), cut, t.base)
	t.floor = max(t.floor, t.base+int64(cut))
}

// backfill notes an event at an offset before the floor. It reports false when
// the table has no room, so that its floor has to stay.
func (t *table) backfill(hash uint32, offset int64) bool {
	if offset <= t.base {
		if newest := t.newest(); newest-offset > math.MaxUint32/2 {
			return false
		}
		t.rebuild(max(minTable, len(t.slots)), 0, offset-(1<<24))
	}
	return t.put(hash, offset)
}

func (t *table) newest() int64 {
	newest := uint32(0)
	for _, s := range t.slots {
		newest = max(newest, s.offset)
	}
	return t.base + int64(newest)
}
