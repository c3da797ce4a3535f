// Package mailstore is what the poll server of a bench asks: the counters of accounts' mailboxes, in memory, in
// SQLite, or in a real Dovecot over IMAP. What the store holds is changed by the bench, on the other side
// of a [Writer], in the same way whether clients poll or are pushed to.
//
// Every account has a number and a name (see package ledger) and the same mailboxes; a change is
// one new message in INBOX. So INBOX's UIDNEXT, less one, is the number of changes that a reader knows of.
//
// The package starts no goroutines of its own; database/sql and the IMAP client have theirs, which Close ends.
package mailstore

import (
	"context"
	"errors"
	"fmt"
)

// Mailbox is what IMAP's STATUS (RFC 9051, section 6.3.11) says of one.
type Mailbox struct {
	Name        string
	UIDValidity uint32
	UIDNext     uint32
	Messages    uint32
	Unseen      uint32
	ModSeq      uint64
}

// Store answers polls. It is safe for concurrent use.
type Store interface {
	// Read returns the version of an account and its mailboxes, appended to dst. If the version is the one that the
	// caller has, it may return no mailboxes, and do less. A version changes with every change of the
	// account, and is never 0.
	Read(ctx context.Context, account string, have uint64, dst []Mailbox) (version uint64, mailboxes []Mailbox, err error)
	// Reads returns how often the store behind was asked: a lookup in memory, a row or rows fetched, one
	// mailbox's STATUS.
	Reads() int64
	Close() error
}

// Writer makes changes.
type Writer interface {
	// Change delivers one message to INBOX and returns once a reader would see it.
	Change(ctx context.Context, account uint32) error
	Close() error
}

// ErrNoAccount is the answer to a name that the store does not know.
var ErrNoAccount = errors.New("no such account")

// Kinds of stores.
const (
	Memory  = "memory"
	SQLite  = "sqlite"
	Dovecot = "dovecot"
)

// Config says which store to open.
type Config struct {
	Kind      string `json:"kind"`
	Accounts  uint32 `json:"accounts"`
	Mailboxes int    `json:"mailboxes"`          // of each account, INBOX among them
	Path      string `json:"path,omitempty"`     // of SQLite's file
	IMAP      string `json:"imap,omitempty"`     // of Dovecot, host:port
	Password  string `json:"password,omitempty"` // of every user of Dovecot
	Sessions  int    `json:"sessions,omitempty"` // IMAP sessions kept open at most; 0 = 200
}

// Open opens a store for reading.
func Open(cfg Config) (Store, error) {
	if cfg.Accounts == 0 || cfg.Mailboxes < 1 || cfg.Mailboxes > 100 {
		return nil, fmt.Errorf("mail store: %d accounts with %d mailboxes: want accounts, and from 1 to 100 mailboxes", cfg.Accounts, cfg.Mailboxes)
	}
	switch cfg.Kind {
	case Memory:
		return newMemory(cfg), nil
	case SQLite:
		return openSQLite(cfg)
	case Dovecot:
		return newDovecot(cfg), nil
	}
	return nil, fmt.Errorf("mail store %q: want %s, %s or %s", cfg.Kind, Memory, SQLite, Dovecot)
}

// Inbox is the mailbox that changes.
const Inbox = "INBOX"

// UIDValidity is that of every mailbox but Dovecot's.
const UIDValidity = 1424683682

// MailboxNames returns the names of an account's mailboxes.
func MailboxNames(n int) []string {
	common := []string{Inbox, "Sent", "Drafts", "Junk", "Trash", "Archive"}
	for len(common) < n {
		common = append(common, fmt.Sprintf("Folder %d", len(common)-5))
	}
	return common[:n]
}
