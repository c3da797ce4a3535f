package notifier

import (
	"context"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gobwas/ws"
	"github.com/mailbell/mailbell/schema"
	"github.com/mailbell/mailbell/schema/link"
	"google.golang.org/protobuf/proto"
)

// hub runs the core: it takes what the links received and what the shards ask, one after the other,
// and does what the core says. All fields are owned by its goroutine but for the channels.
type hub struct {
	*shared
	shards []*shard
	core   *core
	events chan linkEvent
	orders chan order
	calls  chan func() // run by the hub, between two messages

	// For who waits to take over.
	owners     atomic.Bool // every partition has one
	partitions atomic.Int64

	links map[linkID]*linkConn
	load  loadMeter
	calm  calm
	slow  slowSpread
	later map[handle]bool // slow clients that can't be told yet, not all of it
	spare []op

	// Events that have not been handed to the shards yet.
	batch  []delivery
	frames []byte
}

const (
	// Events are handed to the shards at the latest when there are so many, or so many bytes: few enough that the frames
	// are still in the nearest cache when they are sent.
	batchEvents = 64
	batchBytes  = 64 << 10
	// Messages of the links taken before the shards' ops have their turn.
	eventsPerTurn = 64
)

func newHub(s *shared, shards []*shard) *hub {
	h := &hub{shared: s, shards: shards, events: make(chan linkEvent, 64), orders: make(chan order, 16), calls: make(chan func()), links: make(map[linkID]*linkConn),
		later: make(map[handle]bool)}
	h.core = newCore(h, s.accounts, s.cfg.OwnerTimeout)
	h.load.start()
	h.calm = newCalm()
	return h
}

// run works until ctx ends.
func (h *hub) run(ctx context.Context) {
	ticker := time.NewTicker(time.Second)
	defer ticker.Stop()
	var trims sync.WaitGroup
	defer trims.Wait()
	for {
		select {
		case <-ctx.Done():
			return
		case e := <-h.events:
			h.handle(e)
			h.handleMore()
		case call := <-h.calls:
			call()
		case <-h.inbox.wake:
		case now := <-ticker.C:
			h.core.tick(now)
			h.tellLater()
			h.tellLoad(now)
			h.metrics.traffic.hold(h.open.Load(), now)
			if h.calm.tick(h.metrics.accepts.Load() + h.metrics.eventsOut.Load()/16) {
				trims.Go(debug.FreeOSMemory) // takes its time, and no event waits for it
			}
		}
		h.handleOps()
		h.flushEvents()
		h.core.flush()
	}
}

func (h *hub) handleMore() {
	for range eventsPerTurn {
		select {
		case e := <-h.events:
			h.handle(e)
		default:
			return
		}
	}
}

// handle takes what happened on a link.
func (h *hub) handle(e linkEvent) {
	l := e.conn.id
	switch {
	case e.down:
		h.core.down(l)
		h.owners.Store(h.core.allOwned())
		delete(h.links, l)
		h.metrics.links.Set(float64(len(h.links)))
		return
	case e.welcome != nil:
		h.links[l] = e.conn
		if keys := e.welcome.TicketKeys; len(keys) > 0 {
			e.conn.ticketKey = keys[len(keys)-1].Id
		}
		h.metrics.links.Set(float64(len(h.links)))
		h.core.meet(l, e.conn.name)
		h.core.welcome(l, int(e.welcome.Partitions))
		h.partitions.Store(int64(len(h.core.parts)))
		return
	case h.links[l] == nil:
		return
	}
	switch m := e.msg.Body.(type) {
	case *link.FromBus_Owned:
		h.core.owned(l, m.Owned)
		h.owners.Store(h.core.allOwned())
	case *link.FromBus_Deliveries:
		taken, fenced := h.core.deliveries(l, m.Deliveries)
		h.metrics.records.Add(uint64(taken))
		h.metrics.fenced.Add(uint64(fenced))
	case *link.FromBus_Subscribed:
		h.core.subscribed(l, m.Subscribed)
	case *link.FromBus_Resumed:
		h.core.resumed(l, m.Resumed)
	case *link.FromBus_Positions:
		h.core.positions(l, m.Positions)
	case *link.FromBus_Drain:
		h.order(order{drain: m.Drain})
	case *link.FromBus_Move:
		h.order(order{move: m.Move})
	}
}

