package schedule

import (
	"math"
	"slices"
	"testing"
	"time"
)

func TestChanges(t *testing.T) {
	tests := []struct {
		name string
		cfg  Config
	}{
		{"alone", Config{Seed: 1, Users: 500, PerHour: 60, Duration: 10 * time.Minute}},
		{"bursts", Config{Seed: 2, Users: 500, PerHour: 60, Burst: 4, Duration: 10 * time.Minute}},
		{"a day", Config{Seed: 3, Users: 500, PerHour: 60, Diurnal: true, Duration: 10 * time.Minute}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if err := tt.cfg.Validate(); err != nil {
				t.Fatal(err)
			}
			got := Changes(tt.cfg)
			want := float64(tt.cfg.Users) * tt.cfg.PerHour * tt.cfg.Duration.Hours()
			if n := float64(len(got)); math.Abs(n-want) > 0.08*want {
				t.Errorf("%v changes, want about %v", n, want)
			}
			if !slices.IsSortedFunc(got, func(a, b Change) int { return int(a.At - b.At) }) {
				t.Error("not in order of time")
			}
			if !slices.Equal(got, Changes(tt.cfg)) {
				t.Error("the same seed gave another schedule")
			}
			tt.cfg.Seed++
			if slices.Equal(got, Changes(tt.cfg)) {
				t.Error("another seed gave the same schedule")
			}
			if got[len(got)-1].At >= tt.cfg.Duration {
				t.Error("a change after the end")
			}
			tt.cfg.RunIn = tt.cfg.Duration / 5
			count := make(map[bool]float64) // within the duration, or before it
			for _, c := range Changes(tt.cfg) {
				count[c.At >= tt.cfg.RunIn]++
			}
			before := want / 5
			if tt.cfg.Diurnal {
				before *= Day(0)
			}
			if math.Abs(count[true]-want) > 0.08*want || math.Abs(count[false]-before) > 0.25*before {
				t.Errorf("behind a stretch before it there are %v changes, and %v in that: want about %v and %v", count[true], count[false], want, before)
			}
		})
	}
}

// A share of quiet intervals turns into a rate and back.
func TestPerHourFor(t *testing.T) {
	const interval = 10 * time.Second
	for _, burst := range []float64{1, 3} {
		cfg := Config{Seed: 7, Users: 2000, PerHour: PerHourFor(0.6, interval, burst), Burst: burst, Duration: 2 * time.Minute}
		busy := make(map[[2]int]bool)
		for _, c := range Changes(cfg) {
			busy[[2]int{int(c.Account), int(c.At / interval)}] = true
		}
		share := 1 - float64(len(busy))/float64(cfg.Users*int(cfg.Duration/interval))
		if math.Abs(share-0.6) > 0.05 {
			t.Errorf("bursts of %v: %.3f of the intervals are quiet, want 0.6", burst, share)
		}
	}
}

func TestDayHasItsMean(t *testing.T) {
	sum, least := 0.0, math.Inf(1)
	for i := range 1000 {
		v := Day(float64(i) / 1000)
		sum, least = sum+v, min(least, v)
	}
	if math.Abs(sum/1000-1) > 0.01 || least <= 0 {
		t.Errorf("mean %v, least %v", sum/1000, least)
	}
}

func TestValidate(t *testing.T) {
	good := Config{Users: 1, PerHour: 1, Duration: time.Second}
	if err := good.Validate(); err != nil {
		t.Fatal(err)
	}
	for _, change := range []func(*Config){
		func(c *Config) { c.Users = 0 }, func(c *Config) { c.PerHour = -1 }, func(c *Config) { c.PerHour = math.NaN() },
		func(c *Config) { c.Burst = -1 }, func(c *Config) { c.Duration = 0 }, func(c *Config) { c.RunIn = -1 }, func(c *Config) { c.Users, c.PerHour, c.Duration = 1e6, 1e4, time.Hour },
	} {
		bad := good
		change(&bad)
		if bad.Validate() == nil {
			t.Errorf("%+v is accepted", bad)
		}
	}
}
