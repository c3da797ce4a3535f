package bench

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/mailbell/mailbell/bench/mailstore"
	"github.com/mailbell/mailbell/bench/schedule"
)

// CompareConfig says how `mailbell bench compare` makes the same users hear of the same changes, once by polling and once by
// pushing through the whole pipeline.
type CompareConfig struct {
	Users       int             // 0 = 1,000
	Interval    time.Duration   // between a user's polls; 0 = 10 s
	Jitter      float64         // of the interval; 0 = 0.1, -1 = none
	ChangeRate  float64         // changes an account sees in an hour; 0 = what NotModified asks for
	NotModified float64         // share of polls at Interval that find nothing new; 0 = 0.6, the article's
	Burst       float64         // mean changes of a burst; 0 = each comes alone
	Diurnal     bool            // a day's curve, squeezed into the duration
	Duration    time.Duration   // measured; 0 = 1 min. At least two of the longest interval, for all sides and intervals alike
	Quiet       time.Duration   // before it, without changes, to know what quiet costs: with nobody connected (at most 20 s), then with everybody; 0 = 1 min
	Outage      time.Duration   // of all servers; 0 = 1 min, negative = none
	Store       string          // memory, sqlite or dovecot; empty = memory
	Mailboxes   int             // of each account; 0 = 5
	Sweep       []time.Duration // further poll intervals, at the same changes
	KeepAlive   time.Duration   // of the pushing side's fetches: their connections are closed when idle for so long; 0 = 75 s
	Brokers     []string        // Kafka; none = the embedded log
	Notifiers   int             // with Brokers; 0 = 1
	Seed        uint64
	Progress    Progress
}

// maxCompareUsers is what one server process of each kind holds under a limit of 20,000 open files.
const maxCompareUsers = 15000

// Validate says what is wrong with the configuration.
func (c CompareConfig) Validate() error {
	intervals := append([]time.Duration{c.withDefaults().Interval}, c.Sweep...)
	switch {
	case c.Users < 0 || c.Users > maxCompareUsers:
		return fmt.Errorf("bench compare: --users must be from 1 to %d, what one server process of each kind holds", maxCompareUsers)
	case slices.Min(intervals) < 100*time.Millisecond || slices.Max(intervals) > 30*time.Minute:
		return errors.New("bench compare: poll intervals must be from 100ms to 30m")
	case c.KeepAlive < 0:
		return errors.New("bench compare: --keep-alive must not be negative")
	case len(c.Sweep) > 20:
		return errors.New("bench compare: --sweep takes at most 20 intervals")
	case c.Jitter > 1:
		return errors.New("bench compare: --jitter must be at most 1, the whole interval")
	case c.NotModified < 0 || c.NotModified >= 1:
		return errors.New("bench compare: --not-modified must be over 0 and under 1")
	case c.ChangeRate > 0 && c.NotModified > 0:
		return errors.New("bench compare: give --change-rate or --not-modified, not both")
	case c.Duration < 0 || c.Duration > time.Hour || c.Outage > 10*time.Minute || c.Quiet < 0 || c.Quiet > 10*time.Minute:
		return errors.New("bench compare: --duration must be at most 1h, --outage and --quiet at most 10m")
	case !slices.Contains([]string{"", mailstore.Memory, mailstore.SQLite, mailstore.Dovecot}, c.Store):
		return fmt.Errorf("bench compare: --store must be %s, %s or %s", mailstore.Memory, mailstore.SQLite, mailstore.Dovecot)
	case c.Mailboxes < 0 || c.Mailboxes > 100:
		return errors.New("bench compare: --mailboxes must be from 1 to 100")
	}
	if err := c.withDefaults().schedule().Validate(); err != nil {
		return fmt.Errorf("bench compare: %w", err)
	}
	return nil
}

func (c CompareConfig) withDefaults() CompareConfig {
	fill := func(d *time.Duration, v time.Duration) {
		if *d == 0 {
			*d = v
		}
	}
	fill(&c.Interval, 10*time.Second)
	fill(&c.Duration, time.Minute)
	fill(&c.Quiet, time.Minute) // longer than the notifiers' --ping-interval
	fill(&c.Outage, time.Minute)
	fill(&c.KeepAlive, 75*time.Second)
	if c.Users == 0 {
		c.Users = 1000
	}
	if c.Jitter == 0 {
		c.Jitter = 0.1
	}
	c.Jitter = max(c.Jitter, 0)
	if c.ChangeRate == 0 {
		if c.NotModified == 0 {
			c.NotModified = 0.6
		}
		c.ChangeRate = schedule.PerHourFor(c.NotModified, c.Interval, c.Burst)
	}
	if c.Store == "" {
		c.Store = mailstore.Memory
	}
	if c.Mailboxes == 0 {
		c.Mailboxes = 5
	}
	if c.Notifiers == 0 {
		c.Notifiers = 1
	}
	c.Outage = max(c.Outage, 0)
	c.Duration = max(c.Duration, 2*c.longest()) // every user polls twice, whatever the interval
	return c
}

