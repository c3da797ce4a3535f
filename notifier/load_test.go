package notifier

import "testing"

// Memory is given back when nothing has happened for 10 s, a minute after the last time at the earliest, and only if
// something has happened since then.
func TestCalm(t *testing.T) {
	c := newCalm()
	work, second, at := uint64(0), 0, []int(nil)
	run := func(seconds int, perSecond uint64) {
		for range seconds {
			second++
			work += perSecond
			if c.tick(work) {
				at = append(at, second)
			}
		}
	}
	run(5, 1000)
	run(9, 1) // a lull
	run(1, 1000)
	run(20, 1)   // at 25
	run(5, 1000) // ends at 40
	run(600, 0)  // at 85, and never again
	if len(at) != 2 || at[0] != 25 || at[1] != 85 {
		t.Errorf("trimmed at %v, want at 25 and 85", at)
	}
}
