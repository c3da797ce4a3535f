package bench

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os"
	"runtime"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"

	"github.com/mailbell/mailbell/bench/ledger"
	"github.com/mailbell/mailbell/bench/publisher"
)

// Clients of `bench hold`.
const (
	ClientsSockets = "sockets" // the kernel's, at some 4 KB each
	ClientsPackets = "packets" // TCP in the client's own memory, on a tun device: root only
)

// HoldConfig says how `mailbell bench hold` holds connections: each authenticated, subscribed to an account of
// its own, and idle but for the events of random accounts.
type HoldConfig struct {
	Connections int           // 0 = 15,000
	Nodes       int           // notifier processes; 0 = as many as the limit of open files asks for
	Rate        float64       // events a second while holding; 0 = 1,000
	Duration    time.Duration // of the publishing; 0 = 30 s
	Quiet       time.Duration // without events, to measure what idling costs; 0 = 1 min
	Clients     string        // ClientsSockets or ClientsPackets; empty = sockets
	Tickets     bool          // connect through the gateway instead of with bulk tokens
	Tune        bool          // raise what root may, in a network namespace of its own
	Ping        time.Duration // the notifiers' --ping-interval; 0 = their default
	Seed        uint64
	Progress    Progress
}

// Validate says what is wrong with the configuration.
func (c HoldConfig) Validate() error {
	c = c.withDefaults()
	switch {
	case c.Connections < 1 || c.Connections > 20_000_000:
		return errors.New("bench hold: --connections must be from 1 to 20000000")
	case c.Nodes < 0 || c.Nodes > c.Connections:
		return errors.New("bench hold: --nodes must be from 1 to the number of connections")
	case c.Rate < 0 || c.Rate > 200_000:
		return errors.New("bench hold: --rate must be from 1 to 200000 events a second")
	case c.Duration < 0 || c.Duration > time.Hour || c.Quiet < 0 || c.Quiet > time.Hour:
		return errors.New("bench hold: --duration and --quiet must be at most 1h")
	case c.Clients != ClientsSockets && c.Clients != ClientsPackets:
		return errors.New("bench hold: --clients must be sockets or packets")
	case c.Clients == ClientsPackets && c.Tickets:
		return errors.New("bench hold: --tickets needs --clients sockets: the gateway speaks HTTP")
	}
	return nil
}

// maxPerNode leaves a process some descriptors of the 20,000 that many machines allow for its listeners, links and log.
const maxPerNode = 19_500

func (c HoldConfig) withDefaults() HoldConfig {
	if c.Connections == 0 {
		c.Connections = 15_000
	}
	if c.Nodes == 0 {
		c.Nodes = (c.Connections + maxPerNode - 1) / maxPerNode
	}
	if c.Rate == 0 {
		c.Rate = 1000
	}
	if c.Duration == 0 {
		c.Duration = 30 * time.Second
	}
	if c.Quiet == 0 {
		c.Quiet = time.Minute // longer than the notifiers' --ping-interval
	}
	if c.Clients == "" {
		c.Clients = ClientsSockets
	}
	return c
}

// perNode is the connections of the fullest notifier.
func (c HoldConfig) perNode() int { return (c.Connections + c.Nodes - 1) / c.Nodes }

// needs is what the bench asks of the machine, from what it was measured to take.
func (c HoldConfig) needs() needs {
	const (
		socket   = 4100 // kernel memory of a socket in epoll
		slot     = 400  // of the notifier's, with the bus's share
		client   = 250
		process  = 6 << 20
		reserved = 256 << 20
	)
	n := needs{
		perProcess: c.perNode() + 256, files: int64(c.Connections)*2 + int64(c.Nodes)*200 + 2000, watches: int64(c.Connections) * 2,
		ports: c.perNode(), processes: c.Nodes + c.clientProcesses(), tuned: c.Tune,
		smaller: "fewer --connections, or --clients packets, which needs half",
	}
	n.memory = int64(c.Connections)*(2*socket+slot+client) + int64(n.processes)*process + reserved
	if c.Clients == ClientsPackets {
		n.files, n.watches, n.processes = n.files-int64(c.Connections), int64(c.Connections), c.Nodes
		n.memory = int64(c.Connections)*(socket+slot+client) + int64(n.processes)*process + reserved
		n.smaller = "fewer --connections"
	}
	return n
}

