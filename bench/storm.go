package bench

import (
	"context"
	"errors"
	"fmt"
	"math"
	"time"
)

// StormConfig says how `mailbell bench storm` shakes a fleet: connections that come through the gateway, events all the
// while, and notifiers that die, join and are started anew.
type StormConfig struct {
	Connections int     // 0 = 20,000
	Notifiers   int     // 0 = 4
	AcceptRate  int     // of each notifier, a second; 0 = 500
	Rate        float64 // events a second; 0 = 200
	Calm        bool    // only the death of a notifier, with and without admission
	Seed        uint64
	Progress    Progress
}

// Validate says what is wrong with the configuration.
func (c StormConfig) Validate() error {
	c = c.withDefaults()
	switch {
	case c.Notifiers < 2 || c.Notifiers > 16:
		return errors.New("bench storm: --notifiers must be from 2 to 16")
	case c.Connections < 100 || c.Connections > 9000*(c.Notifiers-1):
		return fmt.Errorf("bench storm: --connections must be from 100 to %d, what is left of the notifiers has to hold all", 9000*(c.Notifiers-1))
	case c.AcceptRate < 10 || c.AcceptRate > 20000:
		return errors.New("bench storm: --accept-rate must be from 10 to 20000 a second")
	case c.Rate < 1 || c.Rate > 20000:
		return errors.New("bench storm: --rate must be from 1 to 20000 events a second")
	}
	return nil
}

func (c StormConfig) withDefaults() StormConfig {
	if c.Connections == 0 {
		c.Connections = 20_000
	}
	if c.Notifiers == 0 {
		c.Notifiers = 4
	}
	if c.AcceptRate == 0 {
		c.AcceptRate = 500
	}
	if c.Rate == 0 {
		c.Rate = 200
	}
	return c
}

// Storm is what one death of a notifier did.
type Storm struct {
	RecoveredMs          int            `json:"recoveredMs"` // from the kill until all are subscribed again
	Returned             int            `json:"returned"`    // connections that had to come back
	ExpectedMs           int            `json:"expectedMs"`  // Returned over the accept rate of who is left; 0 without admission
	PeakAcceptsPerSecond float64        `json:"peakAcceptsPerSecond"`
	PeakCores            float64        `json:"peakCores"`      // of all servers
	GatewayAnswers       map[string]int `json:"gatewayAnswers"` // by code
	Waited               int            `json:"waited"`         // of the answers ok: with a time to wait
	Refused              int            `json:"refused"`        // handshakes and lookups that failed
	Lost                 int            `json:"lost"`
}

// StormResult is what the storm bench found.
type StormResult struct {
	Connections int `json:"connections"`
	Notifiers   int `json:"notifiers"`
	AcceptRate  int `json:"acceptRate"`
	Storm
	WithoutAdmission Storm        `json:"withoutAdmission"`
	Join             StormJoin    `json:"join"`
	Restart          StormRestart `json:"rollingRestart"`
	EventsExpected   int          `json:"eventsExpected"`
	Told             int          `json:"told"`
	Duplicates       int          `json:"duplicates"`
	Misordered       int          `json:"misordered"`
	LatencyMs        LatencyMs    `json:"latencyMs"`
	Examples         []string     `json:"lostExamples,omitempty"`
}

// StormJoin is how one more notifier got its share.
type StormJoin struct {
	Connections map[string]int `json:"connections"` // by notifier, in the end
	OffTheMean  float64        `json:"offTheMean"`  // of the new one, as a part of the mean
	Imbalance   float64        `json:"imbalance"`
	Moved       int            `json:"moved"`
	SecondsTo   float64        `json:"seconds"`
}

// StormRestart is a restart of all notifiers and bus nodes, one after the other.
type StormRestart struct {
	Nodes   int     `json:"nodes"`
	Seconds float64 `json:"seconds"`
}

