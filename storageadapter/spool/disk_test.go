package spool

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"
)

// failingFile is a disk that fails as told.
type failingFile struct {
	file
	fail *failures
}

type failures struct {
	mu                       sync.Mutex
	write, sync, truncate    error
	partial                  int // bytes that reach the disk before write fails
	writes, syncs, truncates int
}

func (f *failures) set(change func(*failures)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change(f)
}

func (f failingFile) Write(b []byte) (int, error) {
	f.fail.mu.Lock()
	defer f.fail.mu.Unlock()
	f.fail.writes++
	if f.fail.write != nil {
		n, _ := f.file.Write(b[:min(len(b), f.fail.partial)])
		return n, f.fail.write
	}
	return f.file.Write(b)
}

func (f failingFile) Sync() error {
	f.fail.mu.Lock()
	defer f.fail.mu.Unlock()
	f.fail.syncs++
	if f.fail.sync != nil {
		return f.fail.sync
	}
	return f.file.Sync()
}

func (f failingFile) Truncate(n int64) error {
	f.fail.mu.Lock()
	defer f.fail.mu.Unlock()
	f.fail.truncates++
	if f.fail.truncate != nil {
		return f.fail.truncate
	}
	return f.file.Truncate(n)
}

func TestFailingDisk(t *testing.T) {
	broken := errors.New("I/O error")
	for _, c := range []struct {
		name     string
		fail     func(*failures)
		full     bool // the error is ErrFull
		mayStand bool // the refused record may come out all the same
	}{
		{"disk full", func(f *failures) { f.write = syscall.ENOSPC }, true, false},
		{"disk full half way", func(f *failures) { f.write, f.partial = syscall.ENOSPC, 9 }, true, false},
		{"write and cut fail", func(f *failures) { f.write, f.partial, f.truncate = broken, 9, broken }, false, false},
		{"sync fails", func(f *failures) { f.sync = broken }, false, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			fail := &failures{}
			cfg := Config{Dir: t.TempDir(), Logger: quiet, create: func(path string) (file, error) {
				f, err := createFile(path)
				return failingFile{f, fail}, err
			}}
			s := open(t, cfg)
			put(t, s, "before")
			fail.set(c.fail)
			err := s.Append(t.Context(), Record{Value: []byte("refused")})
			if err == nil || errors.Is(err, ErrFull) != c.full {
				t.Fatalf("got %v, ErrFull wanted: %v", err, c.full)
			}
			fail.set(func(f *failures) { f.write, f.sync, f.truncate = nil, nil, nil })
			put(t, s, "after")
			s.Close()
			s = open(t, Config{Dir: cfg.Dir})
			n, _ := s.Len()
			got := take(t, s, n)
			if i := slices.Index(got, "refused"); i >= 0 && c.mayStand {
				got = slices.Delete(got, i, i+1)
			}
			if !slices.Equal(got, []string{"before", "after"}) {
				t.Fatalf("got %v", got)
			}
		})
	}
}

func TestManyWritersShareASync(t *testing.T) {
	fail := &failures{}
	cfg := Config{Dir: t.TempDir(), Logger: quiet, create: func(path string) (file, error) {
		f, err := createFile(path)
		return failingFile{f, fail}, err
	}}
	s := open(t, cfg)
	fail.mu.Lock() // holds the first write until all others are queued
	var wg sync.WaitGroup
	for i := range 50 {
		wg.Go(func() {
			if err := s.Append(t.Context(), Record{Value: fmt.Append(nil, i)}); err != nil {
				t.Error(err)
			}
		})
	}
	for queued := 0; queued < 40; {
		s.mu.Lock()
		queued = len(s.queue)
		s.mu.Unlock()
		time.Sleep(100 * time.Microsecond) // between two looks
		if queued == 0 {                   // the committer may have taken all of the first ones
			s.mu.Lock()
			queued = int(s.queued / 20)
			s.mu.Unlock()
		}
	}
	before := fail.syncs
	fail.mu.Unlock()
	wg.Wait()
	if syncs := fail.syncs - before; syncs > 15 {
		t.Fatalf("%d syncs for 50 appends that waited together", syncs)
	}
	if got := take(t, s, 50); len(got) != 50 {
		t.Fatalf("got %d", len(got))
	}
}
