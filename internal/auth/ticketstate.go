package auth

import (
	"crypto/ed25519"
	"encoding/json"
	"fmt"
	"time"
)

// keyState is one key and its tickets used, as a notifier hands them to its successor.
type keyState struct {
	ID      string             `json:"id"`
	Public  ed25519.PublicKey  `json:"public"`
	Removed time.Time          `json:"removed,omitzero"`
	Top     uint64             `json:"top"`
	Chunks  []replayChunkState `json:"chunks"`
}

type replayChunkState struct {
	Number uint64                       `json:"number"`
	Last   time.Time                    `json:"last"`
	Bits   [replayChunkBits / 64]uint64 `json:"bits"`
}

// State returns the keys and which of their tickets were used: by key id, a text of at most some
// 700 KB. A ticket verified after that is not in it.
func (t *TicketKeys) State() (map[string][]byte, error) {
	all := make(map[string][]byte)
	have := t.keys.Load()
	if have == nil {
		return all, nil
	}
	for _, k := range *have {
		b, err := json.Marshal(k.state())
		if err != nil {
			return nil, fmt.Errorf("write ticket key %q: %w", k.id, err)
		}
		all[k.id] = b
	}
	return all, nil
}

func (k *ticketKey) state() keyState {
	k.mu.Lock()
	defer k.mu.Unlock()
	s := keyState{ID: k.id, Public: k.public, Removed: k.removed, Top: k.window.top}
	for _, c := range k.window.chunks {
		if c != nil {
			s.Chunks = append(s.Chunks, replayChunkState{Number: c.number, Last: c.last, Bits: c.bits})
		}
	}
	return s
}

// Restore makes a key of another process's State known, its used tickets added to those known
// as used here.
func (t *TicketKeys) Restore(state []byte) error {
	var s keyState
	if err := json.Unmarshal(state, &s); err != nil {
		return fmt.Errorf("read a ticket key: %w", err)
	}
	if len(s.Chunks) > replayChunks {
		return fmt.Errorf("read ticket key %q: %d chunks of used tickets, the limit is %d", s.ID, len(s.Chunks), replayChunks)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	next := t.clone(time.Now())
	header := ticketHeader(s.ID)
	_, known := next[header]
	if err := add(next, s.ID, s.Public); err != nil {
		return err
	}
	next[header].restore(&s, known)
	t.keys.Store(&next)
	return nil
}

func (k *ticketKey) restore(s *keyState, known bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if !known {
		k.removed = s.Removed
	}
	k.window.top = max(k.window.top, s.Top)
	for _, c := range s.Chunks {
		at := c.Number % replayChunks
		have := k.window.chunks[at]
		switch {
		case have == nil || have.number < c.Number:
			k.window.chunks[at] = &replayChunk{number: c.Number, last: c.Last, bits: c.Bits}
		case have.number == c.Number:
			for i, bits := range c.Bits {
				have.bits[i] |= bits
			}
			if c.Last.After(have.last) {
				have.last = c.Last
			}
		}
	}
}
