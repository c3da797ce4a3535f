package bench

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/mailbell/mailbell/bench/chaos"
	"github.com/mailbell/mailbell/bench/publisher"
	"github.com/mailbell/mailbell/bench/swarm"
)

// ChaosConfig says what `mailbell bench chaos` breaks, and for how long.
type ChaosConfig struct {
	Minutes float64       // of publishing with faults; 0 = 2
	Seed    uint64        // of the faults, the accounts and the order of events
	Clients int           // in three processes; 0 = 3,000
	Rate    float64       // events a second; 0 = 200
	Every   time.Duration // mean time between faults; 0 = 4 s
	Only    []string      // kinds of fault; none = all
	LogDir  string        // what the processes log is kept here; empty = nowhere

	Progress Progress
}

// Validate says what is wrong with the configuration.
func (c ChaosConfig) Validate() error {
	switch {
	case c.Minutes < 0 || c.Minutes > 24*60:
		return errors.New("bench chaos: --minutes must be from 0.1 to 1440")
	case c.Clients < 0 || c.Clients > 30_000 || c.Clients > 0 && c.Clients < 30:
		return errors.New("bench chaos: --clients must be from 30 to 30000")
	case c.Rate < 0 || c.Rate > 100_000:
		return errors.New("bench chaos: --rate must be at most 100000 events a second")
	case c.Every < 0:
		return errors.New("bench chaos: --every must not be negative")
	}
	for _, k := range c.Only {
		if !slices.ContainsFunc(chaosRules(), func(r chaos.Rule) bool { return string(r.Kind) == k }) {
			return fmt.Errorf("bench chaos: --only %s: no such kind of fault: there are %s", k, strings.Join(ChaosKinds(), ", "))
		}
	}
	return nil
}

func (c ChaosConfig) withDefaults() ChaosConfig {
	if c.Minutes == 0 {
		c.Minutes = 2
	}
	if c.Clients == 0 {
		c.Clients = 3000
	}
	if c.Rate == 0 {
		c.Rate = 200
	}
	if c.Every == 0 {
		c.Every = 4 * time.Second
	}
	return c
}

func (c ChaosConfig) length() time.Duration { return time.Duration(c.Minutes * float64(time.Minute)) }

// ChaosResult is what is left after the faults. Delivered, duplicates, told, lost and misordered count what the
// subscriptions saw; some accounts have two.
type ChaosResult struct {
	Minutes          float64        `json:"minutes"`
	Seed             uint64         `json:"seed"`
	Faults           map[string]int `json:"faults"` // by kind
	Injected         int            `json:"injected"`
	Skipped          []string       `json:"skipped,omitempty"` // kinds that this machine can't do, and why
	Network          string         `json:"network"`           // namespaces or loopback
	Clients          int            `json:"clients"`
	Offered          int            `json:"offered"`
	Acknowledged     int            `json:"acknowledged"`
	NotOnLog         int            `json:"notOnLog"` // acknowledged, and not on the log at the end: part of lost
	Retried          int            `json:"retried"`  // calls that the publishers made again after an error
	Delivered        int            `json:"delivered"`
	Duplicates       int            `json:"duplicates"`
	Told             int            `json:"told"`
	Lost             int            `json:"lost"`
	Misordered       int            `json:"misordered"`
	LongestSilenceMs int64          `json:"longestSilenceMs"` // from an event's acknowledgement to its arrival, over all that arrived
	Silences         map[string]Gap `json:"silences"`         // by kind of fault, of faults that nothing else overlapped
	CatchUp          map[string]int `json:"catchUp"`          // how subscriptions were answered
	Missed           int            `json:"missed"`           // frames
	Reconnects       int            `json:"reconnects"`       // connections that ended and came back
	NotBack          int            `json:"notBack"`          // clients that were not subscribed again at the end
	StandIns         int            `json:"standIns"`         // partitions that a notifier found no owner of at the end
	Crashes          []string       `json:"crashes,omitempty"`
	LatencyMs        LatencyMs      `json:"latencyMs"` // of all that arrived, from the moment that it was due
	Examples         []string       `json:"lostExamples,omitempty"`
	Slowest          []string       `json:"slowest,omitempty"`
}

// Gap is how long clients waited for what was acknowledged during one kind of fault, the longest wait of each fault.
type Gap struct {
	Faults int   `json:"faults"`
	P50Ms  int64 `json:"p50Ms"`
	P99Ms  int64 `json:"p99Ms"`
	MaxMs  int64 `json:"maxMs"`
}

// Broken says which promise was broken, if one was.
func (r ChaosResult) Broken() error {
	var broken []string
	say := func(n int, what string) {
		if n > 0 {
			broken = append(broken, fmt.Sprintf("%d %s", n, what))
		}
	}
	say(r.Lost, "events lost")
	say(r.Misordered, "out of order")
	say(r.NotBack, "clients did not come back")
	say(r.StandIns, "partitions are stood in for though all is healed")
	say(len(r.Crashes), "processes ended by themselves")
	if len(broken) == 0 {
		return nil
	}
	return fmt.Errorf("bench chaos: %s", strings.Join(broken, ", "))
}

