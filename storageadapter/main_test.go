package storageadapter

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/mailbell/mailbell/internal/eventlog"
	"github.com/mailbell/mailbell/schema"
)

var quiet = slog.New(slog.DiscardHandler)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const testEpoch = 0xabc

// memoryLog is a Log in memory that fails as told.
type memoryLog struct {
	partitions int

	mu      sync.Mutex
	records [][]eventlog.Record // by partition
	fail    func(recs []eventlog.Record) error
	noEpoch error
	closed  bool

	ended chan error // what Wait returns; nil: nothing
}

func newMemoryLog(partitions int) *memoryLog {
	return &memoryLog{partitions: partitions, records: make([][]eventlog.Record, partitions)}
}

func (l *memoryLog) Partitions() int            { return l.partitions }
func (l *memoryLog) Ping(context.Context) error { return nil }

func (l *memoryLog) Wait(ctx context.Context) error {
	select {
	case err := <-l.ended:
		return err
	case <-ctx.Done():
		return nil
	}
}

func (l *memoryLog) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed = true
	return nil
}

func (l *memoryLog) Epoch(_ context.Context, partition int32) (uint64, error) {
	return testEpoch + uint64(partition), l.noEpoch
}

func (l *memoryLog) Append(ctx context.Context, recs ...eventlog.Record) ([]eventlog.Appended, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	var err error
	if l.fail != nil {
		err = l.fail(recs)
	}
	partial, isPartial := errors.AsType[*PartialError](err)
	if err != nil && !isPartial {
		return nil, err
	}
	at := make([]eventlog.Appended, len(recs))
	for i, r := range recs {
		if isPartial && partial.Failed[i] != nil {
			continue
		}
		p := schema.PartitionOf(schema.Account(r.Key), l.partitions)
		r.Value = append([]byte(nil), r.Value...) // as a real log copies
		at[i] = eventlog.Appended{Partition: int32(p), Offset: int64(len(l.records[p]))}
		l.records[p] = append(l.records[p], r)
	}
	return at, err
}

func (l *memoryLog) all() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	var values []string
	for _, p := range l.records {
		for _, r := range p {
			values = append(values, string(r.Value))
		}
	}
	return values
}

func publisher(t testing.TB, log Log) *Publisher {
	t.Helper()
	p, err := New(Config{Log: log})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func event(id string) schema.Event {
	return schema.Event{ID: id, Event: schema.MessageNew, Account: "alice@example.com", Mailbox: "INBOX", UIDValidity: 1424683682,
		UIDSet: "5", Timestamp: time.Date(2026, 11, 21, 5, 17, 58, 0, time.UTC)}
}
