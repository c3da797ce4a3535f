package bench

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"

	"github.com/mailbell/mailbell/bench/ledger"
	"github.com/mailbell/mailbell/bench/publisher"
	"github.com/mailbell/mailbell/bench/swarm"
	"github.com/mailbell/mailbell/internal/auth"
)

// storm is a running site: a log, two bus nodes, notifiers, clients in two processes, and a publisher.
type storm struct {
	*fleet
	cfg       StormConfig
	tokens    string // file
	buses     []*process
	notifiers []*process
	addresses map[string]string // by process and flag: where it was before
	clients   []*holdClient
	store     *process
	client    http.Client
	stopStore chan struct{}
	published chan error
}

const stormBuses = 2

func notifierName(i int) string { return fmt.Sprintf("n%d", i+1) }

// newStorm starts everything and waits until all connections are subscribed and events flow.
func newStorm(ctx context.Context, cfg StormConfig) (*storm, error) {
	starting, cancel := context.WithTimeout(ctx, 3*time.Minute)
	defer cancel()
	ps, err := newProcesses()
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "mailbell-bench-")
	if err != nil {
		return nil, fmt.Errorf("make a folder for the bench: %w", err)
	}
	s := &storm{cfg: cfg, addresses: make(map[string]string), buses: make([]*process, stormBuses), notifiers: make([]*process, cfg.Notifiers),
		stopStore: make(chan struct{}), published: make(chan error, 1), client: http.Client{Timeout: 5 * time.Second},
		fleet: &fleet{processes: ps, dir: dir, run: rand.Uint32(), topic: "mail-events", keyFile: filepath.Join(dir, "hs256.key")}}
	for _, step := range []func(context.Context) error{s.startServers, s.connect, s.publish} {
		if err := step(starting); err != nil {
			s.stop()
			return nil, err
		}
	}
	return s, nil
}

func (s *storm) startServers(ctx context.Context) error {
	key := site{keyFile: s.keyFile}
	if err := key.writeKey(); err != nil {
		return err
	}
	token, line, err := auth.NewServiceToken("bench", auth.ScopeConnect)
	if err != nil {
		return err
	}
	s.serviceToken, s.tokens = token, filepath.Join(s.dir, "service-tokens")
	if err := os.WriteFile(s.tokens, []byte(line+"\n"), 0o600); err != nil {
		return fmt.Errorf("write the bench's service tokens: %w", err)
	}
	if err := s.startLog(ctx); err != nil {
		return err
	}
	for i := range s.buses {
		if err := s.startBus(ctx, i); err != nil {
			return err
		}
	}
	for i := range s.notifiers {
		if err := s.startNotifier(ctx, i); err != nil {
			return err
		}
	}
	return nil
}

// at is where a process listens: where it was before, or anywhere.
func (s *storm) at(name, flag string) string {
	if a := s.addresses[name+flag]; a != "" {
		return a
	}
	return anyPort
}

func (s *storm) startBus(ctx context.Context, i int) error {
	name := fmt.Sprintf("bus-%d", i+1)
	p, err := s.child(nil, name, "bus", "--brokers", strings.Join(s.brokers, ","), "--topic", s.topic, "--partitions", "16", "--create-topic=false", "--node", name,
		"--link", s.at(name, "link"), "--http", s.at(name, "http"), "--ops", s.at(name, "ops"), "--jwt-keys", s.keyFile, "--service-tokens", s.tokens,
		"--move-rate", "1000", "--log-format", "json")
	if err != nil {
		return err
	}
	s.buses[i] = p
	return s.ready(ctx, p, "link", "http", "ops")
}

// startNotifier starts the i-th notifier, anew if it was there before.
func (s *storm) startNotifier(ctx context.Context, i int) error {
	var links []string
	for b := range s.buses {
		links = append(links, s.addresses[fmt.Sprintf("bus-%dlink", b+1)])
	}
	name := notifierName(i)
	p, err := s.child(nil, name, "notifier", "--bus", strings.Join(links, ","), "--node", name, "--sockets", s.at(name, "sockets"), "--ops", s.at(name, "ops"),
		"--jwt-keys", s.keyFile, "--max-per-address", "-1", "--accept-rate", strconv.Itoa(s.cfg.AcceptRate), "--move-age", "5s", "--drain", "8s", "--log-format", "json")
	if err != nil {
		return err
	}
	s.notifiers[i] = p
	return s.ready(ctx, p, "sockets", "ops")
}

