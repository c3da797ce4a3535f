package bench

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strings"

	"github.com/mailbell/mailbell/internal/auth"
)

// fleetConfig says how a fleet is started.
type fleetConfig struct {
	Notifiers    int
	Sockets      string   // where the notifiers listen; empty = any port of 127.0.0.1
	NotifierArgs []string // more flags of the notifiers
	NotifierEnv  []string
	Within       *netns // nil = the machine's own network
	PublishKeys  bool   // the servers fetch the key from a keyServer
	Disposable   bool   // to be the first that the kernel ends when memory runs out
	Progress     Progress
}

// fleet is a bus node on an embedded log and notifiers, each a process of its own.
type fleet struct {
	processes    *processes
	disposable   bool
	dir          string
	run          uint32
	topic        string
	keyFile      string
	keySource    string     // what the servers are told: the file, or a URL
	keys         *keyServer // nil: keyFile is the source
	serviceToken string
	brokers      []string
	gateway      string // base URL
	log, bus     *process
	notifiers    []*process
	sockets      []string // host:port of each notifier
	ops          []string // and of its metrics
}

// newFleet starts the servers and waits until they are ready, for as long as ctx allows.
func newFleet(ctx context.Context, cfg fleetConfig) (*fleet, error) {
	ps, err := newProcesses()
	if err != nil {
		return nil, err
	}
	if cfg.Within != nil {
		ps.within = cfg.Within.do
	}
	dir, err := os.MkdirTemp("", "mailbell-bench-")
	if err != nil {
		return nil, fmt.Errorf("make a folder for the bench: %w", err)
	}
	f := &fleet{processes: ps, disposable: cfg.Disposable, dir: dir, run: rand.Uint32(), topic: "mail-events", keyFile: filepath.Join(dir, "hs256.key")}
	if err := f.start(ctx, cfg); err != nil {
		f.stop()
		return nil, err
	}
	return f, nil
}

func (f *fleet) start(ctx context.Context, cfg fleetConfig) error {
	if err := f.makeKey(cfg); err != nil {
		return err
	}
	if err := f.startLog(ctx); err != nil {
		return err
	}
	if err := f.startBus(ctx); err != nil {
		return err
	}
	sockets := cfg.Sockets
	if sockets == "" {
		sockets = anyPort
	}
	for i := range cfg.Notifiers {
		args := append([]string{"notifier", "--bus", f.linkAddr(), "--sockets", sockets, "--jwt-keys", f.keySource, "--node", fmt.Sprintf("n%d", i+1),
			"--max-per-address", "-1", "--drain", "0s", "--ops", anyPort, "--log-format", "json"}, cfg.NotifierArgs...)
		p, err := f.child(cfg.NotifierEnv, fmt.Sprintf("notifier-%d", i+1), args...)
		if err != nil {
			return err
		}
		f.notifiers = append(f.notifiers, p)
		cfg.Progress.say("starting notifiers: %d of %d", i+1, cfg.Notifiers)
		if i%8 != 7 {
			continue
		}
		if _, err := p.logged(ctx, "ready"); err != nil { // not all at once
			return err
		}
	}
	for _, p := range f.notifiers {
		ready, err := p.logged(ctx, "ready")
		if err != nil {
			return err
		}
		f.sockets, f.ops = append(f.sockets, address(ready, "sockets")), append(f.ops, address(ready, "ops"))
	}
	_, err := f.bus.logged(ctx, "ready")
	return err
}

func (f *fleet) makeKey(cfg fleetConfig) (err error) {
	if !cfg.PublishKeys {
		f.keySource = f.keyFile
		return (&site{keyFile: f.keyFile}).writeKey()
	}
	if f.keys, err = newKeyServer(f.keyFile); err == nil {
		f.keySource = f.keys.url
	}
	return err
}

func (f *fleet) startLog(ctx context.Context) error {
	var err error
	if f.log, err = f.child(nil, "log", "bench", "log"); err != nil {
		return err
	}
	if err := f.log.say(logConfig{Dir: filepath.Join(f.dir, "log"), Topic: f.topic, Partitions: 16}); err != nil {
		return err
	}
	line, err := f.log.next(ctx)
	if err != nil {
		return err
	}
	var ready logReady
	if err := json.Unmarshal(line, &ready); err != nil {
		return f.log.failure(err)
	}
	f.brokers = ready.Brokers
	return nil
}

func (f *fleet) startBus(ctx context.Context) error {
	token, line, err := auth.NewServiceToken("bench", auth.ScopeConnect)
	if err != nil {
		return err
	}
	f.serviceToken = token
	tokens := filepath.Join(f.dir, "service-tokens")
	if err := os.WriteFile(tokens, []byte(line+"\n"), 0o600); err != nil {
		return fmt.Errorf("write the bench's service tokens: %w", err)
	}
	f.bus, err = f.child(nil, "bus", "bus", "--brokers", strings.Join(f.brokers, ","), "--topic", f.topic, "--partitions", "16", "--create-topic=false",
		"--link", anyPort, "--http", anyPort, "--jwt-keys", f.keySource, "--service-tokens", tokens, "--ops", anyPort, "--log-format", "json")
	if err != nil {
		return err
	}
	starting, err := f.bus.logged(ctx, "starting")
	if err != nil {
		return err
	}
	f.gateway = "http://" + address(starting, "http")
	return nil
}

func (f *fleet) linkAddr() string {
	starting, _ := f.bus.log.find("starting")
	return address(starting, "link")
}

// child starts a process of the fleet, or one that drives it.
func (f *fleet) child(env []string, name string, args ...string) (*process, error) {
	p, err := f.processes.startWith(env, name, args...)
	if err == nil && f.disposable {
		_ = os.WriteFile(fmt.Sprintf("/proc/%d/oom_score_adj", p.cmd.Process.Pid), []byte("1000"), 0o644)
	}
	return p, err
}

// at returns the sockets' addresses with another host, for notifiers that listen on all addresses.
func (f *fleet) at(host string) []string {
	var all []string
	for _, s := range f.sockets {
		_, port, _ := net.SplitHostPort(s)
		all = append(all, net.JoinHostPort(host, port))
	}
	return all
}

// stop ends every process and removes the folder.
func (f *fleet) stop() {
	f.processes.kill()
	if f.keys != nil {
		f.keys.close()
	}
	_ = os.RemoveAll(f.dir)
}
