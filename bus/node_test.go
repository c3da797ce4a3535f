package bus

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/mailbell/mailbell/internal/eventlog"
	"github.com/mailbell/mailbell/schema"
	"github.com/mailbell/mailbell/schema/link"
)

func TestEventReachesTheNotifierThatWantsIt(t *testing.T) {
	log := newFakeLog(4)
	reg := prometheus.NewPedanticRegistry()
	n, _ := startNode(t, Config{NodeID: "b1", Log: log, Registerer: reg})
	alice, bob := accountIn(1, 4, 0), accountIn(1, 4, 1)
	if _, err := log.FindEpoch(context.Background(), 1); err != nil {
		t.Fatal(err)
	}
	log.append(alice, "before")
	n1, n2 := dial(t, n, "n1"), dial(t, n, "n2")
	log.assign(t, map[string][]int32{"b1": {0, 1, 2, 3}})
	owned := n1.ownership(0, 1, 2, 3)
	n2.ownership(0, 1, 2, 3)

	if s, _ := n1.subscribe(owned[1], nil, alice); s.GetCatchUp() != link.CatchUp_CATCH_UP_FRESH || s.GetHead().GetEpoch() != 1001 {
		t.Fatalf("subscribed: %v", s)
	}
	n2.subscribe(owned[1], nil, bob)
	_, at := log.append(alice, "1")
	log.append(bob, "2")
	m := n1.until("delivery", func(m *link.FromBus) bool { return m.GetDeliveries() != nil })
	got := m.GetDeliveries().GetPartitions()[0]
	if got.GetPartition() != 1 || got.GetGeneration() != 1 || got.GetEpoch() != 1001 || got.GetUpto() < at || len(got.GetRecords()) != 1 {
		t.Fatalf("delivered %v", got)
	}
	if r := got.GetRecords()[0]; r.GetAccount() != alice || r.GetOffset() != at || string(r.GetEvent()) != string(eventJSON(alice, "1")) {
		t.Fatalf("record %v", r)
	}
	if r := n2.events(1)[0]; r.GetAccount() != bob {
		t.Fatalf("n2 got %v", r)
	}

	// What came before, for a client that was there before.
	r := n1.resume(owned[1], &link.Offset{Epoch: 1001, Offset: 0}, alice)
	if r.GetCatchUp() != link.CatchUp_CATCH_UP_REPLAY || len(r.GetRecords()) != 2 || r.GetRequest() != 7 {
		t.Fatalf("resumed %v", r)
	}
	if r := n1.resume(owned[1], r.GetHead(), alice); r.GetCatchUp() != link.CatchUp_CATCH_UP_CURRENT {
		t.Fatalf("resumed %v", r)
	}

	// Progress on a partition of which this link got nothing.
	_, far := log.append(bob, "3")
	n1.until("progress", func(m *link.FromBus) bool {
		for _, p := range m.GetPositions().GetPartitions() {
			if p.GetPartition() == 1 && p.GetHead().GetOffset() >= far && p.GetGeneration() == 1 {
				return true
			}
		}
		return false
	})

	n1.send(&link.Unsubscribe{Partition: 1, Accounts: []string{alice}})
	if r := n1.resume(owned[2], nil, accountIn(2, 4, 0)); r.GetCatchUp() != link.CatchUp_CATCH_UP_FRESH {
		t.Fatalf("resumed %v", r)
	}
	if names, owner := n.Subscribers(alice); len(names) != 0 || !owner {
		t.Errorf("after unsubscribe %v want alice (owner %t)", names, owner)
	}
	if names, _ := n.Subscribers(bob); len(names) != 1 || names[0] != "n2" {
		t.Errorf("%v want bob", names)
	}
	if err := n.Ready(context.Background()); err != nil {
		t.Error(err)
	}
	if _, err := reg.Gather(); err != nil {
		t.Error(err)
	}
}

func TestKeptPartitionIsNotInterrupted(t *testing.T) {
	log := newFakeLog(2)
	n, _ := startNode(t, Config{NodeID: "b1", Log: log})
	f := dial(t, n, "n1")
	log.assign(t, map[string][]int32{"b1": {0, 1}})
	owned := f.ownership(0, 1)
	a0 := accountIn(0, 2, 0)
	f.subscribe(owned[0], nil, a0)
	before := n.partitions[0].Load()

	log.assign(t, map[string][]int32{"b1": {0}})
	if again := f.ownership(0); again[0].GetGeneration() != 1 {
		t.Errorf("the generation of a kept partition is %d", again[0].GetGeneration())
	}
	log.append(a0, "x")
	if r := f.events(1)[0]; r.GetAccount() != a0 {
		t.Errorf("got %v", r)
	}
	log.assign(t, map[string][]int32{"b1": {0, 1}})
	if again := f.ownership(0, 1); again[0].GetGeneration() != 1 || again[1].GetGeneration() != 3 {
		t.Errorf("generations %v", again)
	}
	if n.partitions[0].Load() != before {
		t.Error("the partition was made anew")
	}
}

