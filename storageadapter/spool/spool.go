// Package spool keeps records on disk until someone has taken them further.
//
// A Spool is a first-in-first-out queue in a folder. Append returns once its records are
// on the disk (fsync); records come out of Next in the order in which they went in and stay
// until Done says that they are no longer needed. What Append acknowledged survives kill -9
// and a power cut; after either, some records that were already Done may come out again, so
// their readers must bear duplicates.
//
// Invariants:
//   - Nothing acknowledged is ever dropped: a full spool refuses new records with [ErrFull].
//   - The bytes on disk never exceed Config.MaxBytes.
//   - A half-written tail is cut off when the folder is opened, with a line in the log. Damage
//     anywhere else costs only the records whose bytes it hit; they are counted, and logged as an error.
//   - One process at a time holds the folder; a second one gets [ErrLocked].
//
// Goroutines: Open starts one, the committer, which writes and syncs what all callers of
// Append have queued meanwhile in one go; Close ends it. Append may be called by many
// goroutines, Next and Done by one.
package spool

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Errors that callers test for.
var (
	// ErrFull: the spool has no room, by its own limit or because the disk is full. What
	// was in the call is not in the spool.
	ErrFull = errors.New("spool is full")
	// ErrLocked: another process holds the folder.
	ErrLocked = errors.New("spool folder is in use")
	// ErrClosed: the spool was closed.
	ErrClosed = errors.New("spool is closed")
)

// Limits of a record and defaults of Config.
const (
	MaxKeyBytes         = 1 << 10
	MaxValueBytes       = 1 << 20
	DefaultMaxBytes     = 1 << 30
	defaultSegmentBytes = 8 << 20
	minSegmentBytes     = 4 << 10
	minMaxBytes         = 16 << 10
)

// Record is what the spool holds. The spool gives neither field a meaning.
type Record struct {
	Key   string // at most MaxKeyBytes
	Value []byte // at most MaxValueBytes
}

// Config of a Spool. Only Dir is needed.
type Config struct {
	Dir          string // made when missing, mode 0700
	MaxBytes     int64  // on disk; 0 means DefaultMaxBytes
	SegmentBytes int64  // a file is followed by the next at this size; 0 means MaxBytes/16, 4 KiB to 8 MiB

	Logger     *slog.Logger          // nil means slog.Default()
	Registerer prometheus.Registerer // nil means that no metrics are registered

	create func(path string) (file, error) // nil means createFile; a failing disk in tests
}

// Validate says what is wrong with the configuration.
func (c *Config) Validate() error {
	switch {
	case c.Dir == "":
		return errors.New("spool: no folder given: set its path")
	case c.MaxBytes < 0 || c.MaxBytes > 0 && c.MaxBytes < minMaxBytes:
		return fmt.Errorf("spool: limit of %d bytes is too small: give at least %d, or 0 for %d", c.MaxBytes, minMaxBytes, DefaultMaxBytes)
	case c.SegmentBytes < 0:
		return fmt.Errorf("spool: segment size %d is negative", c.SegmentBytes)
	}
	return nil
}

func (c *Config) setDefaults() {
	if c.MaxBytes == 0 {
		c.MaxBytes = DefaultMaxBytes
	}
	if c.SegmentBytes == 0 {
		c.SegmentBytes = min(max(c.MaxBytes/16, minSegmentBytes), defaultSegmentBytes)
	}
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
	if c.create == nil {
		c.create = createFile
	}
}

