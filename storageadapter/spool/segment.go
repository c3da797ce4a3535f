package spool

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// A segment is a header and then frames, all numbers little-endian:
//
//	header  "mbspool1"
//	frame   u32 length of body | u32 CRC-32C of length and body | body
//	body    i64 Unix milliseconds | u16 length of key | key | value
const (
	segmentHeader      = "mbspool1"
	segmentHeaderBytes = int64(len(segmentHeader))
	segmentSuffix      = ".seg"
	frameHeaderBytes   = 8
	bodyHeaderBytes    = 10
	maxBodyBytes       = bodyHeaderBytes + MaxKeyBytes + MaxValueBytes
)

// errCorrupt: the bytes are no whole frame.
var errCorrupt = errors.New("no whole frame")

// castagnoli is the polynomial of CRC-32C.
var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// segment is one file of the spool.
type segment struct {
	seq     uint64
	path    string
	size    int64 // bytes of whole frames and the header
	records int   // not Done
}

// position is a place between two frames.
type position struct {
	seq uint64
	off int64
}

// file is what the committer writes to: the disk, or a failing one in tests.
type file interface {
	io.Writer
	Sync() error
	Truncate(size int64) error
	Close() error
}

// diskFile syncs with fdatasync, which also writes the file's length.
type diskFile struct{ *os.File }

func (f diskFile) Sync() error { return fdatasync(f.File) }

func createFile(path string) (file, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	return diskFile{f}, nil
}

func segmentPath(dir string, seq uint64) string {
	return filepath.Join(dir, fmt.Sprintf("%016x%s", seq, segmentSuffix))
}

// listSegments returns the numbers of the segments in dir, oldest first.
func listSegments(dir string) ([]uint64, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("spool: read folder: %w", err)
	}
	var seqs []uint64
	for _, e := range entries {
		name, ok := strings.CutSuffix(e.Name(), segmentSuffix)
		if !ok {
			continue
		}
		seq, err := strconv.ParseUint(name, 16, 64)
		if err != nil {
			return nil, fmt.Errorf("spool: read folder: %s is no segment: move it away", e.Name())
		}
		seqs = append(seqs, seq)
	}
	slices.Sort(seqs)
	return seqs, nil
}

// appendFrames appends the records' frames.
func appendFrames(dst []byte, now time.Time, recs []Record) ([]byte, error) {
	size := 0
	for i := range recs {
		r := &recs[i]
		if len(r.Key) > MaxKeyBytes || len(r.Value) > MaxValueBytes {
			return nil, fmt.Errorf("spool: append: record %d has a key of %d and a value of %d bytes, the limits are %d and %d",
				i, len(r.Key), len(r.Value), MaxKeyBytes, MaxValueBytes)
		}
		size += frameHeaderBytes + bodyHeaderBytes + len(r.Key) + len(r.Value)
	}
	dst = slices.Grow(dst, size)
	for i := range recs {
		dst = appendFrame(dst, now, &recs[i])
	}
	return dst, nil
}

func appendFrame(dst []byte, now time.Time, r *Record) []byte {
	start := len(dst)
	dst = binary.LittleEndian.AppendUint32(dst, uint32(bodyHeaderBytes+len(r.Key)+len(r.Value)))
	dst = binary.LittleEndian.AppendUint32(dst, 0) // the checksum
	dst = binary.LittleEndian.AppendUint64(dst, uint64(now.UnixMilli()))
	dst = binary.LittleEndian.AppendUint16(dst, uint16(len(r.Key)))
	dst = append(dst, r.Key...)
	dst = append(dst, r.Value...)
	binary.LittleEndian.PutUint32(dst[start+4:], frameSum(dst[start:]))
	return dst
}

// frameSum is the checksum of a frame: of everything but the checksum's own field.
func frameSum(frame []byte) uint32 {
	sum := crc32.Update(0, castagnoli, frame[:4])
	return crc32.Update(sum, castagnoli, frame[frameHeaderBytes:])
}

// frameBodyBytes returns the length of the body from a frame's header.
func frameBodyBytes(header []byte) (int, error) {
	n := binary.LittleEndian.Uint32(header)
	if n < bodyHeaderBytes || n > maxBodyBytes {
		return 0, errCorrupt
	}
	return int(n), nil
}

// decodeFrame reads the frame at the start of b. The record's value points into b.
func decodeFrame(b []byte) (r Record, at time.Time, n int, err error) {
	if len(b) < frameHeaderBytes {
		return Record{}, time.Time{}, 0, errCorrupt
	}
	body, err := frameBodyBytes(b)
	if err != nil || len(b) < frameHeaderBytes+body {
		return Record{}, time.Time{}, 0, errCorrupt
	}
	n = frameHeaderBytes + body
	frame := b[:n:n]
	if frameSum(frame) != binary.LittleEndian.Uint32(frame[4:]) {
		return Record{}, time.Time{}, 0, errCorrupt
	}
	ms := int64(binary.LittleEndian.Uint64(frame[frameHeaderBytes:]))
	keyLen := int(binary.LittleEndian.Uint16(frame[frameHeaderBytes+8:]))
	rest := frame[frameHeaderBytes+bodyHeaderBytes:]
	if keyLen > len(rest) {
		return Record{}, time.Time{}, 0, errCorrupt
	}
	return Record{Key: string(rest[:keyLen]), Value: rest[keyLen:]}, time.UnixMilli(ms), n, nil
}

// scanned is what scan found.
type scanned struct {
	first   time.Time // of the first record
	start   int       // where its frame begins
	end     int       // of the last whole frame
	records int
	holes   int // stretches between or before whole frames that are no frames; each was a record at least
}

// scan finds every whole frame in b, also behind bytes that are none. A frame's checksum makes it
// all but impossible to take other bytes for one.
func scan(b []byte) scanned {
	var s scanned
	for off := 0; off < len(b); {
		_, at, n, err := decodeFrame(b[off:])
		if err != nil {
			off++
			continue
		}
		if off > s.end {
			s.holes++
		}
		if s.records == 0 {
			s.first, s.start = at, off
		}
		s.records++
		off += n
		s.end = off
	}
	return s
}
