package bus

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/mailbell/mailbell/internal/eventlog"
	"github.com/mailbell/mailbell/schema"
	"github.com/mailbell/mailbell/schema/link"
)

var _ Log = (*eventlog.Log)(nil)

// follower is a notifier that follows a few accounts from owner to owner.
type follower struct {
	t        *testing.T
	accounts map[uint32][]string
	at       map[uint32]*link.Offset // position by partition
	got      map[string]int          // events by id
}

// take plays the notifier's part for one message of one link.
func (f *follower) take(n *fakeNotifier, m *link.FromBus) {
	for _, p := range m.GetOwned().GetPartitions() {
		if accounts := f.accounts[p.GetPartition()]; len(accounts) > 0 {
			n.send(&link.Subscribe{Partition: p.GetPartition(), Generation: p.GetGeneration(), Accounts: accounts, After: f.at[p.GetPartition()]})
		}
	}
	if s := m.GetSubscribed(); s.GetCatchUp() == link.CatchUp_CATCH_UP_RESYNC {
		f.t.Errorf("resync: %v", s)
	} else if s != nil && f.at[s.GetPartition()] == nil && s.GetHead() != nil {
		f.at[s.GetPartition()] = s.GetHead()
	}
	for _, p := range m.GetDeliveries().GetPartitions() {
		for _, r := range p.GetRecords() {
			e, err := schema.DecodeEvent(r.GetEvent())
			if err != nil {
				f.t.Error(err)
			}
			f.got[e.ID]++
		}
		if at := f.at[p.GetPartition()]; at == nil || at.GetOffset() < p.GetUpto() {
			f.at[p.GetPartition()] = &link.Offset{Epoch: p.GetEpoch(), Offset: p.GetUpto()}
		}
	}
}

// TestOverTheEmbeddedLog runs two nodes on a real log with real groups; one of them leaves while events flow.
func TestOverTheEmbeddedLog(t *testing.T) {
	const partitions = 4
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	embedded, err := eventlog.StartEmbedded(ctx, eventlog.EmbeddedConfig{Dir: t.TempDir(), Partitions: partitions, Logger: quiet()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { embedded.Close() })
	open := func() *eventlog.Log {
		l, err := eventlog.Open(ctx, eventlog.Config{Brokers: embedded.Brokers(), Logger: quiet()})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { l.Close() })
		return l
	}
	writer := open()
	b1, stop1 := startNode(t, Config{NodeID: "b1", Log: open(), Linger: time.Second})
	b2, _ := startNode(t, Config{NodeID: "b2", Log: open(), Linger: time.Second})
	eventually(t, "both nodes to own all partitions together", func() bool {
		owned := map[int32]int{}
		for _, p := range append(b1.Partitions(), b2.Partitions()...) {
			if p.State == PartitionOwned {
				owned[p.Partition]++
			}
		}
		return len(owned) == partitions && len(b1.Partitions()) < partitions && len(b2.Partitions()) < partitions
	})

	f := &follower{t: t, accounts: map[uint32][]string{}, at: map[uint32]*link.Offset{}, got: map[string]int{}}
	var accounts []schema.Account
	for p := range int32(partitions) {
		a := accountIn(p, partitions, 0)
		accounts = append(accounts, schema.Account(a))
		f.accounts[uint32(p)] = []string{a}
	}
	l1, l2 := dial(t, b1, "n1"), dial(t, b2, "n1")
	for len(f.at) < partitions {
		select {
		case m := <-l1.in:
			f.take(l1, m)
		case m := <-l2.in:
			f.take(l2, m)
		case <-ctx.Done():
			t.Fatal("not subscribed everywhere")
		}
	}

	const events = 200
	var publisher sync.WaitGroup
	publisher.Go(func() {
		for i := range events {
			e := schema.Event{ID: fmt.Sprintf("e%d", i), Event: schema.MailboxCreate, Account: accounts[i%partitions], Mailbox: "New", Timestamp: time.Now()}
			b, err := e.Encode()
			if err != nil {
				t.Error(err)
			}
			if _, err := writer.Append(ctx, eventlog.Record{Key: string(e.Account), Value: b}); err != nil {
				t.Error(err)
			}
			if i == events/3 {
				go stop1()
			}
			time.Sleep(10 * time.Millisecond) // the pace of the events
		}
	})
	first := l1.in
	for len(f.got) < events {
		select {
		case m, ok := <-first:
			if !ok {
				first = nil
				continue
			}
			f.take(l1, m)
		case m := <-l2.in:
			f.take(l2, m)
		case <-ctx.Done():
			t.Fatalf("%d of %d events came", len(f.got), events)
		}
	}
	publisher.Wait() // an event may arrive before its publisher hears that it is on the log
	stop1()
}
