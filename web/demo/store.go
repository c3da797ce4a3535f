package demo

import (
	"fmt"
	"hash/fnv"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/mailbell/mailbell/schema"
)

// inbox exists in every account. RFC 9051, section 5.1.
const inbox schema.Mailbox = "INBOX"

// trash is where deleted messages go.
const trash schema.Mailbox = "Trash"

// rememberedIDs bounds how many of its own events the store recognizes.
const rememberedIDs = 1024

// store holds the accounts. It never does I/O while it holds mu.
type store struct {
	// Static after newStore.
	cfg      Config
	instance string // in ETags: a restarted store never answers 304 for its predecessor

	mu sync.Mutex
	// Guarded by mu.
	accounts    map[schema.Account]*account
	clock       uint64 // counts uses, for "the longest unused"
	uidValidity uint32 // of the next mailbox
	own         map[string]struct{}
	ownRing     []string // own, in the order of their making
}

// account is one account's mailboxes.
type account struct {
	name schema.Account

	// order is held from the planning of an action to its application, across the publishing: the
	// order on the log is the order in the store. Readers share it, so that a page which its socket
	// told of a change finds the change. It is taken before store.mu.
	order sync.RWMutex

	// Guarded by store.mu.
	mailboxes map[schema.Mailbox]*mailbox
	version   uint64 // grows with every change
	usedAt    uint64
	loggedIn  bool
}

func newStore(cfg Config, now time.Time) *store {
	return &store{
		cfg:         cfg,
		instance:    strconv.FormatInt(now.UnixNano(), 36),
		accounts:    map[schema.Account]*account{},
		uidValidity: uint32(now.Unix()) + 1<<30,
		own:         map[string]struct{}{},
	}
}

// login returns the account, made and filled with samples if it is new.
func (s *store) login(name schema.Account, now time.Time) *account {
	s.mu.Lock()
	defer s.mu.Unlock()
	a := s.accounts[name]
	if a == nil {
		a = s.newAccount(name)
		s.seed(a, now)
	}
	for _, box := range []schema.Mailbox{inbox, "Archive", "Drafts", "Sent", trash} {
		s.ensure(a, box)
	}
	a.loggedIn = true
	s.touch(a)
	return a
}

// account returns a logged-in account, or nil.
func (s *store) account(name schema.Account) *account {
	s.mu.Lock()
	defer s.mu.Unlock()
	a := s.accounts[name]
	if a == nil || !a.loggedIn {
		return nil
	}
	s.touch(a)
	return a
}

func (s *store) touch(a *account) {
	s.clock++
	a.usedAt = s.clock
}

// newAccount makes an empty account, in the place of the longest unused one when there is no room.
func (s *store) newAccount(name schema.Account) *account {
	if len(s.accounts) >= s.cfg.MaxAccounts {
		var victim *account
		for _, a := range s.accounts {
			if victim == nil || unusedBefore(a, victim) {
				victim = a
			}
		}
		delete(s.accounts, victim.name)
	}
	a := &account{name: name, mailboxes: map[schema.Mailbox]*mailbox{}, version: 1}
	s.accounts[name] = a
	s.touch(a)
	return a
}

// unusedBefore puts accounts that nobody looked at before those that somebody did.
func unusedBefore(a, b *account) bool {
	if a.loggedIn != b.loggedIn {
		return b.loggedIn
	}
	return a.usedAt < b.usedAt
}

// ensure returns a mailbox, made if it isn't there, or nil when the account has its fill.
func (s *store) ensure(a *account, name schema.Mailbox) *mailbox {
	if box := a.mailboxes[name]; box != nil {
		return box
	}
	if len(a.mailboxes) >= s.cfg.MaxMailboxes {
		return nil
	}
	box := &mailbox{uidValidity: s.nextUIDValidity(), uidNext: 1, modSeq: 1, subscribed: true}
	a.mailboxes[name] = box
	return box
}

func (s *store) nextUIDValidity() uint32 {
	s.uidValidity++
	return s.uidValidity
}

// observe applies somebody else's event. Accounts that nobody logged in to are kept only while there is room.
func (s *store) observe(e *schema.Event) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ours := s.own[e.ID]; ours {
		return
	}
	a := s.accounts[e.Account]
	if a == nil {
		if len(s.accounts) >= s.cfg.MaxAccounts/2 {
			return
		}
		a = s.newAccount(e.Account)
	}
	s.apply(a, e, nil)
}

// apply makes the account what it is after the event.
func (s *store) apply(a *account, e *schema.Event, contents map[uint32]content) {
	a.version++
	switch e.Event {
	case schema.MailboxRename:
		s.rename(a, e)
	case schema.MailboxDelete:
		delete(a.mailboxes, e.Mailbox)
	case schema.MailboxSubscribe, schema.MailboxUnSubscribe:
		if box := s.ensure(a, e.Mailbox); box != nil {
			box.subscribed = e.Event == schema.MailboxSubscribe
			box.count(e)
		}
	case schema.MailboxCreate:
		if box := s.ensure(a, e.Mailbox); box != nil {
			box.count(e)
		}
	default:
		if e.Mailbox == "" {
			return
		}
		if box := s.ensure(a, e.Mailbox); box != nil {
			box.apply(e, contents, s.cfg.MaxMessages)
		}
	}
}

// rename moves a mailbox, and those below it with either of the usual separators.
func (s *store) rename(a *account, e *schema.Event) {
	for _, name := range slices.Sorted(maps.Keys(a.mailboxes)) {
		rest, below := strings.CutPrefix(string(name), string(e.OldMailbox))
		if name == inbox || !below || rest != "" && rest[0] != '/' && rest[0] != '.' {
			continue
		}
		box := a.mailboxes[name]
		delete(a.mailboxes, name)
		a.mailboxes[e.Mailbox+schema.Mailbox(rest)] = box
	}
	if box := s.ensure(a, e.Mailbox); box != nil {
		box.count(e)
	}
}

// remember marks events as the store's own, so that observe skips them.
func (s *store) remember(events []schema.Event) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, e := range events {
		if len(s.ownRing) >= rememberedIDs {
			delete(s.own, s.ownRing[0])
			s.ownRing = s.ownRing[1:]
		}
		s.own[e.ID] = struct{}{}
		s.ownRing = append(s.ownRing, e.ID)
	}
}

// etag names the account's state as seen from one mailbox.
func (s *store) etag(a *account, box schema.Mailbox) string {
	view := fnv.New32a()
	_, _ = io.WriteString(view, string(box))
	return fmt.Sprintf(`"%s-%x-%x"`, s.instance, a.version, view.Sum32())
}
