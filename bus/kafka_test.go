package bus

import (
	"context"
	"testing"
	"time"

	"github.com/mailbell/mailbell/internal/eventlog"
	"github.com/mailbell/mailbell/internal/kafkaproc"
	"github.com/mailbell/mailbell/schema/link"
)

// TestKafkaTakesAway: on Apache Kafka itself, retention passes what a client has not heard, and then the topic is deleted and
// made anew by somebody else. Both are told, with the node running all the time.
func TestKafkaTakesAway(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	kafka := kafkaproc.ClusterForTest(t, kafkaproc.Options{Brokers: 1})
	open := func() *eventlog.Log {
		t.Helper()
		l, err := eventlog.Open(ctx, eventlog.Config{Brokers: kafka.Brokers(), Create: true, Partitions: 1, Logger: quiet()})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { l.Close() })
		return l
	}
	alice := accountIn(0, 1, 0)
	writer := open()
	write := func(l *eventlog.Log, count int) (last int64) {
		t.Helper()
		for range count {
			at, err := l.Append(ctx, eventlog.Record{Key: alice, Value: eventJSON(alice, "")})
			if err != nil {
				t.Fatal(err)
			}
			last = at[0].Offset
		}
		return last
	}
	first := write(writer, 1)
	last := write(writer, 50)

	// Retention has passed the position, and the node begins after it.
	if err := kafka.DeleteRecords(ctx, writer.Topic(), 0, last); err != nil {
		t.Fatal(err)
	}
	n, _ := startNode(t, Config{NodeID: "b1", Log: open()})
	f := dial(t, n, "n1")
	owned := f.ownership(0)[0]
	epoch := owned.GetHead().GetEpoch()
	if s, _ := f.subscribe(owned, &link.Offset{Epoch: epoch, Offset: first}, alice); s.GetCatchUp() != link.CatchUp_CATCH_UP_RESYNC {
		t.Errorf("after retention: subscribed %v", s)
	}
	if r := f.resume(owned, &link.Offset{Epoch: epoch, Offset: first}, alice); r.GetCatchUp() != link.CatchUp_CATCH_UP_RESYNC {
		t.Errorf("after retention: resumed %v", r)
	}
	last = write(writer, 1)
	if r := f.events(1)[0]; r.GetOffset() != last {
		t.Errorf("got %v, want offset %d", r, last)
	}

	// The topic is deleted; another process makes it anew and writes more to it than there was.
	if err := kafka.DeleteTopic(ctx, writer.Topic()); err != nil {
		t.Fatal(err)
	}
	other := open()
	write(other, int(last)+100)
	for owned.GetHead().GetEpoch() == epoch {
		m := f.until("ownership", func(m *link.FromBus) bool { return m.GetOwned() != nil })
		if all := m.GetOwned().GetPartitions(); len(all) > 0 {
			owned = all[0]
		}
	}
	if s, _ := f.subscribe(owned, &link.Offset{Epoch: epoch, Offset: last}, alice); s.GetCatchUp() != link.CatchUp_CATCH_UP_RESYNC {
		t.Errorf("in another topic: subscribed %v", s)
	}
	if r := f.resume(owned, &link.Offset{Epoch: epoch, Offset: last}, alice); r.GetCatchUp() != link.CatchUp_CATCH_UP_RESYNC {
		t.Errorf("in another topic: resumed %v", r)
	}
	last = write(other, 1)
	for got := int64(-1); got < last; {
		came := f.events(1) // one message, which may hold several
		got = came[len(came)-1].GetOffset()
	}
	if again, err := writer.FindEpoch(ctx, 0); err != nil || again != owned.GetHead().GetEpoch() {
		t.Errorf("the epoch is %d, %v; the node says %d", again, err, owned.GetHead().GetEpoch())
	}
}
