package routing

import (
	"math"
	"math/rand/v2"
	"testing"
)

// TestIndexNeverQuietWrongly holds the index to a map over growth, forgetting, rebasing and backfill.
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
