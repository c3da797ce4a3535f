package bench

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"

	"github.com/mailbell/mailbell/bench/attack"
	"github.com/mailbell/mailbell/bench/publisher"
	"github.com/mailbell/mailbell/bench/swarm"
)

// AbuseConfig says how `mailbell bench abuse` attacks a notifier that serves honest clients.
type AbuseConfig struct {
	Honest   int           // clients that must not be hurt; 0 = 5,000
	Rate     float64       // events a second for them; 0 = 500
	Duration time.Duration // of each attack; 0 = 10 s
	Attacks  []string      // names; none = all
	Scale    float64       // of each attack's connections; 0 = 1
	Progress Progress
}

// Validate says what is wrong with the configuration.
func (c AbuseConfig) Validate() error {
	switch {
	case c.Honest < 0 || c.Honest > 15_000:
		return errors.New("bench abuse: --honest must be from 1 to 15000, what one process holds beside its attackers")
	case c.Rate < 0 || c.Rate > 20_000:
		return errors.New("bench abuse: --rate must be from 1 to 20000 events a second")
	case c.Duration < 0 || c.Duration > 10*time.Minute:
		return errors.New("bench abuse: --duration must be at most 10m")
	case c.Scale < 0 || c.Scale > 1:
		return errors.New("bench abuse: --scale must be from 0 to 1")
	}
	for _, name := range c.Attacks {
		if _, ok := attack.Find(name); !ok {
			var names []string
			for _, a := range attack.All() {
				names = append(names, a.Name)
			}
			return fmt.Errorf("bench abuse: no attack is named %q; there are %s", name, strings.Join(names, ", "))
		}
	}
	return nil
}

func (c AbuseConfig) withDefaults() AbuseConfig {
	if c.Honest == 0 {
		c.Honest = 5000
	}
	if c.Rate == 0 {
		c.Rate = 500
	}
	if c.Duration == 0 {
		c.Duration = 10 * time.Second
	}
	if c.Scale == 0 {
		c.Scale = 1
	}
	return c
}

// AbuseResult is what the abuse bench found.
type AbuseResult struct {
	Honest  int           `json:"honest"`
	Attacks []AbuseAttack `json:"attacks"`
}

// AbuseAttack is what one attack did to the honest clients. OK says: the attack did take place, as the notifier's own
// metrics show; nobody was disconnected, nothing lost, and a newcomer got in; and the p99 at most doubled, or rose by
// at most abuseGraceMs: doubling a millisecond is no harm.
type AbuseAttack struct {
	Name               string  `json:"name"`
	What               string  `json:"what"`
	Attempts           int64   `json:"attempts"`
	Failed             int64   `json:"failed"`     // attackers' connections that the notifier did not take
	Entered            int64   `json:"entered"`    // attackers that were let in
	Effect             float64 `json:"effect"`     // by how much the notifier's metrics that the attack is about have grown
	NewcomerMs         float64 `json:"newcomerMs"` // that another client needed to be let in meanwhile; 0 = none tried
	BaselineP99Ms      float64 `json:"baselineP99Ms"`
	HonestP99Ms        float64 `json:"honestP99Ms"`
	HonestP50Ms        float64 `json:"honestP50Ms"`
	HonestEvents       int     `json:"honestEvents"`
	HonestDisconnected int     `json:"honestDisconnected"`
	HonestLost         int     `json:"honestLost"`
	HonestTold         int     `json:"honestTold"` // times that a client was told it missed something
	NotifierCores      float64 `json:"notifierCores"`
	NotifierMiB        int64   `json:"notifierMiB"`
	Tries              int     `json:"tries"`
	OK                 bool    `json:"ok"`
	Problem            string  `json:"problem,omitempty"`
}

const (
	abuseGraceMs = 5
	abuseTries   = 3 // the machine may be busy with something else
)

// Broken says whether an honest client was hurt, or an attack was none.
func (r AbuseResult) Broken() error {
	var hurt []string
	for _, a := range r.Attacks {
		if !a.OK {
			hurt = append(hurt, a.Name)
		}
	}
	if len(hurt) == 0 {
		return nil
	}
	return fmt.Errorf("bench abuse: not ok: %s", strings.Join(hurt, ", "))
}

// Accounts of the attackers come first, then those of the honest.
const (
	abuseAttackers = 20_000
)

// abuse is a running bench.
type abuse struct {
	cfg    AbuseConfig
	fleet  *fleet
	honest *holdClient
	store  *process // publishes to the honest
	client http.Client

	calmest float64 // p99 in peace so far, in ms; 0 before the first
}

// perAddress is the notifier's limit of connections of one address, which the honest share.
func (c AbuseConfig) perAddress() int { return c.Honest + 100 }

// Abuse runs the bench.
func Abuse(ctx context.Context, cfg AbuseConfig) (r AbuseResult, err error) {
	if err := cfg.Validate(); err != nil {
		return r, err
	}
	cfg = cfg.withDefaults()
	n := needs{perProcess: 18_000, files: int64(2 * 25_000), watches: 60_000, ports: 18_000, processes: 8, memory: 1 << 30, smaller: "a smaller --scale"}
	if err := n.check(); err != nil {
		return r, fmt.Errorf("bench abuse: %w", err)
	}
	a := &abuse{cfg: cfg}
	if r, err = a.run(ctx); err != nil {
		return r, fmt.Errorf("bench abuse: %w", err)
	}
	return r, nil
}

