package spool

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	lockName  = "lock"
	headName  = "head"
	headBytes = 20 // u64 segment | u64 offset | u32 CRC-32C of both
)

// lockDir takes the folder for this process. The lock ends with the process, however it ends.
func lockDir(dir string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, lockName), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("spool: lock: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		holder, _ := io.ReadAll(io.LimitReader(f, 32))
		_ = f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("spool: %w: process %s has %s open: stop it, or give this one another folder",
				ErrLocked, strings.TrimSpace(string(holder)), dir)
		}
		return nil, fmt.Errorf("spool: lock %s: %w", dir, err)
	}
	if err := f.Truncate(0); err == nil {
		_, _ = fmt.Fprintf(f, "%d\n", os.Getpid()) // only for the message above
	}
	return f, nil
}

// recover reads what is in the folder and starts a new segment. It runs before the
// committer does.
func (s *Spool) recover() error {
	var err error
	s.headFile, err = os.OpenFile(filepath.Join(s.cfg.Dir, headName), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return fmt.Errorf("spool: open head: %w", err)
	}
	head := s.readHead()
	seqs, err := listSegments(s.cfg.Dir)
	if err != nil {
		return err
	}
	next := head.seq + 1
	for i, seq := range seqs {
		next = max(next, seq+1)
		if err := s.recoverSegment(seq, head, i == len(seqs)-1); err != nil {
			return err
		}
	}
	active, f, err := s.newSegment(next)
	if err != nil {
		return err
	}
	s.active = f
	s.segments = append(s.segments, active)
	s.used += active.size
	s.head = position{s.segments[0].seq, segmentHeaderBytes}
	if s.head.seq == head.seq {
		s.head.off = min(head.off, s.segments[0].size)
	}
	s.writeHead()
	return nil
}

// recoverSegment takes over a segment of an earlier run, or removes it when nothing in it
// is still needed. Only the newest one can end in what was being written at a crash; anything else
// that is no frame is damage, behind which whole frames are kept.
func (s *Spool) recoverSegment(seq uint64, head position, newest bool) error {
	path := segmentPath(s.cfg.Dir, seq)
	if seq < head.seq {
		return removeSegment(path)
	}
	b, err := os.ReadFile(path) // bounded by SegmentBytes and one commit
	if err != nil {
		return fmt.Errorf("spool: scan: %w", err)
	}
	off := segmentHeaderBytes
	if seq == head.seq {
		off = max(head.off, off)
	}
	if int64(len(b)) < segmentHeaderBytes {
		off = 0
	}
	off = min(off, int64(len(b)))
	found := scan(b[off:])
	end := off + int64(found.end)
	cut := int64(len(b)) - end
	lost := found.holes
	switch {
	case cut > 0 && newest:
		s.log.Warn("cut off the damaged end of a segment: what was being written when the machine or process stopped",
			"segment", path, "bytesCut", cut, "bytesKept", end)
	case cut > 0:
		lost++
	}
	if lost > 0 {
		s.metrics.damaged.Add(float64(lost))
		s.log.Error("the disk returns other bytes than were written: records of this segment are lost",
			"segment", path, "recordsLostAtLeast", lost, "recordsKept", found.records)
	}
	if found.records == 0 {
		return removeSegment(path)
	}
	if cut > 0 {
		if err := os.Truncate(path, end); err != nil {
			return fmt.Errorf("spool: cut damaged end: %w", err)
		}
	}
	if s.records == 0 {
		s.oldestAt = found.first
	}
	s.segments = append(s.segments, &segment{seq: seq, path: path, size: end, records: found.records})
	s.records += found.records
	s.used += end
	return nil
}

func removeSegment(path string) error {
	if err := os.Remove(path); err != nil {
		return fmt.Errorf("spool: remove segment: %w", err)
	}
	return nil
}

// newSegment makes an empty segment on the disk.
func (s *Spool) newSegment(seq uint64) (*segment, file, error) {
	path := segmentPath(s.cfg.Dir, seq)
	f, err := s.cfg.create(path)
	if err != nil {
		return nil, nil, fmt.Errorf("spool: new segment: %w", err)
	}
	if _, err = f.Write([]byte(segmentHeader)); err == nil {
		if err = f.Sync(); err == nil {
			err = syncDir(s.cfg.Dir)
		}
	}
	if err != nil {
		_ = f.Close()
		_ = os.Remove(path)
		return nil, nil, fmt.Errorf("spool: new segment: %w", err)
	}
	return &segment{seq: seq, path: path, size: segmentHeaderBytes}, f, nil
}

// readHead returns the saved head, or the zero position, which is before everything.
func (s *Spool) readHead() position {
	var b [headBytes]byte
	if _, err := s.headFile.ReadAt(b[:], 0); err != nil {
		return position{}
	}
	if crc32.Checksum(b[:16], castagnoli) != binary.LittleEndian.Uint32(b[16:]) {
		s.log.Warn("the saved place in the spool is damaged: records that were already handed on come again")
		return position{}
	}
	return position{binary.LittleEndian.Uint64(b[:]), int64(binary.LittleEndian.Uint64(b[8:]))}
}

// writeHead saves the head without waiting for the disk: losing it costs duplicates only.
func (s *Spool) writeHead() {
	var b [headBytes]byte
	binary.LittleEndian.PutUint64(b[:], s.head.seq)
	binary.LittleEndian.PutUint64(b[8:], uint64(s.head.off))
	binary.LittleEndian.PutUint32(b[16:], crc32.Checksum(b[:16], castagnoli))
	if _, err := s.headFile.WriteAt(b[:], 0); err != nil {
		s.log.Warn("save the place in the spool: after a restart some records come again", "err", err)
	}
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

func fdatasync(f *os.File) error {
	for {
		err := unix.Fdatasync(int(f.Fd()))
		if !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}
