package bench

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"

	"github.com/mailbell/mailbell/bench/cputime"
	"github.com/mailbell/mailbell/bench/schedule"
)

// sideKind is how users hear of changes.
type sideKind string

const (
	polling sideKind = "polling"
	pushing sideKind = "pushing"
)

// side is one running half of the comparison.
type side struct {
	cfg     CompareConfig
	kind    sideKind
	dir     string
	procs   *processes
	site    *site // nil when polling
	webmail *webmail
	clients *compareClients
	books   *compareBooks
	driver  *storeDriver
	series  *series
	result  CompareSide

	mu sync.Mutex
	up []meter // guarded by mu: servers() while they run, for who samples them
}

// compareSide runs one side from nothing to its figures.
func compareSide(ctx context.Context, cfg CompareConfig, kind sideKind) (CompareSide, error) {
	dir, err := os.MkdirTemp("", "mailbell-bench-")
	if err != nil {
		return CompareSide{}, fmt.Errorf("make a folder for the bench: %w", err)
	}
	defer os.RemoveAll(dir)
	s := &side{cfg: cfg, kind: kind, dir: dir, books: newCompareBooks(cfg.Users)}
	defer s.stop()
	for _, step := range []func(context.Context) error{s.startServers, s.empty, s.connect, s.quiet, s.measure, s.outage, s.finish} {
		if err := step(ctx); err != nil {
			return s.result, err
		}
	}
	return s.result, nil
}

func (s *side) say(format string, args ...any) {
	s.cfg.Progress.say("%s: %s", s.kind, fmt.Sprintf(format, args...))
}

func (s *side) startServers(ctx context.Context) error {
	var err error
	if s.procs, err = newProcesses(); err != nil {
		return err
	}
	if s.webmail, err = newWebmail(ctx, s.procs, s.cfg, s.kind, s.dir); err != nil {
		return err
	}
	if s.kind == pushing {
		s.site, err = newSite(ctx, siteConfig{Brokers: s.cfg.Brokers, Notifiers: s.cfg.Notifiers, Adapter: true, Progress: s.cfg.Progress})
		if err != nil {
			return err
		}
	}
	s.result.DeliveryCPUMs = significant(1000*s.webmail.deliverySeconds, 4)
	s.driver = newStoreDriver(s.webmail, s.site, s.books)
	s.setUp(s.servers())
	return nil
}

func (s *side) setUp(all []meter) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.up = all
}

func (s *side) running() []meter {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.up
}

func (s *side) stop() {
	if s.series != nil {
		s.series.stop()
	}
	if s.clients != nil {
		s.clients.stop()
	}
	if s.site != nil {
		s.site.stop()
	}
	if s.webmail != nil {
		s.webmail.stop()
	}
	if s.procs != nil {
		s.procs.stop()
	}
}

// servers are what is paid for.
func (s *side) servers() []meter {
	all := s.webmail.servers()
	if s.site != nil {
		for _, p := range s.site.servers {
			all = append(all, p)
		}
	}
	return all
}

// empty measures what the servers use before anybody comes, which does not grow with the users.
func (s *side) empty(ctx context.Context) (err error) {
	s.result.Empty, err = s.idle(ctx, "nobody connected", min(s.cfg.Quiet, longestBefore))
	return err
}

// connectTimeout bounds how long users may take to come, beside a poll interval.
const connectTimeout = 2 * time.Minute

// connect brings up all users.
func (s *side) connect(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, connectTimeout+2*s.cfg.Interval)
	defer cancel()
	before, err := s.reading(ctx, false)
	if err != nil {
		return err
	}
	if s.clients, err = startCompareClients(s.procs, s.cfg, s.site, s.webmail.cfg.Addr, s.books); err != nil {
		return err
	}
	err = s.clients.until(ctx, func(t totals) bool {
		s.say("%d of %d users are there", t.users(), s.cfg.Users)
		return t.users() >= s.cfg.Users
	})
	if err != nil {
		return fmt.Errorf("users come up: %w", err)
	}
	after, err := s.reading(ctx, false)
	if err != nil {
		return err
	}
	s.result.Connect = stretchOf(before, after)
	return nil
}

// quiet measures a stretch without changes.
func (s *side) quiet(ctx context.Context) (err error) {
	s.result.Quiet, err = s.idle(ctx, "everybody connected", s.cfg.Quiet)
	return err
}

