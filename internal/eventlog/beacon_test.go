package eventlog

import (
	"errors"
	"sync"
	"testing"
	"time"
)

func TestEpochTracker(t *testing.T) {
	type step struct {
		offset int64
		b      Beacon
		epoch  uint64 // afterwards
		change bool
	}
	tests := []struct {
		name  string
		steps []step
	}{
		{"first names it", []step{{0, Beacon{Epoch: 1, After: -1}, 1, true}, {50, Beacon{Epoch: 1, After: 49}, 1, false}}},
		{"of two at a time the first counts", []step{{0, Beacon{Epoch: 1, After: -1}, 1, true}, {1, Beacon{Epoch: 2, After: -1}, 1, false}, {2, Beacon{Epoch: 2, After: -1}, 1, false}}},
		{"a deliberate change", []step{{0, Beacon{Epoch: 1, After: -1}, 1, true}, {9, Beacon{Epoch: 2, After: 8}, 2, true}}},
		{"a change by someone who had read the beacon itself", []step{{3, Beacon{Epoch: 1, After: 2}, 1, true}, {4, Beacon{Epoch: 2, After: 3}, 2, true}}},
		{"of another incarnation", []step{{5, Beacon{Epoch: 1, After: 5}, 0, false}, {6, Beacon{Epoch: 1, After: 99}, 0, false}, {7, Beacon{Epoch: 2, After: 6}, 2, true}}},
		{"without an epoch", []step{{5, Beacon{After: 1}, 0, false}}},
		{"a loser seen first is corrected by the next repeat", []step{{10, Beacon{Epoch: 2, After: 8}, 2, true}, {60, Beacon{Epoch: 1, After: 59}, 1, true}}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var tr EpochTracker
			for i, s := range tt.steps {
				if got := tr.Observe(s.offset, s.b); got != s.change {
					t.Fatalf("step %d: change %v", i, got)
				}
				if epoch, ok := tr.Epoch(); epoch != s.epoch || ok != (s.epoch != 0) {
					t.Fatalf("step %d: epoch %d, %v, want %d", i, epoch, ok, s.epoch)
				}
			}
		})
	}
}

// newTopic opens a Log on a topic of its own, which has no beacons yet.
func newTopic(t testing.TB, e *Embedded, topic string, partitions int) *Log {
	t.Helper()
	return openLog(t, Config{Brokers: e.Brokers(), Topic: topic, Create: true, Partitions: partitions, ReplicationFactor: 1})
}

// Many who find no beacon at the same time agree on one epoch.
func TestEpochRace(t *testing.T) {
	e, _ := startEmbedded(t, EmbeddedConfig{})
	const callers = 8
	logs := make([]*Log, callers)
	for i := range logs {
		logs[i] = newTopic(t, e, "race", 4)
	}
	var got [4][callers]uint64
	var wg sync.WaitGroup
	for i, l := range logs {
		for p := range int32(4) {
			wg.Go(func() {
				epoch, err := l.Epoch(testContext(t, 20*time.Second), p)
				if err != nil {
					t.Error(err)
				}
				got[p][i] = epoch
			})
		}
	}
	wg.Wait()
	for p := range got {
		for i := range got[p] {
			if got[p][i] == 0 || got[p][i] != got[p][0] {
				t.Errorf("partition %d: epochs %v", p, got[p])
				break
			}
		}
	}
	late := newTopic(t, e, "race", 4)
	for p := range int32(4) {
		if epoch, err := late.Epoch(testContext(t, 10*time.Second), p); err != nil || epoch != got[p][0] {
			t.Errorf("partition %d: %d later, %v, want %d", p, epoch, err, got[p][0])
		}
	}
}

// The search finds a beacon far back, and a recreated topic has another epoch than before.
func TestEpochFarBackAndRecreated(t *testing.T) {
	e, _ := startEmbedded(t, EmbeddedConfig{})
	ctx := testContext(t, 60*time.Second)
	l := newTopic(t, e, "far", 1)
	epoch, err := l.Epoch(ctx, 0)
	if err != nil {
		t.Fatal(err)
	}
	for range 30 {
		if _, err := l.Append(ctx, benchRecords(1000, 1)...); err != nil {
			t.Fatal(err)
		}
	}
	other := newTopic(t, e, "far", 1)
	if again, err := other.Epoch(ctx, 0); err != nil || again != epoch {
		t.Fatalf("got %d, %v, want %d", again, err, epoch)
	}
	if err := e.cluster.DeleteTopic("far"); err != nil {
		t.Fatal(err)
	}
	after := newTopic(t, e, "far", 1)
	if again, err := after.Epoch(ctx, 0); err != nil || again == epoch || again == 0 {
		t.Fatalf("recreated: got %d, %v; before %d", again, err, epoch)
	}
	// Who has to be sure searches again, though it remembers and has seen nothing since.
	if again, err := other.FindEpoch(ctx, 0); err != nil || again == epoch || again == 0 {
		t.Fatalf("searched again: got %d, %v; before %d", again, err, epoch)
	}
	// Who still remembers the old incarnation notices by the offsets of what it appends.
	if _, err := l.Append(ctx, Record{Key: "a", Value: []byte("x")}); err != nil {
		t.Fatal(err)
	}
	want, _ := after.Epoch(ctx, 0)
	if again, err := l.Epoch(ctx, 0); err != nil || again != want {
		t.Fatalf("after appending to the new incarnation: got %d, %v, want %d", again, err, want)
	}
}

// A beacon remembers the partition count, so that a restart notices a change too.
func TestBeaconPartitions(t *testing.T) {
	e, _ := startEmbedded(t, EmbeddedConfig{})
	ctx := testContext(t, 20*time.Second)
	l := newTopic(t, e, "count", 2)
	if _, err := l.WriteBeacon(ctx, 0, Beacon{Epoch: 1, Partitions: 4, After: -1}); err != nil {
		t.Fatal(err)
	}
	_, err := Open(ctx, Config{Brokers: e.Brokers(), Topic: "count", Logger: quiet()})
	if !errors.Is(err, ErrPartitionsChanged) {
		t.Fatalf("got %v", err)
	}
	wantError(t, err, `topic "count" has 2 partitions and had 4`)
}

// A reader ends when its topic is deleted, rather than going on in the one that has its name next. What it reads of another
// epoch makes the Log search again.
func TestReadEndsWithItsTopic(t *testing.T) {
	e, _ := startEmbedded(t, EmbeddedConfig{})
	ctx := testContext(t, 30*time.Second)
	l := newTopic(t, e, "gone", 1)
	epoch, err := l.Epoch(ctx, 0)
	if err != nil {
		t.Fatal(err)
	}
	met, ended := make(chan Message, 10), make(chan error, 1)
	go func() {
		ended <- l.Read(ctx, 0, 0, func(batch []Message) error {
			for _, m := range batch {
				met <- m
			}
			return nil
		})
	}()
	<-met
	other := newTopic(t, e, "gone", 1)
	if _, err := other.WriteBeacon(ctx, 0, Beacon{Epoch: 5, After: 0}); err != nil {
		t.Fatal(err)
	}
	<-met
	if again, err := l.Epoch(ctx, 0); err != nil || again != 5 || epoch == 5 {
		t.Errorf("after another epoch was read: %d, %v; before %d", again, err, epoch)
	}
	if err := e.cluster.DeleteTopic("gone"); err != nil {
		t.Fatal(err)
	}
	if err := <-ended; !errors.Is(err, ErrTopicGone) {
		t.Errorf("the read ended with %v", err)
	}
}
