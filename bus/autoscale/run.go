package autoscale

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Actuator starts and ends nodes.
type Actuator interface {
	// Out starts count nodes, of which names in use are given. In ends the node of that name.
	Out(ctx context.Context, count int, inUse []string, reason string) error
	In(ctx context.Context, node, reason string) error
	// Owns reports whether In can end the node.
	Owns(node string) bool
}

// Lease lets one of several instances act.
type Lease interface {
	// Hold calls fn whenever this instance has the lease, with a ctx that ends when it has not any more, until ctx ends.
	Hold(ctx context.Context, fn func(ctx context.Context)) error
}

// Config says what a controller works with. Lease, Fleet and Drain are required.
type Config struct {
	Policy Policy
	Lease  Lease
	// Fleet returns the notifiers as they are at that time.
	Fleet func(now time.Time) []Node
	// Drain sends a node's clients away. It returns the time that this takes, which may be longer than was asked for.
	Drain func(node string, over time.Duration) (time.Duration, error)
	// Actuator carries out; nil only logs.
	Actuator Actuator
	// Act is false for a dry run.
	Act bool
	// Notify is a webhook to which each decision is posted in Slack's format; empty means none.
	Notify string
	// Every is the time between two looks; 0 means 1 second.
	Every time.Duration

	// Logger; nil means slog.Default().
	Logger *slog.Logger
	// Registerer for the metrics; nil means none.
	Registerer prometheus.Registerer
}

const (
	// actTimeout bounds what an actuator may take, notifyTimeout what the webhook may.
	actTimeout    = time.Minute
	notifyTimeout = 10 * time.Second
	// notices is how many decisions wait for a slow webhook; what comes then is only logged.
	notices = 32
)

// Scaler runs a controller.
type Scaler struct {
	cfg       Config
	decisions *prometheus.CounterVec
	leads     prometheus.Gauge
	notices   chan string

	mu sync.Mutex
	// Guarded by mu.
	controller *Controller
	term       context.Context // of the lease; nil while another instance has it
}

// New checks the configuration.
func New(cfg Config) (*Scaler, error) {
	if cfg.Lease == nil || cfg.Fleet == nil || cfg.Drain == nil {
		return nil, errors.New("autoscale: no lease, no fleet or no way to drain is given")
	}
	if cfg.Act && cfg.Actuator == nil {
		return nil, errors.New("autoscale: nothing is there to start and end notifiers with: give --autoscale-command, --autoscale-webhook, --autoscale-systemd or --autoscale-local")
	}
	controller, err := NewController(cfg.Policy)
	if err != nil {
		return nil, err
	}
	set(&cfg.Every, time.Second)
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	s := &Scaler{cfg: cfg, controller: controller, notices: make(chan string, notices),
		decisions: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "mailbell_autoscale_decisions_total",
			Help: "Decisions about the number of notifiers, by action and result: done, failed or dry_run."}, []string{"action", "result"}),
		leads: prometheus.NewGauge(prometheus.GaugeOpts{Name: "mailbell_autoscale_leads", Help: "1 if this instance has the lease."}),
	}
	if cfg.Registerer != nil {
		cfg.Registerer.MustRegister(s.decisions, s.leads)
	}
	return s, nil
}

// Run works until ctx ends: it watches the fleet, and decides while it has the lease.
func (s *Scaler) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	wg.Go(func() { s.watch(ctx) })
	wg.Go(func() { s.notify(ctx) })
	defer wg.Wait()
	defer cancel()
	return s.cfg.Lease.Hold(ctx, func(term context.Context) {
		s.cfg.Logger.Info("this instance decides about the number of notifiers")
		s.leads.Set(1)
		s.begin(term)
		s.look(time.Now())
		<-term.Done()
		s.end()
		s.leads.Set(0)
	})
}

func (s *Scaler) begin(term context.Context) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.term = term
}

// end returns when what was decided in the term is carried out or given up.
func (s *Scaler) end() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.term = nil
}

func (s *Scaler) watch(ctx context.Context) {
	t := time.NewTicker(s.cfg.Every)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-t.C:
			s.look(now)
		}
	}
}

func (s *Scaler) look(now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	nodes := s.cfg.Fleet(now)
	for i := range nodes {
		nodes[i].Foreign = s.cfg.Actuator != nil && !s.cfg.Actuator.Owns(nodes[i].Name)
	}
	if s.term == nil || s.term.Err() != nil {
		s.controller.Watch(now, nodes)
		return
	}
	for _, d := range s.controller.Decide(now, nodes) {
		s.carryOut(s.term, d, nodes)
	}
}

// carryOut does what was decided and says so.
func (s *Scaler) carryOut(ctx context.Context, d Decision, nodes []Node) {
	ctx, cancel := context.WithTimeout(ctx, actTimeout)
	defer cancel()
	d.DryRun = !s.cfg.Act
	result, err := "dry_run", error(nil)
	if s.cfg.Act {
		result = "done"
		if err = s.act(ctx, d, nodes); err != nil {
			result = "failed"
		}
	}
	if result != "done" {
		s.controller.Failed(d)
	}
	s.decisions.WithLabelValues(string(d.Action), result).Inc()
	s.cfg.Logger.Info("autoscale", "action", d.Action, "count", d.Count, "notifier", d.Node, "reason", d.Reason, "result", result, "err", err)
	if s.cfg.Notify == "" {
		return
	}
	text := "mailbell: " + d.String()
	if err != nil {
		text += ": failed: " + err.Error()
	}
	select {
	case s.notices <- text:
	default:
		s.cfg.Logger.Warn("autoscale: the webhook is too slow: it does not hear of this decision", "decision", text)
	}
}

// notify tells the webhook, one decision after the other, so that one that hangs holds nothing up.
func (s *Scaler) notify(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case text := <-s.notices:
			post, cancel := context.WithTimeout(ctx, notifyTimeout)
			if err := postJSON(post, s.cfg.Notify, map[string]string{"text": text}); err != nil {
				s.cfg.Logger.Warn("autoscale: tell the webhook", "err", err)
			}
			cancel()
		}
	}
}

func (s *Scaler) act(ctx context.Context, d Decision, nodes []Node) error {
	switch d.Action {
	case Out:
		var inUse []string
		for _, n := range nodes {
			inUse = append(inUse, n.Name)
		}
		return s.cfg.Actuator.Out(ctx, d.Count, inUse, d.Reason)
	case Drain:
		took, err := s.cfg.Drain(d.Node, d.Over)
		if err == nil {
			s.controller.Lasts(d, took)
		}
		return err
	default:
		return s.cfg.Actuator.In(ctx, d.Node, d.Reason)
	}
}

func postJSON(ctx context.Context, url string, v any) error {
	body, err := json.Marshal(v)
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url, bytes.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, 64<<10))
	if resp.StatusCode/100 != 2 {
		return fmt.Errorf("post: the answer is %s", resp.Status)
	}
	return nil
}
