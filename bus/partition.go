package bus

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/mailbell/mailbell/bus/routing"
	"github.com/mailbell/mailbell/internal/eventlog"
	"github.com/mailbell/mailbell/schema"
)

const (
	beaconAge = time.Hour
	// beaconRecords is half of what the log asks for, since it is looked at once a second.
	beaconRecords = eventlog.BeaconEvery / 2
	// stalledFor is how long a reader may come no further, short of the end that it
	// saw at its start, before a beacon is written to pull it there: the last offsets of a
	// log may be none that a reader is given.
	stalledFor = 2 * time.Second
	maxBackoff = 5 * time.Second
)

// errMovedOn ends a read that goes on elsewhere.
var errMovedOn = errors.New("moved on")

// partition is one partition that this node reads. Its reader is one goroutine; links'
// goroutines and the tick come in beside it.
type partition struct {
	// Static after construction.
	node *Node
	id   int32
	stop context.CancelFunc
	// Of one that this node stands in for (standin.go).
	standIn bool
	after   routing.Position

	mu sync.Mutex
	// Guarded by mu.
	generation uint64             // in which it came to this node; a stand-in takes one whenever it lets links in
	core       *routing.Partition // nil before the first offset is known
	tracker    eventlog.EpochTracker
	target     int64 // the head at which it is owned
	released   bool  // went elsewhere, lingers
	ended      bool
	held       bool // not to be owned just now
	lastBeacon int64
	beaconAt   time.Time
	movedAt    time.Time // when the head last moved
	backfill   backfill
	until      time.Time // of one that is stood in for: when it ends

	// Owned by the reader.
	batch []routing.Record
}

func (p *partition) isOwned() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.core != nil && p.core.Generation() != 0
}

func (p *partition) lingers() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.released
}

// run reads until ctx ends.
func (p *partition) run(ctx context.Context) {
	backoff := 100 * time.Millisecond
	for ctx.Err() == nil {
		began := time.Now()
		err := p.read(ctx)
		if ctx.Err() != nil {
			return
		}
		if time.Since(began) > time.Minute {
			backoff = 100 * time.Millisecond
		}
		p.disown()
		p.node.log.Warn("read partition again", "partition", p.id, "in", backoff, "err", err)
		p.node.metrics.readerRestarts.Inc()
		select {
		case <-ctx.Done():
		case <-time.After(backoff/2 + rand.N(backoff)):
		}
		backoff = min(2*backoff, maxBackoff)
	}
}

// read rebuilds the window and then follows the log. It returns when everything has to begin again.
func (p *partition) read(ctx context.Context) error {
	open := p.open
	if p.standIn {
		open = p.openStandIn
	}
	from, err := open(ctx)
	if err != nil {
		return err
	}
	for {
		err := p.node.cfg.Log.Read(ctx, p.id, from, p.take)
		var gap *eventlog.GapError
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case !errors.As(err, &gap):
			return err
		case !gap.Trimmed():
			return p.rewound(ctx, gap)
		}
		p.node.log.Error("the log's retention has overtaken the reader: clients are told to fetch", "partition", p.id, "err", err)
		p.gap(gap.First - 1)
		from = gap.First
	}
}

// open finds out where to begin and makes the core.
func (p *partition) open(ctx context.Context) (from int64, err error) {
	log, cfg := p.node.cfg.Log, &p.node.cfg
	epoch, err := log.FindEpoch(ctx, p.id)
	if err != nil {
		return 0, err
	}
	first, next, err := log.Bounds(ctx, p.id)
	if err != nil {
		return 0, err
	}
	recent, err := log.OffsetAt(ctx, p.id, time.Now().Add(-cfg.WindowAge))
	if err != nil {
		return 0, err
	}
	from = min(next, max(first, next-cfg.ReachRecords, recent))
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.core != nil {
		p.node.metrics.retire(p.core.Stats())
	}
	p.core = routing.New(cfg.routing(int(p.node.share.Load()), len(p.node.partitions)), epoch, from-1)
	p.tracker, p.target = eventlog.EpochTracker{}, next-1
	p.lastBeacon, p.beaconAt, p.movedAt = from-1, time.Now(), time.Now()
	p.backfill = backfill{next: from - 1}
	p.own()
	return from, nil
}

// own lets links in once the target has been reached. Callers hold mu.
func (p *partition) own() {
	if p.core.Generation() == 0 && p.core.Head().Offset >= p.target && !p.ended && !p.held {
		if p.standIn { // the tick may let it in again before the links were told that it was gone
			p.generation = standInBit | p.node.stoodIn.Add(1)
		}
		p.core.Own(p.generation)
		p.node.announceSoon()
	}
}