// idle measures what the servers use while nothing changes.
func (s *side) idle(ctx context.Context, who string, d time.Duration) (CompareStretch, error) {
	s.say("%s: quiet for %v", who, d)
	before, err := s.reading(ctx, true)
	if err != nil {
		return CompareStretch{}, err
	}
	if err := sleep(ctx, d); err != nil {
		return CompareStretch{}, err
	}
	after, err := s.reading(ctx, true)
	if err != nil {
		return CompareStretch{}, err
	}
	return stretchOf(before, after), nil
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// measure lets the changes come.
func (s *side) measure(ctx context.Context) error {
	plan := s.cfg.schedule()
	changes := schedule.Changes(plan)
	start := time.Now()
	done := make(chan error, 1)
	go func() { done <- s.driver.run(ctx, changes, start) }() // awaited below
	s.say("changes begin; they are measured after %v, for %v", plan.RunIn, plan.Duration)
	before, from, err := s.runIn(ctx, plan.RunIn)
	if err == nil {
		err = sleep(ctx, s.cfg.Duration)
	}
	if err := errors.Join(<-done, err); err != nil {
		return err
	}
	end := time.Now()
	after, err := s.reading(ctx, true)
	if err != nil {
		return err
	}
	after.sockets, after.kernel, err = kernelMemory(s.listeners())
	if err != nil {
		return err
	}
	s.series.enter(settling)
	if err := s.settle(ctx, end); err != nil {
		return err
	}
	s.conclude(before, after, from, end)
	return nil
}

// runIn waits for one poll of everybody, and begins to measure.
func (s *side) runIn(ctx context.Context, d time.Duration) (before reading, from time.Time, err error) {
	if err := sleep(ctx, d); err != nil {
		return before, from, err
	}
	if before, err = s.reading(ctx, true); err != nil {
		return before, from, err
	}
	from = time.Now()
	s.series = startSeries(s, from)
	return before, from, nil
}

func (s *side) listeners() []string {
	all := []string{s.webmail.cfg.Addr}
	if s.site != nil {
		all = append(all, s.site.sockets...)
	}
	return all
}

// settleTimeout bounds, beside two poll intervals, how long users may take to come to know of everything.
const settleTimeout = 10 * time.Second

// settle waits until everybody knows of what changed before a moment, or has had the time for it.
func (s *side) settle(ctx context.Context, before time.Time) error {
	s.say("waiting for users to hear of the last changes")
	wait, cancel := context.WithTimeout(ctx, settleTimeout+2*s.cfg.Interval)
	defer cancel()
	err := s.clients.until(wait, func(totals) bool { return s.books.behind(before) == 0 })
	if errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil {
		return nil // counted as unknown
	}
	return err
}

// conclude turns two readings into the side's figures.
func (s *side) conclude(before, after reading, start, end time.Time) {
	r := &s.result
	known, changes, unknown := s.books.delays(start, end, false)
	f := figuresBetween(before, after)
	f.Changes, f.Unknown, f.LatencyMs = changes, unknown, latencyOf(known)
	f.PerUserHour = f.perUserHour(s.cfg.Users)
	r.CompareFigures, r.LatencyCDF = f, cdfOf(known)
	if s.kind == polling {
		return
	}
	heard, _, unheard := s.books.delays(start, end, true)
	w := f
	w.Requests, w.RequestsPerSecond, w.NotModifiedShare, w.StoreReads = 0, 0, 0, 0
	w.Connects, w.Late = 0, 0
	w.CPUByProcess, w.ResidentBytes = make(map[string]float64), 0
	var sum cputime.Time
	for _, p := range s.site.servers {
		used := after.cpu[p.name].Minus(before.cpu[p.name])
		sum = sum.Plus(used)
		w.ResidentBytes += after.resident[p.name]
		w.CPUByProcess[p.name] = roundCPU(used.Sum())
	}
	w.CPUSeconds, w.CPUUserSeconds, w.CPUSystemSeconds = roundCPU(sum.Sum()), roundCPU(sum.User), roundCPU(sum.System)
	w.BytesIn = after.totals.push.BytesOut - before.totals.push.BytesOut
	w.BytesOut = after.totals.push.BytesIn - before.totals.push.BytesIn
	if sockets, kernel, err := kernelMemory(s.site.sockets); err == nil {
		w.Sockets, w.KernelBytes = sockets, kernel
	}
	w.LatencyMs, w.Unknown = latencyOf(heard), unheard
	w.PerUserHour = w.perUserHour(s.cfg.Users)
	r.WithoutFetch = &w
}

// finish takes the last figures from the clients.
func (s *side) finish(ctx context.Context) error {
	s.result.Timeline = s.series.stop()
	s.series = nil
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	snapshots, err := s.clients.finish(ctx)
	if err != nil {
		return err
	}
	all := hdrhistogram.New(1, 600_000_000, 2)
	for _, h := range snapshots {
		all.Merge(hdrhistogram.Import(h))
	}
	s.result.AnswerMs = latencyMs(all)
	return nil
}
