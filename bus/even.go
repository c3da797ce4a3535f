package bus

import (
	"context"
	"time"

	"github.com/mailbell/mailbell/bus/placement"
	"github.com/mailbell/mailbell/schema/link"
)

// evenLoop moves connections from full notifiers to empty ones. Every node looks, and the one that
// owns partition 0 acts: there is one at a time.
func (n *Node) evenLoop(ctx context.Context) {
	if n.cfg.MovesPerSecond < 0 {
		return
	}
	t := time.NewTicker(tickEvery)
	defer t.Stop()
	var busyUntil time.Time // with what was ordered last
	var rounds placement.Rounds
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-t.C:
			changed := n.fleet.quietSince()
			if !n.leads() || now.Before(busyUntil) || now.Sub(changed) < n.cfg.MoveAfter {
				continue
			}
			if !rounds.Due(n.cfg.Evenness, changed, now) {
				continue
			}
			if took := n.even(now); took > 0 {
				busyUntil = now.Add(took + n.cfg.MoveAfter)
			}
		}
	}
}

// leads reports whether this node is the one that decides about the fleet.
func (n *Node) leads() bool {
	p := n.partitions[0].Load()
	return p != nil && p.isOwned()
}

// even orders what has to be moved now and returns how long that takes.
func (n *Node) even(now time.Time) time.Duration {
	var serving []Notifier
	var nodes []placement.Node
	for _, s := range n.fleet.Snapshot(now) {
		if s.State == Serving || s.State == Full {
			serving = append(serving, s)
			// Pending ones are on their way to wherever they go: counting them here would move others instead.
			nodes = append(nodes, placement.Node{Name: s.Node, Weight: s.Weight, Connections: int(s.Load.Connections)})
		}
	}
	if n.cfg.Evenness.ByAccount {
		return n.sort(now, nodes)
	}
	leaves := placement.Rebalance(nodes, n.cfg.Evenness)
	total := 0
	for _, l := range leaves {
		total += l.Connections
	}
	if total == 0 {
		return 0
	}
	rate := n.moveRate(now)
	for _, l := range leaves {
		pace := max(1, rate*float64(l.Connections)/float64(total))
		order := &link.Move{Connections: uint64(l.Connections), PerSecond: pace}
		if _, err := n.Tell(serving[l.Node].Node, &link.FromBus{Body: &link.FromBus_Move{Move: order}}); err != nil {
			n.log.Error("move", "err", err)
		}
	}
	n.metrics.moved.Add(float64(total))
	took := time.Duration(float64(total) / rate * float64(time.Second))
	n.log.Info("connections move, so that the notifiers are even", "connections", total, "from", len(leaves), "perSecond", rate, "takes", took)
	return took
}

// moveRate is half of what the fleet has free, so that others find room too.
func (n *Node) moveRate(now time.Time) float64 {
	return max(1, min(n.cfg.MovesPerSecond, n.fleet.freeAccepts(now)/2))
}

// sort has every notifier send those away whose account belongs to another one by rendezvous hashing. How many they are
// only the notifiers know.
func (n *Node) sort(now time.Time, nodes []placement.Node) time.Duration {
	total := 0
	var all []*link.MoveNode
	for i := range nodes {
		total += nodes[i].Connections
		all = append(all, &link.MoveNode{Name: nodes[i].Name, Weight: nodes[i].Weight})
	}
	if len(nodes) < 2 || total == 0 {
		return 0
	}
	rate := n.moveRate(now)
	for i := range nodes {
		if nodes[i].Connections == 0 {
			continue
		}
		order := &link.Move{Connections: uint64(nodes[i].Connections), PerSecond: max(1, rate*float64(nodes[i].Connections)/float64(total)), Nodes: all}
		if _, err := n.Tell(nodes[i].Name, &link.FromBus{Body: &link.FromBus_Move{Move: order}}); err != nil {
			n.log.Error("move", "err", err)
		}
	}
	n.log.Info("connections move to where their accounts belong", "notifiers", len(nodes), "perSecond", rate)
	return tickEvery
}
