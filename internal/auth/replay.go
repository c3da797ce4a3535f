package auth

import "time"

const (
	replayChunkBits = 4096
	replayChunks    = 512
	// A ticket that was used has expired when its chunk was last used so long ago:
	// no ticket is accepted that has longer to live.
	replayMemory = MaxTicketTTL + 2*ticketLeeway
)

// replayWindow remembers which tickets of one signer were used. A signer numbers
// its tickets, so a bit each is enough: 528 bytes per 4,096 tickets signed within
// the last minute, at most 512 of these chunks (270 KB for 2,097,152 tickets).
//
// When it is full, the oldest numbers fall out, and a ticket that falls behind
// them is refused as used although nobody can tell: its client asks the gateway again.
type replayWindow struct {
	chunks [replayChunks]*replayChunk // chunk n is at n % replayChunks
	top    uint64                     // highest chunk number seen
}

type replayChunk struct {
	number uint64
	last   time.Time // of use
	bits   [replayChunkBits / 64]uint64
}

// used reports whether the number was marked, or may have been.
func (w *replayWindow) used(seq uint64) bool {
	n := seq / replayChunkBits
	if n+replayChunks <= w.top {
		return true
	}
	c := w.chunks[n%replayChunks]
	if c == nil || c.number != n {
		return false
	}
	bit := seq % replayChunkBits
	return c.bits[bit/64]&(1<<(bit%64)) != 0
}

// mark remembers the number; the caller has found it unused.
func (w *replayWindow) mark(seq uint64, now time.Time) {
	n := seq / replayChunkBits
	c := w.chunks[n%replayChunks]
	if c == nil || c.number != n {
		w.forget(now)
		c = &replayChunk{number: n}
		w.chunks[n%replayChunks] = c
		w.top = max(w.top, n)
	}
	if now.After(c.last) {
		c.last = now
	}
	bit := seq % replayChunkBits
	c.bits[bit/64] |= 1 << (bit % 64)
}

// forget drops the chunks all of whose tickets have expired.
func (w *replayWindow) forget(now time.Time) {
	for i, c := range w.chunks {
		if c != nil && now.Sub(c.last) > replayMemory {
			w.chunks[i] = nil
		}
	}
}
