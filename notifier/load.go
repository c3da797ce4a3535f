package notifier

import (
	"bytes"
	"os"
	"strconv"
	"time"

	"github.com/mailbell/mailbell/schema/link"
	"golang.org/x/sys/unix"
)

// loadMeter measures rates between its calls.
type loadMeter struct {
	at      time.Time
	cpu     time.Duration
	accepts uint64
	events  uint64
}

func (l *loadMeter) start() { l.at, l.cpu = time.Now(), cpuTime() }

func (l *loadMeter) measure(s *shared, now time.Time) *link.Load {
	seconds := max(now.Sub(l.at).Seconds(), 1e-3)
	cpu, accepts, events := cpuTime(), s.metrics.accepts.Load(), s.metrics.eventsOut.Load()
	_, _, wants := s.accounts.counts()
	m := &link.Load{
		Connections:          uint64(max(0, s.open.Load())),
		AcceptsPerSecond:     float64(accepts-l.accepts) / seconds,
		CpuCores:             (cpu - l.cpu).Seconds() / seconds,
		MemoryBytes:          residentBytes(),
		EventsPerSecond:      float64(events-l.events) / seconds,
		BacklogBytes:         uint64(max(0, s.backlog.Load())),
		FreeAcceptsPerSecond: max(0, float64(s.cfg.AcceptRate)-float64(accepts-l.accepts)/seconds) * s.admit.ease(),
		Draining:             s.draining.Load() || s.waiting.Load(),
		Subscriptions:        wants,
	}
	s.admit.free.Store(max(1, int64(m.FreeAcceptsPerSecond)))
	if s.cfg.CustomLoad != nil {
		m.Custom = s.cfg.CustomLoad()
	}
	l.at, l.cpu, l.accepts, l.events = now, cpu, accepts, events
	return m
}

func cpuTime() time.Duration {
	var u unix.Rusage
	if unix.Getrusage(unix.RUSAGE_SELF, &u) != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// residentBytes is the process's resident memory, or 0 where it can't be told.
func residentBytes() uint64 {
	b, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		return 0
	}
	fields := bytes.Fields(b)
	if len(fields) < 2 {
		return 0
	}
	pages, err := strconv.ParseUint(string(fields[1]), 10, 64)
	if err != nil {
		return 0
	}
	return pages * uint64(os.Getpagesize())
}

// calm says when to give memory back to the system after a storm: what the handshakes of thousands left behind is
// garbage that the collector, in a process that has become idle, would keep for long. Seconds are its ticks.
type calm struct {
	after, every int // seconds of calm before a trim, and from one to the next

	last, trimmed uint64 // work done at the last tick, and at the last trim
	quiet, since  int    // seconds of calm so far, and since the last trim
}

const (
	calmWork    = 50  // at most in a second that counts as calm
	calmLeft    = 100 // work that leaves something to give back
	calmSeconds = 10  // a lull is no calm: the next storm would have to ask for the memory again
	calmEvery   = 60
)

func newCalm() calm { return calm{after: calmSeconds, every: calmEvery, since: calmEvery} }

// tick is called every second with all work done so far, and reports whether to give memory back now.
func (c *calm) tick(work uint64) (trim bool) {
	c.since++
	c.quiet++
	if work-c.last > calmWork {
		c.quiet = 0
	}
	c.last = work
	if c.quiet < c.after || c.since < c.every || work-c.trimmed < calmLeft {
		return false
	}
	c.trimmed, c.since = work, 0
	return true
}