// Spool is the queue. Make one with Open.
type Spool struct {
	// Static after construction.
	cfg     Config
	log     *slog.Logger
	metrics *metrics
	lock    *os.File
	wake    chan struct{} // room for one: the committer has something to do
	ready   chan struct{} // room for one: Next has something to read
	stop    chan struct{} // closed by Close
	stopped chan struct{} // closed when the committer has ended

	// Owned by the committer.
	active  file
	damaged bool // the active segment failed; go on in a new one

	// Owned by the caller of Next and Done.
	taken  []position // where each record of the last Next ends
	reader segmentReader

	// Guarded by mu.
	mu       sync.Mutex
	closed   bool
	segments []*segment // oldest first; the last is the active one
	head     position   // of the oldest record that is not Done
	headFile *os.File
	records  int       // not Done
	oldestAt time.Time // when the oldest of them came; see oldestAge
	used     int64     // bytes on disk
	queue    []*batch
	queued   int64 // bytes in queue
}

// batch is one call of Append on its way to the disk.
type batch struct {
	frames  []byte
	records int
	done    chan error // room for one
}

// Open opens the folder, cuts off what a crash left half-written and starts the committer.
// It reads every segment once (about 1 s per GiB).
func Open(cfg Config) (*Spool, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	cfg.setDefaults()
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("spool: make folder: %w", err)
	}
	lock, err := lockDir(cfg.Dir)
	if err != nil {
		return nil, err
	}
	s := &Spool{
		cfg:     cfg,
		log:     cfg.Logger.With("spool", cfg.Dir),
		lock:    lock,
		wake:    make(chan struct{}, 1),
		ready:   make(chan struct{}, 1),
		stop:    make(chan struct{}),
		stopped: make(chan struct{}),
	}
	s.metrics = newMetrics(s)
	if err := s.recover(); err != nil {
		s.closeFiles()
		return nil, err
	}
	s.metrics.register(cfg.Registerer)
	if s.records > 0 {
		s.ready <- struct{}{}
		s.log.Info("records of an earlier run are waiting", "records", s.records, "bytes", s.used)
	}
	go s.commitLoop()
	return s, nil
}

// Append puts the records behind all others and returns when they are on the disk. All
// are, or the error says that none is acknowledged: [ErrFull] when there is no room. After
// an error of the disk or of ctx they may come out of Next all the same.
func (s *Spool) Append(ctx context.Context, recs ...Record) error {
	if len(recs) == 0 {
		return nil
	}
	frames, err := appendFrames(nil, time.Now(), recs)
	if err != nil {
		return err
	}
	b := &batch{frames: frames, records: len(recs), done: make(chan error, 1)}
	if err := s.enqueue(b); err != nil {
		return err
	}
	select {
	case err := <-b.done:
		return err
	case <-ctx.Done():
		return fmt.Errorf("spool: append: %w", ctx.Err())
	}
}

func (s *Spool) enqueue(b *batch) error {
	need := int64(len(b.frames))
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return fmt.Errorf("spool: append: %w", ErrClosed)
	}
	// A batch may need a new segment, whose header counts too.
	if s.used+s.queued+need+segmentHeaderBytes > s.cfg.MaxBytes {
		s.metrics.refused.WithLabelValues(reasonLimit).Add(float64(b.records))
		return fmt.Errorf("spool: append: %w: holds %d of %d bytes: raise its limit or bring back what it waits for",
			ErrFull, s.used+s.queued, s.cfg.MaxBytes)
	}
	s.queue = append(s.queue, b)
	s.queued += need
	poke(s.wake)
	return nil
}

// Len returns how many records are not Done, and the bytes on disk.
func (s *Spool) Len() (records int, bytes int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.records, s.used
}

// Close writes what is queued, ends the committer and gives the folder free. A Next that
// waits returns ErrClosed.
func (s *Spool) Close() error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil
	}
	s.closed = true
	s.mu.Unlock()
	close(s.stop)
	<-s.stopped
	s.metrics.unregister()
	s.closeFiles()
	return nil
}

func (s *Spool) closeFiles() {
	if s.active != nil {
		_ = s.active.Close() // synced by the committer; nothing is left to lose
	}
	s.reader.close()
	if s.headFile != nil {
		_ = s.headFile.Close()
	}
	_ = s.lock.Close() // gives up the lock
}

// poke puts a token into a channel with room for one.
func poke(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
