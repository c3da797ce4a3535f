package mailstore

import (
	"context"
	"sync"
	"sync/atomic"

	"github.com/mailbell/mailbell/bench/ledger"
)

// MemoryStore is the cheapest store there can be: one lookup in a map, and counters that are there already.
type MemoryStore struct {
	// Static after construction.
	byName map[string]*memoryAccount
	byID   []memoryAccount
	names  []string

	reads atomic.Int64
}

type memoryAccount struct {
	mu      sync.Mutex
	changes uint32 // guarded by mu
}

func newMemory(cfg Config) *MemoryStore {
	m := &MemoryStore{byName: make(map[string]*memoryAccount, cfg.Accounts), byID: make([]memoryAccount, cfg.Accounts), names: MailboxNames(cfg.Mailboxes)}
	for i := range m.byID {
		m.byName[ledger.AccountName(uint32(i))] = &m.byID[i]
	}
	return m
}

// Read implements Store.
func (m *MemoryStore) Read(_ context.Context, account string, have uint64, dst []Mailbox) (uint64, []Mailbox, error) {
	a := m.byName[account]
	if a == nil {
		return 0, nil, ErrNoAccount
	}
	m.reads.Add(1)
	a.mu.Lock()
	changes := a.changes
	a.mu.Unlock()
	version := uint64(changes) + 1
	if version == have {
		return version, nil, nil
	}
	for i, name := range m.names {
		box := Mailbox{Name: name, UIDValidity: UIDValidity, UIDNext: 1, ModSeq: 1}
		if i == 0 {
			box.UIDNext, box.Messages, box.Unseen, box.ModSeq = changes+1, changes, changes, version
		}
		dst = append(dst, box)
	}
	return version, dst, nil
}

// Change counts one more message.
func (m *MemoryStore) Change(account uint32) {
	if int(account) >= len(m.byID) {
		return
	}
	a := &m.byID[account]
	a.mu.Lock()
	a.changes++
	a.mu.Unlock()
}

// Reads implements Store.
func (m *MemoryStore) Reads() int64 { return m.reads.Load() }

// Close implements Store.
func (m *MemoryStore) Close() error { return nil }