// TestTakeover moves a partition from one node to another while events flow. The
// notifier follows by position and misses nothing.
func TestTakeover(t *testing.T) {
	log := newFakeLog(1)
	b1, _ := startNode(t, Config{NodeID: "b1", Log: log, Linger: time.Hour})
	b2, _ := startNode(t, Config{NodeID: "b2", Log: log})
	l1, l2 := dial(t, b1, "n1"), dial(t, b2, "n1")
	alice := accountIn(0, 1, 0)
	log.assign(t, map[string][]int32{"b1": {0}, "b2": {}})
	owned := l1.ownership(0)
	l1.subscribe(owned[0], nil, alice)
	log.append(alice, "1")
	first := l1.events(1)[0]

	log.assign(t, map[string][]int32{"b1": {}, "b2": {0}})
	log.append(alice, "2")
	// The former owner still serves.
	if second := l1.events(1)[0]; second.GetOffset() <= first.GetOffset() {
		t.Fatalf("got %v", second)
	}
	owned = l2.ownership(0)
	if owned[0].GetGeneration() != 2 {
		t.Fatalf("owned %v", owned)
	}
	s, records := l2.subscribe(owned[0], &link.Offset{Epoch: 1000, Offset: first.GetOffset()}, alice)
	if s.GetCatchUp() != link.CatchUp_CATCH_UP_REPLAY || len(records) != 1 || records[0].GetOffset() <= first.GetOffset() {
		t.Fatalf("subscribed %v after %v", s, records)
	}
	log.append(alice, "3")
	if third := l2.events(1)[0]; third.GetOffset() <= records[0].GetOffset() {
		t.Fatalf("got %v", third)
	}

	// It comes back while it lingers: a new generation, the window kept.
	log.assign(t, map[string][]int32{"b1": {0}, "b2": {}})
	eventually(t, "generation 3", func() bool {
		p := b1.Partitions()
		return len(p) == 1 && p[0].Generation == 3
	})
	owned = l1.ownership(0)
	for owned[0].GetGeneration() != 3 {
		owned = l1.ownership(0)
	}
	s, records = l1.subscribe(owned[0], &link.Offset{Epoch: 1000, Offset: first.GetOffset()}, alice)
	if s.GetCatchUp() != link.CatchUp_CATCH_UP_REPLAY || len(records) != 2 {
		t.Fatalf("subscribed %v after %v", s, records)
	}
	l2.ownership()
}

// TestExpelledNodeComesBack: b1 was in no generation while b2 owned the partition, as a node that was stopped for longer than
// the session. What it serves again, it serves in the new generation: notifiers take an older one for one of the past.
func TestExpelledNodeComesBack(t *testing.T) {
	log := newFakeLog(1)
	b1, _ := startNode(t, Config{NodeID: "b1", Log: log})
	startNode(t, Config{NodeID: "b2", Log: log})
	f := dial(t, b1, "n1")
	log.assign(t, map[string][]int32{"b1": {0}})
	owned := f.ownership(0)[0]
	f.subscribe(owned, nil, accountIn(0, 1, 0))
	log.assign(t, map[string][]int32{"b2": {0}})
	log.assign(t, map[string][]int32{"b1": {0}, "b2": {}})
	for owned.GetGeneration() != 3 {
		owned = f.ownership(0)[0]
	}
	// Those who were subscribed have to do it again.
	log.append(accountIn(0, 1, 0), "1")
	if r := f.resume(owned, nil, accountIn(0, 1, 0)); r.GetCatchUp() != link.CatchUp_CATCH_UP_FRESH {
		t.Errorf("resumed %v", r)
	}
}

