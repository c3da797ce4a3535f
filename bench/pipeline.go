package bench

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"

	"github.com/mailbell/mailbell/bench/ledger"
	"github.com/mailbell/mailbell/bench/publisher"
	"github.com/mailbell/mailbell/bench/swarm"
)

// PipelineConfig says how `mailbell bench pipeline` loads the whole way of an event: published through the Go
// API by one process, through the log, bus and notifier, to the sockets of another.
type PipelineConfig struct {
	Rate        float64       // events a second; 0 finds the highest that is held
	Duration    time.Duration // of each stretch of steady publishing; 0 = 10 s
	Subscribers int           // connections, each subscribed to an account of its own; 0 = 1,000
	Brokers     []string      // Kafka; none = the embedded log of `mailbell run`
	Notifiers   int           // with Brokers: notifier processes; 0 = 1
	Seed        uint64        // of the order of accounts
	TargetP99   time.Duration // with Rate 0: what counts as held; 0 = 100 ms
	MaxRate     float64       // with Rate 0: where to stop; 0 = 500,000
	ProfileDir  string        // where each server's CPU profile of the last full stretch goes, as NAME.pprof; empty = none
	Progress    Progress
}

// Validate says what is wrong with the configuration.
func (c PipelineConfig) Validate() error {
	switch {
	case c.Rate < 0 || c.Rate > 1e6:
		return errors.New("bench pipeline: --rate must be from 1 to 1000000 events a second, or max")
	case c.Duration < 0 || c.Duration > time.Hour:
		return errors.New("bench pipeline: --duration must be at most 1h")
	case c.Subscribers < 0 || c.Subscribers > 15000:
		return errors.New("bench pipeline: --subscribers must be from 1 to 15000, what one process of each kind holds; `bench hold` goes beyond")
	}
	return nil
}

func (c PipelineConfig) withDefaults() PipelineConfig {
	if c.Duration == 0 {
		c.Duration = 10 * time.Second
	}
	if c.Subscribers == 0 {
		c.Subscribers = 1000
	}
	if c.Notifiers == 0 {
		c.Notifiers = 1
	}
	if c.TargetP99 == 0 {
		c.TargetP99 = 100 * time.Millisecond
	}
	if c.MaxRate == 0 {
		c.MaxRate = 500_000
	}
	return c
}

// PipelineResult is what the pipeline bench found. With a search, PerSecond, LatencyMs and AckLatencyMs are those of the highest
// rate held, and the counts are of all its trials.
type PipelineResult struct {
	Offered      int                `json:"offered"`
	Acknowledged int                `json:"acknowledged"`
	Delivered    int                `json:"delivered"`
	Told         int                `json:"told"`
	Lost         int                `json:"lost"`
	Duplicates   int                `json:"duplicates"`
	Misordered   int                `json:"misordered"`
	PerSecond    float64            `json:"perSecond"` // acknowledged and delivered, while offering
	LatencyMs    LatencyMs          `json:"latencyMs"` // from before Publish to the client's read
	AckLatencyMs LatencyMs          `json:"ackLatencyMs"`
	Subscribers  int                `json:"subscribers"`
	CPUSeconds   map[string]float64 `json:"cpuSeconds"` // by process, of the trial reported
	Trials       []PipelineTrial    `json:"trials"`
	Examples     []string           `json:"lostExamples,omitempty"`
}

// PipelineTrial is one stretch of steady publishing.
type PipelineTrial struct {
	Rate         float64            `json:"rate"`
	Seconds      float64            `json:"seconds"`
	PerSecond    float64            `json:"perSecond"`
	Held         bool               `json:"held"`
	Late         int                `json:"late"`
	Failed       int                `json:"failed"`
	Problem      string             `json:"problem,omitempty"`
	LatencyMs    LatencyMs          `json:"latencyMs"`
	AckLatencyMs LatencyMs          `json:"ackLatencyMs"`
	CPUSeconds   map[string]float64 `json:"cpuSeconds"`
	offered      int
}