// HoldResult is what the hold bench found.
type HoldResult struct {
	Connections            int                `json:"connections"` // held at once, authenticated and subscribed
	Notifiers              int                `json:"notifiers"`
	UserBytesPerConnection float64            `json:"userBytesPerConnection"` // anonymous memory of the notifiers, after less before
	KernelBytesPerSocket   float64            `json:"kernelBytesPerSocket"`
	KernelMemoryFrom       string             `json:"kernelMemoryFrom"`
	TotalMemoryBytes       int64              `json:"totalMemoryBytes"` // of both ends, kernel and all processes
	Memory                 map[string]int64   `json:"memory"`           // its parts
	ConnectsPerSecond      float64            `json:"connectsPerSecond"`
	ConnectSeconds         float64            `json:"connectSeconds"`
	ConnectCPUSeconds      map[string]float64 `json:"connectCPUSeconds"`                      // of the parts, while connecting
	IdleCores              float64            `json:"idleCores"`                              // of all notifiers, while nothing is published
	IdleCoresBefore        float64            `json:"idleCoresBefore"`                        // the same before anybody had connected
	IdleMicrosPerSecond    float64            `json:"idleMicrosecondsPerConnectionAndSecond"` // of the difference
	BusyCores              map[string]float64 `json:"busyCores"`                              // while publishing
	EventsPublished        int                `json:"eventsPublished"`
	EventsExpected         int                `json:"eventsExpected"`
	EventsReceived         int                `json:"eventsReceived"`
	EventsPerSecond        float64            `json:"eventsPerSecond"`
	Lost                   int                `json:"lost"`
	Told                   int                `json:"told"`
	Duplicates             int                `json:"duplicates"`
	Misordered             int                `json:"misordered"`
	Closed                 int                `json:"closed"` // connections that ended though they should not
	LatencyMs              LatencyMs          `json:"latencyMs"`
	Clients                string             `json:"clients"`
	Failures               map[string]int     `json:"failures,omitempty"` // of single connections and tries to connect, by kind
	Examples               []string           `json:"lostExamples,omitempty"`
}

// What is promised of memory, from so many connections on: with fewer, what a process is anyway weighs more.
const (
	mostHoldBytes = 300
	promisedFrom  = 15_000
)

// Broken says whether a promise was broken.
func (r HoldResult) Broken() error {
	if r.Connections >= promisedFrom && r.UserBytesPerConnection > mostHoldBytes {
		return fmt.Errorf("bench hold: %.1f bytes per connection, %d are promised", r.UserBytesPerConnection, mostHoldBytes)
	}
	if r.Lost > 0 || r.Misordered > 0 || r.Closed > 0 {
		return fmt.Errorf("bench hold: %d events lost, %d out of order, %d connections lost", r.Lost, r.Misordered, r.Closed)
	}
	return nil
}

// hold is a running bench.
type hold struct {
	cfg      HoldConfig
	fleet    *fleet
	clients  []*holdClient
	store    *process
	result   HoldResult
	before   holdMemory
	started  time.Time
	measured time.Time // when before was

	coresBefore float64
}

// Hold runs the bench. Everything that it started has ended when it returns, and every setting is what it was.
func Hold(ctx context.Context, cfg HoldConfig) (r HoldResult, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("bench hold: %w", err)
		}
	}()
	cfg = cfg.withDefaults()
	if err := cfg.Validate(); err != nil {
		return r, err
	}
	if cfg.Clients == ClientsPackets && os.Geteuid() != 0 {
		return r, errors.New("--clients packets needs root, to make a network device")
	}
	cfg.Tune = cfg.Tune || cfg.Clients == ClientsPackets
	if cfg.Tune {
		t, err := cfg.needs().tune()
		if err != nil {
			return r, err
		}
		defer func() { err = errors.Join(err, t.restore()) }()
	}
	if err := cfg.needs().check(); err != nil {
		return r, err
	}
	var within *netns
	if cfg.Tune {
		if within, err = newTunedNetns(int64(2 * cfg.Connections)); err != nil {
			return r, err
		}
		defer within.close()
	}
	h := &hold{cfg: cfg, result: HoldResult{Notifiers: cfg.Nodes, Clients: cfg.Clients}}
	return h.run(ctx, within)
}

func (h *hold) run(ctx context.Context, within *netns) (HoldResult, error) {
	starting, cancel := context.WithTimeout(ctx, time.Minute+time.Duration(h.cfg.Nodes)*2*time.Second)
	defer cancel()
	var err error
	h.fleet, err = newFleet(starting, h.fleetConfig(within))
	if err != nil {
		return h.result, err
	}
	defer h.fleet.stop()
	for _, step := range []func(context.Context) error{h.warmUp, h.measureBefore, h.idleBefore, h.connect, h.measureAfter, h.publish, h.settle} {
		if err := step(ctx); err != nil {
			return h.result, err
		}
	}
	return h.result, nil
}