func (s *storm) ready(ctx context.Context, p *process, flags ...string) error {
	attrs, err := p.logged(ctx, "ready")
	if err != nil {
		return err
	}
	for _, flag := range flags {
		s.addresses[p.name+flag] = address(attrs, flag)
	}
	return nil
}

func (s *storm) connect(ctx context.Context) error {
	s.cfg.Progress.say("connecting %d clients", s.cfg.Connections)
	const processes = 2
	for i := range processes {
		n := s.cfg.Connections / processes
		if i == processes-1 {
			n = s.cfg.Connections - (processes-1)*n
		}
		p, err := s.child(nil, fmt.Sprintf("clients-%d", i+1), "bench", "swarm")
		if err != nil {
			return err
		}
		config := swarm.Config{Run: s.run, Connections: n, First: uint32(i * (s.cfg.Connections / processes)), ServiceToken: s.serviceToken,
			Pending: 4096, Reconnect: true, ReportMs: 50, PingSeconds: 30}
		for b := range s.buses {
			config.Gateways = append(config.Gateways, "http://"+s.addresses[fmt.Sprintf("bus-%dhttp", b+1)])
		}
		if err := p.say(config); err != nil {
			return err
		}
		c := &holdClient{process: p, connections: n, changed: make(chan struct{})}
		go c.follow()
		s.clients = append(s.clients, c)
	}
	return s.until(ctx, func() bool { return s.counts().Live == s.cfg.Connections })
}

// publish sends events in the background until stopStore is closed.
func (s *storm) publish(ctx context.Context) error {
	var err error
	if s.store, err = s.child(nil, "publisher", "bench", "publisher"); err != nil {
		return err
	}
	if err := s.store.say(publisher.Config{Run: s.run, Accounts: uint32(s.cfg.Connections), Seed: s.cfg.Seed, Brokers: s.brokers, Topic: s.topic}); err != nil {
		return err
	}
	if _, err := s.reply(ctx); err != nil {
		return err
	}
	go func() { // ends with stopStore, or with the publisher
		for {
			select {
			case <-s.stopStore:
				s.published <- nil
				return
			default:
			}
			if err := s.store.say(publisher.Request{Trial: &publisher.Trial{PerSecond: s.cfg.Rate, Seconds: 2}}); err != nil {
				s.published <- err
				return
			}
			if _, err := s.reply(context.Background()); err != nil {
				s.published <- err
				return
			}
		}
	}()
	return s.until(ctx, func() bool { return s.counts().Events > 0 })
}

func (s *storm) reply(ctx context.Context) (publisher.Reply, error) {
	line, err := s.store.next(ctx)
	if err != nil {
		return publisher.Reply{}, err
	}
	var r publisher.Reply
	return r, json.Unmarshal(line, &r)
}

// counts adds up what the clients have seen.
func (s *storm) counts() swarm.Counts {
	sum := swarm.Counts{Failures: map[string]int{}}
	for _, c := range s.clients {
		n := c.counts()
		sum.Live += n.Live
		sum.Events += n.Events
		sum.Closed += n.Closed
		sum.Waited += n.Waited
		for kind, k := range n.Failures {
			sum.Failures[kind] += k
		}
	}
	return sum
}

// isRefusal tells the failures that a server caused by not taking a client.
func isRefusal(kind string) bool {
	return strings.HasPrefix(kind, "gateway: ") || strings.HasPrefix(kind, "handshake: ") || strings.HasPrefix(kind, "connect: ")
}

// until waits for the condition, for two minutes at most.
func (s *storm) until(ctx context.Context, ok func() bool) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	for !ok() {
		if err := pause(ctx, 25*time.Millisecond); err != nil {
			c := s.counts()
			return fmt.Errorf("%d of %d are subscribed, failures %v: %w", c.Live, s.cfg.Connections, c.Failures, err)
		}
	}
	return nil
}

// metrics reads a process's metrics whose name begins with prefix, by name and labels.
func (s *storm) metrics(ctx context.Context, name, prefix string) (map[string]float64, error) {
	return scrape(ctx, &s.client, s.addresses[name+"ops"], prefix)
}