// TestSameGenerationAgain: a node that was out of touch for less than the session joins again and is told the generation that
// it is in. Whoever is subscribed stays so.
func TestSameGenerationAgain(t *testing.T) {
	log := newFakeLog(1)
	n, _ := startNode(t, Config{NodeID: "b1", Log: log})
	f := dial(t, n, "n1")
	alice := accountIn(0, 1, 0)
	log.assign(t, map[string][]int32{"b1": {0}})
	f.subscribe(f.ownership(0)[0], nil, alice)
	log.assignIn(t, 1, map[string][]int32{"b1": {0}})
	log.append(alice, "1")
	if r := f.events(1)[0]; r.GetAccount() != alice {
		t.Errorf("got %v", r)
	}
}

// TestGroupCountsAnew: the group was made anew and has come to the number that the node's generation had. What it serves is
// announced as gone in between, since the number does not tell.
func TestGroupCountsAnew(t *testing.T) {
	log := newFakeLog(1)
	n, _ := startNode(t, Config{NodeID: "b1", Log: log})
	f := dial(t, n, "n1")
	log.assignIn(t, 1, map[string][]int32{"b1": {0}})
	f.ownership(0)
	log.assignIn(t, 2, map[string][]int32{"b1": {0}})
	log.assignIn(t, 1, map[string][]int32{"b1": {0}})
	f.ownership()
	f.ownership(0)
}

// TestEndedPartitionBeginsAnew: the partition comes back in the moment in which its lingering ends.
func TestEndedPartitionBeginsAnew(t *testing.T) {
	log := newFakeLog(1)
	n, _ := startNode(t, Config{NodeID: "b1", Log: log, Linger: time.Hour})
	f := dial(t, n, "n1")
	log.assign(t, map[string][]int32{"b1": {0}})
	f.ownership(0)
	log.assign(t, map[string][]int32{"b1": {}})
	if !n.partitions[0].Load().end() {
		t.Fatal("it did not end")
	}
	log.assign(t, map[string][]int32{"b1": {0}})
	eventually(t, "a reader", func() bool { return n.Ready(context.Background()) == nil })
	for f.ownership(0)[0].GetGeneration() != 3 {
	}
	log.assign(t, map[string][]int32{"b1": {}})
	if err := n.Ready(context.Background()); err != nil {
		t.Errorf("not ready without a share: %v", err)
	}
	n.share.Store(1)
	if err := n.Ready(context.Background()); err == nil {
		t.Error("ready without the partition that it has to serve")
	}
}

func TestRestartRebuildsTheWindow(t *testing.T) {
	log := newFakeLog(1)
	alice := accountIn(0, 1, 0)
	if _, err := log.FindEpoch(context.Background(), 0); err != nil {
		t.Fatal(err)
	}
	_, first := log.append(alice, "1")
	log.append(alice, "2")
	log.append(alice, "2") // written twice
	log.append("bob", "3")
	n, _ := startNode(t, Config{NodeID: "b1", Log: log})
	log.assign(t, map[string][]int32{"b1": {0}})
	f := dial(t, n, "n1")
	owned := f.ownership(0)
	if owned[0].GetHead().GetOffset() != 4 {
		t.Errorf("owned at %v", owned[0])
	}
	s, records := f.subscribe(owned[0], &link.Offset{Epoch: 1000, Offset: first}, alice)
	if s.GetCatchUp() != link.CatchUp_CATCH_UP_REPLAY || len(records) != 1 {
		t.Errorf("subscribed %v after %v", s, records)
	}
}

func TestBackfillLetsCurrentReachBack(t *testing.T) {
	log := newFakeLog(1)
	alice, bob := accountIn(0, 1, 0), accountIn(0, 1, 1)
	if _, err := log.FindEpoch(context.Background(), 0); err != nil {
		t.Fatal(err)
	}
	_, at := log.append(alice, "a")
	for range 30 {
		log.append(bob, schema.NewID())
	}
	n, _ := startNode(t, Config{NodeID: "b1", Log: log, ReachRecords: 5})
	log.assign(t, map[string][]int32{"b1": {0}})
	f := dial(t, n, "n1")
	owned := f.ownership(0)
	eventually(t, "the backfill", func() bool { return n.Partitions()[0].Stats.IndexFloor < at })
	if r := f.resume(owned[0], &link.Offset{Epoch: 1000, Offset: at}, alice); r.GetCatchUp() != link.CatchUp_CATCH_UP_CURRENT {
		t.Errorf("alice: %v", r)
	}
	if r := f.resume(owned[0], &link.Offset{Epoch: 1000, Offset: at}, bob); r.GetCatchUp() != link.CatchUp_CATCH_UP_RESYNC {
		t.Errorf("bob: %v", r)
	}
}

