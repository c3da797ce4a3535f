package bus

import "sync"

// bufferPool lends the queues' buffers, in three sizes. Unlike gRPC's own it does
// not clear them: they are only ever appended to.
type bufferPool struct {
	pools [3]sync.Pool
}

// pooledSizes are the capacities: an event, a burst, a full message.
var pooledSizes = [3]int{4 << 10, 64 << 10, maxPart + maxPart/2}

// Get returns a buffer of that length.
func (p *bufferPool) Get(length int) *[]byte {
	for i, size := range pooledSizes {
		if length > size {
			continue
		}
		if b, ok := p.pools[i].Get().(*[]byte); ok {
			*b = (*b)[:length]
			return b
		}
		b := make([]byte, length, size)
		return &b
	}
	b := make([]byte, length)
	return &b
}

// Put takes a buffer back; one that Get did not make is left to the collector.
func (p *bufferPool) Put(b *[]byte) {
	for i, size := range pooledSizes {
		if cap(*b) == size {
			p.pools[i].Put(b)
			return // it may be someone else's by now
		}
	}
}
