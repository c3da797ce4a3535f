package bench

import (
	"context"
	"fmt"
	"math"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mailbell/mailbell/bench/cputime"
	"github.com/mailbell/mailbell/bench/mailstore"
)

// reading is everything that is measured, at one moment.
type reading struct {
	at         time.Time
	cpu        map[string]cputime.Time // by server process
	deliveries float64                 // of Dovecot's CPU seconds, those that deliveries have taken
	resident   map[string]int64
	totals     totals
	reads      int64
	sockets    int
	kernel     int64
	machine    float64 // CPU seconds of everything that runs on it, less the clients' and the bench's own
}

// reading takes one. With exact, the clients are asked for their counts of this moment and the store for its reads.
func (s *side) reading(ctx context.Context, exact bool) (reading, error) {
	r := reading{at: time.Now(), cpu: make(map[string]cputime.Time), resident: make(map[string]int64)}
	r.deliveries = s.webmail.deliverySeconds * float64(s.books.made())
	var err error
	if s.clients != nil {
		r.totals = s.clients.now()
		if exact {
			if r.totals, err = s.clients.mark(ctx); err != nil {
				return r, err
			}
			if r.reads, err = s.webmail.reads(ctx); err != nil {
				return r, err
			}
		}
	}
	for _, m := range s.servers() {
		if r.cpu[m.label()], err = m.cpuTime(); err != nil {
			return r, err
		}
		if r.resident[m.label()], err = m.resident(); err != nil {
			return r, err
		}
	}
	r.machine, err = s.machineSeconds()
	return r, err
}

// machineSeconds is the CPU time that the machine has spent so far on anything but the users and the bench itself.
func (s *side) machineSeconds() (float64, error) {
	b, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0, fmt.Errorf("cpu time of the machine: %w", err)
	}
	line, _, _ := strings.Cut(string(b), "\n")
	fields := strings.Fields(line)
	busy := 0.0
	for i, f := range fields {
		if i == 0 || i == 4 || i == 5 || i > 8 { // the name, idle, iowait, and guests, which user has already
			continue
		}
		n, _ := strconv.ParseFloat(f, 64)
		busy += n / cputime.Ticks
	}
	own := unix.Rusage{}
	if err := unix.Getrusage(unix.RUSAGE_SELF, &own); err != nil {
		return 0, fmt.Errorf("cpu time of the bench: %w", err)
	}
	busy -= time.Duration(own.Utime.Nano() + own.Stime.Nano()).Seconds()
	if s.clients != nil {
		for _, p := range s.clients.procs {
			c, err := p.cpuSeconds()
			if err != nil {
				return 0, err
			}
			busy -= c
		}
	}
	return busy, nil
}

func round2(x float64) float64 { return math.Round(x*100) / 100 }

// roundCPU keeps tenths of a millisecond.
func roundCPU(seconds float64) float64 { return math.Round(seconds*1e4) / 1e4 }

// cpuBetween is what each process has used since, deliveries to the mail store taken out.
func cpuBetween(a, b reading) (sum cputime.Time, by map[string]float64) {
	by = make(map[string]float64)
	for name, c := range b.cpu {
		used := c.Minus(a.cpu[name])
		if name == mailstore.Dovecot {
			used = used.Less(b.deliveries - a.deliveries)
		}
		sum = sum.Plus(used)
		by[name] = roundCPU(used.Sum())
	}
	return sum, by
}

// otherCores is what ran on the machine besides: all that was busy, less servers and deliveries.
func otherCores(a, b reading) float64 {
	busy := b.machine - a.machine
	for name, c := range b.cpu {
		busy -= c.Minus(a.cpu[name]).Sum()
	}
	return round2(max(0, busy/b.at.Sub(a.at).Seconds()))
}

func stretchOf(a, b reading) CompareStretch {
	sum, by := cpuBetween(a, b)
	return CompareStretch{
		Seconds: significant(b.at.Sub(a.at).Seconds(), 4), Requests: b.totals.polls.Requests - a.totals.polls.Requests,
		CPUSeconds: roundCPU(sum.Sum()), CPUByProcess: by,
		BytesIn: b.totals.bytesOut() - a.totals.bytesOut(), BytesOut: b.totals.bytesIn() - a.totals.bytesIn(),
	}
}

