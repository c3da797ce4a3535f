package routing

import (
	"math"
	"math/rand/v2"
	"testing"
)

// TestIndexNeverQuietWrongly holds the index to a map over growth, forgetting, rebasing, backfill and other bounds.
func TestIndexNeverQuietWrongly(t *testing.T) {
	for seed := range uint64(20) {
		r := rand.New(rand.NewPCG(seed, 3))
		var x index
		start := r.Int64N(1 << 40)
		x.reset(start, 16*(10+r.IntN(500)))
		last := map[uint32]int64{}
		offset, floor := start, start
		for range 20_000 {
			h := r.Uint32N(5000) * 0x9e3779b9
			switch n := r.IntN(1000); {
			case n < 5:
				offset += r.Int64N(1 << 28)
			case n == 5:
				offset += math.MaxUint32
			case n == 6:
				x.bound(1 + r.IntN(8000))
				for i := range x.tables {
					if b := &x.tables[i]; b.used > b.max {
						t.Fatalf("seed %d: %d entries, bound %d", seed, b.used, b.max)
					}
				}
			case n < 20 && floor > 100:
				after := floor - r.Int64N(100)
				full := false
				for o := after + 1; o <= floor; o++ {
					b := r.Uint32N(5000) * 0x9e3779b9
					if _, ok := last[b]; !ok {
						last[b] = o
					}
					last[b] = max(last[b], o)
					if t := x.of(b); t.floor > floor || !t.backfill(b, o) {
						full = true
					}
				}
				if full {
					floor = -1 // nothing older is of use
					continue
				}
				for i := range x.tables {
					if x.tables[i].floor <= floor {
						x.tables[i].floor = after
					}
				}
				floor = after
			default:
				offset++
				x.add(h, offset)
				last[h] = offset
			}
			since := offset - r.Int64N(300)
			if l, ok := last[h]; x.quietSince(h, since) && ok && l > since {
				t.Fatalf("seed %d: quiet since %d, last was %d", seed, since, l)
			}
			if l := last[h]; l > 0 && x.of(h).floor < l && x.quietSince(h, l-1) {
				t.Fatalf("seed %d: quiet since %d, last was %d", seed, l-1, l)
			}
		}
	}
}

func TestIndexIsBounded(t *testing.T) {
	var x index
	x.reset(0, 16_000)
	for i := range int64(200_000) {
		x.add(uint32(i)*0x9e3779b9, i+1)
	}
	if n := x.len(); n > 16_000 || n < 10_000 {
		t.Errorf("%d entries, bound 16000", n)
	}
	if x.bytes() > 16_000*16 {
		t.Errorf("%d bytes", x.bytes())
	}
	// The latest are kept.
	for i := int64(199_000); i < 200_000; i++ {
		if !x.quietSince(uint32(i)*0x9e3779b9, i+1) || x.quietSince(uint32(i)*0x9e3779b9, i) {
			t.Fatalf("entry %d is wrong", i)
		}
	}
}

// TestIndexForgetsWithoutASample: a large table with few entries, none where the sample looks.
func TestIndexForgetsWithoutASample(t *testing.T) {
	b := table{base: 100, floor: 100, max: 3, slots: make([]slot, 10*512)}
	for i := range uint32(3) {
		*b.find(uint32((uint64(i)*10 + 5) << 32 / uint64(len(b.slots)))) = slot{uint32((uint64(i)*10 + 5) << 32 / uint64(len(b.slots))), 7 + i}
		b.used++
	}
	b.forget()
	if b.used != 0 || b.floor != 109 {
		t.Errorf("%d entries, floor %d", b.used, b.floor)
	}
	if len(b.slots) > 100 {
		t.Errorf("%d slots for 3 accounts", len(b.slots))
	}
}

// TestIndexShrinks: a bound that comes down takes the memory with it, and what is forgotten is not taken for quiet.
func TestIndexShrinks(t *testing.T) {
	var x index
	x.reset(0, 160_000)
	for i := range int64(160_000) {
		x.add(uint32(i)*0x9e3779b9, i+1)
	}
	x.bound(16_000)
	if n, bytes := x.len(), x.bytes(); n > 16_000 || n < 8_000 || bytes > 16_000*16 {
		t.Errorf("%d entries in %d bytes, bound 16000", n, bytes)
	}
	for i := range int64(160_000) {
		if x.quietSince(uint32(i)*0x9e3779b9, i) {
			t.Fatalf("quiet since %d, when something happened", i)
		}
	}
}
