// Package storageadapter turns what a mail store says into events and gets them into the
// log: by Go ([Publisher]), by HTTP ([Ingest]), and from Dovecot (package dovecot below it).
//
// Invariants:
//   - What Publish or the ingest reports as published is on the log, on every in-sync
//     replica. Nothing else is reported as published; after an error some events may be on
//     the log all the same, and publishing them again with the same id is harmless.
//   - An event is validated before it reaches the log, and one bad event of a call keeps
//     all of its events off it.
//   - Events of one account that one call brings reach the log in their order.
//
// The package starts no goroutines.
package storageadapter

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/mailbell/mailbell/internal/eventlog"
	"github.com/mailbell/mailbell/internal/trace"
	"github.com/mailbell/mailbell/schema"
)

// DefaultTimeout bounds a Publish whose context has no earlier deadline.
const DefaultTimeout = 10 * time.Second

// Errors of the log, for errors.Is.
var (
	// ErrUnavailable: the log can't be reached just now; publish again later.
	ErrUnavailable = eventlog.ErrUnavailable
	// ErrTooLarge: the topic does not take a record of this size; publishing again won't help.
	ErrTooLarge = eventlog.ErrTooLarge
	// ErrPartitionsChanged: the topic's partition count changed; stop every mailbell process, then start anew.
	ErrPartitionsChanged = eventlog.ErrPartitionsChanged
)

// PartialError says which records of one call are not on the log, by index. The others are.
type PartialError = eventlog.AppendError

// KafkaConfig says where the log is.
type KafkaConfig = eventlog.Config

// Log is what a Publisher writes to: *eventlog.Log, or one in memory in tests.
type Log interface {
	// Append returns after every in-sync replica has the records.
	Append(ctx context.Context, recs ...eventlog.Record) ([]eventlog.Appended, error)
	// Epoch names the incarnation of a partition.
	Epoch(ctx context.Context, partition int32) (uint64, error)
	// Partitions returns how many partitions there are; 0 while that is not known.
	Partitions() int
}

// Config of a Publisher. Only Log is needed.
type Config struct {
	Log     Log
	Timeout time.Duration // of a Publish; 0 means DefaultTimeout

	Tracer     *trace.Tracer         // nil: no event is followed
	Registerer prometheus.Registerer // nil means that no metrics are registered
}

// Validate says what is wrong with the configuration.
func (c *Config) Validate() error {
	switch {
	case c.Log == nil:
		return errors.New("publisher: no log given: open one first")
	case c.Timeout < 0:
		return fmt.Errorf("publisher: timeout %v is negative", c.Timeout)
	}
	return nil
}

// Publisher puts events on the log. Its methods are safe for concurrent use; many callers at
// a time share requests to the brokers.
type Publisher struct {
	log     Log
	timeout time.Duration
	metrics *publisherMetrics
	tracer  *trace.Tracer
}

// New makes a Publisher. It does not own the log, which its caller closes afterwards.
func New(cfg Config) (*Publisher, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if cfg.Timeout == 0 {
		cfg.Timeout = DefaultTimeout
	}
	return &Publisher{log: cfg.Log, timeout: cfg.Timeout, metrics: newPublisherMetrics(cfg.Registerer), tracer: cfg.Tracer}, nil
}

// OpenLog connects to the log of a KafkaConfig, waiting for its brokers while ctx lasts. Its
// caller closes it.
func OpenLog(ctx context.Context, cfg KafkaConfig) (*eventlog.Log, error) {
	return eventlog.Open(ctx, cfg)
}

// EventError says which event of a call is wrong and how. Nothing of the call was published.
type EventError struct {
	Index int
	Err   error // a *schema.FieldError
}

func (e *EventError) Error() string { return fmt.Sprintf("event %d: %v", e.Index, e.Err) }

// Unwrap returns what is wrong.
func (e *EventError) Unwrap() error { return e.Err }

// Encoded is an event that was validated and encoded before.
type Encoded struct {
	Account schema.Account
	JSON    []byte // what schema.Event.Encode returned
}

// Publish validates the events and puts them on the log, and returns the position of each
// once every in-sync replica has it. The error is an *[EventError] when an event is wrong, or
// one of the log's. When it wraps a *[PartialError] the positions of the events that are on
// the log are returned, and the others are zero; after any other error none is.
func (p *Publisher) Publish(ctx context.Context, events ...schema.Event) ([]schema.Position, error) {
	recs := make([]Encoded, len(events))
	for i := range events {
		b, err := events[i].Encode()
		if err != nil {
			p.metrics.failures.WithLabelValues(reasonInvalid).Add(float64(len(events)))
			return nil, fmt.Errorf("publish: %w", &EventError{Index: i, Err: err})
		}
		recs[i] = Encoded{Account: events[i].Account, JSON: b}
	}
	return p.PublishEncoded(ctx, recs...)
}

// PublishEncoded is [Publisher.Publish] for events that were validated before.
func (p *Publisher) PublishEncoded(ctx context.Context, events ...Encoded) ([]schema.Position, error) {
	if len(events) == 0 {
		return nil, nil
	}
	ctx, cancel := context.WithTimeout(ctx, p.timeout)
	defer cancel()
	start := time.Now()
	positions, failed, err := p.publish(ctx, events, start)
	if err != nil {
		p.metrics.failures.WithLabelValues(reasonOf(err)).Add(float64(failed))
		err = fmt.Errorf("publish: %w", err)
	}
	p.metrics.published.Add(float64(len(events) - failed))
	p.metrics.seconds.Observe(time.Since(start).Seconds())
	return positions, err
}

func (p *Publisher) publish(ctx context.Context, events []Encoded, start time.Time) (positions []schema.Position, failed int, err error) {
	// The epochs come first: without one there is no position to answer with, and an event must
	// not be on the log while its publisher hears of a failure that could be known before.
	partitions := p.log.Partitions()
	if partitions == 0 {
		return nil, len(events), errNotOpened
	}
	epochs := make(map[int32]uint64, 1)
	recs := make([]eventlog.Record, len(events))
	for i := range events {
		recs[i] = eventlog.Record{Key: string(events[i].Account), Value: events[i].JSON}
		partition := int32(schema.PartitionOf(events[i].Account, partitions))
		if _, known := epochs[partition]; known {
			continue
		}
		if epochs[partition], err = p.log.Epoch(ctx, partition); err != nil {
			return nil, len(events), err
		}
	}
	appending := time.Now()
	at, err := p.log.Append(ctx, recs...)
	partial, isPartial := errors.AsType[*PartialError](err)
	if err != nil && !isPartial {
		return nil, len(events), err
	}
	p.traced(trace.OnTheLog, events, partial, appending)
	p.traced(trace.Accepted, events, partial, start)
	positions = make([]schema.Position, len(events))
	for i := range at {
		if isPartial && partial.Failed[i] != nil {
			failed++
			continue
		}
		positions[i] = schema.Position{Epoch: epochs[at[i].Partition], Partition: at[i].Partition, Offset: at[i].Offset}
	}
	return positions, failed, err
}

// reasonOf names an error of the log for the metrics.
func reasonOf(err error) string {
	switch {
	case errors.Is(err, ErrPartitionsChanged):
		return reasonPartitions
	case errors.Is(err, ErrTooLarge):
		return reasonTooLarge
	case errors.Is(err, ErrUnavailable), errors.Is(err, context.DeadlineExceeded):
		return reasonUnavailable
	case errors.Is(err, context.Canceled):
		return reasonCanceled
	}
	return reasonOther
}
