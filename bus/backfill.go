package bus

import (
	"context"
	"time"

	"github.com/mailbell/mailbell/bus/routing"
	"github.com/mailbell/mailbell/internal/eventlog"
)

const (
	backfillChunk = 10_000 // records read at once
	backfillEvery = 200 * time.Millisecond
)

// backfill is how far back the index of one partition has been filled.
type backfill struct {
	next int64 // the latest offset not yet seen
	stop int64 // nothing at or before it is wanted
	open bool  // stop is known
	done bool
}

// backfillLoop reads the log backwards, a chunk of one partition at a time, at most
// 50,000 records a second and never while a partition is still catching up.
func (n *Node) backfillLoop(ctx context.Context) {
	if n.cfg.IndexReach < 0 {
		return
	}
	t := time.NewTicker(backfillEvery)
	defer t.Stop()
	last := 0
	for {
		p := n.unfilled(last)
		if p == nil {
			select {
			case <-ctx.Done():
				return
			case <-n.fill:
				continue
			}
		}
		last = int(p.id)
		if err := n.backfill(ctx, p); err != nil && ctx.Err() == nil {
			n.log.Debug("backfill", "partition", p.id, "err", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
	}
}

// unfilled returns the first partition after one, all around, of which more is to be read.
func (n *Node) unfilled(after int) *partition {
	for i := range n.partitions {
		if p := n.partitions[(after+1+i)%len(n.partitions)].Load(); p != nil && p.backfillWanted() {
			return p
		}
	}
	return nil
}

func (p *partition) backfillWanted() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.core != nil && p.core.Generation() != 0 && !p.backfill.done && !p.released
}

// backfill reads the newest chunk that the index does not know yet.
func (n *Node) backfill(ctx context.Context, p *partition) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	p.mu.Lock()
	b, core := p.backfill, p.core
	p.mu.Unlock()
	if !b.open {
		first, _, err := n.cfg.Log.Bounds(ctx, p.id)
		if err != nil {
			return err
		}
		oldest, err := n.cfg.Log.OffsetAt(ctx, p.id, time.Now().Add(-n.cfg.IndexReach))
		if err != nil {
			return err
		}
		b.stop, b.open = max(first, oldest)-1, true
	}
	if b.next <= b.stop {
		b.done = true
		p.backfilled(core, b, b.next, nil)
		return nil
	}
	after := max(b.stop, b.next-backfillChunk)
	records, err := n.readChunk(ctx, p.id, after, b.next)
	if err != nil {
		return err
	}
	p.backfilled(core, b, after, records)
	return nil
}

// readChunk returns the accounts of the events after one offset and up to another.
func (n *Node) readChunk(ctx context.Context, id int32, after, upTo int64) ([]routing.Record, error) {
	records := make([]routing.Record, 0, upTo-after)
	err := n.cfg.Log.Read(ctx, id, after+1, func(batch []eventlog.Message) error {
		for i := range batch {
			m := &batch[i]
			if m.Offset > upTo {
				return errMovedOn
			}
			if m.Beacon == nil && routable(m) {
				records = append(records, routing.Record{Offset: m.Offset, Account: m.Key})
			}
			if m.Offset == upTo {
				return errMovedOn
			}
		}
		return nil
	})
	if err == errMovedOn { // as it came from the function above
		return records, nil
	}
	if err == nil {
		err = ctx.Err()
	}
	return nil, err
}

// backfilled hands a chunk to the core, if it is still the one that was asked for.
func (p *partition) backfilled(core *routing.Partition, b backfill, after int64, records []routing.Record) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.core != core || p.backfill.done {
		return
	}
	if b.next > after && !core.Backfill(after, b.next, records) {
		b.done = true
	}
	b.next = after
	p.backfill = b
}
