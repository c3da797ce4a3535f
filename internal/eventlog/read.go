package eventlog

import (
	"context"
	"errors"
	"fmt"
	"time"

	kafka "github.com/segmentio/kafka-go"
)

// errStopped means that the reader's own function has ended the read, with reader.stopped.
var errStopped = errors.New("stopped")

// Read hands the records of partition to fn, from the offset from on, in order and in batches as they come, until ctx
// ends (then it returns nil) or fn returns an error (then that is returned). While the log cannot be reached it waits
// and tries again. It ends with a *GapError when the next offset is not on the log, and with ErrTopicGone when a topic that
// was there is not any more: if it comes back, it is another one.
//
// fn may keep keys and values, but not the slice of messages. While it runs nothing more than Config.ReadBuffer is
// read ahead. Control records of transactions take offsets without being handed on.
func (l *Log) Read(ctx context.Context, partition int32, from int64, fn func(batch []Message) error) error {
	if err := l.checkPartition(partition); err != nil {
		return fmt.Errorf("read: %w", err)
	}
	if from < 0 {
		return fmt.Errorf("read partition %d: offset %d is negative", partition, from)
	}
	r := &reader{log: l, partition: partition, next: from, fn: fn}
	readCtx, cancel := l.cluster.within(ctx)
	defer cancel()
	err := r.run(readCtx)
	switch failure := l.cluster.err(); {
	case failure != nil && (err == nil || errors.Is(err, context.Canceled)):
		return fmt.Errorf("read partition %d: %w", partition, failure)
	case ctx.Err() != nil:
		return nil
	}
	return err
}

// readRange hands the records from from to before to to fn.
func (l *Log) readRange(ctx context.Context, partition int32, from, to int64, fn func(*Message)) error {
	if from >= to {
		return nil
	}
	r := &reader{log: l, partition: partition, next: from}
	r.fn = func(batch []Message) error {
		for i := range batch {
			if batch[i].Offset < to {
				fn(&batch[i])
			}
		}
		return nil
	}
	r.to = to
	readCtx, cancel := l.cluster.within(ctx)
	defer cancel()
	err := r.run(readCtx)
	if err == nil && r.next < to {
		err = unavailable(context.Cause(readCtx))
	}
	return err
}

// reader is one Read: it registers with the fetcher of the partition's leader and decodes what that brings.
type reader struct {
	log       *Log
	partition int32
	next      int64 // the offset that comes next
	to        int64 // where to stop, 0 for never
	fn        func([]Message) error
	msgs      []Message
	met       bool  // a broker has answered that it has the partition
	stopped   error // what fn returned
}

func (r *reader) run(ctx context.Context) error {
	c := r.log.cluster
	for wait := (backoff{}); ctx.Err() == nil; {
		asked := time.Now()
		before := r.next
		err := r.follow(ctx)
		switch {
		case errors.Is(err, errStopped):
			return r.stopped
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, kafka.OffsetOutOfRange):
			err = r.gap(ctx)
			if err == nil {
				continue
			}
			return err
		case r.met && r.to == 0 && errors.Is(err, kafka.UnknownTopicOrPartition):
			return fmt.Errorf("read partition %d: %w: %w", r.partition, ErrTopicGone, err)
		case !retriable(err) && !errors.Is(err, ErrUnavailable):
			return err
		}
		if r.next != before {
			wait = backoff{}
		}
		r.log.log.Debug("read again", "partition", r.partition, "next", r.next, "err", err)
		if !wait.sleep(ctx) {
			return nil
		}
		_ = c.refresh(ctx, asked) // what is wrong with it shows in the next round
		if err := c.err(); err != nil {
			return fmt.Errorf("read partition %d: %w", r.partition, err)
		}
	}
	return nil
}

// follow reads from the present leader until something is wrong with it.
func (r *reader) follow(ctx context.Context) error {
	moved := r.log.cluster.moved()
	broker, _, ok := r.log.cluster.leader(r.partition)
	if !ok {
		return kafka.LeaderNotAvailable
	}
	f := newFeed(r.partition, r.next, r.log.cfg.ReadBuffer)
	if err := r.log.fetchers.attach(fetcherKey{broker: broker, past: r.to > 0}, f); err != nil {
		return err
	}
	defer r.log.fetchers.detach(f)
	defer func() { r.met = r.met || f.answered.Load() }()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-moved: // a leader that hangs answers no fetch, and another one is found long before that one counts as dead
			moved = r.log.cluster.moved()
			if now, _, ok := r.log.cluster.leader(r.partition); ok && now != broker {
				return kafka.NotLeaderForPartition
			}
		case chunk := <-f.chunks:
			if chunk.err != nil {
				return chunk.err
			}
			if err := r.decode(chunk.raw); err != nil {
				return err
			}
			r.log.fetchers.consumed(f, len(chunk.raw))
		}
	}
}

// decode hands on the records of whole batches.
func (r *reader) decode(raw []byte) error {
	m := r.log.metrics
	m.readBytes.Add(float64(len(raw)))
	r.msgs = r.msgs[:0]
	var failed error
	for len(raw) > 0 && failed == nil {
		var base, next int64
		msgs, base, next, rest, err := decodeBatch(r.msgs, raw, r.next)
		switch {
		case err != nil:
			failed = fmt.Errorf("read partition %d at offset %d: %w", r.partition, r.next, err)
		case base > r.next:
			m.gaps.WithLabelValues("skipped").Inc()
			failed = &GapError{Partition: r.partition, Want: r.next, First: base, Next: next}
		default:
			r.msgs, r.next = msgs, max(r.next, next)
		}
		raw = rest
	}
	m.readRecords.Add(float64(len(r.msgs)))
	if r.to == 0 {
		r.seeEpochs()
	}
	if len(r.msgs) > 0 {
		if r.stopped = r.fn(r.msgs); r.stopped != nil {
			return errStopped
		}
		clear(r.msgs) // so that they keep no memory
	}
	if failed == nil && r.to > 0 && r.next >= r.to {
		return errStopped
	}
	return failed
}

// seeEpochs makes the Log search for the epoch again when another one than it knows comes up.
func (r *reader) seeEpochs() {
	for i := range r.msgs {
		if m := &r.msgs[i]; m.Beacon != nil && m.Beacon.After < m.Offset {
			r.log.epochs.saw(r.partition, m.Beacon.Epoch)
		}
	}
}

// gap says what is missing after the broker no longer knew the next offset.
func (r *reader) gap(ctx context.Context) error {
	first, next, err := r.log.Bounds(ctx, r.partition)
	if err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return err
	}
	if first <= r.next && r.next <= next { // the log has caught up, or the answer was an old leader's
		return nil
	}
	gap := &GapError{Partition: r.partition, Want: r.next, First: first, Next: next}
	reason := "beyond"
	if gap.Trimmed() {
		reason = "trimmed"
	} else {
		r.log.epochs.forget(r.partition)
	}
	r.log.metrics.gaps.WithLabelValues(reason).Inc()
	return gap
}
