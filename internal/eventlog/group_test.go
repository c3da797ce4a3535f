package eventlog

import (
	"context"
	"slices"
	"sync"
	"testing"
	"time"
)

func discardAssigned(context.Context, int64, []int32) {}

// node is a member of a group under test.
type node struct {
	leave context.CancelFunc
	left  chan error

	mu          sync.Mutex
	owned       []int32 // guarded by mu; nil between generations
	generations []int64 // guarded by mu
}

func joinGroup(t testing.TB, l *Log, group, id string) *node {
	t.Helper()
	ctx, leave := context.WithCancel(context.Background())
	n := &node{leave: leave, left: make(chan error, 1)}
	go func() {
		n.left <- l.Join(ctx, GroupConfig{Group: group, NodeID: id, OnAssigned: func(ctx context.Context, generation int64, partitions []int32) {
			n.mu.Lock()
			n.owned = slices.Clone(partitions)
			n.generations = append(n.generations, generation)
			n.mu.Unlock()
			<-ctx.Done()
			n.mu.Lock()
			n.owned = nil
			n.mu.Unlock()
		}})
		close(n.left)
	}()
	t.Cleanup(func() {
		leave()
		for err := range n.left {
			if err != nil {
				t.Error(err)
			}
		}
	})
	return n
}

func (n *node) has() []int32 {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.Clone(n.owned)
}

// generation returns the latest one, 0 before the first.
func (n *node) generation() int64 {
	n.mu.Lock()
	defer n.mu.Unlock()
	if len(n.generations) == 0 {
		return 0
	}
	return n.generations[len(n.generations)-1]
}

// complete reports whether the nodes own all partitions, each of them once, in about equal shares.
func complete(partitions int, nodes ...*node) bool {
	var all []int32
	for _, n := range nodes {
		have := n.has()
		if len(have) < partitions/len(nodes) {
			return false
		}
		all = append(all, have...)
	}
	slices.Sort(all)
	return len(all) == partitions && len(slices.Compact(all)) == partitions
}

// testGroup lets nodes come and go on any Kafka.
func testGroup(t *testing.T, open func() *Log) {
	l := open()
	all := l.Partitions()
	a := joinGroup(t, l, "g", "bus-1")
	waitFor(t, func() bool { return complete(all, a) })
	b := joinGroup(t, open(), "g", "bus-2")
	waitFor(t, func() bool { return complete(all, a, b) })
	before := a.has()
	c := joinGroup(t, open(), "g", "bus-3")
	waitFor(t, func() bool { return complete(all, a, b, c) })
	first := a.generation()

	// A planned stop hands over at once, without waiting for the session to end.
	started := time.Now()
	c.leave()
	if err := <-c.left; err != nil {
		t.Fatal(err)
	}
	waitFor(t, func() bool { return complete(all, a, b) })
	if d := time.Since(started); d > 3*time.Second {
		t.Errorf("the hand-over took %v", d)
	} else {
		t.Logf("the hand-over took %v", d)
	}
	if !slices.Equal(a.has(), before) {
		t.Errorf("bus-1 has %v after bus-3 has left, before it came %v", a.has(), before)
	}
	if a.generation() <= first {
		t.Errorf("generation %d after %d", a.generation(), first)
	}
}

func TestGroupEmbedded(t *testing.T) {
	e, _ := startEmbedded(t, EmbeddedConfig{})
	testGroup(t, func() *Log { return openLog(t, Config{Brokers: e.Brokers()}) })
}

// Generations go on counting when everything was stopped, so that nobody takes a new owner for a stale one.
func TestGroupGenerationSurvivesRestart(t *testing.T) {
	dir := t.TempDir()
	last := int64(0)
	for range 3 {
		e, l := startEmbedded(t, EmbeddedConfig{Dir: dir})
		n := joinGroup(t, l, "g", "bus-1")
		waitFor(t, func() bool { return complete(16, n) })
		if g := n.generation(); g <= last {
			t.Fatalf("generation %d after %d", g, last)
		} else {
			last = g
		}
		n.leave()
		<-n.left
		l.Close()
		e.Close()
	}
}