// Broken says whether a promise was broken: something lost, or out of order.
func (r PipelineResult) Broken() error {
	if r.Lost > 0 || r.Misordered > 0 {
		return fmt.Errorf("bench pipeline: %d events lost, %d out of order", r.Lost, r.Misordered)
	}
	return nil
}

// pipeline is a running bench.
type pipeline struct {
	cfg   PipelineConfig
	site  *site
	store *process // the publisher
	swarm *process
	last  swarm.Report

	profiled []profiled // with ProfileDir
}

// Pipeline runs the bench. Everything that it started has ended when it returns.
func Pipeline(ctx context.Context, cfg PipelineConfig) (PipelineResult, error) {
	if err := cfg.Validate(); err != nil {
		return PipelineResult{}, err
	}
	cfg = cfg.withDefaults()
	s, err := newSite(ctx, siteConfig{Brokers: cfg.Brokers, Notifiers: cfg.Notifiers, Progress: cfg.Progress})
	if err != nil {
		return PipelineResult{}, fmt.Errorf("bench pipeline: %w", err)
	}
	defer s.stop()
	p := &pipeline{cfg: cfg, site: s}
	if cfg.ProfileDir != "" {
		if p.profiled, err = s.profiled(ctx); err != nil {
			return PipelineResult{}, fmt.Errorf("bench pipeline: %w", err)
		}
	}
	if err := p.connect(ctx); err != nil {
		return PipelineResult{}, fmt.Errorf("bench pipeline: %w", err)
	}
	warmUp, err := p.warmUp(ctx)
	if err != nil {
		return PipelineResult{}, fmt.Errorf("bench pipeline: %w", err)
	}
	trials, err := p.measure(ctx)
	if err != nil {
		return PipelineResult{}, fmt.Errorf("bench pipeline: %w", err)
	}
	r, err := p.settle(ctx, trials)
	if err != nil {
		return PipelineResult{}, fmt.Errorf("bench pipeline: %w", err)
	}
	r.Offered += warmUp.offered
	return r, nil
}

// connect brings up the clients, then the publisher.
func (p *pipeline) connect(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	var err error
	if p.swarm, err = p.site.processes.start("clients", "bench", "swarm"); err != nil {
		return err
	}
	err = p.swarm.say(swarm.Config{
		Run: p.site.run, Connections: p.cfg.Subscribers, Targets: p.site.sockets, KeyFile: p.site.keyFile,
	})
	if err != nil {
		return err
	}
	for p.last.Counts.Live < p.cfg.Subscribers {
		if err := p.hear(ctx); err != nil {
			return fmt.Errorf("%d of %d clients subscribed, failures %v: %w", p.last.Counts.Live, p.cfg.Subscribers, p.last.Counts.Failures, err)
		}
		p.cfg.Progress.say("connecting: %d of %d subscribed", p.last.Counts.Live, p.cfg.Subscribers)
	}
	if p.store, err = p.site.processes.start("publisher", "bench", "publisher"); err != nil {
		return err
	}
	err = p.store.say(publisher.Config{
		Run: p.site.run, Accounts: uint32(p.cfg.Subscribers), Seed: p.cfg.Seed, Brokers: p.site.brokers, Topic: p.site.topic,
	})
	if err != nil {
		return err
	}
	_, err = p.reply(ctx)
	return err
}

// hear reads the swarm's next report.
func (p *pipeline) hear(ctx context.Context) error {
	line, err := p.swarm.next(ctx)
	if err != nil {
		return err
	}
	p.last = swarm.Report{}
	return json.Unmarshal(line, &p.last)
}

// reply reads the publisher's next reply.
func (p *pipeline) reply(ctx context.Context) (publisher.Reply, error) {
	line, err := p.store.next(ctx)
	if err != nil {
		return publisher.Reply{}, err
	}
	var r publisher.Reply
	return r, json.Unmarshal(line, &r)
}