func (h *hold) fleetConfig(within *netns) fleetConfig {
	cfg := fleetConfig{Notifiers: h.cfg.Nodes, Within: within, Disposable: true, Progress: h.cfg.Progress}
	if h.cfg.Nodes >= runtime.NumCPU() { // as many threads as are needed, and no more
		cfg.NotifierEnv = []string{"GOMAXPROCS=1"}
	}
	if h.cfg.Ping != 0 {
		cfg.NotifierArgs = append(cfg.NotifierArgs, "--ping-interval", h.cfg.Ping.String())
	}
	if h.cfg.Clients == ClientsPackets {
		cfg.Sockets = "0.0.0.0:0" // the device comes later
	}
	return cfg
}

// publish first lets all be quiet, then sends events to random accounts.
func (h *hold) publish(ctx context.Context) error {
	if err := h.idle(ctx); err != nil {
		return err
	}
	var err error
	if h.store, err = h.fleet.child(nil, "publisher", "bench", "publisher"); err != nil {
		return err
	}
	err = h.store.say(publisher.Config{
		Run: h.fleet.run, Accounts: uint32(h.cfg.Connections), Seed: h.cfg.Seed, Brokers: h.fleet.brokers, Topic: h.fleet.topic,
	})
	if err != nil {
		return err
	}
	if _, err := h.reply(ctx); err != nil {
		return err
	}
	before, err := h.cpu()
	if err != nil {
		return err
	}
	h.cfg.Progress.say("holding %d connections: publishing %.0f events a second for %v", h.result.Connections, h.cfg.Rate, h.cfg.Duration)
	start := time.Now()
	if err := h.store.say(publisher.Request{Trial: &publisher.Trial{PerSecond: h.cfg.Rate, Seconds: h.cfg.Duration.Seconds()}}); err != nil {
		return err
	}
	reply, err := h.reply(ctx)
	if err != nil {
		return err
	}
	after, err := h.cpu()
	if err != nil {
		return err
	}
	seconds := time.Since(start).Seconds()
	h.result.BusyCores = map[string]float64{}
	for name := range after {
		h.result.BusyCores[name] = round3((after[name] - before[name]) / seconds)
	}
	o := reply.Outcome
	if o.Failed > 0 {
		return fmt.Errorf("publisher: %d events failed: %s", o.Failed, o.Problem)
	}
	h.result.EventsPublished = o.Acknowledged
	h.result.EventsPerSecond = round1(float64(o.Acknowledged) / o.Seconds)
	return h.arrive(ctx, o.Acknowledged)
}

func round3(x float64) float64 { return math.Round(x*1000) / 1000 }

func (h *hold) reply(ctx context.Context) (publisher.Reply, error) {
	line, err := h.store.next(ctx)
	if err != nil {
		return publisher.Reply{}, err
	}
	var r publisher.Reply
	return r, json.Unmarshal(line, &r)
}

// arrive waits until all events have arrived, or nothing came for a while.
func (h *hold) arrive(ctx context.Context, expected int) error {
	const patience = 10 * time.Second
	seen, since := -1, time.Now()
	for {
		counts := h.counts()
		if counts.Events >= expected || time.Since(since) > patience {
			return nil
		}
		if counts.Events != seen {
			seen, since = counts.Events, time.Now()
		}
		if err := pause(ctx, 50*time.Millisecond); err != nil {
			return err
		}
	}
}

func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}

// settle compares what was acknowledged with what arrived. All were subscribed before the first event.
func (h *hold) settle(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	h.cfg.Progress.say("comparing the books")
	counts := h.counts()
	h.result.Connections, h.result.Closed, h.result.Failures = counts.Live, counts.Closed, counts.Failures
	if err := h.store.say(publisher.Request{Finish: true}); err != nil {
		return err
	}
	reply, err := h.reply(ctx)
	if err != nil {
		return err
	}
	finals, err := h.finish(ctx)
	if err != nil {
		return err
	}
	var v ledger.Verdict
	latencies := hdrhistogram.New(1, 600_000_000, 2)
	heard := make(map[uint32]bool)
	for _, f := range finals {
		for i, o := range f.Final.Observations {
			reply.Ledger.Check(&v, o, f.Final.Since[i])
			heard[o.Account] = true
		}
		latencies.Merge(hdrhistogram.Import(f.Latencies))
	}
	for _, account := range reply.Ledger.Accounts() {
		if !heard[account] {
			reply.Ledger.Check(&v, ledger.Observation{Account: account, Told: -1}, -1)
		}
	}
	r := &h.result
	r.EventsExpected, r.EventsReceived, r.Lost, r.Told = v.Expected, v.Delivered, v.Lost, v.Told
	r.Duplicates, r.Misordered, r.Examples, r.LatencyMs = v.Duplicates, v.Misordered, v.Examples, latencyMs(latencies)
	return nil
}
