package routing

import (
	"slices"
	"time"

	"github.com/mailbell/mailbell/schema"
)

// Partition is the state of one partition of the log. It is read before it is
// owned: Append fills the window and the index, Own lets links in.
type Partition struct {
	cfg    Config
	hasher hasher

	generation uint64 // 0: not owned
	epoch      uint64
	head       int64
	window     window
	index      index
	routes     routes
	spread     spread
	parked     parked

	// Links with at least one account here, by slot.
	links map[LinkID]int32
	slots []linkState
	free  []int32

	// Reused from call to call.
	out     []Output
	touched []int32
	picked  []uint64
	records []Record
	stats   Stats
}

type linkState struct {
	id      LinkID
	pending []Record
	told    int64 // the head that the link knows
}

// Stats are counts since the partition was made, and gauges.
type Stats struct {
	Records    uint64 // appended, duplicates not counted
	Duplicates uint64 // dropped by id
	Deliveries uint64 // records times links
	Answers    [NotOwner + 1]uint64
	Resets     uint64 // gaps and epoch changes

	WindowRecords int
	WindowBytes   int64
	WindowFloor   int64
	IndexAccounts int
	IndexBytes    int64
	IndexFloor    int64
	Routes        int
	Parked        int
}

// New returns a partition of which everything after start is going to be read.
func New(cfg Config, epoch uint64, start int64) *Partition {
	p := &Partition{cfg: cfg.withDefaults(), hasher: newHasher(), epoch: epoch}
	p.clear(start)
	return p
}

func (p *Partition) clear(head int64) {
	p.head = head
	p.window.reset(head)
	p.index.reset(head, p.cfg.IndexAccounts)
	p.dropLinks()
}

func (p *Partition) dropLinks() {
	p.routes.reset()
	p.links = make(map[LinkID]int32)
	p.slots, p.free, p.touched = nil, nil, nil
	p.parked = parked{}
}

// Head returns how far the partition has been read.
func (p *Partition) Head() Position { return Position{p.epoch, p.head} }

// Generation returns the generation that owns the partition, 0 while it is not owned.
func (p *Partition) Generation() uint64 { return p.generation }

// Stats returns the counters.
func (p *Partition) Stats() Stats {
	s := p.stats
	s.WindowRecords, s.WindowBytes, s.WindowFloor = p.window.len(), p.window.bytes, p.window.floor
	s.IndexAccounts, s.IndexBytes, s.IndexFloor = p.index.len(), p.index.bytes(), p.index.floor()
	s.Routes, s.Parked = p.routes.count, len(p.parked.requests)
	return s
}

// Bound changes the bounds of window and index, for a node whose number of partitions changed.
func (p *Partition) Bound(windowBytes int64, indexAccounts int) {
	p.cfg.WindowBytes, p.cfg.IndexAccounts = windowBytes, indexAccounts
	p.cfg = p.cfg.withDefaults()
	p.index.bound(p.cfg.IndexAccounts)
}

// Own lets links in, as the owner of a generation, which is positive. A partition
// that stays with its owner keeps the generation in which it came.
func (p *Partition) Own(generation uint64) { p.generation = generation }

// Disown forgets the links. Requests that wait are answered NotOwner.
func (p *Partition) Disown() []Output {
	p.begin()
	p.generation = 0
	for _, r := range p.parked.requests {
		p.answer(r, NotOwner)
	}
	p.dropLinks()
	return p.out
}

// Gap says that what came after the head, up to an offset, is gone from the log
// unread. The partition knows nothing of the time before and is disowned: links
// must subscribe again, to be told Resync.
func (p *Partition) Gap(upTo int64) []Output {
	out := p.Disown()
	p.stats.Resets++
	p.clear(max(p.head, upTo))
	return out
}

// Beacon notes a record of the log that is no event but names the epoch. It
// reports whether the epoch changed; then the partition is disowned, because
// positions that were given out mean nothing any more.
func (p *Partition) Beacon(epoch uint64, offset int64) (outputs []Output, changed bool) {
	p.head = max(p.head, offset)
	if epoch == p.epoch {
		return nil, false
	}
	out := p.Disown()
	p.stats.Resets++
	p.epoch = epoch
	return out, true
}

// begin starts a call's outputs.
func (p *Partition) begin() {
	clear(p.out)
	p.out = p.out[:0]
}

