package routing

import (
	"bytes"
	"math"
	"time"

	"github.com/mailbell/mailbell/schema"
)

const (
	recordOverhead = 64 // bytes of place, heads and slack that a record is counted with
	minRing        = 64
	minChunk       = 4 << 10
	maxChunk       = 256 << 10
)

// place is what the window keeps of one record beside its bytes. It has no pointers.
type place struct {
	offset  int64
	timeMs  int64
	chunk   uint32 // number of the chunk that holds account and event, one after the other
	start   uint32
	event   uint32 // length
	hash    uint32 // of the account
	idHash  uint32 // of account and id; 0: the event has no id
	account uint32 // distance back to the previous record in the account's bucket, 0 for none
	id      uint32 // the same for the id's bucket
	name    uint16 // length of the account
}

// window holds the recent records in a ring of places over chunks of bytes. Records
// of one account, and of one id, are found through hash chains that run through the
// places: a head is the number of a bucket's latest record, each place says how far
// back the previous one is, and a chain ends where the window does.
type window struct {
	ring        []place // a power of two
	first, next uint64  // numbers of the records held: [first, next)
	byAccount   []uint32
	byID        []uint32 // heads: low half of a record's number

	chunks    [][]byte
	chunkBase uint32 // number of chunks[0]

	bytes int64
	floor int64 // each record with an offset beyond it is held
}

func (w *window) reset(floor int64) { *w = window{floor: floor, next: 1, first: 1} }

func (w *window) len() int { return int(w.next - w.first) }

func (w *window) at(n uint64) *place { return &w.ring[n&uint64(len(w.ring)-1)] }

func (w *window) add(r Record, hash, idHash uint32) {
	if w.len() == len(w.ring) {
		w.resize(max(minRing, 2*len(w.ring)))
	}
	chunk, start := w.store(r.Account, r.Event)
	p := w.at(w.next)
	*p = place{offset: r.Offset, timeMs: r.Time.UnixMilli(), chunk: chunk, start: start,
		name: uint16(len(r.Account)), event: uint32(len(r.Event)), hash: hash, idHash: idHash}
	w.link(w.next, p)
	w.next++
	w.bytes += size(p)
}

func size(p *place) int64 { return int64(p.name) + int64(p.event) + recordOverhead }

// link puts record n at the head of its two chains.
func (w *window) link(n uint64, p *place) {
	head := &w.byAccount[p.hash&uint32(len(w.byAccount)-1)]
	p.account, *head = w.back(n, *head), uint32(n)
	if p.idHash != 0 {
		head = &w.byID[p.idHash&uint32(len(w.byID)-1)]
		p.id, *head = w.back(n, *head), uint32(n)
	}
}

// back returns how far before n the record lies whose number ends in low, or 0 if
// the window holds none.
func (w *window) back(n uint64, low uint32) uint32 {
	d := uint32(n) - low
	if d == 0 || uint64(d) > n-w.first {
		return 0
	}
	return d
}

// resize moves the places to a ring of n, which must hold them, and makes the chains anew.
func (w *window) resize(n int) {
	old := *w
	w.ring, w.byAccount, w.byID = make([]place, n), make([]uint32, n), make([]uint32, n)
	for i := w.first; i < w.next; i++ {
		*w.at(i) = *old.at(i)
		w.link(i, w.at(i))
	}
}

// store copies the bytes to the last chunk, or a new one.
func (w *window) store(account, event []byte) (chunk, start uint32) {
	need := len(account) + len(event)
	last := len(w.chunks) - 1
	if last < 0 || cap(w.chunks[last])-len(w.chunks[last]) < need {
		n := minChunk
		if last >= 0 {
			n = min(2*cap(w.chunks[last]), maxChunk)
		}
		w.chunks = append(w.chunks, make([]byte, 0, max(n, need)))
		last++
	}
	start = uint32(len(w.chunks[last]))
	w.chunks[last] = append(append(w.chunks[last], account...), event...)
	return w.chunkBase + uint32(last), start
}

func (w *window) accountOf(p *place) []byte {
	return w.chunks[p.chunk-w.chunkBase][p.start : p.start+uint32(p.name) : p.start+uint32(p.name)]
}

func (w *window) eventOf(p *place) []byte {
	start := p.start + uint32(p.name)
	return w.chunks[p.chunk-w.chunkBase][start : start+p.event : start+p.event]
}

func (w *window) record(n uint64) Record {
	p := w.at(n)
	return Record{Offset: p.offset, Account: w.accountOf(p), Event: w.eventOf(p)}
}

// expire drops the oldest records until the window keeps its bounds. Its newest
// record may go as well: the floor says so.
func (w *window) expire(maxBytes int64, oldest time.Time) {
	oldestMs := int64(math.MinInt64)
	if !oldest.IsZero() {
		oldestMs = oldest.UnixMilli()
	}
	for w.first < w.next {
		p := w.at(w.first)
		if w.bytes <= maxBytes && p.timeMs >= oldestMs {
			break
		}
		w.bytes -= size(p)
		w.floor = p.offset
		w.first++
	}
	w.dropChunks()
	if len(w.ring) > minRing && w.len() <= len(w.ring)/8 {
		w.resize(max(minRing, len(w.ring)/4))
	}
}

func (w *window) dropChunks() {
	if w.first == w.next {
		w.chunkBase += uint32(len(w.chunks))
		w.chunks = nil
		return
	}
	drop := w.at(w.first).chunk - w.chunkBase
	if drop == 0 {
		return
	}
	clear(w.chunks[:drop])
	w.chunks = w.chunks[drop:]
	w.chunkBase += drop
}

// has reports whether an event with this account and id is held.
func (w *window) has(account, id []byte, idHash uint32) bool {
	if len(w.ring) == 0 {
		return false
	}
	for n := w.head(w.byID, idHash); n != 0; n = w.previous(n, w.at(n).id) {
		p := w.at(n)
		if p.idHash == idHash && bytes.Equal(w.accountOf(p), account) && bytes.Equal(schema.EventID(w.eventOf(p)), id) {
			return true
		}
	}
	return false
}

// each calls fn with the numbers of an account's records later than after, newest
// first, until fn returns false. It reports whether fn never did.
func (w *window) each(account []byte, hash uint32, after int64, fn func(n uint64, p *place) bool) bool {
	if len(w.ring) == 0 {
		return true
	}
	for n := w.head(w.byAccount, hash); n != 0; n = w.previous(n, w.at(n).account) {
		p := w.at(n)
		if p.offset <= after {
			return true
		}
		if p.hash == hash && bytes.Equal(w.accountOf(p), account) && !fn(n, p) {
			return false
		}
	}
	return true
}

// head returns the number of the latest record of a bucket, 0 if there is none.
func (w *window) head(heads []uint32, hash uint32) uint64 {
	return w.previous(w.next, w.back(w.next, heads[hash&uint32(len(heads)-1)]))
}

// previous returns the number d before n, 0 if the window holds none.
func (w *window) previous(n uint64, d uint32) uint64 {
	if d == 0 || n-uint64(d) < w.first {
		return 0
	}
	return n - uint64(d)
}
