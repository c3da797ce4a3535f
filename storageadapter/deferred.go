package storageadapter

import (
	"context"
	"fmt"
	"sync"

	"github.com/mailbell/mailbell/internal/eventlog"
)

// DeferredLog is a Log that need not be there yet. A process beside a mail store starts with it
// at once, and accepts events into its spool, while the brokers are still away; until they have
// been reached everything fails with [ErrUnavailable].
//
// Its one goroutine is the caller of Run.
type DeferredLog struct {
	open func(ctx context.Context) (OpenedLog, error)

	mu sync.RWMutex
	// Guarded by mu.
	log        OpenedLog // nil until opened, and when it was closed
	partitions int       // of it, also afterwards
	why        error     // it can never be used again; nil: it was not opened, or ctx ended
}

// OpenedLog is what a DeferredLog becomes: *eventlog.Log.
type OpenedLog interface {
	Log
	Ping(ctx context.Context) error
	// Wait returns an error when the log can never be used again, and nil when ctx ends.
	Wait(ctx context.Context) error
	Close() error
}

var errNotOpened = fmt.Errorf("no broker has been reached since the start: %w", ErrUnavailable)

// DeferLog returns the log of cfg, which Run opens.
func DeferLog(cfg KafkaConfig) *DeferredLog {
	return &DeferredLog{open: func(ctx context.Context) (OpenedLog, error) {
		log, err := eventlog.Open(ctx, cfg)
		if err != nil {
			return nil, err // not a nil *Log in an interface
		}
		return log, nil
	}}
}

// Run opens the log, waiting for its brokers, holds it until ctx ends, closes it and returns
// nil. It returns an error when the log can never be opened as configured, or never be used again.
func (d *DeferredLog) Run(ctx context.Context) error {
	log, err := d.open(ctx)
	if err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return err
	}
	d.set(log, nil)
	err = log.Wait(ctx)
	d.set(nil, err)
	if closed := log.Close(); err == nil {
		return closed
	}
	return err
}

func (d *DeferredLog) set(log OpenedLog, why error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.log, d.why = log, why
	if log != nil {
		d.partitions = log.Partitions()
	}
}

func (d *DeferredLog) opened() (OpenedLog, error) {
	d.mu.RLock()
	defer d.mu.RUnlock()
	switch {
	case d.log != nil:
		return d.log, nil
	case d.why != nil:
		return nil, d.why
	}
	return nil, errNotOpened
}

// Append implements Log.
func (d *DeferredLog) Append(ctx context.Context, recs ...eventlog.Record) ([]eventlog.Appended, error) {
	log, err := d.opened()
	if err != nil {
		return nil, err
	}
	return log.Append(ctx, recs...)
}

// Epoch implements Log.
func (d *DeferredLog) Epoch(ctx context.Context, partition int32) (uint64, error) {
	log, err := d.opened()
	if err != nil {
		return 0, err
	}
	return log.Epoch(ctx, partition)
}

// Partitions implements Log. It is 0 until the log has been opened.
func (d *DeferredLog) Partitions() int {
	d.mu.RLock()
	defer d.mu.RUnlock()
	return d.partitions
}

// Ping returns nil when the log can be reached just now.
func (d *DeferredLog) Ping(ctx context.Context) error {
	log, err := d.opened()
	if err != nil {
		return err
	}
	return log.Ping(ctx)
}
