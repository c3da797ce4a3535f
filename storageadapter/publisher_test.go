package storageadapter

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/mailbell/mailbell/internal/eventlog"
	"github.com/mailbell/mailbell/schema"
)

func TestPublish(t *testing.T) {
	log := newMemoryLog(16)
	p := publisher(t, log)
	bob := event("2")
	bob.Account = "bob@example.com"
	positions, err := p.Publish(t.Context(), event("1"), bob, event("3"))
	if err != nil {
		t.Fatal(err)
	}
	for i, account := range []schema.Account{"alice@example.com", "bob@example.com", "alice@example.com"} {
		partition := int32(schema.PartitionOf(account, 16))
		want := schema.Position{Epoch: testEpoch + uint64(partition), Partition: partition, Offset: int64(i / 2)}
		if positions[i] != want {
			t.Errorf("event %d is at %v, want %v", i, positions[i], want)
		}
	}
	r := log.records[schema.PartitionOf("alice@example.com", 16)][0]
	if want := `{"id":"1","event":"MessageNew","account":"alice@example.com","mailbox":"INBOX","uidValidity":1424683682,"uidset":"5","timestamp":"2026-11-21T05:17:58Z"}`; string(r.Value) != want || r.Key != "alice@example.com" {
		t.Errorf("on the log: key %s, value %s", r.Key, r.Value)
	}
	if positions, err := p.Publish(t.Context()); err != nil || len(positions) != 0 {
		t.Errorf("no events: %v, %v", positions, err)
	}
}

func TestPublishRefusesAllForOne(t *testing.T) {
	log := newMemoryLog(4)
	bad := event("2")
	bad.UIDSet = ""
	_, err := publisher(t, log).Publish(t.Context(), event("1"), bad)
	wrong, ok := errors.AsType[*EventError](err)
	field, ok2 := errors.AsType[*schema.FieldError](err)
	if !ok || !ok2 || wrong.Index != 1 || field.Field != "uidset" || field.Example == "" {
		t.Fatalf("got %v", err)
	}
	if n := len(log.all()); n != 0 {
		t.Fatalf("%d events on the log", n)
	}
}

func TestPublishFailures(t *testing.T) {
	for _, c := range []struct {
		name    string
		breakIt func(*memoryLog)
		is      error
		reason  string
		placed  []bool // nil: no positions at all
	}{
		{"unavailable", func(l *memoryLog) {
			l.fail = func([]eventlog.Record) error { return fmt.Errorf("append: %w", ErrUnavailable) }
		}, ErrUnavailable, reasonUnavailable, nil},
		{"deadline", func(l *memoryLog) {
			l.fail = func([]eventlog.Record) error { return context.DeadlineExceeded }
		}, context.DeadlineExceeded, reasonUnavailable, nil},
		{"canceled", func(l *memoryLog) {
			l.fail = func([]eventlog.Record) error { return context.Canceled }
		}, context.Canceled, reasonCanceled, nil},
		{"partitions changed", func(l *memoryLog) {
			l.fail = func([]eventlog.Record) error { return ErrPartitionsChanged }
		}, ErrPartitionsChanged, reasonPartitions, nil},
		{"no epoch", func(l *memoryLog) { l.noEpoch = ErrUnavailable }, ErrUnavailable, reasonUnavailable, nil},
		{"log not there yet", func(l *memoryLog) { l.partitions = 0 }, ErrUnavailable, reasonUnavailable, nil},
		{"one too large", func(l *memoryLog) {
			l.fail = func([]eventlog.Record) error { return &PartialError{Failed: map[int]error{1: ErrTooLarge}} }
		}, ErrTooLarge, reasonTooLarge, []bool{true, false, true}},
	} {
		t.Run(c.name, func(t *testing.T) {
			log := newMemoryLog(4)
			c.breakIt(log)
			p, err := New(Config{Log: log, Registerer: prometheus.NewRegistry()})
			if err != nil {
				t.Fatal(err)
			}
			positions, err := p.Publish(t.Context(), event("1"), event("2"), event("3"))
			if !errors.Is(err, c.is) {
				t.Fatalf("got %v, want %v", err, c.is)
			}
			if len(positions) != len(c.placed) {
				t.Fatalf("positions %v", positions)
			}
			failed := 3
			for i, placed := range c.placed {
				if placed {
					failed--
				}
				if placed != (positions[i] != schema.Position{}) {
					t.Errorf("event %d: position %v", i, positions[i])
				}
			}
			if n := testutil.ToFloat64(p.metrics.failures.WithLabelValues(c.reason)); int(n) != failed {
				t.Errorf("%v failures with reason %s, want %d", n, c.reason, failed)
			}
			if n := testutil.ToFloat64(p.metrics.published); int(n) != 3-failed {
				t.Errorf("%v published", n)
			}
		})
	}
}

// TestPublishDeadline: a log that does not answer is an error, in time.
func TestPublishDeadline(t *testing.T) {
	p, err := New(Config{Log: silentLog{newMemoryLog(1)}, Timeout: 1})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.Publish(t.Context(), event("1")); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("got %v", err)
	}
}

