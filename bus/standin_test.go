package bus

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/mailbell/mailbell/bus/routing"
	"github.com/mailbell/mailbell/internal/eventlog"
	"github.com/mailbell/mailbell/schema/link"
)

func standInRequest(partition uint32, epoch uint64, after int64) *link.StandIn {
	return &link.StandIn{Partitions: []*link.StandInPartition{{Partition: partition, After: &link.Offset{Epoch: epoch, Offset: after}}}}
}

// TestStandIn: b1 owns the partition and is not reached any more. b2 serves it from the notifier's position on, until it
// owns it itself.
func TestStandIn(t *testing.T) {
	log := newFakeLog(1)
	b1, _ := startNode(t, Config{NodeID: "b1", Log: log})
	b2, _ := startNode(t, Config{NodeID: "b2", Log: log})
	l1, l2 := dial(t, b1, "n1"), dial(t, b2, "n1")
	alice := accountIn(0, 1, 0)
	log.assign(t, map[string][]int32{"b1": {0}, "b2": {}})
	l1.subscribe(l1.ownership(0)[0], nil, alice)
	log.append(alice, "1")
	first := l1.events(1)[0]
	log.append(alice, "2")
	log.append(alice, "3")

	l2.send(standInRequest(0, 1000, first.GetOffset()))
	owned := l2.ownership(0)[0]
	if !owned.GetStandIn() || owned.GetGeneration()&standInBit == 0 {
		t.Fatalf("owned %v", owned)
	}
	s, records := l2.subscribe(owned, &link.Offset{Epoch: 1000, Offset: first.GetOffset()}, alice)
	if s.GetCatchUp() != link.CatchUp_CATCH_UP_REPLAY || len(records) != 2 || records[0].GetOffset() != first.GetOffset()+1 {
		t.Fatalf("subscribed %v after %v", s, records)
	}
	_, at := log.append(alice, "4")
	if r := l2.events(1)[0]; r.GetOffset() != at {
		t.Fatalf("got %v", r)
	}
	if r := l2.resume(owned, &link.Offset{Epoch: 1000, Offset: at - 1}, alice); r.GetCatchUp() != link.CatchUp_CATCH_UP_REPLAY || len(r.GetRecords()) != 1 {
		t.Fatalf("resumed %v", r)
	}
	if err := b2.Ready(context.Background()); err != nil {
		t.Errorf("not ready: %v", err)
	}

	log.assign(t, map[string][]int32{"b1": {}, "b2": {0}})
	for owned.GetStandIn() {
		owned = l2.ownership(0)[0]
	}
	if owned.GetGeneration() != 2 {
		t.Fatalf("owned %v", owned)
	}
	s, records = l2.subscribe(owned, &link.Offset{Epoch: 1000, Offset: first.GetOffset()}, alice)
	if s.GetCatchUp() != link.CatchUp_CATCH_UP_REPLAY || len(records) < 3 {
		t.Fatalf("subscribed %v after %v", s, records)
	}
	eventually(t, "the end of the stand-in", func() bool { return b2.standIns[0].Load() == nil })
	// Asked once more, the owner says what it is.
	l2.send(standInRequest(0, 1000, at))
	if again := l2.ownership(0)[0]; again.GetStandIn() {
		t.Errorf("an owner stands in: %v", again)
	}
}

// A stand-in that nobody asks for any more ends, and requests of its generation are answered so.
func TestStandInEnds(t *testing.T) {
	log := newFakeLog(1)
	n, _ := startNode(t, Config{NodeID: "b1", Log: log})
	f := dial(t, n, "n1")
	log.assign(t, map[string][]int32{"b1": {}})
	f.ownership()
	if _, err := log.FindEpoch(context.Background(), 0); err != nil {
		t.Fatal(err)
	}
	f.send(standInRequest(0, 1000, 0))
	owned := f.ownership(0)[0]
	p := n.standIns[0].Load()
	p.mu.Lock()
	p.until = time.Time{}
	p.mu.Unlock()
	f.ownership()
	if s, _ := f.subscribe(owned, nil, accountIn(0, 1, 0)); s.GetCatchUp() != link.CatchUp_CATCH_UP_NOT_OWNER {
		t.Errorf("subscribed %v", s)
	}
}