// Broken says whether a promise was broken.
func (r StormResult) Broken() error {
	switch {
	case r.Lost > 0 || r.WithoutAdmission.Lost > 0 || r.Misordered > 0:
		return fmt.Errorf("bench storm: %d events lost, %d of them without admission, %d out of order", r.Lost+r.WithoutAdmission.Lost, r.WithoutAdmission.Lost, r.Misordered)
	case r.RecoveredMs > stormFactor*r.ExpectedMs+stormGrace:
		return fmt.Errorf("bench storm: recovered in %d ms, more than %d times the %d ms that the accept rate allows and %d ms", r.RecoveredMs, stormFactor, r.ExpectedMs, stormGrace)
	case math.Abs(r.Join.OffTheMean) > 0.1:
		return fmt.Errorf("bench storm: the notifier that joined ended %.0f %% off the mean", 100*r.Join.OffTheMean)
	}
	return nil
}

// Recovery may take so many times what the accept rate allows: a turn is given by a rate that is a second old, and clients dither
// their return. The grace, in milliseconds, is for noticing a death and for asking the gateway.
const (
	stormFactor = 2
	stormGrace  = 2000
)

// RunStorm runs the bench. Everything that it started has ended when it returns.
func RunStorm(ctx context.Context, cfg StormConfig) (r StormResult, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("bench storm: %w", err)
		}
	}()
	if err := cfg.Validate(); err != nil {
		return r, err
	}
	cfg = cfg.withDefaults()
	r = StormResult{Connections: cfg.Connections, Notifiers: cfg.Notifiers, AcceptRate: cfg.AcceptRate}
	open := cfg
	open.AcceptRate = -1
	if err := r.withoutAdmission(ctx, open); err != nil {
		return r, err
	}
	s, err := newStorm(ctx, cfg)
	if err != nil {
		return r, err
	}
	defer s.stop()
	if r.Storm, err = s.death(ctx); err != nil {
		return r, err
	}
	if !cfg.Calm {
		if r.Join, err = s.join(ctx); err != nil {
			return r, err
		}
		if r.Restart, err = s.restartAll(ctx); err != nil {
			return r, err
		}
	}
	v, latencies, err := s.settle(ctx)
	if err != nil {
		return r, err
	}
	r.Lost, r.EventsExpected, r.Told, r.Duplicates, r.Misordered = v.Lost, v.Expected, v.Told, v.Duplicates, v.Misordered
	r.Examples, r.LatencyMs = v.Examples, latencies
	return r, nil
}

func (r *StormResult) withoutAdmission(ctx context.Context, cfg StormConfig) error {
	s, err := newStorm(ctx, cfg)
	if err != nil {
		return err
	}
	defer s.stop()
	if r.WithoutAdmission, err = s.death(ctx); err != nil {
		return err
	}
	v, _, err := s.settle(ctx)
	r.WithoutAdmission.Lost = v.Lost
	r.WithoutAdmission.ExpectedMs = 0
	return err
}

// death kills the first notifier and waits until everybody is subscribed again; then it is started anew.
func (s *storm) death(ctx context.Context) (Storm, error) {
	r := Storm{}
	before, err := s.gatewayAnswers(ctx)
	if err != nil {
		return r, err
	}
	counts := s.counts()
	victim := s.notifiers[0]
	m := s.watch(ctx)
	s.cfg.Progress.say("killing a notifier of %d", len(s.notifiers))
	begin := time.Now()
	victim.kill()
	if err := s.until(ctx, func() bool { return s.counts().Closed > counts.Closed }); err != nil {
		return r, err
	}
	err = s.until(ctx, func() bool { return s.counts().Live == s.cfg.Connections })
	took := time.Since(begin)
	peaks := m.end()
	if err != nil {
		return r, err
	}
	after, err := s.gatewayAnswers(ctx)
	if err != nil {
		return r, err
	}
	now := s.counts()
	r = Storm{RecoveredMs: int(took.Milliseconds()), Returned: now.Closed - counts.Closed, PeakAcceptsPerSecond: round1(peaks.accepts), PeakCores: round3(peaks.cores),
		GatewayAnswers: map[string]int{}, Waited: now.Waited - counts.Waited}
	for code, n := range after {
		if n > before[code] {
			r.GatewayAnswers[code] = n - before[code]
		}
	}
	for kind, n := range now.Failures {
		if isRefusal(kind) {
			r.Refused += n - counts.Failures[kind]
		}
	}
	if s.cfg.AcceptRate > 0 {
		r.ExpectedMs = r.Returned * 1000 / (s.cfg.AcceptRate * (len(s.notifiers) - 1))
	}
	s.cfg.Progress.say("recovered in %v", took)
	return r, s.startNotifier(ctx, 0)
}

