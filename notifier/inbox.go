package notifier

import (
	"slices"
	"sync"

	"github.com/mailbell/mailbell/schema"
)

type opKind uint8

const (
	opSubscribe opKind = iota // a client's subscribe, checked
	opCancel                  // an unsubscribe that may concern a subscribe not yet answered
	opDrop                    // a subscription has ended
	opMissed                  // a slow client can be told what it missed
)

// op is what shards ask of the hub.
type op struct {
	kind         opKind
	sinceInvalid bool
	accountID    nameID // opDrop
	h            handle
	id           uint64
	account      schema.Account
	boxes        []schema.Mailbox
	since        *schema.Position
}

// inbox takes the shards' ops to the hub, in order. It never blocks a shard, and it is bounded by what
// it is about: an op a subscription, and a client's at most as often as its frame rate allows.
type inbox struct {
	wake chan struct{}

	mu sync.Mutex
	// Guarded by mu.
	ops []op
}

// spareOps is how long a slice of ops is kept for the next ones.
const spareOps = 1024

func newInbox() *inbox { return &inbox{wake: make(chan struct{}, 1)} }

func (b *inbox) post(o op) {
	b.mu.Lock()
	b.ops = append(b.ops, o)
	first := len(b.ops) == 1
	b.mu.Unlock()
	if first {
		select {
		case b.wake <- struct{}{}:
		default:
		}
	}
}

// take returns all ops; spare is a slice that take returned before and whose ops are done.
func (b *inbox) take(spare []op) []op {
	clear(spare)
	if cap(spare) > spareOps {
		spare = nil
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	ops := b.ops
	b.ops = spare[:0]
	return ops
}

// waiting returns a copy of the ops that have not been taken.
func (b *inbox) waiting() []op {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.ops)
}
