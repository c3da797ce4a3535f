package bus

import (
	"context"
	"slices"
	"time"

	"github.com/mailbell/mailbell/internal/eventlog"
)

// assigned takes this node's share of a new generation. What stays is not touched;
// what is new gets a reader; what went elsewhere lingers. Called by the group's goroutine alone.
func (n *Node) assigned(ctx context.Context, generation int64, share []int32) {
	kept, added, gone := 0, 0, 0
	n.share.Store(int64(len(share)))
	// The group calls for those generations alone that this node is in, and for one again when the node was out of touch
	// and no member was missed meanwhile. In one that it was not in, others owned what it serves.
	missed := uint64(generation) != n.generation && uint64(generation) != n.generation+1
	n.generation = uint64(generation)
	cfg := n.cfg.routing(len(share), len(n.partitions))
	for i := range n.partitions {
		id := int32(i)
		p := n.partitions[i].Load()
		mine := slices.Contains(share, id)
		switch {
		case p == nil && mine:
			added++
			n.start(ctx, id, uint64(generation))
		case p == nil:
		case mine && p.keep(uint64(generation), missed, cfg):
			kept++
		case mine:
			added++
			n.start(ctx, id, uint64(generation))
		case p.release():
			gone++
			n.running.Go(func() { n.lose(ctx, p) })
		}
	}
	n.joined.Store(true)
	n.announceSoon()
	n.log.Info("assigned", "generation", generation, "partitions", len(share), "kept", kept, "added", added, "gone", gone)
}

func (n *Node) start(ctx context.Context, id int32, generation uint64) {
	ctx, cancel := context.WithCancel(ctx)
	p := &partition{node: n, id: id, stop: cancel, generation: generation}
	n.partitions[id].Store(p)
	n.running.Go(func() {
		defer cancel()
		p.run(ctx)
	})
}

// lose ends a partition that was released, unless it is given back in time.
func (n *Node) lose(ctx context.Context, p *partition) {
	if n.cfg.Linger > 0 {
		select {
		case <-ctx.Done():
		case <-time.After(n.cfg.Linger):
		}
	}
	if !p.end() {
		return
	}
	n.partitions[p.id].CompareAndSwap(p, nil)
	p.stop()
	p.mu.Lock()
	if p.core != nil {
		n.metrics.retire(p.core.Stats())
	}
	p.mu.Unlock()
	n.announceSoon()
}

// beaconLoop repeats the owner's beacon on each partition, so that one is always
// within reach of whoever looks for the epoch.
func (n *Node) beaconLoop(ctx context.Context) {
	t := time.NewTicker(tickEvery)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-t.C:
			for i := range n.partitions {
				p := n.partitions[i].Load()
				if p == nil {
					continue
				}
				if b, due := p.beaconDue(now); due {
					n.writeBeacon(ctx, p.id, b)
				}
			}
		}
	}
}

func (n *Node) writeBeacon(ctx context.Context, id int32, b eventlog.Beacon) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	if _, err := n.cfg.Log.WriteBeacon(ctx, id, b); err != nil && ctx.Err() == nil {
		n.log.Warn("write beacon", "partition", id, "err", err)
	}
}
