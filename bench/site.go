package bench

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	mathrand "math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/mailbell/mailbell/internal/auth"
)

// siteConfig says which server processes a bench needs.
type siteConfig struct {
	Brokers   []string // Kafka: a bus and notifiers of their own; none = one `mailbell run`
	Notifiers int
	Adapter   bool // with Brokers: an adapter too, for events by HTTP
	Progress  Progress
}

// site is a running mailbell, in processes of its own, in a folder of its own.
type site struct {
	processes *processes
	dir       string
	run       uint32 // number of this bench, so that two on one log don't mix
	topic     string
	keyFile   string   // an HS256 secret that users' tokens are signed with
	brokers   []string // of the log, real or embedded
	sockets   []string // host:port of each notifier
	ingest    string   // host:port of POST /v1/events; empty without one
	token     string   // of a service that may publish
	servers   []*process
	kept      map[string]string // addresses by process and flag, for a restart
	cfg       siteConfig
}

const siteStartTimeout = 90 * time.Second

// newSite starts the servers and waits until they are ready.
func newSite(ctx context.Context, cfg siteConfig) (*site, error) {
	ctx, cancel := context.WithTimeout(ctx, siteStartTimeout)
	defer cancel()
	ps, err := newProcesses()
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "mailbell-bench-")
	if err != nil {
		return nil, fmt.Errorf("make a folder for the bench: %w", err)
	}
	s := &site{processes: ps, dir: dir, run: mathrand.Uint32(), topic: "mail-events", keyFile: filepath.Join(dir, "hs256.key"), brokers: cfg.Brokers,
		kept: make(map[string]string), cfg: cfg}
	if err := s.writeKey(); err != nil {
		s.stop()
		return nil, err
	}
	if err := s.start(ctx); err != nil {
		s.stop()
		return nil, err
	}
	cfg.Progress.say("servers are up, sockets at %s", strings.Join(s.sockets, ", "))
	return s, nil
}

func (s *site) start(ctx context.Context) error {
	s.sockets = nil
	if len(s.cfg.Brokers) == 0 {
		return s.startRun(ctx)
	}
	return s.startParts(ctx, s.cfg)
}

// kill ends the servers at once.
func (s *site) kill() {
	for _, p := range s.servers {
		p.kill()
	}
	s.servers = nil
}

// restart starts the servers again after kill, where they were.
func (s *site) restart(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, siteStartTimeout)
	defer cancel()
	return s.start(ctx)
}

// at is where a process listens: where it was before, or anywhere.
func (s *site) at(process, flag string) string {
	if a := s.kept[process+flag]; a != "" {
		return a
	}
	return anyPort
}

func (s *site) keep(process, flag string, attrs map[string]any) string {
	a := address(attrs, flag)
	s.kept[process+flag] = a
	return a
}

func (s *site) writeKey() error {
	secret := make([]byte, 32)
	_, _ = rand.Read(secret)
	if err := os.WriteFile(s.keyFile, []byte(hex.EncodeToString(secret)), 0o600); err != nil {
		return fmt.Errorf("write the bench's key: %w", err)
	}
	return nil
}

// anyPort is the loopback address with a port that the kernel picks.
const anyPort = "127.0.0.1:0"

// startRun starts everything in one process on the embedded log.
func (s *site) startRun(ctx context.Context) error {
	p, err := s.server("run", "run", "--data", filepath.Join(s.dir, "data"), "--sockets", s.at("run", "sockets"), "--link", anyPort, "--http", s.at("run", "http"),
		"--jwt-keys", s.keyFile, "--max-per-address", "-1")
	if err != nil {
		return err
	}
	ready, err := p.logged(ctx, "ready")
	if err != nil {
		return err
	}
	s.sockets, s.brokers = []string{s.keep("run", "sockets", ready)}, strings.Split(address(ready, "log"), ",")
	s.ingest = s.keep("run", "http", ready)
	token, err := os.ReadFile(filepath.Join(s.dir, "data", "keys", "service-token"))
	if err != nil {
		return fmt.Errorf("read the service token that run made: %w", err)
	}
	s.token = strings.TrimSpace(string(token))
	return nil
}

// startParts starts a bus node and notifiers on Kafka, with a topic of the bench's own.
func (s *site) startParts(ctx context.Context, cfg siteConfig) error {
	s.topic = fmt.Sprintf("mailbell-bench-%x", s.run)
	brokers := strings.Join(cfg.Brokers, ",")
	tokens := filepath.Join(s.dir, "service-tokens")
	if s.token == "" {
		plain, line, err := auth.NewServiceToken("bench", auth.ScopePublish)
		if err != nil {
			return fmt.Errorf("make the bench's service token: %w", err)
		}
		if err := os.WriteFile(tokens, []byte(line+"\n"), 0o600); err != nil {
			return fmt.Errorf("write the bench's service tokens: %w", err)
		}
		s.token = plain
	}
	bus, err := s.server("bus", "bus", "--brokers", brokers, "--topic", s.topic, "--partitions", "16", "--replication", "1", "--group", s.topic,
		"--link", s.at("bus", "link"), "--http", anyPort, "--jwt-keys", s.keyFile, "--service-tokens", tokens)
	if err != nil {
		return err
	}
	starting, err := bus.logged(ctx, "starting")
	if err != nil {
		return err
	}
	link := s.keep("bus", "link", starting)
	for i := range cfg.Notifiers {
		name := fmt.Sprintf("notifier-%d", i+1)
		p, err := s.server(name, "notifier", "--bus", link, "--sockets", s.at(name, "sockets"),
			"--jwt-keys", s.keyFile, "--node", fmt.Sprintf("n%d", i+1), "--max-per-address", "-1")
		if err != nil {
			return err
		}
		ready, err := p.logged(ctx, "ready")
		if err != nil {
			return err
		}
		s.sockets = append(s.sockets, s.keep(name, "sockets", ready))
	}
	if cfg.Adapter {
		p, err := s.server("adapter", "adapter", "--brokers", brokers, "--topic", s.topic, "--service-tokens", tokens,
			"--data", filepath.Join(s.dir, "adapter"), "--http", s.at("adapter", "http"))
		if err != nil {
			return err
		}
		ready, err := p.logged(ctx, "ready")
		if err != nil {
			return err
		}
		s.ingest = s.keep("adapter", "http", ready)
	}
	_, err = bus.logged(ctx, "ready")
	return err
}

func (s *site) server(name string, args ...string) (*process, error) {
	p, err := s.processes.start(name, append(args, "--ops", anyPort, "--log-format", "json")...)
	if err == nil {
		s.servers = append(s.servers, p)
	}
	return p, err
}

func address(attrs map[string]any, key string) string {
	s, _ := attrs[key].(string)
	return s
}

// cpu returns the CPU seconds of each server, and of others, so far.
func (s *site) cpu(others ...*process) (map[string]float64, error) {
	seconds := make(map[string]float64)
	for _, list := range [][]*process{s.servers, others} {
		for _, p := range list {
			c, err := p.cpuSeconds()
			if err != nil {
				return nil, err
			}
			seconds[p.name] = c
		}
	}
	return seconds, nil
}

// stop ends every process and removes the folder.
func (s *site) stop() {
	s.processes.stop()
	_ = os.RemoveAll(s.dir)
}
