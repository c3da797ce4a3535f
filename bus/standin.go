package bus

import (
	"context"
	"time"

	"github.com/mailbell/mailbell/bus/routing"
	"github.com/mailbell/mailbell/internal/eventlog"
	"github.com/mailbell/mailbell/schema/link"
)

// A notifier that has lost the owner of a partition, because it crashed or the network between them is cut, asks another
// node to stand in. That is safe because an owner has nothing but what is on the log: whoever reads the log from the
// notifier's position on sends the same events in the same order. The group is not asked, so it takes milliseconds, not
// the session timeout that Kafka needs to find out that a member is dead.
//
// A partition that a node stands in for is a partition like one it owns, in a place of its own, with three differences: it
// begins a little before the position asked for, not a window back; it repeats no beacons; and it ends when nobody has
// asked for it for a while, or the node comes to own the partition.

const (
	// standInBack is how many records before the first position asked for are read: other notifiers may be a little behind.
	standInBack = 1000
	// standInTime is how long a node stands in after the last request.
	standInTime = 5 * time.Second
	// standInShare is the part of an owned partition's memory that one gets that is stood in for.
	standInShare = 4
	// standInBit sets the generations of stand-ins apart from those of the group.
	standInBit = 1 << 62
)

// standIn answers a request: what is not owned here is read from now on, or for longer.
func (l *linkConn) standIn(m *link.StandIn) error {
	n := l.node
	if len(m.GetPartitions()) > len(n.partitions) {
		return bad("stand in: %d partitions of %d", len(m.GetPartitions()), len(n.partitions))
	}
	for _, s := range m.GetPartitions() {
		if int64(s.GetPartition()) >= int64(len(n.partitions)) || s.GetAfter() == nil || s.GetAfter().GetOffset() < -1 {
			return bad("stand in: partition %d after %v", s.GetPartition(), s.GetAfter())
		}
		n.standInFor(int32(s.GetPartition()), *position(s.GetAfter()))
	}
	// It may stand in already, for another notifier.
	if !l.push(n.ownedMessage()) {
		l.cut(CutQueueFull)
	}
	return nil
}

// standInFor starts to read a partition, or goes on for longer.
func (n *Node) standInFor(id int32, after routing.Position) {
	if p := n.partitions[id].Load(); p != nil && p.isOwned() {
		return
	}
	until := time.Now().Add(standInTime)
	if p := n.standIns[id].Load(); p != nil && p.extend(until) {
		return
	}
	ctx, stop := context.WithCancel(n.inner)
	p := &partition{node: n, id: id, stop: stop, standIn: true, after: after, until: until}
	if !n.standIns[id].CompareAndSwap(nil, p) {
		stop()
		return // another link was faster; its request is repeated
	}
	n.metrics.standIns.Inc()
	n.log.Info("standing in for the owner", "partition", id)
	n.running.Go(func() {
		defer stop()
		err := p.read(ctx)
		if ctx.Err() == nil {
			n.log.Warn("cannot stand in any longer", "partition", id, "err", err)
		}
		n.endStandIn(p)
	})
}

// extend lets it last longer, unless it has ended.
func (p *partition) extend(until time.Time) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.until = until
	return !p.ended
}

func (n *Node) endStandIn(p *partition) {
	p.mu.Lock()
	p.released = true
	p.mu.Unlock()
	if !p.end() {
		return
	}
	n.standIns[p.id].CompareAndSwap(p, nil)
	p.stop()
	p.mu.Lock()
	if p.core != nil {
		n.metrics.retire(p.core.Stats())
	}
	p.mu.Unlock()
	n.announceSoon()
}

// tickStandIns ends those that are not needed any more.
func (n *Node) tickStandIns(now time.Time) {
	for i := range n.standIns {
		p := n.standIns[i].Load()
		if p == nil {
			continue
		}
		p.tick(now)
		p.mu.Lock()
		over := now.After(p.until)
		if p.core != nil && p.core.Generation() == 0 && now.Sub(p.movedAt) > tickEvery/2 {
			p.target = p.core.Head().Offset // the log may end in records that no reader is given
			p.own()
		}
		p.mu.Unlock()
		if owned := n.partitions[i].Load(); over || owned != nil && owned.isOwned() {
			n.endStandIn(p)
		}
	}
}

// openStandIn makes the core of a partition that this node stands in for. The epoch is the notifier's until it is known
// better: by a beacon among the records, or by checkEpoch, which does not hold up the clients of a log that is the same.
func (p *partition) openStandIn(ctx context.Context) (from int64, err error) {
	first, next, err := p.node.cfg.Log.Bounds(ctx, p.id)
	if err != nil {
		return 0, err
	}
	from = max(first, min(p.after.Offset+1, next)-standInBack)
	cfg := p.node.cfg.routing(len(p.node.partitions), len(p.node.partitions))
	cfg.WindowBytes, cfg.IndexAccounts = cfg.WindowBytes/standInShare, cfg.IndexAccounts/standInShare
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.core != nil {
		p.node.metrics.retire(p.core.Stats())
	}
	p.core = routing.New(cfg, p.after.Epoch, from-1)
	p.tracker, p.target = eventlog.EpochTracker{}, next-1
	p.movedAt, p.backfill.done = time.Now(), true
	p.own()
	p.node.running.Go(func() { p.checkEpoch(ctx) })
	return from, nil
}

// checkEpoch searches for the epoch further back than a stand-in reads. A topic that was recreated may be longer by now than the
// former one was, and then nothing else says that it is another one. One partition at a time: each is up to 100,000 records.
func (p *partition) checkEpoch(ctx context.Context) {
	select {
	case p.node.checking <- struct{}{}:
		defer func() { <-p.node.checking }()
	case <-ctx.Done():
		return
	}
	epoch, err := p.node.cfg.Log.FindEpoch(ctx, p.id)
	if err != nil {
		if ctx.Err() == nil {
			p.node.log.Warn("a stand-in cannot check the epoch", "partition", p.id, "err", err)
		}
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if _, known := p.tracker.Epoch(); known || p.ended {
		return // it has read a beacon itself
	}
	p.inEpoch(epoch, p.core.Head().Offset)
	p.own()
}

// serving returns the partition that a request of a generation is meant for.
func (n *Node) serving(id uint32, generation uint64) *partition {
	if generation&standInBit != 0 {
		return n.standIns[id].Load()
	}
	return n.partitions[id].Load()
}

// served calls fn with each partition that is read, owned or stood in for.
func (n *Node) served(fn func(*partition)) {
	for i := range n.partitions {
		if p := n.partitions[i].Load(); p != nil {
			fn(p)
		}
		if p := n.standIns[i].Load(); p != nil {
			fn(p)
		}
	}
}
