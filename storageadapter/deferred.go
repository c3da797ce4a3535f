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

	mu  sync.RWMutex
	log OpenedLog // nil until opened; guarded by mu
}

// OpenedLog is what a DeferredLog becomes: *eventlog.Log.
type OpenedLog interface {
	Log
	Ping(ctx context.Context) error
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
// nil. It returns an error when the log can never be opened as configured.
func (d *DeferredLog) Run(ctx context.Context) error {
	log, err := d.open(ctx)
	if err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return err
	}
	d.set(log)
	<-ctx.Done()
	d.set(nil)
	return log.Close()
}

func (d *DeferredLog) set(log OpenedLog) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.log = log
}

func (d *DeferredLog) opened() (OpenedLog, error) {
	d.mu.RLock()
	defer d.mu.RUnlock()
	if d.log == nil {
		return nil, errNotOpened
	}
	return d.log, nil
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
	log, err := d.opened()
	if err != nil {
		return 0
	}
	return log.Partitions()
}

// Ping returns nil when the log can be reached just now.
func (d *DeferredLog) Ping(ctx context.Context) error {
	log, err := d.opened()
	if err != nil {
		return err
	}
	return log.Ping(ctx)
}