// Append takes the next events of the log, in order, and delivers them. Those at or before the head are skipped.
func (p *Partition) Append(now time.Time, records []Record) []Output {
	p.begin()
	p.records = p.records[:0]
	for i := range records {
		p.appendOne(&records[i])
	}
	p.window.expire(p.cfg.WindowBytes, now.Add(-p.cfg.WindowAge))
	for _, slot := range p.touched {
		l := &p.slots[slot]
		p.out = append(p.out, Output{Kind: Delivery, Link: l.id, Generation: p.generation, Head: p.Head(), Records: l.pending})
		l.told = p.head
	}
	p.unpark(now)
	for _, slot := range p.touched {
		// The outputs share the records until the next call.
		p.slots[slot].pending = p.slots[slot].pending[:0]
	}
	p.touched = p.touched[:0]
	return p.out
}

func (p *Partition) appendOne(r *Record) {
	if r.Offset <= p.head {
		return
	}
	p.head = r.Offset
	k := p.hasher.bytes(r.Account)
	id := schema.EventID(r.Event)
	idHash := p.hasher.id(k, id)
	if idHash != 0 && p.window.has(r.Account, id, idHash) {
		p.stats.Duplicates++
		return
	}
	p.window.add(*r, k.hash(), idHash)
	p.index.add(k.hash(), r.Offset)
	p.stats.Records++
	n := p.window.next - 1
	p.routes.each(k, func(slot int32) {
		l := &p.slots[slot]
		if len(l.pending) == 0 {
			p.touched = append(p.touched, slot)
		}
		l.pending = append(l.pending, p.window.record(n))
		p.stats.Deliveries++
	})
}

// Backfill adds older events to the index alone: all those after one offset and up
// to another, which is where the partition began or an earlier Backfill did. Callers
// go backwards through the log; it reports false when nothing older is of use.
func (p *Partition) Backfill(after, upTo int64, records []Record) bool {
	var full [indexShards]bool
	for i := range p.index.tables {
		full[i] = p.index.tables[i].floor > upTo
	}
	for i := range records {
		h := p.hasher.bytes(records[i].Account).hash()
		if s := h % indexShards; !full[s] {
			full[s] = !p.index.tables[s].backfill(h, records[i].Offset)
		}
	}
	more := false
	for i := range p.index.tables {
		if t := &p.index.tables[i]; !full[i] {
			t.floor = min(t.floor, after)
			more = true
		}
	}
	return more
}

// Tick expires what is too old, answers requests that have waited long enough, and
// tells each link how far its partition has been read if it moved.
func (p *Partition) Tick(now time.Time) []Output {
	p.begin()
	p.window.expire(p.cfg.WindowBytes, now.Add(-p.cfg.WindowAge))
	p.records = p.records[:0]
	p.unpark(now)
	if p.generation == 0 {
		return p.out
	}
	for i := range p.slots {
		if l := &p.slots[i]; l.id != 0 && l.told < p.head {
			p.out = append(p.out, Output{Kind: Progress, Link: l.id, Generation: p.generation, Head: p.Head()})
			l.told = p.head
		}
	}
	return p.out
}

// LinkDown forgets a link.
func (p *Partition) LinkDown(id LinkID) {
	p.parked.drop(id)
	slot, ok := p.links[id]
	if !ok {
		return
	}
	p.routes.removeLink(slot)
	delete(p.links, id)
	p.slots[slot] = linkState{}
	p.free = append(p.free, slot)
}

// slot returns the link's slot, a new one if it has none.
func (p *Partition) slot(id LinkID) int32 {
	if slot, ok := p.links[id]; ok {
		return slot
	}
	var slot int32
	if n := len(p.free); n > 0 {
		slot, p.free = p.free[n-1], p.free[:n-1]
	} else {
		p.slots = append(p.slots, linkState{})
		slot = int32(len(p.slots) - 1)
	}
	p.slots[slot] = linkState{id: id, told: p.head}
	p.links[id] = slot
	return slot
}

// Wanted returns the number of links that want the account, and whether link is one of them.
func (p *Partition) Wanted(account string, link LinkID) (links int, wants bool) {
	slot, known := p.links[link]
	p.routes.each(p.hasher.string(account), func(s int32) {
		links++
		wants = wants || known && s == slot
	})
	return links, wants
}

// replayed copies places picked newest first to records in the log's order.
func (p *Partition) replayed() []Record {
	slices.Sort(p.picked)
	p.picked = slices.Compact(p.picked) // a request may name an account twice
	start := len(p.records)
	for _, n := range p.picked {
		p.records = append(p.records, p.window.record(n))
	}
	return p.records[start:len(p.records):len(p.records)]
}

// Advance notes that nothing of interest lies between the head and an offset.
func (p *Partition) Advance(offset int64) { p.head = max(p.head, offset) }
