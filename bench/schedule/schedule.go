// Package schedule says when which account changes during a bench. It is pure: the same Config gives the same
// changes, so that two ways of hearing of them can be measured against one and the same mail store.
package schedule

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"time"
)

// Config says what changes.
type Config struct {
	Seed     uint64
	Users    int           // accounts 0 to Users-1
	PerHour  float64       // changes an account sees in an hour, on average over the Duration
	Burst    float64       // mean changes of a burst (a mailing list, a filter run); up to 1 means that each change comes alone
	Diurnal  bool          // squeeze a day into the Duration: the rate rises and falls as a site's does
	RunIn    time.Duration // before the Duration, at the rate with which that begins
	Duration time.Duration // changes come from 0 up to the end of both
}

// maxChanges bounds what a schedule keeps in memory (16 bytes each).
const maxChanges = 10_000_000

// burstGap is the mean time between the changes of one burst.
const burstGap = 300 * time.Millisecond

// Validate says what is wrong with the configuration.
func (c Config) Validate() error {
	switch {
	case c.Users <= 0:
		return errors.New("schedule: users must be positive")
	case !(c.PerHour >= 0) || c.PerHour > 1e6:
		return fmt.Errorf("schedule: %v changes an hour: must be from 0 to 1000000", c.PerHour)
	case c.Burst < 0 || c.Burst > 1000:
		return fmt.Errorf("schedule: bursts of %v changes: must be at most 1000", c.Burst)
	case c.Duration <= 0 || c.RunIn < 0:
		return errors.New("schedule: the duration must be positive, and what comes before it not negative")
	case float64(c.Users)*c.PerHour*(c.RunIn+c.Duration).Hours() > maxChanges:
		return fmt.Errorf("schedule: over %d changes: take fewer users, a lower rate or a shorter duration", maxChanges)
	}
	return nil
}

// Change is one change of one account.
type Change struct {
	At      time.Duration // since the start
	Account uint32
}

// Changes returns the schedule in order of time. Accounts change independently: a Poisson process each,
// thinned to the curve of the day where that is asked for, each arrival being one change or a burst with a
// geometric number of changes.
func Changes(c Config) []Change {
	burst := max(c.Burst, 1)
	peak := 1.0
	if c.Diurnal {
		peak = dayPeak
	}
	arrivals := c.PerHour / burst * peak / float64(time.Hour) // per nanosecond
	var all []Change
	if arrivals == 0 {
		return nil
	}
	end := float64(c.RunIn + c.Duration)
	for user := range c.Users {
		random := rand.New(rand.NewPCG(c.Seed, uint64(user)))
		for at := random.ExpFloat64() / arrivals; at < end; at += random.ExpFloat64() / arrivals {
			if c.Diurnal && random.Float64()*peak > Day(max(0, at-float64(c.RunIn))/float64(c.Duration)) {
				continue
			}
			t := at
			for size := geometric(random, burst); size > 0 && t < end; size-- {
				all = append(all, Change{At: time.Duration(t), Account: uint32(user)})
				t += random.ExpFloat64() * float64(burstGap)
			}
		}
	}
	slices.SortStableFunc(all, func(a, b Change) int { return cmp.Or(cmp.Compare(a.At, b.At), cmp.Compare(a.Account, b.Account)) })
	return all
}

// geometric returns 1, 2, ... with this mean.
func geometric(random *rand.Rand, mean float64) int {
	if mean <= 1 {
		return 1
	}
	return 1 + int(math.Floor(math.Log(1-random.Float64())/math.Log(1-1/mean)))
}

const dayPeak = 1.9

// Day is the rate at a part (0 to 1) of the day, relative to the day's mean: quiet at night, most at late morning.
func Day(part float64) float64 { return 1 - (dayPeak-1)*math.Cos(2*math.Pi*(part-0.02)) }

// PerHourFor returns the changes per hour at which this share of polls finds nothing new.
func PerHourFor(notModified float64, interval time.Duration, burst float64) float64 {
	return max(burst, 1) * -math.Log(notModified) / interval.Hours()
}