// The log has another epoch than the notifier thinks: the clients are told, and get what comes.
func TestStandInSeesAnotherEpoch(t *testing.T) {
	log := newFakeLog(1)
	n, _ := startNode(t, Config{NodeID: "b1", Log: log})
	f := dial(t, n, "n1")
	log.assign(t, map[string][]int32{"b1": {}})
	alice := accountIn(0, 1, 0)
	if _, err := log.WriteBeacon(context.Background(), 0, eventlog.Beacon{Epoch: 7, After: -1}); err != nil {
		t.Fatal(err)
	}
	f.send(standInRequest(0, 6, 0))
	owned := f.ownership(0)[0]
	if owned.GetHead().GetEpoch() != 7 {
		t.Fatalf("owned %v", owned)
	}
	if s, _ := f.subscribe(owned, &link.Offset{Epoch: 6}, alice); s.GetCatchUp() != link.CatchUp_CATCH_UP_RESYNC {
		t.Errorf("subscribed %v", s)
	}
	log.append(alice, "1")
	f.events(1)
}

// The topic was made anew and is longer now than the former one was: no beacon is among what the stand-in reads, and it finds
// out all the same. What it serves from then on it serves in another generation, so that nobody takes it for what it was.
func TestStandInSearchesTheEpoch(t *testing.T) {
	log := newFakeLog(1)
	n, _ := startNode(t, Config{NodeID: "b1", Log: log})
	f := dial(t, n, "n1")
	log.assign(t, map[string][]int32{"b1": {}})
	if _, err := log.WriteBeacon(context.Background(), 0, eventlog.Beacon{Epoch: 7, After: -1}); err != nil {
		t.Fatal(err)
	}
	alice := accountIn(0, 1, 0)
	for range 2 * standInBack {
		log.append(alice, "")
	}
	n.checking <- struct{}{} // not yet
	f.send(standInRequest(0, 6, 2*standInBack-10))
	trusting := f.ownership(0)[0]
	if trusting.GetHead().GetEpoch() != 6 {
		t.Fatalf("owned %v", trusting)
	}
	if s, _ := f.subscribe(trusting, &link.Offset{Epoch: 6, Offset: 2*standInBack - 10}, alice); s.GetCatchUp() != link.CatchUp_CATCH_UP_REPLAY {
		t.Errorf("subscribed %v", s)
	}
	<-n.checking
	owned := trusting
	for owned.GetHead().GetEpoch() != 7 {
		owned = nil
		m := f.until("ownership", func(m *link.FromBus) bool { return m.GetOwned() != nil })
		for _, p := range m.GetOwned().GetPartitions() {
			owned = p
		}
	}
	if owned.GetGeneration() == trusting.GetGeneration() || !owned.GetStandIn() {
		t.Errorf("owned %v, before %v", owned, trusting)
	}
	if s, _ := f.subscribe(owned, &link.Offset{Epoch: 6, Offset: 2*standInBack - 10}, alice); s.GetCatchUp() != link.CatchUp_CATCH_UP_RESYNC {
		t.Errorf("subscribed %v", s)
	}
	log.append(alice, "1")
	f.events(1)
}

func TestStandInBadRequests(t *testing.T) {
	for name, m := range map[string]*link.StandIn{
		"no such partition": standInRequest(9, 1, 0),
		"no position":       {Partitions: []*link.StandInPartition{{}}},
		"position below":    standInRequest(0, 1, -2),
		"too many":          {Partitions: slices.Repeat(standInRequest(0, 1, 0).Partitions, 3)},
	} {
		t.Run(name, func(t *testing.T) {
			n, _ := startNode(t, Config{NodeID: "b1", Log: newFakeLog(2)})
			f := dial(t, n, "n1")
			f.send(m)
			if err := f.ended(); status.Code(err) != codes.InvalidArgument {
				t.Errorf("the link ended with %v", err)
			}
		})
	}
}

// churned is a notifier that follows one account for each partition of one node, whoever serves it in whichever generation.
type churned struct {
	*fakeNotifier
	accounts []string

	mu sync.Mutex
	// Guarded by mu, by partition.
	generation []uint64 // of whom it is subscribed to
	last       []int64  // offset of the last event; no earlier one may come
	told       []int64  // a resync covers all up to here
	got        []map[int64]bool
	resyncs    int
	bad        []string
}

