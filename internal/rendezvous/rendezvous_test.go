package rendezvous

import (
	"fmt"
	"testing"
)

// A third node takes its share, by weight, and nobody moves between the two that were there.
func TestNewcomerTakesItsShare(t *testing.T) {
	names, weights := []string{"a", "b", "c"}, []float64{1, 1, 2}
	pick := func(key uint64, nodes int) int {
		var b Best
		for i := range nodes {
			b.Offer(i, key, Key(names[i]), weights[i])
		}
		return b.Index()
	}
	moved := 0
	for i := range 10_000 {
		key := Key(fmt.Sprintf("u%d@example.com", i))
		before, after := pick(key, 2), pick(key, 3)
		if after != before {
			moved++
			if after != 2 {
				t.Fatalf("moved from %s to %s", names[before], names[after])
			}
		}
	}
	if moved < 4800 || moved > 5200 {
		t.Errorf("%d of 10,000 moved to a node with half of all weight", moved)
	}
	if pick(1, 0) != -1 {
		t.Error("somebody was chosen of none")
	}
}