// figuresBetween are the figures that two readings give.
func figuresBetween(a, b reading) CompareFigures {
	s := stretchOf(a, b)
	sum, _ := cpuBetween(a, b)
	f := CompareFigures{
		Seconds: s.Seconds, Requests: s.Requests, Events: b.totals.push.Events - a.totals.push.Events,
		CPUSeconds: s.CPUSeconds, CPUUserSeconds: roundCPU(sum.User), CPUSystemSeconds: roundCPU(sum.System), CPUByProcess: s.CPUByProcess,
		BytesIn: s.BytesIn, BytesOut: s.BytesOut, Sockets: b.sockets, KernelBytes: b.kernel, StoreReads: b.reads - a.reads,
		Failed: b.totals.failed() - a.totals.failed(), Late: b.totals.polls.Skipped - a.totals.polls.Skipped,
		Connects: b.totals.polls.Connects - a.totals.polls.Connects,
	}
	other := otherCores(a, b)
	f.OtherCores = &other
	f.RequestsPerSecond = round1(float64(f.Requests) / f.Seconds)
	f.EventsPerSecond = round1(float64(f.Events) / f.Seconds)
	if f.Requests > 0 {
		f.NotModifiedShare = significant(float64(b.totals.polls.NotModified-a.totals.polls.NotModified)/float64(f.Requests), 4)
	}
	for _, bytes := range b.resident {
		f.ResidentBytes += bytes
	}
	return f
}

// series samples the load over time, on a goroutine of its own until stop.
type series struct {
	side  *side
	every time.Duration
	quit  chan struct{}
	done  chan struct{}
	once  sync.Once

	mu     sync.Mutex // guards the rest
	start  time.Time  // what the points' times count from
	stage  string
	points []TimelinePoint
}

// settling is the stage between the measured stretch and the outage, whose length differs between the sides: no
// points are taken, and the outage follows on the measured stretch.
const settling = "settling"

// maxPoints keeps a timeline readable, and small.
const maxPoints = 240

func startSeries(s *side, start time.Time) *series {
	total := s.cfg.Duration + 2*s.cfg.Outage
	t := &series{side: s, start: start, every: max(250*time.Millisecond, total/maxPoints), quit: make(chan struct{}), done: make(chan struct{}), stage: "measured"}
	go t.run()
	return t
}

func (t *series) run() {
	defer close(t.done)
	tick := time.NewTicker(t.every)
	defer tick.Stop()
	last := t.sample()
	for {
		select {
		case <-t.quit:
			return
		case <-tick.C:
		}
		now := t.sample()
		t.add(last, now)
		last = now
	}
}

// sample is a reading of what costs little. Servers that are down cost nothing.
type sample struct {
	at      time.Time
	cpu     map[string]float64 // by server process
	totals  totals
	changes int
}

func (t *series) sample() sample {
	s := sample{at: time.Now(), cpu: make(map[string]float64), totals: t.side.clients.now(), changes: t.side.books.made()}
	for _, m := range t.side.running() {
		if c, err := m.cpuTime(); err == nil {
			s.cpu[m.label()] = c.Sum()
		}
	}
	return s
}

func (t *series) add(a, b sample) {
	seconds := b.at.Sub(a.at).Seconds()
	rate := func(from, to float64) float64 { return significant(max(0, to-from)/seconds, 4) }
	cores := 0.0
	for name, c := range b.cpu {
		cores += max(0, c-a.cpu[name])
	}
	cores = max(0, cores-t.side.webmail.deliverySeconds*float64(b.changes-a.changes))
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.stage == settling {
		return
	}
	t.points = append(t.points, TimelinePoint{
		Seconds: significant(b.at.Sub(t.start).Seconds(), 5), Stage: t.stage,
		Requests: rate(float64(a.totals.polls.Requests), float64(b.totals.polls.Requests)),
		Events:   rate(float64(a.totals.push.Events), float64(b.totals.push.Events)),
		Bytes:    rate(float64(a.totals.bytesIn()+a.totals.bytesOut()), float64(b.totals.bytesIn()+b.totals.bytesOut())),
		Changes:  rate(float64(a.changes), float64(b.changes)), Cores: significant(cores/seconds, 3),
	})
}

// enter names the stage that begins.
func (t *series) enter(stage string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.stage == settling {
		t.start = time.Now().Add(-t.side.cfg.Duration)
	}
	t.stage = stage
}

// peaks returns the highest rates of a stage.
func (t *series) peaks(stage string) (requests, cores float64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, p := range t.points {
		if p.Stage == stage {
			requests, cores = max(requests, p.Requests), max(cores, p.Cores)
		}
	}
	return requests, cores
}

// stop ends the sampling and returns what was seen.
func (t *series) stop() []TimelinePoint {
	t.once.Do(func() { close(t.quit) })
	<-t.done
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.points
}
