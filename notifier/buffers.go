package notifier

import "math/bits"

// buffers are a shard's spare buffers by size, a power of two from 512 bytes to
// 64 KiB. At most 256 KiB are kept; the rest is left to the collector.
type buffers struct {
	free [8][][]byte
	kept int
}

const (
	minBuffer   = 512
	maxSpare    = 256 << 10
	bufferShift = 9 // of minBuffer
)

func bufferClass(size int) int {
	return max(0, bits.Len(uint(size-1))-bufferShift)
}

// get returns an empty buffer of at least that capacity.
func (b *buffers) get(size int) []byte {
	class := bufferClass(size)
	if class >= len(b.free) {
		return make([]byte, 0, size)
	}
	list := b.free[class]
	if n := len(list); n > 0 {
		buf := list[n-1]
		list[n-1] = nil
		b.free[class] = list[:n-1]
		b.kept -= cap(buf)
		return buf[:0]
	}
	return make([]byte, 0, minBuffer<<class)
}

// put takes a buffer back, if it is one of ours.
func (b *buffers) put(buf []byte) {
	size := cap(buf)
	if size < minBuffer || size&(size-1) != 0 || b.kept+size > maxSpare {
		return
	}
	class := bufferClass(size)
	if class >= len(b.free) {
		return
	}
	b.free[class] = append(b.free[class], buf)
	b.kept += size
}

// add appends p to buf, which moves to a larger buffer if it must.
func (b *buffers) add(buf, p []byte) []byte {
	if len(buf)+len(p) <= cap(buf) {
		return append(buf, p...)
	}
	larger := append(b.get(len(buf)+len(p)), buf...)
	b.put(buf)
	return append(larger, p...)
}