// chaosRun is a running bench.
type chaosRun struct {
	cfg        ChaosConfig
	site       *chaosSite
	clients    []*chaosSwarm
	publishers []*chaosPublisher
	faults     []faultRun
	started    time.Time
}

// Chaos runs the bench. Everything that it started has ended when it returns.
func Chaos(ctx context.Context, cfg ChaosConfig) (ChaosResult, error) {
	if err := cfg.Validate(); err != nil {
		return ChaosResult{}, err
	}
	cfg = cfg.withDefaults()
	s, err := newChaosSite(ctx, cfg)
	if err != nil {
		return ChaosResult{}, fmt.Errorf("bench chaos: %w", err)
	}
	defer s.stop()
	c := &chaosRun{cfg: cfg, site: s}
	r, err := c.run(ctx)
	if err != nil {
		return ChaosResult{}, fmt.Errorf("bench chaos: %w", err)
	}
	return r, nil
}

func (c *chaosRun) run(ctx context.Context) (ChaosResult, error) {
	if err := c.connect(ctx); err != nil {
		return ChaosResult{}, err
	}
	rules, skipped := c.site.rules()
	plan := chaos.Plan(c.cfg.Seed, c.cfg.length(), c.cfg.Every, rules, [][]string{c.site.names(brokerNode)})
	c.cfg.Progress.say("publishing %.0f events a second, with %d faults in %v", c.cfg.Rate, len(plan), c.cfg.length())
	c.started = time.Now()
	for _, p := range c.publishers {
		if err := p.publish(c.cfg.length()); err != nil {
			return ChaosResult{}, err
		}
	}
	if err := c.breakThings(ctx, plan); err != nil {
		return ChaosResult{}, err
	}
	notBack, err := c.settle(ctx)
	if err != nil {
		return ChaosResult{}, err
	}
	standIns, err := c.standIns(ctx)
	if err != nil {
		return ChaosResult{}, err
	}
	r, err := c.audit(ctx)
	r.NotBack, r.StandIns, r.Skipped = notBack, standIns, skipped
	return r, err
}

// standIns waits until no partition is stood in for, for half a minute at most, and returns how many still are.
func (c *chaosRun) standIns(ctx context.Context) (left int, err error) {
	client := &http.Client{Timeout: 5 * time.Second}
	defer client.CloseIdleConnections()
	for began := time.Now(); ; {
		left, err = c.site.standIns(ctx, client)
		if err == nil && left == 0 || time.Since(began) > 30*time.Second {
			return left, err
		}
		if err := pause(ctx, 500*time.Millisecond); err != nil {
			return 0, err
		}
	}
}

// standIns asks the bus nodes for how many partitions they stand in.
func (s *chaosSite) standIns(ctx context.Context, client *http.Client) (sum int, err error) {
	for _, n := range s.of(busNode) {
		if n.spare {
			continue
		}
		found, err := scrape(ctx, client, n.serve("--ops"), `mailbell_bus_partitions{state="standin"}`)
		if err != nil {
			return 0, fmt.Errorf("%s: %w", n.name, err)
		}
		for _, v := range found {
			sum += int(v)
		}
	}
	return sum, nil
}

// shares splits the accounts: those of events, and the last tenth, those of reports.
func (c *chaosRun) shares() (accounts, events uint32) {
	accounts = uint32(c.cfg.Clients * 3 / 4) // so some have two subscribers
	return accounts, accounts - accounts/10
}

// connect brings up the clients, then the publishers.
func (c *chaosRun) connect(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Minute)
	defer cancel()
	accounts, events := c.shares()
	lateMs := 1000
	if len(c.cfg.Only) > 0 {
		lateMs = 50 // it is the silence that is wanted
	}
	per := c.cfg.Clients / len(c.site.clients)
	for i, n := range c.site.clients {
		s := &chaosSwarm{node: n}
		err := s.start(swarm.Config{
			Run: c.site.run, Connections: per, First: uint32(i * per), Accounts: accounts, Gateways: c.site.gateways(), ServiceToken: c.site.token,
			PerSecond: 1000, Reconnect: true, PingSeconds: 5, Reports: true, LateMs: lateMs, ReportMs: 500,
		})
		if err != nil {
			return err
		}
		c.clients = append(c.clients, s)
	}
	for _, s := range c.clients {
		if err := s.wait(ctx, func(n swarm.Counts) bool { return n.Live == per }); err != nil {
			return fmt.Errorf("%s: %d of %d clients subscribed, failures %v: %w", s.node.name, s.counts().Live, per, s.counts().Failures, err)
		}
	}
	c.cfg.Progress.say("%d clients are subscribed", per*len(c.clients))
	adapters := c.site.adapters()
	half := events / 2
	for i, cfg := range []publisher.Config{
		{Accounts: half, Adapters: adapters},
		{First: half, Accounts: events - half, Adapters: []string{adapters[1], adapters[0]}},
		{First: events, Accounts: accounts - events, Adapters: adapters, Reports: true},
	} {
		cfg.Run, cfg.Seed, cfg.ServiceToken, cfg.Retry, cfg.Lanes = c.site.run, c.cfg.Seed+uint64(i), c.site.token, true, 16
		p := &chaosPublisher{node: c.site.publishers[i], share: float64(cfg.Accounts) / float64(accounts), rate: c.cfg.Rate}
		if err := p.start(ctx, cfg); err != nil {
			return err
		}
		c.publishers = append(c.publishers, p)
	}
	return nil
}

