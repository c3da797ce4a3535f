package dovecot

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/mailbell/mailbell/storageadapter"
	"github.com/mailbell/mailbell/storageadapter/spool"
)

const (
	maxBatchRecords = 1000
	maxBatchBytes   = 1 << 20
	firstRetry      = 50 * time.Millisecond
	lastRetry       = 5 * time.Second
)

// Run publishes what was accepted, oldest first, until ctx ends; then it returns nil. It tries
// again for as long as the log can't be reached. It returns an error when the log's partition
// count changed or the spool's disk can't be read: a restart has to sort that out, and the
// events stay in the spool until then.
func (a *Agent) Run(ctx context.Context) error {
	for {
		recs, err := a.spool.Next(ctx, maxBatchRecords, maxBatchBytes)
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return fmt.Errorf("dovecot agent: %w", err)
		}
		if err := a.publish(ctx, recs); err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return fmt.Errorf("dovecot agent: %w", err)
		}
		a.spool.Done(len(recs))
	}
}

// publish returns when every record is on the log, or will never be.
func (a *Agent) publish(ctx context.Context, recs []spool.Record) error {
	pending := make([]storageadapter.Encoded, len(recs))
	for i := range recs {
		pending[i] = storageadapter.Encoded{Account: accountOf(recs[i]), JSON: recs[i].Value}
	}
	wait := firstRetry
	for failures := 0; len(pending) > 0; {
		_, err := a.cfg.Publisher.PublishEncoded(ctx, pending...)
		if err == nil {
			if failures > 0 {
				a.log.Info("the log takes events again", "attempts", failures+1)
			}
			return nil
		}
		if errors.Is(err, storageadapter.ErrPartitionsChanged) {
			return err
		}
		before := len(pending)
		pending = a.remaining(pending, err)
		if len(pending) < before {
			continue // it moves; the rest may well go through now
		}
		if failures++; failures == 1 {
			spooled, bytes := a.spool.Len()
			a.log.Warn("the log does not take events; they wait in the spool", "spooled", spooled, "bytes", bytes, "err", err)
		}
		a.metrics.retries.Inc()
		if err := sleep(ctx, wait/2+rand.N(wait/2)); err != nil {
			return err
		}
		wait = min(2*wait, lastRetry)
	}
	return nil
}

// remaining returns what is still to be published after err, in order. A record that the
// topic will never take is given up, so that it does not hold up all others.
func (a *Agent) remaining(pending []storageadapter.Encoded, err error) []storageadapter.Encoded {
	partial, ok := errors.AsType[*storageadapter.PartialError](err)
	if !ok {
		if len(pending) > 1 || !errors.Is(err, storageadapter.ErrTooLarge) {
			return pending
		}
		partial = &storageadapter.PartialError{Failed: map[int]error{0: err}}
	}
	var left []storageadapter.Encoded
	for i := range pending {
		failed := partial.Failed[i]
		switch {
		case failed == nil:
		case errors.Is(failed, storageadapter.ErrTooLarge):
			a.metrics.dropped.WithLabelValues(dropTooLarge).Inc()
			a.log.Error("gave up an event that the topic does not take", "account", pending[i].Account, "bytes", len(pending[i].JSON), "err", failed)
		default:
			left = append(left, pending[i])
		}
	}
	return left
}

func sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