// latencies asks the swarm for its latencies since the last time.
func (p *pipeline) latencies(ctx context.Context) (*hdrhistogram.Histogram, error) {
	if err := p.swarm.tell(swarm.CommandLatencies); err != nil {
		return nil, err
	}
	for {
		if err := p.hear(ctx); err != nil {
			return nil, err
		}
		if p.last.Latencies != nil {
			return hdrhistogram.Import(p.last.Latencies), nil
		}
	}
}

// quiet waits until the clients hear nothing more: all has arrived, or nothing came for a while.
func (p *pipeline) quiet(ctx context.Context, expected int) error {
	const patience = 5 * time.Second
	seen, since := -1, time.Now()
	for p.last.Counts.Events < expected && time.Since(since) < patience {
		if p.last.Counts.Events != seen {
			seen, since = p.last.Counts.Events, time.Now()
		}
		if err := p.hear(ctx); err != nil {
			return err
		}
	}
	return nil
}

// trial publishes at a rate for a while.
func (p *pipeline) trial(ctx context.Context, rate float64, d time.Duration) (PipelineTrial, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*d+2*time.Minute)
	defer cancel()
	p.cfg.Progress.say("publishing %.0f events a second for %v", rate, d)
	before := p.last.Counts.Events
	cpu, err := p.site.cpu(p.store, p.swarm)
	if err != nil {
		return PipelineTrial{}, err
	}
	if err := p.store.say(publisher.Request{Trial: &publisher.Trial{PerSecond: rate, Seconds: d.Seconds()}}); err != nil {
		return PipelineTrial{}, err
	}
	reply, err := p.reply(ctx)
	if err != nil {
		return PipelineTrial{}, err
	}
	o := reply.Outcome
	if err := p.quiet(ctx, before+o.Acknowledged); err != nil {
		return PipelineTrial{}, err
	}
	hist, err := p.latencies(ctx)
	if err != nil {
		return PipelineTrial{}, err
	}
	after, err := p.site.cpu(p.store, p.swarm)
	if err != nil {
		return PipelineTrial{}, err
	}
	t := PipelineTrial{
		Rate: rate, Seconds: o.Seconds, PerSecond: round1(float64(o.Acknowledged) / o.Seconds), Late: o.Late, Failed: o.Failed, Problem: o.Problem,
		LatencyMs: latencyMs(hist), AckLatencyMs: latencyMs(hdrhistogram.Import(o.AckLatencies)), CPUSeconds: map[string]float64{}, offered: o.Offered,
	}
	for name, seconds := range after {
		t.CPUSeconds[name] = math.Round((seconds-cpu[name])*100) / 100
	}
	t.Held = o.Late == 0 && o.Failed == 0 && t.PerSecond >= 0.98*rate && t.LatencyMs.P99 <= p.cfg.TargetP99.Seconds()*1000 &&
		p.last.Counts.Events-before >= o.Acknowledged
	p.cfg.Progress.say("%.0f/s for %.0f s: held %v, %.0f/s, %v", rate, o.Seconds, t.Held, t.PerSecond, t.LatencyMs)
	return t, nil
}

func round1(x float64) float64 { return math.Round(x*10) / 10 }

// warmUp lets code be paged in and a JVM compile, at a rate no higher than what is asked for.
func (p *pipeline) warmUp(ctx context.Context) (PipelineTrial, error) {
	if p.cfg.Rate > 0 && p.cfg.Rate < 1000 {
		return p.trial(ctx, p.cfg.Rate, time.Second)
	}
	return p.trial(ctx, 2000, 5*time.Second)
}

// stretch is a trial of the full duration, with the servers' profiles if they are wanted.
func (p *pipeline) stretch(ctx context.Context, rate float64) (PipelineTrial, error) {
	profiles := make(chan error, 1)
	go func() { profiles <- writeProfiles(ctx, p.profiled, p.cfg.ProfileDir, p.cfg.Duration) }()
	t, err := p.trial(ctx, rate, p.cfg.Duration)
	return t, errors.Join(err, <-profiles)
}