// join starts one more notifier and waits until the fleet is even.
func (s *storm) join(ctx context.Context) (StormJoin, error) {
	s.cfg.Progress.say("one more notifier joins")
	r := StormJoin{}
	if err := s.waitEven(ctx, len(s.notifiers)); err != nil { // the one that died is back
		return r, err
	}
	closed := s.counts().Closed
	begin := time.Now()
	i := len(s.notifiers)
	s.notifiers = append(s.notifiers, nil)
	if err := s.startNotifier(ctx, i); err != nil {
		return r, err
	}
	if err := s.waitEven(ctx, len(s.notifiers)); err != nil {
		return r, err
	}
	r.SecondsTo = round1(time.Since(begin).Seconds())
	held, err := s.held(ctx)
	if err != nil {
		return r, err
	}
	mean := float64(s.cfg.Connections) / float64(len(s.notifiers))
	r.Connections, r.Moved = held, s.counts().Closed-closed
	r.OffTheMean = round3(float64(held[notifierName(i)])/mean - 1)
	for _, n := range held {
		r.Imbalance = max(r.Imbalance, round3(float64(n)/mean))
	}
	return r, nil
}

// waitEven waits until all connections are there and every notifier is within 5 % of the mean.
func (s *storm) waitEven(ctx context.Context, nodes int) error {
	var last error
	err := s.until(ctx, func() bool {
		held, err := s.held(ctx)
		if last = err; err != nil || s.counts().Live != s.cfg.Connections || len(held) != nodes {
			return false
		}
		mean := float64(s.cfg.Connections) / float64(nodes)
		for _, n := range held {
			if math.Abs(float64(n)-mean) > 0.05*mean+10 {
				return false
			}
		}
		return true
	})
	if err != nil {
		held, _ := s.held(ctx)
		return fmt.Errorf("the notifiers hold %v: %w", held, errors.Join(err, last))
	}
	return nil
}

// restartAll restarts every notifier and bus node in turn, each as an upgrade would.
func (s *storm) restartAll(ctx context.Context) (StormRestart, error) {
	begin := time.Now()
	for i := range s.notifiers {
		s.cfg.Progress.say("restarting notifier %d of %d", i+1, len(s.notifiers))
		s.notifiers[i].stop()
		if err := s.startNotifier(ctx, i); err != nil {
			return StormRestart{}, err
		}
		if err := s.until(ctx, func() bool { return s.counts().Live == s.cfg.Connections }); err != nil {
			return StormRestart{}, err
		}
	}
	for i := range s.buses {
		s.cfg.Progress.say("restarting bus node %d of %d", i+1, len(s.buses))
		s.buses[i].stop()
		if err := s.startBus(ctx, i); err != nil {
			return StormRestart{}, err
		}
		if err := s.until(ctx, func() bool { return s.counts().Live == s.cfg.Connections }); err != nil {
			return StormRestart{}, err
		}
	}
	return StormRestart{Nodes: len(s.notifiers) + len(s.buses), Seconds: round1(time.Since(begin).Seconds())}, nil
}
