package bus

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/mailbell/mailbell/internal/eventlog"
	"github.com/mailbell/mailbell/schema"
)

// fakeLog is a log in memory. The test plays the group's coordinator with assign.
type fakeLog struct {
	mu         sync.Mutex
	partitions []fakePartition
	changed    chan struct{} // closed and made anew at each change
	members    map[string]*fakeMember
	generation int64
	pingErr    error
	joinErr    error
}

type fakePartition struct {
	first    int64
	messages []eventlog.Message
	next     int64
	held     bool // readers get nothing for now

	recreated uint64 // how often
}

type fakeMember struct {
	cfg    eventlog.GroupConfig
	cancel context.CancelFunc
}

func newFakeLog(partitions int) *fakeLog {
	return &fakeLog{partitions: make([]fakePartition, partitions), changed: make(chan struct{}), members: map[string]*fakeMember{}}
}

// change runs fn and wakes all that wait.
func (l *fakeLog) change(fn func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	fn()
	close(l.changed)
	l.changed = make(chan struct{})
}

func (l *fakeLog) Partitions() int { return len(l.partitions) }

func (l *fakeLog) Ping(context.Context) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.pingErr
}

// FindEpoch makes up 1000 for partition 0, 1001 for the next, and so on, and others when they were made anew.
func (l *fakeLog) FindEpoch(ctx context.Context, id int32) (uint64, error) {
	l.mu.Lock()
	p := &l.partitions[id]
	var tracker eventlog.EpochTracker
	for _, m := range p.messages {
		if m.Beacon != nil {
			tracker.Observe(m.Offset, *m.Beacon)
		}
	}
	b := eventlog.Beacon{Epoch: 1000*(1+p.recreated) + uint64(id), After: p.next - 1}
	l.mu.Unlock()
	if epoch, known := tracker.Epoch(); known {
		return epoch, nil
	}
	_, err := l.WriteBeacon(ctx, id, b)
	return b.Epoch, err
}

func (l *fakeLog) WriteBeacon(_ context.Context, id int32, b eventlog.Beacon) (int64, error) {
	return l.write(id, eventlog.Message{Time: time.Now(), Beacon: &b}), nil
}

func (l *fakeLog) write(id int32, m eventlog.Message) (offset int64) {
	l.change(func() {
		p := &l.partitions[id]
		m.Offset = p.next
		p.next++
		p.messages = append(p.messages, m)
		offset = m.Offset
	})
	return offset
}

// append writes an event and returns its place.
func (l *fakeLog) append(account, id string) (partition int32, offset int64) {
	partition = schema.PartitionOf(schema.Account(account), len(l.partitions))
	return partition, l.write(partition, eventlog.Message{Key: []byte(account), Value: eventJSON(account, id), Time: time.Now()})
}

func eventJSON(account, id string) []byte {
	return fmt.Appendf(nil, `{"id":%q,"event":"MessageNew","account":%q,"mailbox":"INBOX"}`, id, account)
}

func (l *fakeLog) Bounds(_ context.Context, id int32) (first, next int64, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.partitions[id].first, l.partitions[id].next, nil
}

func (l *fakeLog) OffsetAt(_ context.Context, id int32, at time.Time) (int64, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	p := &l.partitions[id]
	for _, m := range p.messages {
		if !m.Time.Before(at) {
			return m.Offset, nil
		}
	}
	return p.next, nil
}

func (l *fakeLog) Read(ctx context.Context, id int32, from int64, fn func([]eventlog.Message) error) error {
	for {
		l.mu.Lock()
		p := &l.partitions[id]
		changed := l.changed
		var batch []eventlog.Message
		var gap *eventlog.GapError
		switch {
		case p.held:
		case from < p.first || from > p.next:
			gap = &eventlog.GapError{Partition: id, Want: from, First: p.first, Next: p.next}
		default:
			i, _ := slices.BinarySearchFunc(p.messages, from, func(m eventlog.Message, o int64) int { return int(m.Offset - o) })
			batch = slices.Clone(p.messages[i:min(len(p.messages), i+1000)])
		}
		l.mu.Unlock()
		switch {
		case ctx.Err() != nil:
			return nil
		case gap != nil:
			return gap
		case len(batch) > 0:
			from = batch[len(batch)-1].Offset + 1
			if err := fn(batch); err != nil {
				return err
			}
		default:
			select {
			case <-changed:
			case <-ctx.Done():
				return nil
			}
		}
	}
}

func (l *fakeLog) Join(ctx context.Context, cfg eventlog.GroupConfig) error {
	l.mu.Lock()
	err := l.joinErr
	l.mu.Unlock()
	if err != nil {
		return err
	}
	l.change(func() { l.members[cfg.NodeID] = &fakeMember{cfg: cfg, cancel: func() {}} })
	<-ctx.Done()
	l.change(func() {
		l.members[cfg.NodeID].cancel()
		delete(l.members, cfg.NodeID)
	})
	return nil
}

// assign makes a generation with these shares.
func (l *fakeLog) assign(t testing.TB, shares map[string][]int32) {
	t.Helper()
	l.assignIn(t, l.generation+1, shares)
}

// assignIn gives these shares in a generation, which may be the one that is.
func (l *fakeLog) assignIn(t testing.TB, generation int64, shares map[string][]int32) {
	t.Helper()
	eventually(t, "the members", func() bool {
		l.mu.Lock()
		defer l.mu.Unlock()
		for node := range shares {
			if l.members[node] == nil {
				return false
			}
		}
		return true
	})
	l.mu.Lock()
	defer l.mu.Unlock()
	l.generation = generation
	for node, share := range shares {
		m := l.members[node]
		m.cancel()
		ctx, cancel := context.WithCancel(context.Background())
		m.cancel = cancel
		m.cfg.OnAssigned(ctx, l.generation, share)
	}
}

// trim drops everything before an offset.
func (l *fakeLog) trim(id int32, first int64) {
	l.change(func() {
		p := &l.partitions[id]
		p.first = first
		p.messages = slices.DeleteFunc(p.messages, func(m eventlog.Message) bool { return m.Offset < first })
		p.next = max(p.next, first)
	})
}

// recreate empties the partition, as a topic made anew is.
func (l *fakeLog) recreate(id int32) {
	l.change(func() { l.partitions[id] = fakePartition{recreated: l.partitions[id].recreated + 1} })
}

func (l *fakeLog) hold(id int32, held bool) { l.change(func() { l.partitions[id].held = held }) }

var errTest = errors.New("as the test wants")

func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !ok(); time.Sleep(time.Millisecond) { // between two looks
		if time.Now().After(deadline) {
			t.Fatalf("waited 10 s for %s", what)
		}
	}
}
