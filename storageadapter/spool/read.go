package spool

import (
	"context"
	"fmt"
	"io"
	"os"
	"time"
)

// segmentReader keeps the oldest segment open between two calls of Next.
type segmentReader struct {
	seq uint64
	f   *os.File
}

func (r *segmentReader) open(seg segment) (*os.File, error) {
	if r.f != nil && r.seq == seg.seq {
		return r.f, nil
	}
	r.close()
	f, err := os.Open(seg.path)
	if err != nil {
		return nil, err
	}
	r.seq, r.f = seg.seq, f
	return f, nil
}

func (r *segmentReader) close() {
	if r.f != nil {
		_ = r.f.Close()
		r.f = nil
	}
}

// Next waits until there are records and returns the oldest ones, at least one and at most
// maxRecords of together at most maxBytes (but always one). They stay in the spool, and
// Next returns them again, until Done. Only one goroutine may call Next and Done.
func (s *Spool) Next(ctx context.Context, maxRecords, maxBytes int) ([]Record, error) {
	for {
		seg, head, err := s.oldest()
		if err != nil {
			return nil, err
		}
		if head.off < seg.size {
			recs, err := s.read(seg, head, maxRecords, maxBytes)
			if err != nil || len(recs) > 0 {
				return recs, err
			}
			continue // what was damaged is skipped
		}
		select {
		case <-s.ready:
		case <-s.stop:
			return nil, fmt.Errorf("spool: next: %w", ErrClosed)
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// oldest returns the oldest segment and the place of its first record that is not Done.
func (s *Spool) oldest() (segment, position, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return segment{}, position{}, fmt.Errorf("spool: next: %w", ErrClosed)
	}
	return *s.segments[0], s.head, nil
}

func (s *Spool) read(seg segment, head position, maxRecords, maxBytes int) ([]Record, error) {
	f, err := s.reader.open(seg)
	if err != nil {
		return nil, fmt.Errorf("spool: read: %w", err)
	}
	want := min(seg.size-head.off, int64(max(maxBytes, frameHeaderBytes)))
	buf := make([]byte, want)
	if _, err := f.ReadAt(buf, head.off); err != nil && err != io.EOF {
		return nil, fmt.Errorf("spool: read: %w", err)
	}
	var recs []Record
	s.taken = s.taken[:0]
	off := head.off
	for len(recs) < maxRecords && len(buf) > 0 {
		rec, at, n, err := decodeFrame(buf)
		if err != nil {
			if len(recs) > 0 {
				break // cut by maxBytes, or damaged: the next call tells
			}
			if buf, err = s.growFirst(f, buf, off, seg.size); err != nil {
				return nil, s.skipDamaged(f, seg, off)
			}
			continue
		}
		if len(recs) == 0 {
			s.mu.Lock()
			s.oldestAt = at
			s.mu.Unlock()
		}
		recs = append(recs, rec)
		off += int64(n)
		s.taken = append(s.taken, position{seg.seq, off})
		buf = buf[n:]
	}
	return recs, nil
}

// growFirst reads the whole of the first frame when buf holds only its beginning.
func (s *Spool) growFirst(f *os.File, buf []byte, off, size int64) ([]byte, error) {
	if len(buf) < frameHeaderBytes {
		return nil, errCorrupt
	}
	body, err := frameBodyBytes(buf)
	if err != nil {
		return nil, err
	}
	n := frameHeaderBytes + body
	if n <= len(buf) || off+int64(n) > size {
		return nil, errCorrupt
	}
	grown := make([]byte, n)
	if _, err := f.ReadAt(grown, off); err != nil {
		return nil, err
	}
	return grown, nil
}

// skipDamaged goes on behind bytes that are no frame. What recover found damaged is counted
// already and not among the segment's records.
func (s *Spool) skipDamaged(f *os.File, seg segment, off int64) error {
	b := make([]byte, seg.size-off)
	if _, err := f.ReadAt(b, off); err != nil && err != io.EOF {
		return fmt.Errorf("spool: read: %w", err)
	}
	rest := scan(b)
	if lost := seg.records - rest.records; lost > 0 {
		s.log.Error("the disk returns other bytes than were written: records of this segment are lost",
			"segment", seg.path, "offset", off, "recordsLost", lost, "recordsKept", rest.records)
		s.metrics.damaged.Add(float64(lost))
	}
	to := seg.size
	if rest.records > 0 {
		to = off + int64(rest.start)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.advance(position{seg.seq, to}, seg.records-rest.records)
	return nil
}

// advance moves the head over n records. Its caller holds mu.
func (s *Spool) advance(to position, n int) {
	s.head = to
	s.segments[0].records -= n
	s.records -= n
	s.popSegments()
	s.writeHead()
}

// popSegments removes segments that hold nothing but what is Done; never the active one.
// Its caller holds mu.
func (s *Spool) popSegments() {
	for len(s.segments) > 1 && s.segments[0].records == 0 {
		old := s.segments[0]
		if err := os.Remove(old.path); err != nil {
			s.log.Warn("remove a segment that is done: it goes at the next start", "err", err)
		}
		s.used -= old.size
		s.segments = append(s.segments[:0], s.segments[1:]...)
		s.head = position{s.segments[0].seq, segmentHeaderBytes}
	}
}

// Done removes the first n records of the last Next.
func (s *Spool) Done(n int) {
	if n < 0 || n > len(s.taken) {
		panic(fmt.Sprintf("spool: Done(%d) after a Next of %d records", n, len(s.taken)))
	}
	if n == 0 {
		return
	}
	s.mu.Lock()
	s.advance(s.taken[n-1], n)
	s.mu.Unlock()
	s.taken = append(s.taken[:0], s.taken[n:]...)
}

// oldestAge is how long the oldest record has waited, 0 when there is none. Between a Done and
// the next Next it is the age of the last record that was taken, which is older.
func (s *Spool) oldestAge() time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.records == 0 {
		return 0
	}
	return max(0, time.Since(s.oldestAt))
}