func TestGapIsTold(t *testing.T) {
	log := newFakeLog(1)
	n, _ := startNode(t, Config{NodeID: "b1", Log: log})
	f := dial(t, n, "n1")
	log.assign(t, map[string][]int32{"b1": {0}})
	alice := accountIn(0, 1, 0)
	owned := f.ownership(0)
	f.subscribe(owned[0], nil, alice)
	_, at := log.append(alice, "1")
	f.events(1)
	log.hold(0, true)
	log.append(alice, "2")
	log.append(alice, "3")
	log.trim(0, at+2)
	log.hold(0, false)
	f.ownership()
	owned = f.ownership(0)
	if s, _ := f.subscribe(owned[0], &link.Offset{Epoch: 1000, Offset: at}, alice); s.GetCatchUp() != link.CatchUp_CATCH_UP_RESYNC {
		t.Errorf("subscribed %v", s)
	}
	_, last := log.append(alice, "4")
	eventually(t, "the last event", func() bool { return f.events(1)[0].GetOffset() == last })
}

func TestRecreatedTopicChangesTheEpoch(t *testing.T) {
	log := newFakeLog(1)
	n, _ := startNode(t, Config{NodeID: "b1", Log: log})
	f := dial(t, n, "n1")
	log.assign(t, map[string][]int32{"b1": {0}})
	alice := accountIn(0, 1, 0)
	owned := f.ownership(0)
	f.subscribe(owned[0], nil, alice)
	for range 5 {
		log.append(alice, schema.NewID())
	}
	f.events(5)
	log.recreate(0)
	f.ownership()
	owned = f.ownership(0)
	if e := owned[0].GetHead().GetEpoch(); e == 1000 || e == 0 {
		t.Errorf("the epoch is %d", e)
	}
	if s, _ := f.subscribe(owned[0], &link.Offset{Epoch: 1000, Offset: 2}, alice); s.GetCatchUp() != link.CatchUp_CATCH_UP_RESYNC {
		t.Errorf("subscribed %v", s)
	}
	log.append(alice, "again")
	f.events(1)
}

// TestEpochChangedElsewhere: between two times in which a node owns the partition, the topic is made anew, and another node
// names its epoch. There is more on it than there was.
func TestEpochChangedElsewhere(t *testing.T) {
	log := newFakeLog(1)
	n, _ := startNode(t, Config{NodeID: "b1", Log: log, ReachRecords: 5})
	f := dial(t, n, "n1")
	alice := accountIn(0, 1, 0)
	log.assign(t, map[string][]int32{"b1": {0}})
	f.ownership(0)
	_, at := log.append(alice, "1")
	log.assign(t, map[string][]int32{"b1": {}})
	f.ownership()
	log.recreate(0)
	epoch, err := log.FindEpoch(context.Background(), 0)
	if err != nil {
		t.Fatal(err)
	}
	for range 20 {
		log.append(accountIn(0, 1, 1), "")
	}
	log.assign(t, map[string][]int32{"b1": {0}})
	owned := f.ownership(0)[0]
	if owned.GetHead().GetEpoch() != epoch {
		t.Fatalf("owned %v, the epoch is %d", owned, epoch)
	}
	if s, _ := f.subscribe(owned, &link.Offset{Epoch: 1000, Offset: at}, alice); s.GetCatchUp() != link.CatchUp_CATCH_UP_RESYNC {
		t.Errorf("subscribed %v", s)
	}
}

func TestAnotherEpochOnTheLog(t *testing.T) {
	log := newFakeLog(1)
	n, _ := startNode(t, Config{NodeID: "b1", Log: log})
	f := dial(t, n, "n1")
	log.assign(t, map[string][]int32{"b1": {0}})
	alice := accountIn(0, 1, 0)
	owned := f.ownership(0)
	f.subscribe(owned[0], nil, alice)
	ctx := context.Background()
	// One that knew less is ignored, one that knew all counts.
	if _, err := log.WriteBeacon(ctx, 0, eventlog.Beacon{Epoch: 5, After: -1}); err != nil {
		t.Fatal(err)
	}
	log.append(alice, "1")
	f.events(1)
	_, next, _ := log.Bounds(ctx, 0)
	if _, err := log.WriteBeacon(ctx, 0, eventlog.Beacon{Epoch: 6, After: next - 1}); err != nil {
		t.Fatal(err)
	}
	f.ownership()
	if owned = f.ownership(0); owned[0].GetHead().GetEpoch() != 6 {
		t.Errorf("owned %v", owned)
	}
}

