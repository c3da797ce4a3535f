package bench

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"

	"github.com/mailbell/mailbell/bench/swarm"
)

// holdClient is a process of clients. A goroutine follows its reports until it ends.
type holdClient struct {
	*process
	connections int

	mu sync.Mutex // guards the rest
	last,
	final swarm.Report
	latencies *hdrhistogram.Snapshot // of the last report that had them
	changed   chan struct{}          // closed and replaced at each report
	ended     bool
}

func (h *hold) startClients(name string, cfg swarm.Config) (*holdClient, error) {
	p, err := h.fleet.child([]string{"GOMAXPROCS=1", "GOGC=50"}, name, "bench", "swarm")
	if err != nil {
		return nil, err
	}
	if err := p.say(cfg); err != nil {
		return nil, err
	}
	c := &holdClient{process: p, connections: cfg.Connections, changed: make(chan struct{})}
	go c.follow()
	return c, nil
}

func (c *holdClient) follow() {
	for line := range c.lines {
		var r swarm.Report
		if json.Unmarshal(line, &r) != nil {
			continue
		}
		c.mu.Lock()
		c.last = r
		if r.Latencies != nil {
			c.latencies = r.Latencies
		}
		if r.Final != nil {
			c.final = r
		}
		close(c.changed)
		c.changed = make(chan struct{})
		c.mu.Unlock()
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ended = true
	close(c.changed)
	c.changed = make(chan struct{})
}

// wait blocks until the reports satisfy ok.
func (c *holdClient) wait(ctx context.Context, ok func(last swarm.Report) bool) (swarm.Report, error) {
	for {
		c.mu.Lock()
		last, ended, changed := c.last, c.ended, c.changed
		if c.final.Final != nil {
			last = c.final
		}
		c.mu.Unlock()
		switch {
		case ok(last):
			return last, nil
		case ended:
			<-c.done
			return last, c.failure(fmt.Errorf("it ended too early, with %d of %d subscribed: %v", last.Counts.Live, c.connections, c.err))
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return last, c.failure(fmt.Errorf("%d of %d subscribed, failures %v: %w", last.Counts.Live, c.connections, last.Counts.Failures, ctx.Err()))
		}
	}
}

func (c *holdClient) counts() swarm.Counts {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.last.Counts
}

// counts adds up what the clients have seen.
func (h *hold) counts() swarm.Counts {
	sum := swarm.Counts{Failures: map[string]int{}}
	for _, c := range h.clients {
		n := c.counts()
		sum.Live += n.Live
		sum.Events += n.Events
		sum.Closed += n.Closed
		sum.Missed += n.Missed
		for kind, k := range n.Failures {
			sum.Failures[kind] += k
		}
	}
	return sum
}

// warmUp has each notifier serve a few clients, that leave again, so that what a process keeps for having served
// at all does not count as a connection's.
func (h *hold) warmUp(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	each := min(100, maxPerNode/h.cfg.Nodes, h.cfg.perNode())
	c, err := h.startClients("warm-up", swarm.Config{
		Run: h.fleet.run, Connections: each * h.cfg.Nodes, First: uint32(h.cfg.Connections), Targets: h.fleet.at("127.0.0.1"), KeyFile: h.fleet.keyFile, SourceIP: "127.1.0.1",
	})
	if err != nil {
		return err
	}
	if _, err := c.wait(ctx, func(r swarm.Report) bool { return r.Counts.Live == each*h.cfg.Nodes }); err != nil {
		return err
	}
	if err := c.tell(swarm.CommandFinish); err != nil {
		return err
	}
	<-c.done
	return nil
}

// connect brings all clients up.
func (h *hold) connect(ctx context.Context) error {
	before, err := h.cpu()
	if err != nil {
		return err
	}
	h.started = time.Now()
	ctx, cancel := context.WithTimeout(ctx, time.Minute+time.Duration(h.cfg.Connections)*time.Millisecond)
	defer cancel()
	bring := h.connectSockets
	if h.cfg.Clients == ClientsPackets {
		bring = h.connectPackets
	}
	if err := bring(ctx); err != nil {
		return err
	}
	took := time.Since(h.started).Seconds()
	h.result.ConnectSeconds = round1(took)
	h.result.ConnectsPerSecond = round1(float64(h.cfg.Connections) / took)
	h.result.Connections, h.result.Failures = h.counts().Live, h.counts().Failures
	after, err := h.cpu()
	if err != nil {
		return err
	}
	h.result.ConnectCPUSeconds = map[string]float64{}
	for name := range after {
		h.result.ConnectCPUSeconds[name] = round1(after[name] - before[name])
	}
	return nil
}

// clientsAtOnce is how many processes of clients connect at a time. Each has one thread, and one alone is slower than a
// notifier.
const clientsAtOnce = 2

// clientProcesses is one for each notifier, so that each has as many files, and at least as many as connect at a time.
func (c HoldConfig) clientProcesses() int { return min(max(c.Nodes, clientsAtOnce), c.Connections) }

// connectSockets brings the clients up, some processes at a time.
func (h *hold) connectSockets(ctx context.Context) error {
	n := h.cfg.clientProcesses()
	for i := range n {
		c, err := h.startClients(fmt.Sprintf("clients-%d", i+1), h.swarmConfig(i))
		if err != nil {
			return err
		}
		h.clients = append(h.clients, c)
		if i+1 >= clientsAtOnce {
			if err := h.up(ctx, i+1-clientsAtOnce); err != nil {
				return err
			}
		}
	}
	for i := max(0, n-clientsAtOnce+1); i < n; i++ {
		if err := h.up(ctx, i); err != nil {
			return err
		}
	}
	return nil
}

// swarmConfig is that of the i-th process of clients; all of them fill the notifiers evenly, as the gateway would:
// the bus moves clients away from a notifier that is fuller than the others.
func (h *hold) swarmConfig(i int) swarm.Config {
	n := h.cfg.clientProcesses()
	first := h.cfg.Connections * i / n
	cfg := swarm.Config{
		Run: h.fleet.run, Connections: h.cfg.Connections*(i+1)/n - first, First: uint32(first),
		SourceIP: fmt.Sprintf("127.2.%d.%d", i/200, 1+i%200), ReportMs: 100, Sparse: true,
	}
	if h.cfg.Tickets {
		cfg.Gateways, cfg.ServiceToken = []string{h.fleet.gateway}, h.fleet.serviceToken
	} else {
		turn := first % h.cfg.Nodes
		cfg.Targets, cfg.KeyFile = slices.Concat(h.fleet.sockets[turn:], h.fleet.sockets[:turn]), h.fleet.keyFile
	}
	return cfg
}

// up waits for the i-th process's connections, showing how all are doing, and stops before memory runs out.
func (h *hold) up(ctx context.Context, i int) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	watching := make(chan struct{})
	go func() {
		defer close(watching)
		for pause(ctx, 250*time.Millisecond) == nil {
			h.say()
			if err := memoryLeft(); err != nil {
				cancel(err)
			}
		}
	}()
	c := h.clients[i]
	_, err := c.wait(ctx, func(r swarm.Report) bool { return r.Counts.Live == c.connections })
	if cause := context.Cause(ctx); cause != nil {
		err = fmt.Errorf("%d connected: %w", h.counts().Live, errors.Join(cause, err))
	}
	cancel(nil)
	<-watching
	return err
}

func (h *hold) say() {
	m, _ := meminfo()
	live := h.counts().Live
	h.cfg.Progress.say("connecting: %d of %d subscribed, %.0f a second, %d MiB available", live, h.cfg.Connections,
		float64(live)/time.Since(h.started).Seconds(), m["MemAvailable"]>>20)
}

// memoryLeft is an error when the machine is about to run out.
func memoryLeft() error {
	const least = 200 << 20
	m, err := meminfo()
	if err != nil || m["MemAvailable"] > least {
		return nil
	}
	return fmt.Errorf("only %d MiB of memory are left", m["MemAvailable"]>>20)
}

// finish ends all clients and returns their last words.
func (h *hold) finish(ctx context.Context) ([]swarm.Report, error) {
	finals := make([]swarm.Report, len(h.clients))
	for i, c := range h.clients {
		if err := c.tell(swarm.CommandFinish); err != nil {
			return nil, err
		}
		final, err := c.wait(ctx, func(r swarm.Report) bool { return r.Final != nil })
		if err != nil {
			return nil, err
		}
		finals[i] = final
	}
	return finals, nil
}
