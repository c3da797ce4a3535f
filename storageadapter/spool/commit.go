package spool

import (
	"errors"
	"fmt"
	"syscall"
	"time"
)

// maxCommitBytes bounds what one write takes from the queue.
const maxCommitBytes = 4 << 20

// commitLoop is the committer. It returns when the spool is closed and its queue written.
func (s *Spool) commitLoop() {
	defer close(s.stopped)
	for {
		batches, frames, records := s.takeQueue()
		if len(batches) > 0 {
			err := s.commit(frames, records)
			for _, b := range batches {
				b.done <- err
			}
			continue
		}
		select {
		case <-s.wake:
		case <-s.stop:
			if s.queueEmpty() {
				return
			}
		}
	}
}

func (s *Spool) queueEmpty() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.queue) == 0
}

// takeQueue takes the batches that one write shall hold.
func (s *Spool) takeQueue() (taken []*batch, frames []byte, records int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	n, size := 0, 0
	for n < len(s.queue) && (n == 0 || size+len(s.queue[n].frames) <= maxCommitBytes) {
		size += len(s.queue[n].frames)
		n++
	}
	taken = append(taken, s.queue[:n]...)
	s.queue = append(s.queue[:0], s.queue[n:]...)
	if n == 1 {
		return taken, taken[0].frames, taken[0].records
	}
	frames = make([]byte, 0, size)
	for _, b := range taken {
		frames = append(frames, b.frames...)
		records += b.records
	}
	return taken, frames, records
}

// commit writes the frames, shows them to Next and syncs them. Next may have a record before
// the sync is over: to hand it on early harms nobody, to acknowledge it early would.
func (s *Spool) commit(frames []byte, records int) error {
	start := time.Now()
	err := s.write(frames, records)
	if err == nil {
		if err = s.active.Sync(); err != nil {
			s.damaged = true // which pages reached the disk is anyone's guess: never sync this file again
			err = fmt.Errorf("spool: sync: %w", err)
		}
	}
	if err != nil {
		s.metrics.refused.WithLabelValues(reasonDisk).Add(float64(records))
		if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
			return fmt.Errorf("%w: %w", ErrFull, err)
		}
		return err
	}
	s.metrics.appended.Add(float64(records))
	s.metrics.commit.Observe(time.Since(start).Seconds())
	return nil
}

func (s *Spool) write(frames []byte, records int) error {
	need := int64(len(frames))
	defer func() {
		s.mu.Lock()
		s.queued -= need
		s.mu.Unlock()
	}()
	if err := s.rotateFor(need); err != nil {
		return err
	}
	n, err := s.active.Write(frames)
	if err != nil {
		s.cutBack(n)
		return fmt.Errorf("spool: write: %w", err)
	}
	s.mu.Lock()
	active := s.segments[len(s.segments)-1]
	active.size += need
	active.records += records
	if s.records == 0 {
		s.oldestAt = time.Now()
	}
	s.records += records
	s.used += need
	s.mu.Unlock()
	poke(s.ready)
	return nil
}

// cutBack removes what a failed write left behind, or gives the segment up.
func (s *Spool) cutBack(written int) {
	if written == 0 {
		return
	}
	s.mu.Lock()
	size := s.segments[len(s.segments)-1].size
	s.mu.Unlock()
	if err := s.active.Truncate(size); err != nil {
		s.log.Warn("cut back a failed write: going on in a new segment", "err", err)
		s.damaged = true
	}
}

// rotateFor starts a new segment when the active one is full, damaged, or holds only
// records that are Done and could be removed.
func (s *Spool) rotateFor(need int64) error {
	s.mu.Lock()
	active := s.segments[len(s.segments)-1]
	used := active.size - segmentHeaderBytes
	full := used > 0 && active.size+need > s.cfg.SegmentBytes
	stale := s.records == 0 && active.size > s.cfg.SegmentBytes/4
	s.mu.Unlock()
	if !full && !stale && !s.damaged {
		return nil
	}
	next, f, err := s.newSegment(active.seq + 1)
	if err != nil {
		return err
	}
	_ = s.active.Close() // synced, or given up
	s.active, s.damaged = f, false
	s.mu.Lock()
	s.segments = append(s.segments, next)
	s.used += next.size
	s.popSegments()
	s.mu.Unlock()
	return nil
}