// measure runs the one rate asked for, or looks for the highest that is held for the whole duration. The last
// trial is the one reported.
func (p *pipeline) measure(ctx context.Context) ([]PipelineTrial, error) {
	if p.cfg.Rate > 0 {
		t, err := p.stretch(ctx, p.cfg.Rate)
		return []PipelineTrial{t}, err
	}
	return search(p.cfg, func(rate float64, d time.Duration) (PipelineTrial, error) {
		if d == p.cfg.Duration {
			return p.stretch(ctx, rate)
		}
		return p.trial(ctx, rate, d)
	})
}

// lowestRate is where a search gives up, in events a second.
const lowestRate = 100

// search looks for the highest rate that is held for the whole duration. Short trials bracket the answer, each
// with a second chance, since the machine may be busy with something else; then the full
// duration decides, going down by 5 % until a rate is held, which is the last trial returned. It is an error when none is.
func search(cfg PipelineConfig, trial func(rate float64, d time.Duration) (PipelineTrial, error)) ([]PipelineTrial, error) {
	short := min(3*time.Second, cfg.Duration)
	var trials []PipelineTrial
	held := func(rate float64, d time.Duration, chances int) (bool, error) {
		for range chances {
			t, err := trial(math.Round(rate), d)
			if err != nil {
				return false, err
			}
			trials = append(trials, t)
			if t.Held {
				return true, nil
			}
		}
		return false, nil
	}
	low, high := 0.0, cfg.MaxRate
	for rate := 5000.0; rate < high; rate *= 1.5 {
		ok, err := held(rate, short, 2)
		if err != nil {
			return nil, err
		}
		if !ok {
			high = rate
			break
		}
		low = rate
	}
	for range 3 {
		mid := (low + high) / 2
		ok, err := held(mid, short, 2)
		if err != nil {
			return nil, err
		}
		if ok {
			low = mid
		} else {
			high = mid
		}
	}
	for rate := max(low, lowestRate); rate >= lowestRate; rate *= 0.95 {
		if ok, err := held(rate, cfg.Duration, 1); ok || err != nil {
			return trials, err
		}
	}
	last := trials[len(trials)-1]
	return nil, fmt.Errorf("no rate was held for %v with p99 at most %v: the last one tried was %.0f/s, with p99 %.0f ms, %d late, %d failed",
		cfg.Duration, cfg.TargetP99, last.Rate, last.LatencyMs.P99, last.Late, last.Failed)
}

// settle compares what was acknowledged with what arrived.
func (p *pipeline) settle(ctx context.Context, trials []PipelineTrial) (PipelineResult, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	if err := p.store.say(publisher.Request{Finish: true}); err != nil {
		return PipelineResult{}, err
	}
	reply, err := p.reply(ctx)
	if err != nil {
		return PipelineResult{}, err
	}
	if err := p.swarm.tell(swarm.CommandFinish); err != nil {
		return PipelineResult{}, err
	}
	for p.last.Final == nil {
		if err := p.hear(ctx); err != nil {
			return PipelineResult{}, err
		}
	}
	var v ledger.Verdict
	for i, o := range p.last.Final.Observations {
		reply.Ledger.Check(&v, o, p.last.Final.Since[i])
	}
	last := trials[len(trials)-1]
	r := PipelineResult{
		Acknowledged: reply.Ledger.Acknowledged(), Delivered: v.Delivered, Told: v.Told, Lost: v.Lost, Duplicates: v.Duplicates, Misordered: v.Misordered,
		PerSecond: last.PerSecond, LatencyMs: last.LatencyMs, AckLatencyMs: last.AckLatencyMs, CPUSeconds: last.CPUSeconds,
		Subscribers: p.cfg.Subscribers, Trials: trials, Examples: v.Examples,
	}
	for _, t := range trials {
		r.Offered += t.offered
	}
	return r, nil
}