// longest is the longest poll interval.
func (c CompareConfig) longest() time.Duration {
	return max(c.Interval, slices.Max(append([]time.Duration{0}, c.Sweep...)))
}

// schedule is the same for every side and poll interval. The longest interval comes before what is measured, so that the first
// polls that are measured find what polls find later on.
func (c CompareConfig) schedule() schedule.Config {
	return schedule.Config{Seed: c.Seed, Users: c.Users, PerHour: c.ChangeRate, Burst: c.Burst, Diurnal: c.Diurnal, RunIn: c.longest(), Duration: c.Duration}
}

// outageSchedule is that of the outage and the recovery.
func (c CompareConfig) outageSchedule(d time.Duration) schedule.Config {
	return schedule.Config{Seed: c.Seed + 1<<32, Users: c.Users, PerHour: c.ChangeRate, Burst: c.Burst, Duration: d}
}

// Compare runs the bench: polling, then pushing, then polling at the further intervals. Everything that it started
// has ended when it returns.
func Compare(ctx context.Context, cfg CompareConfig) (CompareResult, error) {
	if err := cfg.Validate(); err != nil {
		return CompareResult{}, err
	}
	cfg = cfg.withDefaults()
	r := CompareResult{Settings: cfg.settings(), Advantages: advantages(cfg)}
	var err error
	if r.Poll, err = compareSide(ctx, cfg, polling); err != nil {
		return r, fmt.Errorf("bench compare: polling: %w", err)
	}
	if r.Push, err = compareSide(ctx, cfg, pushing); err != nil {
		return r, fmt.Errorf("bench compare: pushing: %w", err)
	}
	for _, interval := range cfg.Sweep {
		if interval == cfg.Interval {
			r.Sweep = append(r.Sweep, SweepPoint{IntervalSeconds: interval.Seconds(), Poll: r.Poll.figures()})
			continue
		}
		at := cfg
		at.Interval, at.Outage, at.Quiet = interval, 0, 0 // quiet costs are known
		s, err := compareSide(ctx, at, polling)
		if err != nil {
			return r, fmt.Errorf("bench compare: polling every %v: %w", interval, err)
		}
		r.Sweep = append(r.Sweep, SweepPoint{IntervalSeconds: interval.Seconds(), Poll: s.figures()})
	}
	r.conclude()
	return r, nil
}

// conclude derives the ratios, the unit costs and the crossing.
func (r *CompareResult) conclude() {
	push := r.Push.WithoutFetch
	r.Ratio = CompareRatio{
		CPU: ratio(r.Poll.CPUSeconds, r.Push.CPUSeconds), Bytes: ratio(float64(r.Poll.bytes()), float64(r.Push.bytes())),
		CPUWithoutFetch: ratio(r.Poll.CPUSeconds, push.CPUSeconds), BytesWithoutFetch: ratio(float64(r.Poll.bytes()), float64(push.bytes())),
		StoreReads: ratio(float64(r.Poll.StoreReads), float64(r.Push.StoreReads)),
		LatencyP50: ratio(r.Poll.LatencyMs.P50, r.Push.LatencyMs.P50),
	}
	r.Units = unitsOf(r)
	r.Crossing = crossingOf(r)
}

// ratio is a/b rounded to three significant digits; 0 when it means nothing.
func ratio(a, b float64) float64 {
	if a <= 0 || b <= 0 {
		return 0
	}
	return significant(a/b, 3)
}

func significant(x float64, digits int) float64 {
	if x == 0 || math.IsNaN(x) || math.IsInf(x, 0) {
		return 0
	}
	scale := math.Pow(10, float64(digits-1)-math.Floor(math.Log10(math.Abs(x))))
	return math.Round(x*scale) / scale
}

// advantages says what is done in polling's favour.
func advantages(c CompareConfig) []string {
	all := []string{
		"No poll is authenticated; a webmail checks a session each time. The push side verifies every user's JWT.",
		"A request has no header but Host and If-None-Match, some 100 bytes; a browser's has 500 and more, cookies among them.",
		"No TLS, no proxy in between, no access log, no compression.",
		"Every user's connection is kept alive for ever, so no poll pays for connecting.",
		"One request tells of all mailboxes of the account.",
		"The poll server's garbage collector may use five times the live memory (GOGC=400); mailbell runs with the default.",
		"Polls are spread evenly over the interval from the start.",
		"The push side pays for the whole way by HTTP: one request to the ingest for every single change, unbatched, and a log on disk.",
	}
	switch c.Store {
	case mailstore.Memory:
		all = append(all, "The mail store is a map in the poll server's own memory: no poll asks anything outside of its process.")
	case mailstore.SQLite:
		all = append(all, "SQLite's file is in the page cache, read in the poll server's own process; a poll that finds nothing new reads one row of one table.")
	case mailstore.Dovecot:
		all = append(all, "Every user's IMAP session is kept open, one LIST-STATUS a poll; webmails log in for every request. What deliveries cost Dovecot is measured before and taken out of both sides.")
	}
	return all
}
