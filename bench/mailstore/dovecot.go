package mailstore

import (
	"container/list"
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"sync"
	"sync/atomic"

	"github.com/emersion/go-imap/v2"
	"github.com/emersion/go-imap/v2/imapclient"

	"github.com/mailbell/mailbell/bench/ledger"
)

// defaultSessions stays below Dovecot's default process_limit of its imap service, 1,024: each session is a process.
const defaultSessions = 200

// dovecotStore asks a real Dovecot: one LIST with the STATUS of every mailbox (RFC 5819) a poll, over sessions that
// are kept open. That is the best a webmail can do; one that logs in for every poll costs far more.
type dovecotStore struct {
	cfg   Config
	reads atomic.Int64

	// Free sessions' places. Whoever holds one may have a session open.
	mu       sync.Mutex
	room     *sync.Cond               // there may be a session to evict; of mu
	sessions map[string]*list.Element // guarded by mu; of *session
	recent   *list.List               // guarded by mu; the least recently used last
	closed   bool                     // guarded by mu
}

type session struct {
	account string
	users   int // guarded by dovecotStore.mu

	mu     sync.Mutex // one command at a time
	client *imapclient.Client
}

func newDovecot(cfg Config) *dovecotStore {
	if cfg.Sessions == 0 {
		cfg.Sessions = defaultSessions
	}
	d := &dovecotStore{cfg: cfg, sessions: make(map[string]*list.Element), recent: list.New()}
	d.room = sync.NewCond(&d.mu)
	return d
}

// Read implements Store. STATUS has no version of an account, so the version is a hash of the counters.
func (d *dovecotStore) Read(_ context.Context, account string, have uint64, dst []Mailbox) (uint64, []Mailbox, error) {
	s, err := d.borrow(account)
	if err != nil {
		return 0, nil, err
	}
	defer d.giveBack(s)
	s.mu.Lock()
	defer s.mu.Unlock()
	boxes, err := d.ask(s, dst)
	if err != nil { // a session that timed out: once more with a new one
		s.hangUp()
		if boxes, err = d.ask(s, dst); err != nil {
			s.hangUp()
			return 0, nil, err
		}
	}
	h := fnv.New64a()
	for _, b := range boxes {
		fmt.Fprintln(h, b.Name, b.UIDValidity, b.UIDNext, b.Messages, b.Unseen, b.ModSeq)
	}
	version := h.Sum64() | 1
	if version == have {
		return version, nil, nil
	}
	return version, boxes, nil
}

func (d *dovecotStore) ask(s *session, dst []Mailbox) ([]Mailbox, error) {
	if s.client == nil {
		c, err := imapclient.DialInsecure(d.cfg.IMAP, nil)
		if err != nil {
			return nil, fmt.Errorf("connect to IMAP: %w", err)
		}
		if err := c.Login(s.account, d.cfg.Password).Wait(); err != nil {
			c.Close()
			return nil, fmt.Errorf("log in to IMAP: %w", err)
		}
		s.client = c
	}
	cmd := s.client.List("", "*", &imap.ListOptions{ReturnStatus: &imap.StatusOptions{
		NumMessages: true, UIDNext: true, UIDValidity: true, NumUnseen: true, HighestModSeq: true,
	}})
	all, err := cmd.Collect()
	if err != nil {
		return nil, fmt.Errorf("ask IMAP for status: %w", err)
	}
	for _, l := range all {
		if l.Status == nil {
			continue
		}
		d.reads.Add(1)
		b := Mailbox{Name: l.Mailbox, UIDValidity: l.Status.UIDValidity, UIDNext: uint32(l.Status.UIDNext), ModSeq: l.Status.HighestModSeq}
		if n := l.Status.NumMessages; n != nil {
			b.Messages = *n
		}
		if n := l.Status.NumUnseen; n != nil {
			b.Unseen = *n
		}
		dst = append(dst, b)
	}
	return dst, nil
}

// borrow returns the account's session, a new one if it has none, for which another may have to go.
func (d *dovecotStore) borrow(account string) (*session, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for {
		if d.closed {
			return nil, errors.New("the store is closed")
		}
		if e := d.sessions[account]; e != nil {
			s := e.Value.(*session)
			s.users++
			d.recent.MoveToFront(e)
			return s, nil
		}
		if len(d.sessions) < d.cfg.Sessions || d.evict() {
			s := &session{account: account, users: 1}
			d.sessions[account] = d.recent.PushFront(s)
			return s, nil
		}
		d.room.Wait()
	}
}

// evict ends the least recently used session that nobody uses. Callers hold mu.
func (d *dovecotStore) evict() bool {
	for e := d.recent.Back(); e != nil; e = e.Prev() {
		if s := e.Value.(*session); s.users == 0 {
			delete(d.sessions, s.account)
			d.recent.Remove(e)
			s.hangUp()
			return true
		}
	}
	return false
}

func (d *dovecotStore) giveBack(s *session) {
	d.mu.Lock()
	defer d.mu.Unlock()
	s.users--
	d.room.Signal()
}

func (s *session) hangUp() {
	if s.client != nil {
		_ = s.client.Close()
		s.client = nil
	}
}

// Reads implements Store.
func (d *dovecotStore) Reads() int64 { return d.reads.Load() }

// Close ends all sessions. No Read may be under way.
func (d *dovecotStore) Close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.closed = true
	d.room.Broadcast()
	for d.evict() {
	}
	return nil
}

// FillDovecot makes the mailboxes of n accounts from one on, so that STATUS has something to say of them.
func FillDovecot(ctx context.Context, cfg Config, first, n uint32) error {
	for i := range n {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := fillAccount(cfg, ledger.AccountName(first+i)); err != nil {
			return fmt.Errorf("make mailboxes: %w", err)
		}
	}
	return nil
}

func fillAccount(cfg Config, account string) error {
	c, err := imapclient.DialInsecure(cfg.IMAP, nil)
	if err != nil {
		return err
	}
	defer c.Close()
	if err := c.Login(account, cfg.Password).Wait(); err != nil {
		return err
	}
	for _, name := range MailboxNames(cfg.Mailboxes)[1:] {
		if err := c.Create(name, nil).Wait(); err != nil {
			return err
		}
	}
	return c.Logout().Wait()
}