// order passes on what the bus wants done with the clients; one too many is dropped: the bus sees in
// the load what happens, and asks again.
func (h *hub) order(o order) {
	select {
	case h.orders <- o:
	default:
		h.cfg.Logger.Warn("an order of the bus was dropped: too many are being carried out")
	}
}

func (h *hub) handleOps() {
	ops := h.inbox.take(h.spare)
	now := time.Now()
	for i := range ops {
		o := &ops[i]
		switch o.kind {
		case opSubscribe:
			h.core.subscribe(o, now)
		case opCancel:
			h.core.cancel(o.h, o.account)
			h.flushEvents()
			h.shards[o.h.shard()].unsubscribed(o.h, o.id, o.account)
		case opDrop:
			h.core.drop(o.accountID)
		case opMissed:
			h.flushEvents()
			if !h.shards[o.h.shard()].tellMissed(o.h, h.core.place, h.slow.add(now)) {
				h.later[o.h] = true
			}
		}
	}
	h.spare = ops
}

// tellLater tries once more to tell slow clients what they missed.
func (h *hub) tellLater() {
	for to := range h.later {
		h.inbox.post(op{kind: opMissed, h: to})
	}
	clear(h.later)
}

// flushEvents hands the events gathered to the shards.
func (h *hub) flushEvents() {
	if len(h.batch) == 0 {
		return
	}
	began := time.Now()
	for _, sh := range h.shards {
		sh.deliver(h.batch)
	}
	h.metrics.traffic.delivered(h.batch)
	h.traced(began)
	clear(h.batch)
	h.batch, h.frames = h.batch[:0], h.frames[:0]
	if cap(h.frames) > 2*batchBytes {
		h.frames = nil
	}
}

// The following is what the core wants done: coreOut.

func (h *hub) event(a nameID, account string, pos schema.Position, event []byte) {
	start := len(h.frames)
	h.frames = append(h.frames, make([]byte, headroom)...)
	h.frames = schema.AppendEvent(h.frames, schema.Account(account), pos, event)
	h.batch = append(h.batch, delivery{account: a, offset: pos.Offset, event: event, frame: seal(h.frames[start:], ws.OpText)})
	if len(h.batch) >= batchEvents || len(h.frames) >= batchBytes {
		h.flushEvents()
	}
}

func (h *hub) subscribed(a *answer) bool {
	h.flushEvents()
	return h.shards[a.h.shard()].subscribed(a)
}

func (h *hub) denied(to handle, id uint64, code schema.ErrorCode, message string) {
	h.shards[to.shard()].denied(to, id, code, message)
}

func (h *hub) missed(a nameID, account string, pos schema.Position, spread uint32) {
	h.flushEvents()
	for _, sh := range h.shards {
		sh.missed(a, schema.Account(account), pos, spread)
	}
}

func (h *hub) send(l linkID, m *link.FromNotifier) {
	if c := h.links[l]; c != nil {
		c.send(m)
	}
}

func (h *hub) cut(l linkID, why string) {
	if c := h.links[l]; c != nil {
		h.cfg.Logger.Error("a bus node was refused", "node", c.name, "reason", why)
		c.end(linkRefused)
	}
}

// tellLoad tells every bus node, once a second, how this one is: what it can still accept in equal
// shares, since each hands out its own, and of the tickets used those that this bus node has made.
func (h *hub) tellLoad(now time.Time) {
	if len(h.links) == 0 {
		return
	}
	load := h.load.measure(h.shared, now)
	load.FreeAcceptsPerSecond /= float64(len(h.links))
	load.BusNodes = uint32(len(h.links))
	for _, c := range h.links {
		m := proto.CloneOf(load)
		m.TicketConnections = h.gate.tickets.Spent(c.ticketKey)
		c.send(&link.FromNotifier{Body: &link.FromNotifier_Load{Load: m}})
	}
}