func follow(t *testing.T, n *Node) *churned {
	c := &churned{fakeNotifier: dial(t, n, "n1")}
	for p := range int32(len(n.partitions)) {
		c.accounts = append(c.accounts, accountIn(p, len(n.partitions), 0))
		c.generation, c.last, c.told = append(c.generation, 0), append(c.last, -1), append(c.told, -1)
		c.got = append(c.got, map[int64]bool{})
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for m := range c.in {
			c.take(m)
		}
	}()
	t.Cleanup(func() { c.close(); <-done })
	return c
}

func (c *churned) take(m *link.FromBus) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if m.GetOwned() != nil {
		served := make([]uint64, len(c.generation))
		for _, o := range m.GetOwned().GetPartitions() {
			p := o.GetPartition()
			served[p] = o.GetGeneration()
			if served[p] == c.generation[p] {
				continue
			}
			c.send(&link.Subscribe{Partition: p, Generation: served[p], Accounts: c.accounts[p : p+1],
				After: &link.Offset{Epoch: 1000 + uint64(p), Offset: max(c.last[p], c.told[p])}})
		}
		c.generation = served
	}
	if s := m.GetSubscribed(); s != nil && s.GetGeneration() == c.generation[s.GetPartition()] {
		switch s.GetCatchUp() {
		case link.CatchUp_CATCH_UP_NOT_OWNER:
			c.generation[s.GetPartition()] = 0
		case link.CatchUp_CATCH_UP_RESYNC:
			c.told[s.GetPartition()] = max(c.told[s.GetPartition()], s.GetHead().GetOffset())
			c.resyncs++
		}
	}
	for _, d := range m.GetDeliveries().GetPartitions() {
		p := d.GetPartition()
		if d.GetGeneration() != c.generation[p] {
			continue // fenced
		}
		for _, r := range d.GetRecords() {
			if r.GetOffset() <= c.last[p] {
				c.bad = append(c.bad, fmt.Sprintf("partition %d: offset %d after %d", p, r.GetOffset(), c.last[p]))
			}
			c.last[p] = r.GetOffset()
			c.got[p][r.GetOffset()] = true
		}
	}
}

// misses returns what is neither there nor told of.
func (c *churned) misses(written []map[int64]bool) (n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for p := range written {
		for offset := range written[p] {
			if !c.got[p][offset] && offset > c.told[p] {
				n++
			}
		}
	}
	return n
}

// TestStandInChurn: notifiers ask, the group assigns, this node and others, all at once; every event arrives or is told, in order.
func TestStandInChurn(t *testing.T) {
	log := newFakeLog(2)
	n, _ := startNode(t, Config{NodeID: "b1", Log: log, Linger: time.Millisecond})
	startNode(t, Config{NodeID: "b2", Log: log, Linger: time.Millisecond})
	log.assign(t, map[string][]int32{"b1": {}})
	for p := range int32(2) {
		if _, err := log.FindEpoch(context.Background(), p); err != nil {
			t.Fatal(err)
		}
	}
	f := follow(t, n)
	var mu sync.Mutex
	written := []map[int64]bool{{}, {}}
	var all sync.WaitGroup
	for i := range 4 {
		all.Go(func() {
			for range 50 {
				p := int32(i % 2)
				_, offset := log.append(f.accounts[p], "")
				mu.Lock()
				written[p][offset] = true
				mu.Unlock()
				n.standInFor(p, routing.Position{Epoch: 1000 + uint64(p)})
				if s := n.standIns[p].Load(); s != nil && i == 3 {
					n.endStandIn(s)
				}
				n.tickStandIns(time.Now())
				n.announce()
			}
		})
	}
	for i := range 12 {
		share := []int32{0, 1}[:i%3]
		if i%4 == 3 { // as if it had been expelled
			log.assign(t, map[string][]int32{"b2": share})
			continue
		}
		log.assign(t, map[string][]int32{"b1": share, "b2": {}})
	}
	all.Wait()
	log.assign(t, map[string][]int32{"b1": {0, 1}, "b2": {}})
	eventually(t, "ownership of both, and no stand-in", func() bool {
		n.tickStandIns(time.Now())
		return n.ownedCount() == 2 && n.standIns[0].Load() == nil && n.standIns[1].Load() == nil
	})
	for p := range int32(2) {
		_, offset := log.append(f.accounts[p], "last")
		written[p][offset] = true
	}
	eventually(t, "every event", func() bool { return f.misses(written) == 0 })
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.bad) > 0 || f.resyncs > 0 {
		t.Errorf("out of order: %q; %d resyncs, though the log has it all", f.bad, f.resyncs)
	}
}
