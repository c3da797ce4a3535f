package bus

import (
	"context"
	"sync"

	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/mailbell/mailbell/bus/routing"
)

// queue is what waits to be sent on one link. Writers append in order and never
// block; one goroutine takes everything at once, so what arrives while it sends is
// joined into as few messages as there can be, and what arrives while it is idle
// goes out at once.
//
// Full: add reports false and the link is cut; nothing more is taken.
type queue struct {
	// Static after construction.
	pool  mem.BufferPool
	limit int
	wake  chan struct{} // has one place: something waits

	mu sync.Mutex
	// Guarded by mu.
	frames []frame
	bytes  int           // in frames and not yet sent
	full   bool          // for good
	room   chan struct{} // closed when the queue is a quarter full or less; nil when nobody waits
}

func newQueue(pool mem.BufferPool, limit int) *queue {
	return &queue{pool: pool, limit: limit, wake: make(chan struct{}, 1)}
}

// add puts one output into the queue. It reports false when there is no room for it.
func (q *queue) add(partition int32, o *routing.Output) bool {
	q.mu.Lock()
	if !q.full {
		switch o.Kind {
		case routing.Delivery:
			q.addDeliveries(partition, o)
		case routing.Progress:
			if b := q.open(fromBusPositions, sizeOwned(partition, o)); b != nil {
				*b = appendOwned(*b, partition, o)
			}
		case routing.Resumed:
			if b := q.begin(fromBusResumed, sizeResumed(partition, o)); b != nil {
				*b = appendResumed(*b, partition, o)
			}
		}
	}
	ok := !q.full
	q.mu.Unlock()
	q.signal()
	return ok
}

// addDeliveries appends as many parts as it takes. Callers hold mu.
func (q *queue) addDeliveries(partition int32, o *routing.Output) {
	for from := 0; ; {
		part, next := nextPart(partition, o, from)
		b := q.open(fromBusDeliveries, part.size())
		if b == nil {
			return
		}
		*b = part.append(*b)
		if from = next; from == len(o.Records) {
			return
		}
	}
}

// addMessage puts a whole encoded message into the queue.
func (q *queue) addMessage(message []byte) bool {
	q.mu.Lock()
	b := q.begin(0, len(message))
	if b != nil {
		*b = append(*b, message...)
	}
	q.mu.Unlock()
	q.signal()
	return b != nil
}

// open returns a buffer to which size bytes of a repeated field are appended: the
// last frame if it is of that field and has room. It returns nil when the queue is full. Callers hold mu.
func (q *queue) open(field protowire.Number, size int) *[]byte {
	if n := len(q.frames); n > 0 && q.frames[n-1].field == field {
		last := &q.frames[n-1]
		if len(*last.body)+size <= maxPart+maxPart/2 {
			if q.bytes+size > q.limit {
				q.full = true
				return nil
			}
			q.bytes += size
			q.grow(last, size)
			return last.body
		}
	}
	return q.begin(field, size)
}

// begin adds a frame. Callers hold mu.
func (q *queue) begin(field protowire.Number, size int) *[]byte {
	if q.full || q.bytes+size > q.limit {
		q.full = true
		return nil
	}
	q.bytes += size
	b := q.pool.Get(size)
	*b = (*b)[:0]
	q.frames = append(q.frames, frame{field: field, body: b})
	return b
}

func (q *queue) grow(f *frame, size int) {
	need := len(*f.body) + size
	if need <= cap(*f.body) {
		return
	}
	b := q.pool.Get(max(need, 2*cap(*f.body)))
	*b = append((*b)[:0], *f.body...)
	q.pool.Put(f.body)
	f.body = b
}

func (q *queue) signal() {
	select {
	case q.wake <- struct{}{}:
	default:
	}
}

// take waits for something to send and takes all of it. into is reused.
func (q *queue) take(ctx context.Context, into []frame) ([]frame, error) {
	for {
		q.mu.Lock()
		if len(q.frames) > 0 {
			taken := q.frames
			q.frames = into[:0]
			q.mu.Unlock()
			return taken, nil
		}
		q.mu.Unlock()
		select {
		case <-q.wake:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// sent says that so many bytes have left.
func (q *queue) sent(bytes int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.bytes -= bytes
	if q.room != nil && q.bytes <= q.limit/4 {
		close(q.room)
		q.room = nil
	}
}

// waitRoom returns when the queue is at most a quarter full.
func (q *queue) waitRoom(ctx context.Context) error {
	q.mu.Lock()
	if q.bytes <= q.limit/4 {
		q.mu.Unlock()
		return nil
	}
	if q.room == nil {
		q.room = make(chan struct{})
	}
	room := q.room
	q.mu.Unlock()
	select {
	case <-room:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (q *queue) waiting() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.bytes
}