// silentLog never answers.
type silentLog struct{ *memoryLog }

func (silentLog) Append(ctx context.Context, _ ...eventlog.Record) ([]eventlog.Appended, error) {
	<-ctx.Done()
	return nil, ctx.Err()
}

func TestPublisherConfig(t *testing.T) {
	for want, cfg := range map[string]Config{"no log": {}, "negative": {Log: newMemoryLog(1), Timeout: -1}} {
		if _, err := New(cfg); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
}

// TestPublishChurn: many publishers at a time; each one's events are on the log in its order.
func TestPublishChurn(t *testing.T) {
	const publishers, each = 16, 100
	log := newMemoryLog(4)
	p := publisher(t, log)
	var wg sync.WaitGroup
	for n := range publishers {
		wg.Go(func() {
			for i := 0; i < each; i += 2 {
				a, b := event(fmt.Sprintf("%d-%03d", n, i)), event(fmt.Sprintf("%d-%03d", n, i+1))
				a.Account = schema.Account(fmt.Sprint("user", n))
				b.Account = a.Account
				if _, err := p.Publish(t.Context(), a, b); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	last := make(map[string]string)
	for _, partition := range log.records {
		for _, r := range partition {
			e, err := schema.DecodeEvent(r.Value)
			if err != nil {
				t.Fatal(err)
			}
			if e.ID <= last[r.Key] {
				t.Fatalf("%s: %s after %s", r.Key, e.ID, last[r.Key])
			}
			last[r.Key] = e.ID
		}
	}
	if n := len(log.all()); n != publishers*each {
		t.Fatalf("%d events on the log", n)
	}
}

func TestDeferredLog(t *testing.T) {
	log := newMemoryLog(2)
	arrive := make(chan struct{})
	d := &DeferredLog{open: func(ctx context.Context) (OpenedLog, error) {
		select {
		case <-arrive:
			return log, nil
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}}
	p := publisher(t, d)
	if _, err := p.Publish(t.Context(), event("1")); !errors.Is(err, ErrUnavailable) {
		t.Fatalf("before the brokers are there: %v", err)
	}
	if err := d.Ping(t.Context()); !errors.Is(err, ErrUnavailable) {
		t.Fatalf("ping: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- d.Run(ctx) }()
	close(arrive)
	for d.Ping(t.Context()) != nil {
		select {
		case err := <-ended:
			t.Fatal(err)
		default:
		}
	}
	if _, err := p.Publish(t.Context(), event("1")); err != nil {
		t.Fatal(err)
	}
	cancel()
	if err := <-ended; err != nil || !log.closed {
		t.Fatalf("Run: %v, closed %v", err, log.closed)
	}

	d = &DeferredLog{open: func(context.Context) (OpenedLog, error) { return nil, ErrPartitionsChanged }}
	if err := d.Run(t.Context()); !errors.Is(err, ErrPartitionsChanged) {
		t.Fatalf("a log that can't be opened: %v", err)
	}
	log = newMemoryLog(2)
	log.ended = make(chan error, 1)
	log.ended <- fmt.Errorf("topic: %w", ErrPartitionsChanged)
	d = &DeferredLog{open: func(context.Context) (OpenedLog, error) { return log, nil }}
	if err := d.Run(t.Context()); !errors.Is(err, ErrPartitionsChanged) || !log.closed {
		t.Fatalf("a log that can never be used again: %v, closed %v", err, log.closed)
	}
	if _, err := publisher(t, d).Publish(t.Context(), event("1")); !errors.Is(err, ErrPartitionsChanged) {
		t.Fatalf("publish afterwards: %v", err)
	}
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	d = &DeferredLog{open: func(ctx context.Context) (OpenedLog, error) { return nil, ctx.Err() }}
	if err := d.Run(gone); err != nil {
		t.Fatalf("ended while it waited: %v", err)
	}
}

// nullLog answers at once, so that BenchmarkPublish measures the Publisher alone.
type nullLog struct{}

func (nullLog) Partitions() int                              { return 64 }
func (nullLog) Epoch(context.Context, int32) (uint64, error) { return testEpoch, nil }
func (nullLog) Append(_ context.Context, recs ...eventlog.Record) ([]eventlog.Appended, error) {
	return make([]eventlog.Appended, len(recs)), nil
}

func BenchmarkPublish(b *testing.B) {
	for _, n := range []int{1, 100} {
		b.Run(fmt.Sprintf("events=%d", n), func(b *testing.B) {
			p := publisher(b, nullLog{})
			events := make([]schema.Event, n)
			for i := range events {
				events[i] = event(schema.NewID())
				events[i].User, events[i].Service, events[i].Session = "alice@example.com", "imap", "PhnWe8JgYqF/AAAB"
			}
			b.ReportAllocs()
			for b.Loop() {
				if _, err := p.Publish(context.Background(), events...); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(b.N)*float64(n)/b.Elapsed().Seconds(), "events/s")
		})
	}
}