// gatewayAnswers is how often the bus nodes answered, by code.
func (s *storm) gatewayAnswers(ctx context.Context) (map[string]int, error) {
	sum := make(map[string]int)
	const prefix = `mailbell_bus_gateway_answers_total{code="`
	for i := range s.buses {
		found, err := s.metrics(ctx, fmt.Sprintf("bus-%d", i+1), prefix)
		if err != nil {
			return nil, err
		}
		for key, v := range found {
			sum[strings.TrimSuffix(strings.TrimPrefix(key, prefix), `"}`)] += int(v)
		}
	}
	return sum, nil
}

// held is how many connections each notifier has.
func (s *storm) held(ctx context.Context) (map[string]int, error) {
	all := make(map[string]int)
	for i := range s.notifiers {
		found, err := s.metrics(ctx, notifierName(i), "mailbell_notifier_connections")
		if err != nil {
			return nil, err
		}
		all[notifierName(i)] = int(found["mailbell_notifier_connections"])
	}
	return all, nil
}

// peaks are the highest rates seen.
type peaks struct{ accepts, cores float64 }

// watcher measures rates over a fifth of a second, again and again.
type watcher struct {
	cancel context.CancelFunc
	done   sync.WaitGroup
	peaks  peaks // owned by the goroutine until it is done
}

func (s *storm) watch(ctx context.Context) *watcher {
	running, cancel := context.WithCancel(ctx)
	w := &watcher{cancel: cancel}
	w.done.Go(func() {
		accepts, cores, at := s.totals(ctx)
		for over := false; !over; {
			over = pause(running, 200*time.Millisecond) != nil // and once more at the end
			a, c, now := s.totals(ctx)
			seconds := now.Sub(at).Seconds()
			if seconds > 0.1 && len(accepts) > 0 {
				came := 0.0
				for name, v := range a {
					if was, ok := accepts[name]; ok {
						came += v - was
					}
				}
				spent := 0.0
				for name, v := range c {
					if was, ok := cores[name]; ok {
						spent += v - was
					}
				}
				w.peaks.accepts, w.peaks.cores = max(w.peaks.accepts, came/seconds), max(w.peaks.cores, spent/seconds)
			}
			accepts, cores, at = a, c, now
		}
	})
	return w
}

func (w *watcher) end() peaks {
	w.cancel()
	w.done.Wait()
	return w.peaks
}

// totals are connections accepted and CPU seconds used so far, of the processes that live.
func (s *storm) totals(ctx context.Context) (accepts, cores map[string]float64, at time.Time) {
	accepts, cores = make(map[string]float64), make(map[string]float64)
	for i, p := range s.notifiers {
		if found, err := s.metrics(ctx, notifierName(i), "mailbell_notifier_accepts_total"); err == nil {
			accepts[p.name] = found["mailbell_notifier_accepts_total"]
		}
	}
	at = time.Now()
	for _, list := range [][]*process{s.notifiers, s.buses, {s.log}} {
		for _, p := range list {
			if c, err := p.cpuSeconds(); err == nil {
				cores[p.name] = c
			}
		}
	}
	return accepts, cores, at
}

// settle ends publishing and clients, and compares the books.
func (s *storm) settle(ctx context.Context) (v ledger.Verdict, l LatencyMs, err error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	s.cfg.Progress.say("comparing the books")
	close(s.stopStore)
	if err := <-s.published; err != nil {
		return v, l, err
	}
	if err := s.quiet(ctx); err != nil {
		return v, l, err
	}
	if err := s.store.say(publisher.Request{Finish: true}); err != nil {
		return v, l, err
	}
	reply, err := s.reply(ctx)
	if err != nil {
		return v, l, err
	}
	latencies := hdrhistogram.New(1, 600_000_000, 2)
	for _, c := range s.clients {
		if err := c.tell(swarm.CommandFinish); err != nil {
			return v, l, err
		}
		last, err := c.wait(ctx, func(last swarm.Report) bool { return last.Final != nil })
		if err != nil {
			return v, l, err
		}
		for i, o := range last.Final.Observations {
			reply.Ledger.Check(&v, o, last.Final.Since[i])
		}
		latencies.Merge(hdrhistogram.Import(last.Latencies))
	}
	return v, latencyMs(latencies), nil
}

// quiet waits until nothing has come for two seconds.
func (s *storm) quiet(ctx context.Context) error {
	seen, since := -1, time.Now()
	for time.Since(since) < 2*time.Second {
		if n := s.counts().Events; n != seen {
			seen, since = n, time.Now()
		}
		if err := pause(ctx, 50*time.Millisecond); err != nil {
			return err
		}
	}
	return nil
}