func (a *abuse) run(ctx context.Context) (AbuseResult, error) {
	r := AbuseResult{Honest: a.cfg.Honest}
	starting, cancel := context.WithTimeout(ctx, 3*time.Minute)
	defer cancel()
	var err error
	// Without its own limit of connections, which would spare it to run out of descriptors.
	a.fleet, err = newFleet(starting, fleetConfig{
		Notifiers: 1, NotifierArgs: []string{"--max-connections", "-1", "--max-per-address", strconv.Itoa(a.cfg.perAddress())}, PublishKeys: true, Progress: a.cfg.Progress,
	})
	if err != nil {
		return r, err
	}
	defer a.fleet.stop()
	if err := a.connect(starting); err != nil {
		return r, err
	}
	for _, kind := range attack.All() {
		if len(a.cfg.Attacks) > 0 && !slices.Contains(a.cfg.Attacks, kind.Name) {
			continue
		}
		result, err := a.attackUntilOK(ctx, kind)
		if err != nil {
			return r, fmt.Errorf("%s: %w", kind.Name, err)
		}
		r.Attacks = append(r.Attacks, result)
	}
	return r, nil
}

// connect brings up the honest clients, and what publishes to them.
func (a *abuse) connect(ctx context.Context) error {
	h := hold{fleet: a.fleet}
	var err error
	a.honest, err = h.startClients("honest", swarm.Config{
		Run: a.fleet.run, Connections: a.cfg.Honest, First: abuseAttackers, Targets: a.fleet.sockets, KeyFile: a.fleet.keyFile, SourceIP: "127.2.0.1",
		ReportMs: 50,
	})
	if err != nil {
		return err
	}
	a.cfg.Progress.say("connecting %d honest clients", a.cfg.Honest)
	if _, err := a.honest.wait(ctx, func(r swarm.Report) bool { return r.Counts.Live == a.cfg.Honest }); err != nil {
		return err
	}
	a.store, err = a.publisher(ctx, "publisher", a.fleet.run, abuseAttackers, uint32(a.cfg.Honest))
	if err != nil {
		return err
	}
	_, err = a.publish(ctx, 2*time.Second) // warms up
	return err
}

// publisher starts one for the accounts from first on.
func (a *abuse) publisher(ctx context.Context, name string, run, first, accounts uint32) (*process, error) {
	p, err := a.fleet.child(nil, name, "bench", "publisher")
	if err != nil {
		return nil, err
	}
	err = p.say(publisher.Config{Run: run, First: first, Accounts: accounts, Seed: 1, Brokers: a.fleet.brokers, Topic: a.fleet.topic})
	if err != nil {
		return nil, err
	}
	_, err = p.next(ctx) // it is ready
	return p, err
}

// phase is what the honest clients saw of a stretch of events.
type phase struct {
	latencies          *hdrhistogram.Histogram
	events, lost, told int
	disconnected       int
}

// publish sends events to the honest and waits until they have arrived.
func (a *abuse) publish(ctx context.Context, d time.Duration) (phase, error) {
	var ph phase
	if _, err := a.honestLatencies(ctx); err != nil { // forgets what was before
		return ph, err
	}
	before := a.honest.counts()
	if err := a.store.say(publisher.Request{Trial: &publisher.Trial{PerSecond: a.cfg.Rate, Seconds: d.Seconds()}}); err != nil {
		return ph, err
	}
	line, err := a.store.next(ctx)
	if err != nil {
		return ph, err
	}
	var reply publisher.Reply
	if err := json.Unmarshal(line, &reply); err != nil {
		return ph, err
	}
	expected := reply.Outcome.Acknowledged
	waiting, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	_, _ = a.honest.wait(waiting, func(r swarm.Report) bool { return r.Counts.Events-before.Events >= expected })
	if ctx.Err() != nil {
		return ph, ctx.Err()
	}
	ph.latencies, err = a.honestLatencies(ctx)
	after := a.honest.counts()
	ph.events, ph.told, ph.disconnected = after.Events-before.Events, after.Missed-before.Missed, after.Closed-before.Closed
	ph.lost = max(0, expected-ph.events)
	return ph, err
}

// honestLatencies takes the latencies since the last time.
func (a *abuse) honestLatencies(ctx context.Context) (*hdrhistogram.Histogram, error) {
	a.honest.mu.Lock()
	a.honest.latencies = nil
	a.honest.mu.Unlock()
	if err := a.honest.tell(swarm.CommandLatencies); err != nil {
		return nil, err
	}
	var taken *hdrhistogram.Snapshot
	_, err := a.honest.wait(ctx, func(swarm.Report) bool {
		a.honest.mu.Lock()
		defer a.honest.mu.Unlock()
		taken = a.honest.latencies
		return taken != nil
	})
	if err != nil {
		return nil, err
	}
	return hdrhistogram.Import(taken), nil
}
