package bench

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"

	"golang.org/x/sync/errgroup"

	"github.com/mailbell/mailbell/bus/placement"
)

// PlacementConfig says what `mailbell bench placement` simulates: a fleet of notifiers of uneven size, several bus nodes that give
// out places by reports a second old, and the real policies.
type PlacementConfig struct {
	Nodes       int      // 0 = 100
	Connections int      // 0 = 10,000,000
	Gateways    int      // bus nodes; 0 = 4
	Policies    []string // none = all
	Seed        uint64
	Progress    Progress
}

// Validate says what is wrong with the configuration.
func (c PlacementConfig) Validate() error {
	c = c.withDefaults()
	switch {
	case c.Nodes < 10 || c.Nodes > 1000:
		return errors.New("bench placement: --nodes must be from 10 to 1000")
	case c.Connections < 1000*c.Nodes || c.Connections > 100_000_000:
		return errors.New("bench placement: --connections must be from 1000 a node to 100000000")
	case c.Gateways < 1 || c.Gateways > 100:
		return errors.New("bench placement: --gateways must be from 1 to 100")
	}
	for _, p := range c.Policies {
		if !slices.Contains(placement.Names(), p) {
			return fmt.Errorf("bench placement: --policies %q: want some of %s", p, strings.Join(placement.Names(), ", "))
		}
	}
	return nil
}

func (c PlacementConfig) withDefaults() PlacementConfig {
	if c.Nodes == 0 {
		c.Nodes = 100
	}
	if c.Connections == 0 {
		c.Connections = 10_000_000
	}
	if c.Gateways == 0 {
		c.Gateways = 4
	}
	if len(c.Policies) == 0 {
		c.Policies = placement.Names()
	}
	return c
}

// PlacementResult is what the simulation found.
type PlacementResult struct {
	Nodes       int               `json:"nodes"`
	Connections int               `json:"connections"`
	Gateways    int               `json:"gateways"`
	Default     string            `json:"default"`
	Policies    []PlacementPolicy `json:"policies"`
}

// PlacementPolicy is how a policy did. Imbalance is the fullest node, for its weight, over the mean: the worst at the end of
// a scene. SecondsToEven is the longest time until every node was within 5 % of the mean, -1 if a scene ended before.
type PlacementPolicy struct {
	Name          string           `json:"name"`
	Imbalance     float64          `json:"imbalance"`
	Moved         int              `json:"moved"`
	SecondsToEven float64          `json:"secondsToEven"`
	SameNode      float64          `json:"sameNode"` // share of users' second tabs that are at the node of the first
	Scenes        []PlacementScene `json:"scenes"`
}

// PlacementScene is one thing that happened to the fleet.
type PlacementScene struct {
	Name          string    `json:"name"`
	Imbalance     float64   `json:"imbalance"`     // at its end
	Peak          float64   `json:"peakImbalance"` // of the nodes that were not just begun
	Moved         int       `json:"moved"`
	SecondsToEven float64   `json:"secondsToEven"`
	Curve         []float64 `json:"curve"` // imbalance every 5 s
}

// Placement runs the simulation.
func Placement(ctx context.Context, cfg PlacementConfig) (PlacementResult, error) {
	if err := cfg.Validate(); err != nil {
		return PlacementResult{}, err
	}
	cfg = cfg.withDefaults()
	r := PlacementResult{Nodes: cfg.Nodes, Connections: cfg.Connections, Gateways: cfg.Gateways, Default: placement.Default,
		Policies: make([]PlacementPolicy, len(cfg.Policies))}
	var g errgroup.Group
	g.SetLimit(max(1, runtime.NumCPU()))
	for i, name := range cfg.Policies {
		g.Go(func() error {
			s, err := newSimulation(name, cfg)
			if err != nil {
				return err
			}
			r.Policies[i], err = s.run(ctx)
			cfg.Progress.say("simulated %s", name)
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return r, fmt.Errorf("bench placement: %w", err)
	}
	return r, nil
}