// TestStalledEnd: the last offsets of the log are none that a reader is given.
func TestStalledEnd(t *testing.T) {
	log := newFakeLog(1)
	if _, err := log.FindEpoch(context.Background(), 0); err != nil {
		t.Fatal(err)
	}
	log.append(accountIn(0, 1, 0), "1")
	log.change(func() { log.partitions[0].next += 3 })
	n, _ := startNode(t, Config{NodeID: "b1", Log: log})
	log.assign(t, map[string][]int32{"b1": {0}})
	if err := n.Ready(context.Background()); err == nil {
		t.Error("ready though not caught up")
	}
	eventually(t, "ownership", func() bool { return n.Ready(context.Background()) == nil })
}

func TestReadyAndRunErrors(t *testing.T) {
	log := newFakeLog(1)
	n, stop := startNode(t, Config{NodeID: "b1", Log: log})
	if err := n.Ready(context.Background()); err == nil || !strings.Contains(err.Error(), "group") {
		t.Errorf("Ready = %v before the first generation", err)
	}
	log.assign(t, map[string][]int32{"b1": {0}})
	eventually(t, "readiness", func() bool { return n.Ready(context.Background()) == nil })
	log.change(func() { log.pingErr = errTest })
	if err := n.Ready(context.Background()); !errors.Is(err, errTest) {
		t.Errorf("Ready = %v without brokers", err)
	}
	if err := n.Run(context.Background()); err == nil {
		t.Error("Run may be called twice")
	}
	stop()

	broken := newFakeLog(1)
	broken.joinErr = errTest
	n, err := New(Config{NodeID: "b1", Log: broken, LinkAddr: "127.0.0.1:0"})
	if err != nil {
		t.Fatal(err)
	}
	if err := n.Run(context.Background()); !errors.Is(err, errTest) {
		t.Errorf("Run = %v", err)
	}
}

func TestConfigValidate(t *testing.T) {
	good := Config{NodeID: "b1", Log: newFakeLog(1)}
	for _, tt := range []struct {
		name   string
		change func(*Config)
		want   string
	}{
		{"fine", func(*Config) {}, ""},
		{"no name", func(c *Config) { c.NodeID = "" }, "NodeID"},
		{"no log", func(c *Config) { c.Log = nil }, "Log"},
		{"bad address", func(c *Config) { c.LinkAddr = "7481" }, "host:port"},
		{"small queue", func(c *Config) { c.LinkQueueBytes = 10 }, "1 MiB"},
		{"negative window", func(c *Config) { c.WindowBytes = -1 }, "WindowBytes"},
		{"negative age", func(c *Config) { c.WindowAge = -1 }, "WindowAge"},
		{"negative session", func(c *Config) { c.SessionTTL = -1 }, "SessionTTL"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := good
			tt.change(&c)
			err := c.Validate()
			if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
				t.Errorf("Validate() = %v, want %q", err, tt.want)
			}
		})
	}
}

// TestNoEventIsSkipped is about records that some other producer put on the log: none may reach a client's frame.
func TestNoEventIsSkipped(t *testing.T) {
	log := newFakeLog(1)
	n, _ := startNode(t, Config{NodeID: "b1", Log: log})
	f := dial(t, n, "n1")
	log.assign(t, map[string][]int32{"b1": {0}})
	owned := f.ownership(0)[0]
	f.subscribe(owned, nil, "alice@example.com")
	key := []byte("alice@example.com")
	poison := [][]byte{nil, {}, []byte("null"), []byte("hello"), []byte(`["an","array"]`), []byte(`{"half":`),
		[]byte("{\"id\":\"\xff\xfe\"}"), []byte(`{}{}`), bytes.Repeat([]byte(" "), maxEvent+1)}
	for _, value := range poison {
		log.write(0, eventlog.Message{Key: key, Value: value, Time: time.Now()})
	}
	log.write(0, eventlog.Message{Value: eventJSON("alice@example.com", "no key"), Time: time.Now()})
	log.append("alice@example.com", "good")
	got := f.events(1)
	if id := string(schema.EventID(got[0].GetEvent())); len(got) != 1 || id != "good" {
		t.Errorf("%d records, the first is %q", len(got), got[0].GetEvent())
	}
	if skipped := testutil.ToFloat64(n.metrics.skipped); skipped != float64(len(poison)+1) {
		t.Errorf("%v records counted as skipped, want %d", skipped, len(poison)+1)
	}
}