// settle waits until all that was published is acknowledged, every client is back, and nothing more arrives. It returns how
// many clients did not come back.
func (c *chaosRun) settle(ctx context.Context) (notBack int, err error) {
	c.cfg.Progress.say("faults are over; waiting for publishers and clients")
	patience, cancel := context.WithTimeout(ctx, 3*time.Minute)
	defer cancel()
	for _, p := range c.publishers {
		if err := p.outcome(patience); err != nil {
			return 0, err
		}
	}
	per := c.cfg.Clients / len(c.clients)
	for _, s := range c.clients {
		err := s.wait(patience, func(n swarm.Counts) bool { return n.Live == per })
		if ctx.Err() != nil {
			return 0, ctx.Err()
		}
		if err != nil {
			notBack += per - s.counts().Live
		}
	}
	const calm = 10 * time.Second
	last, since := -1, time.Now()
	for time.Since(since) < calm && patience.Err() == nil {
		total := 0
		for _, s := range c.clients {
			total += s.counts().Events
		}
		if total != last {
			last, since = total, time.Now()
		}
		select {
		case <-ctx.Done():
			return 0, ctx.Err()
		case <-time.After(500 * time.Millisecond):
		}
	}
	return notBack, nil
}

// chaosSwarm is one process of clients.
type chaosSwarm struct {
	node *chaosNode

	mu      sync.Mutex // guards the rest
	last    swarm.Report
	changed chan struct{}
	ended   error
}

func (s *chaosSwarm) start(cfg swarm.Config) error {
	s.changed = make(chan struct{})
	if err := s.node.launch("bench", "swarm"); err != nil {
		return err
	}
	p := s.node.process()
	if err := p.say(cfg); err != nil {
		return err
	}
	go s.follow(p) // ends with the process
	return nil
}

func (s *chaosSwarm) follow(p *process) {
	for line := range p.lines {
		var r swarm.Report
		err := json.Unmarshal(line, &r)
		s.mu.Lock()
		if err == nil {
			s.last = r
		}
		close(s.changed)
		s.changed = make(chan struct{})
		s.mu.Unlock()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ended = fmt.Errorf("%s has ended", s.node.name)
	close(s.changed)
	s.changed = make(chan struct{})
}

func (s *chaosSwarm) counts() swarm.Counts {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.last.Counts
}

// wait waits for a report of some kind.
func (s *chaosSwarm) wait(ctx context.Context, ok func(swarm.Counts) bool) error {
	_, err := s.waitReport(ctx, func(r swarm.Report) bool { return ok(r.Counts) })
	return err
}

func (s *chaosSwarm) waitReport(ctx context.Context, ok func(swarm.Report) bool) (swarm.Report, error) {
	for {
		s.mu.Lock()
		last, changed, ended := s.last, s.changed, s.ended
		s.mu.Unlock()
		switch {
		case ok(last):
			return last, nil
		case ended != nil:
			return last, ended
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return last, ctx.Err()
		}
	}
}

// chaosPublisher is one process that publishes.
type chaosPublisher struct {
	node  *chaosNode
	share float64
	rate  float64
	done  publisher.Outcome
}

func (p *chaosPublisher) start(ctx context.Context, cfg publisher.Config) error {
	if err := p.node.launch("bench", "publisher"); err != nil {
		return err
	}
	if err := p.node.process().say(cfg); err != nil {
		return err
	}
	_, err := p.reply(ctx)
	return err
}

func (p *chaosPublisher) publish(d time.Duration) error {
	return p.node.process().say(publisher.Request{Trial: &publisher.Trial{PerSecond: max(1, p.share*p.rate), Seconds: d.Seconds()}})
}

func (p *chaosPublisher) reply(ctx context.Context) (publisher.Reply, error) {
	line, err := p.node.process().next(ctx)
	if err != nil {
		return publisher.Reply{}, err
	}
	var r publisher.Reply
	return r, json.Unmarshal(line, &r)
}

func (p *chaosPublisher) outcome(ctx context.Context) error {
	r, err := p.reply(ctx)
	if err == nil && r.Outcome != nil {
		p.done = *r.Outcome
	}
	return err
}
