package auth

import (
	"fmt"
	"io"
	"os"
	"sync/atomic"
	"time"
)

const (
	maxSourceBytes = 1 << 20 // of a key set or a token file
	// fileCheckInterval is how soon a changed file is noticed.
	fileCheckInterval = time.Second
)

// watchedFile notices that a file has changed when it is asked, and looks at most
// once per interval.
type watchedFile struct {
	// Static after construction.
	path string

	next atomic.Int64 // unix nanoseconds: not looked at again before

	// Owned by whoever won next.
	stamp fileStamp
	good  bool // what was read last was taken
}

type fileStamp struct {
	modified time.Time
	size     int64
	info     os.FileInfo
}

// due reports whether the caller is the one to look now.
func (f *watchedFile) due(now time.Time) bool {
	next := f.next.Load()
	return now.UnixNano() >= next && f.next.CompareAndSwap(next, now.Add(fileCheckInterval).UnixNano())
}

// changed reports whether the file is another one, or has another size or time,
// than when it was read last, and whether it is there. A file that can't be looked at
// has not changed: it is being replaced, and what was read stays good.
func (f *watchedFile) changed() (changed, there bool) {
	info, err := os.Stat(f.path)
	if err != nil {
		return false, false
	}
	s := f.stamp
	return s.info == nil || !os.SameFile(s.info, info) || s.size != info.Size() || !s.modified.Equal(info.ModTime()), true
}

// read reads the file and remembers which one that was.
func (f *watchedFile) read() ([]byte, error) {
	file, err := os.Open(f.path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return nil, err
	}
	f.stamp = fileStamp{modified: info.ModTime(), size: info.Size(), info: info}
	return readAtMost(file, maxSourceBytes)
}

func readAtMost(r io.Reader, limit int64) ([]byte, error) {
	b, err := io.ReadAll(io.LimitReader(r, limit+1))
	if err != nil {
		return nil, err
	}
	if int64(len(b)) > limit {
		return nil, fmt.Errorf("has more than %d bytes", limit)
	}
	return b, nil
}
