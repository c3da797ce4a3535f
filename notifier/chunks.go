package notifier

// Chunks hold 1,024 values each. A slice that doubles would for a moment need three times
// its memory; chunks are added one at a time and never move.
const (
	chunkShift = 10
	chunkLen   = 1 << chunkShift
	chunkMask  = chunkLen - 1
)

// chunks is an array that grows by whole chunks. Index 0 is never handed out, so that a
// zero index means "none". Values must not hold pointers: then the collector never looks into a chunk.
type chunks[T any] struct {
	parts []*[chunkLen]T
	next  uint32 // the first index never handed out
}

// at returns the value with the index, which must have come from grow.
func (c *chunks[T]) at(i uint32) *T { return &c.parts[i>>chunkShift][i&chunkMask] }

// grow hands out one more index.
func (c *chunks[T]) grow() uint32 {
	if c.next == 0 {
		c.next = 1
	}
	if int(c.next>>chunkShift) == len(c.parts) {
		c.parts = append(c.parts, new([chunkLen]T))
	}
	i := c.next
	c.next++
	return i
}

// has reports whether grow has handed out the index.
func (c *chunks[T]) has(i uint32) bool { return i != 0 && i < c.next }
