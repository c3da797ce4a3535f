package bench

import (
	"slices"
	"strings"
	"testing"
	"time"
)

// TestSearch looks for a rate with a machine that holds so and so much.
func TestSearch(t *testing.T) {
	cfg := PipelineConfig{Duration: 10 * time.Second}.withDefaults()
	for _, c := range []struct {
		name        string
		short, full float64 // events a second that are held
		lo, hi      float64 // what is to be found; 0: nothing
	}{
		{"steady", 40_000, 40_000, 36_000, 40_000},
		{"slower in the long run", 40_000, 20_000, 18_000, 20_000},
		{"slow", 1000, 1000, 500, 1000},
		{"holds the lowest only", 0, 100, 100, 100},
		{"holds nothing", 0, 0, 0, 0},
		{"holds nothing for long", 40_000, 0, 0, 0},
		{"without an end", 1e9, 1e9, 400_000, 500_000},
	} {
		t.Run(c.name, func(t *testing.T) {
			trials, err := search(cfg, func(rate float64, d time.Duration) (PipelineTrial, error) {
				capacity := c.short
				if d == cfg.Duration {
					capacity = c.full
				}
				return PipelineTrial{Rate: rate, Seconds: d.Seconds(), Held: rate <= capacity}, nil
			})
			if c.hi == 0 {
				if err == nil || !strings.Contains(err.Error(), "no rate was held") {
					t.Fatalf("found %v, %v", trials, err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			last := trials[len(trials)-1]
			if !last.Held || last.Seconds != cfg.Duration.Seconds() || last.Rate < c.lo || last.Rate > c.hi {
				t.Errorf("found %+v, want %v to %v", last, c.lo, c.hi)
			}
			if slices.ContainsFunc(trials[:len(trials)-1], func(t PipelineTrial) bool { return t.Held && t.Seconds == last.Seconds }) {
				t.Error("went on after a rate was held for the whole duration")
			}
		})
	}
}
