package bench

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/mailbell/mailbell/bench/rungs"
	"github.com/mailbell/mailbell/bench/swarm"
)

// LadderConfig says how `mailbell bench ladder` measures idle connections of one server after the other.
type LadderConfig struct {
	Connections int    // of each; 0 = 15,000
	Rivals      string // a program with further echo servers, such as bench/compare-servers; empty = none
	Progress    Progress
}

// Validate says what is wrong with the configuration.
func (c LadderConfig) Validate() error {
	if c.Connections < 0 || c.Connections > 19_000 {
		return errors.New("bench ladder: --connections must be from 1 to 19000, what one process holds")
	}
	return nil
}

// LadderResult is what the ladder bench found.
type LadderResult struct {
	Rungs  []LadderRung `json:"rungs"`
	Rivals []LadderRung `json:"rivals,omitempty"`
	// What the article says of its first rung.
	ArticleBytesAt3Million int64 `json:"articleBytesAt3Million"`
}

// LadderRung is what an idle connection costs one server in anonymous memory, the kernel's not counted.
type LadderRung struct {
	Name               string  `json:"name"`
	What               string  `json:"what"`
	Connections        int     `json:"connections"`
	BytesPerConnection float64 `json:"bytesPerConnection"`
	BytesAt3Million    int64   `json:"bytesAt3Million"`
}

const (
	articleBytes = 72_000_000_000
	threeMillion = 3_000_000
)

// Ladder runs the bench.
func Ladder(ctx context.Context, cfg LadderConfig) (r LadderResult, err error) {
	if err := cfg.Validate(); err != nil {
		return r, err
	}
	if cfg.Connections == 0 {
		cfg.Connections = 15_000
	}
	n := needs{perProcess: cfg.Connections + 200, files: int64(2*cfg.Connections + 500), watches: int64(4 * cfg.Connections), ports: cfg.Connections,
		processes: 2, memory: int64(cfg.Connections) * 40_000, smaller: "fewer --connections"}
	if err := n.check(); err != nil {
		return r, fmt.Errorf("bench ladder: %w", err)
	}
	r.ArticleBytesAt3Million = articleBytes
	ps, err := newProcesses()
	if err != nil {
		return r, fmt.Errorf("bench ladder: %w", err)
	}
	for _, k := range rungs.Kinds() {
		rung, err := ladderRung(ctx, cfg, ps, k, "bench", "rung")
		if err != nil {
			return r, fmt.Errorf("bench ladder: %s: %w", k.Name, err)
		}
		r.Rungs = append(r.Rungs, rung)
	}
	ours, err := Hold(ctx, HoldConfig{Connections: cfg.Connections, Nodes: 1, Rate: 100, Duration: time.Second, Quiet: time.Second, Progress: cfg.Progress})
	if err != nil {
		return r, fmt.Errorf("bench ladder: %w", err)
	}
	r.Rungs = append(r.Rungs, rungOf("mailbell", "slots and epoll; authenticated and subscribed, so by the clients of bench hold; gives memory back by itself", cfg.Connections, ours.UserBytesPerConnection))
	r.Rivals, err = rivals(ctx, cfg)
	if err != nil {
		return r, fmt.Errorf("bench ladder: %w", err)
	}
	return r, nil
}

func rungOf(name, what string, connections int, bytes float64) LadderRung {
	return LadderRung{Name: name, What: what, Connections: connections, BytesPerConnection: bytes, BytesAt3Million: int64(bytes * threeMillion)}
}

// rivals measures the servers of another program. It is asked for its kinds by "kinds", and for one of them by
// "serve", and speaks as the rungs do.
func rivals(ctx context.Context, cfg LadderConfig) ([]LadderRung, error) {
	if cfg.Rivals == "" {
		return nil, nil
	}
	ps := &processes{binary: cfg.Rivals}
	p, err := ps.start("kinds", "kinds")
	if err != nil {
		return nil, err
	}
	line, err := p.next(ctx)
	p.stop()
	if err != nil {
		return nil, err
	}
	var kinds []rungs.Kind
	if err := json.Unmarshal(line, &kinds); err != nil {
		return nil, fmt.Errorf("kinds of %s: %w", cfg.Rivals, err)
	}
	var all []LadderRung
	for _, k := range kinds {
		r, err := ladderRung(ctx, cfg, ps, k, "serve")
		if err != nil {
			return nil, fmt.Errorf("%s: %w", k.Name, err)
		}
		all = append(all, r)
	}
	return all, nil
}

// ladderRung measures one server.
func ladderRung(ctx context.Context, cfg LadderConfig, servers *processes, k rungs.Kind, args ...string) (LadderRung, error) {
	cfg.Progress.say("%s: %s", k.Name, k.What)
	ctx, cancel := context.WithTimeout(ctx, 3*time.Minute)
	defer cancel()
	server, err := servers.start(k.Name, args...)
	if err != nil {
		return LadderRung{}, err
	}
	defer server.stop()
	if err := server.say(rungs.Config{Kind: k.Name}); err != nil {
		return LadderRung{}, err
	}
	line, err := server.next(ctx)
	if err != nil {
		return LadderRung{}, err
	}
	var ready rungs.Ready
	if err := json.Unmarshal(line, &ready); err != nil {
		return LadderRung{}, server.failure(err)
	}
	warm, err := idleClients(ctx, ready.Addr, min(100, cfg.Connections))
	if err != nil {
		return LadderRung{}, err
	}
	warm.stop()
	before, err := trimmed(ctx, server)
	if err != nil {
		return LadderRung{}, err
	}
	clients, err := idleClients(ctx, ready.Addr, cfg.Connections)
	if err != nil {
		return LadderRung{}, err
	}
	defer clients.stop()
	after, err := trimmed(ctx, server)
	if err != nil {
		return LadderRung{}, err
	}
	return rungOf(k.Name, k.What, cfg.Connections, round1(float64(after-before)/float64(cfg.Connections))), nil
}

func idleClients(ctx context.Context, target string, n int) (*process, error) {
	ps, err := newProcesses()
	if err != nil {
		return nil, err
	}
	p, err := ps.start("clients", "bench", "sink")
	if err != nil {
		return nil, err
	}
	err = p.say(swarm.SinkConfig{Target: target, Connections: n, Echo: true})
	if err == nil {
		_, err = p.next(ctx)
	}
	if err != nil {
		p.stop()
		return nil, err
	}
	return p, nil
}

// trimmed has the server give back what it can, and returns its anonymous memory.
func trimmed(ctx context.Context, server *process) (int64, error) {
	for range 2 { // what a finalizer or a pool let go in the first goes in the second
		if err := server.tell("trim"); err != nil {
			return 0, err
		}
		if _, err := server.next(ctx); err != nil {
			return 0, err
		}
	}
	return server.memory("RssAnon")
}