// take is given each batch by the log.
func (p *partition) take(batch []eventlog.Message) error {
	if len(batch) == 0 {
		return nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	p.movedAt = now
	p.batch = p.batch[:0]
	for i := range batch {
		m := &batch[i]
		if m.Beacon == nil {
			if !routable(m) {
				p.node.metrics.skipped.Inc()
				continue
			}
			if dropped(m.Offset) {
				continue
			}
			p.batch = append(p.batch, routing.Record{Offset: m.Offset, Time: m.Time, Account: m.Key, Event: m.Value})
			continue
		}
		p.flush(now)
		p.beacon(m, now)
	}
	p.flush(now)
	if last := batch[len(batch)-1].Offset; last > p.core.Head().Offset {
		p.core.Advance(last)
	}
	p.own()
	return nil
}

// routable reports whether the record can be someone's event and fit a link's message. Its value stands as it is in a
// text frame, so a tombstone or another producer's bytes would break the frame or, in a browser, the whole socket.
func routable(m *eventlog.Message) bool {
	return len(m.Key) > 0 && len(m.Key) <= schema.MaxAccountBytes && utf8.Valid(m.Key) &&
		len(m.Value) <= maxEvent && schema.IsObject(m.Value)
}

// maxEvent leaves room for events of a producer that knows no limit of ours; it is far below a link's message.
const maxEvent = 1 << 20

func (p *partition) flush(now time.Time) {
	if len(p.batch) > 0 {
		p.node.send(p.id, p.core.Append(now, p.batch))
		p.traced(now)
		clear(p.batch)
		p.batch = p.batch[:0]
	}
}

// beacon notes one on the log. Another epoch means that positions given out are void. Callers hold mu.
func (p *partition) beacon(m *eventlog.Message, now time.Time) {
	p.tracker.Observe(m.Offset, *m.Beacon)
	p.lastBeacon, p.beaconAt = m.Offset, now
	epoch, known := p.tracker.Epoch()
	if !known {
		epoch = p.core.Head().Epoch
	}
	p.inEpoch(epoch, m.Offset)
}

// inEpoch notes the epoch that counts at an offset. Callers hold mu.
func (p *partition) inEpoch(epoch uint64, offset int64) {
	wasOwned := p.core.Generation() != 0
	out, changed := p.core.Beacon(epoch, offset)
	if !changed {
		return
	}
	p.node.send(p.id, out)
	if wasOwned {
		p.node.log.Warn("the epoch changed: clients are told to fetch", "partition", p.id, "epoch", epoch)
		p.reannounce()
	}
}

// reannounce tells the links that the partition is gone, so that they subscribe again
// when it is announced next. Callers hold mu, which is given up meanwhile.
func (p *partition) reannounce() {
	p.mu.Unlock()
	p.node.announce()
	p.mu.Lock()
}

// gap notes that everything up to an offset is lost.
func (p *partition) gap(upTo int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	wasOwned := p.core.Generation() != 0
	p.node.send(p.id, p.core.Gap(upTo))
	p.backfill.done = true
	if wasOwned {
		p.reannounce()
	}
	p.own()
}

// disown takes the partition from the links while its reader begins again.
func (p *partition) disown() {
	p.mu.Lock()
	owned := p.core != nil && p.core.Generation() != 0
	if owned {
		p.node.send(p.id, p.core.Disown())
	}
	p.mu.Unlock()
	if owned {
		p.node.announce()
	}
}

// rewound is a log that ends before what was read from it: the topic was made
// anew, or lost its end. Offsets are going to be used twice, so the epoch has to change.
func (p *partition) rewound(ctx context.Context, gap *eventlog.GapError) error {
	p.disown()
	if p.standIn {
		return gap
	}
	_, err := p.node.cfg.Log.WriteBeacon(ctx, p.id, eventlog.Beacon{Epoch: eventlog.NewEpoch(), After: gap.Next - 1})
	if err != nil {
		return fmt.Errorf("%w; and no beacon could be written: %w", gap, err)
	}
	return gap
}

// keep is called when the partition stays with this node in a new generation; missed says that the node was not in
// the one before. It reports false when the partition has ended and has to begin anew.
func (p *partition) keep(generation uint64, missed bool, cfg routing.Config) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.ended {
		return false
	}
	back := p.released || missed
	p.released = false
	if p.core != nil {
		p.core.Bound(cfg.WindowBytes, cfg.IndexAccounts)
	}
	if !back {
		return true
	}
	// Another node may have owned it in between: only a later generation counts now.
	same := p.generation == generation // as in a group that counts from 1 again
	p.generation = generation
	if p.core != nil && p.core.Generation() != 0 {
		p.node.send(p.id, p.core.Disown())
		if same { // nothing else tells the links that they have to subscribe again
			p.held = true
			p.reannounce()
			p.held = false
		}
		p.own()
	}
	return true
}

// release notes that the partition went elsewhere. It reports false if that is known.
func (p *partition) release() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.released {
		return false
	}
	p.released = true
	return true
}

// end is the end of lingering. It reports false when the partition has come back.
func (p *partition) end() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.released || p.ended {
		return false
	}
	p.ended = true
	if p.core != nil {
		p.node.send(p.id, p.core.Disown())
	}
	return true
}

func (p *partition) tick(now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.core != nil {
		p.node.send(p.id, p.core.Tick(now))
	}
}

// beaconDue returns the beacon that should be written now.
func (p *partition) beaconDue(now time.Time) (eventlog.Beacon, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.core == nil || p.released || p.ended {
		return eventlog.Beacon{}, false
	}
	head := p.core.Head()
	if p.core.Generation() == 0 {
		if now.Sub(p.movedAt) < stalledFor {
			return eventlog.Beacon{}, false
		}
		p.movedAt = now
	} else if head.Offset-p.lastBeacon < beaconRecords && now.Sub(p.beaconAt) < beaconAge {
		return eventlog.Beacon{}, false
	} else {
		p.lastBeacon, p.beaconAt = head.Offset, now
	}
	return eventlog.Beacon{Epoch: head.Epoch, After: head.Offset}, true
}
