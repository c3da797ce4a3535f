package bench

import (
	"slices"
	"sync"
	"time"

	"github.com/mailbell/mailbell/bench/pollswarm"
)

// compareBooks say when each account changed and when its user came to know, by an answer of the poll server
// and by an event.
type compareBooks struct {
	mu       sync.Mutex // guards the rest
	changes  [][]int64  // by account: when each change was in the store, Unix nanoseconds
	known    [][]pollswarm.Known
	heard    [][]pollswarm.Known
	count    int
	learned  []uint32 // by account: changes that its user knows of
	eventsIn int
}

func newCompareBooks(users int) *compareBooks {
	return &compareBooks{changes: make([][]int64, users), known: make([][]pollswarm.Known, users), heard: make([][]pollswarm.Known, users), learned: make([]uint32, users)}
}

// applied books a change that the store has, and returns its number, from 1 on.
func (b *compareBooks) applied(account uint32, at time.Time) (seq uint32) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.count++
	b.changes[account] = append(b.changes[account], at.UnixNano())
	return uint32(len(b.changes[account]))
}

// learn books what clients report.
func (b *compareBooks) learn(known, heard []pollswarm.Known) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, k := range known {
		b.known[k.Account] = append(b.known[k.Account], k)
		b.learned[k.Account] = max(b.learned[k.Account], k.Seq)
	}
	for _, k := range heard {
		b.heard[k.Account] = append(b.heard[k.Account], k)
	}
	b.eventsIn += len(heard)
}

// made returns how many changes there were.
func (b *compareBooks) made() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.count
}

// behind returns how many users don't know yet of something that changed before a moment.
func (b *compareBooks) behind(before time.Time) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	n, limit := 0, before.UnixNano()
	for a, at := range b.changes {
		if next := int(b.learned[a]); next < len(at) && at[next] < limit {
			n++
		}
	}
	return n
}

// delays returns the sorted times from change to knowledge, in nanoseconds, of the changes from a moment to another, and
// how many of them their users never knew of.
func (b *compareBooks) delays(from, to time.Time, byEvent bool) (sorted []int64, changes, unknown int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for a, at := range b.changes {
		known := b.known[a]
		if byEvent {
			known = b.heard[a]
		}
		k := 0
		for i, t := range at {
			if t < from.UnixNano() || t >= to.UnixNano() {
				continue
			}
			changes++
			for k < len(known) && known[k].Seq < uint32(i+1) {
				k++
			}
			if k == len(known) {
				unknown++
				continue
			}
			sorted = append(sorted, max(0, known[k].At-t))
		}
	}
	slices.Sort(sorted)
	return sorted, changes, unknown
}

// latencyOf reads sorted nanoseconds.
func latencyOf(sorted []int64) LatencyMs {
	if len(sorted) == 0 {
		return LatencyMs{}
	}
	at := func(q float64) float64 {
		ms := float64(sorted[min(len(sorted)-1, int(q*float64(len(sorted))))]) / 1e6
		return significant(ms, 5)
	}
	return LatencyMs{P50: at(0.5), P90: at(0.9), P99: at(0.99), Max: at(1)}
}

// cdfOf returns points of the cumulative distribution: the tails closer than the middle.
func cdfOf(sorted []int64) [][2]float64 {
	if len(sorted) == 0 {
		return [][2]float64{}
	}
	var points [][2]float64
	add := func(q float64) {
		i := min(len(sorted)-1, int(q*float64(len(sorted))))
		points = append(points, [2]float64{significant(float64(sorted[i])/1e6, 4), q})
	}
	for q := 0; q < 100; q += 2 {
		add(float64(q) / 100)
	}
	for _, q := range []float64{0.985, 0.99, 0.995, 0.999, 1} {
		add(q)
	}
	return points
}
