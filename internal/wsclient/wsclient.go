// Package wsclient is a client of mailbell.v1: it finds a notifier by way of the
// gateway, subscribes, and comes back by position whenever the connection is gone.
//
// A Client is for programs that follow accounts (`mailbell watch`, tests). Conn, and below
// it ParseFrame and AppendFrame, are for benches with many connections.
//
// Invariants:
//   - A Client hands out each event of an account at most once as long as positions can
//     be compared (one epoch), in the log's order.
//   - Between two events that it hands out nothing was left out, unless a Missed, or a
//     Subscribed with Fresh or Resync, stands between them.
//   - It never tries again without a random delay, and never before the server said.
//
// Goroutines: none. Whoever calls Next drives the client.
package wsclient

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/mailbell/mailbell/schema"
)

// Config says where to connect and as whom.
type Config struct {
	// URL is a socket's address (ws or wss), reached directly with Token.
	URL string
	// Gateways are URLs of /v1/connect (http or https), tried in turn. Either these
	// or URL.
	Gateways []string
	// Token is the user's JWT or, with Account, a service token.
	Token string
	// NewToken, unless nil, is asked for a token instead, whenever one is needed.
	NewToken func(context.Context) (string, error)
	// Account, unless empty, is the user on whose behalf the gateway is asked with
	// a service token (POST).
	Account schema.Account
	// Origin is sent to the socket, unless empty.
	Origin string
	// TLS for https and wss; nil means the system's roots.
	TLS *tls.Config
	// Dialer makes the TCP connections; nil means a plain one.
	Dialer *net.Dialer
	// ConnectTimeout bounds asking the gateway, and then the handshake; 0 means 10 s.
	ConnectTimeout time.Duration
	// BackoffBase and BackoffMax: the n-th attempt in a row waits a random time up to
	// base·2ⁿ, at most max; 0 means 500 ms and 30 s.
	BackoffBase, BackoffMax time.Duration
	// PingInterval is after how much silence the client asks whether the server is
	// there; 0 means 60 s. PingTimeout is how long it waits for a sign; 0 means 10 s.
	PingInterval, PingTimeout time.Duration
	// Logger hears of attempts at level debug; nil means slog.Default().
	Logger *slog.Logger
}

// Validate tells what is wrong with c, if anything.
func (c Config) Validate() error {
	if (c.URL == "") == (len(c.Gateways) == 0) {
		return errors.New("wsclient: want either a URL (ws://host:7480/v1/ws) or gateways (http://host:8480/v1/connect)")
	}
	if c.URL != "" && !strings.HasPrefix(c.URL, "ws://") && !strings.HasPrefix(c.URL, "wss://") {
		return fmt.Errorf("wsclient: URL %q: want ws:// or wss://", c.URL)
	}
	for _, g := range c.Gateways {
		if !strings.HasPrefix(g, "http://") && !strings.HasPrefix(g, "https://") {
			return fmt.Errorf("wsclient: gateway %q: want http:// or https://", g)
		}
	}
	if c.Account != "" {
		if len(c.Gateways) == 0 {
			return errors.New("wsclient: a service token is for gateways, not for a socket")
		}
		if err := c.Account.Validate(); err != nil {
			return fmt.Errorf("wsclient: the account %w", err)
		}
	}
	if min(c.ConnectTimeout, c.BackoffBase, c.BackoffMax, c.PingInterval, c.PingTimeout) < 0 {
		return errors.New("wsclient: durations must not be negative")
	}
	return nil
}

func (c Config) withDefaults() Config {
	for _, d := range []struct {
		value *time.Duration
		or    time.Duration
	}{
		{&c.ConnectTimeout, 10 * time.Second},
		{&c.BackoffBase, 500 * time.Millisecond},
		{&c.BackoffMax, 30 * time.Second},
		{&c.PingInterval, time.Minute},
		{&c.PingTimeout, 10 * time.Second},
	} {
		if *d.value == 0 {
			*d.value = d.or
		}
	}
	if c.Dialer == nil {
		c.Dialer = &net.Dialer{}
	}
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
	return c
}

// Kind says what an Update is about.
type Kind string

// The kinds of Update.
const (
	Connected    Kind = "connected"    // subscriptions are being asked for again
	Disconnected Kind = "disconnected" // Err says why, After when the next attempt is
	Subscribed   Kind = "subscribed"   // CatchUp says what happened since
	Unsubscribed Kind = "unsubscribed"
	Event        Kind = "event"
	Missed       Kind = "missed"  // ask the store, once After has passed
	Refused      Kind = "refused" // the subscription is over: Code and Message say why
	Moving       Kind = "moving"  // the server wants this client elsewhere After
)

// Update is something that the server said or that happened to the connection.
type Update struct {
	Kind     Kind
	Account  schema.Account
	Position schema.Position // of Subscribed, Event and Missed
	CatchUp  schema.CatchUp  // of Subscribed
	Event    json.RawMessage // of Event; the caller's to keep
	Reason   string          // of Missed and Moving
	After    time.Duration
	Code     schema.ErrorCode
	Message  string
	Err      error
}

// ErrClosed is what Next returns after Close.
var ErrClosed = errors.New("wsclient: closed")

// Client follows accounts. Make it with Dial or New.
type Client struct {
	// Static after construction.
	cfg  Config
	http *http.Client
	life context.Context // ended by Close
	end  context.CancelFunc

	// Owned by Next's caller.
	updates   []Update // to be handed out
	fatal     error
	failures  int       // attempts in a row, for the back-off
	denials   int       // tokens in a row that were refused
	retryAt   time.Time // no attempt before
	target    string    // socket to try next, without asking a gateway; may be empty
	gateway   int       // the one to ask next
	moveAt    time.Time // when to leave, zero: not asked to
	moveTo    string
	openedAt  time.Time
	heardAt   time.Time
	heard     uint64 // bytes by then
	pinged    bool   // since heardAt
	connected string // URL of conn

	mu sync.Mutex
	// Guarded by mu.
	conn   *Conn // nil: not connected. Only Next's caller changes it
	subs   map[schema.Account]*subscription
	lastID uint64
}

type subscription struct {
	account   schema.Account
	mailboxes []schema.Mailbox
	since     string          // text to ask with
	last      schema.Position // what since says
	known     bool            // last is valid
	id        uint64          // of the last subscribe sent
	askedAt   time.Time       // zero: it was answered, or there was no connection
	failures  int
	retryAt   time.Time // zero: nothing to retry
}

// New makes a client that connects when Next is called, and goes on trying.
func New(cfg Config) (*Client, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	cfg = cfg.withDefaults()
	life, end := context.WithCancel(context.Background())
	return &Client{
		cfg:  cfg,
		life: life,
		end:  end,
		http: &http.Client{
			Timeout: cfg.ConnectTimeout,
			Transport: &http.Transport{
				Proxy:             http.ProxyFromEnvironment,
				DialContext:       cfg.Dialer.DialContext,
				TLSClientConfig:   cfg.TLS,
				DisableKeepAlives: true, // asked once a connection
			},
		},
		subs: map[schema.Account]*subscription{},
	}, nil
}

// Dial makes a client and connects it; an error is that of the first attempt.
func Dial(ctx context.Context, cfg Config) (*Client, error) {
	c, err := New(cfg)
	if err != nil {
		return nil, err
	}
	for {
		floor, err := c.connect(ctx)
		if errors.Is(err, errWait) {
			if err = c.sleep(ctx, floor); err == nil {
				continue
			}
		}
		if err != nil {
			_ = c.Close()
			return nil, err
		}
		return c, nil
	}
}

// Subscribe follows an account, or some of its mailboxes, until Unsubscribe, over any
// number of connections; since is a position's text, or empty. The answer comes as an
// Update. Subscribing again replaces the subscription.
func (c *Client) Subscribe(account schema.Account, mailboxes []schema.Mailbox, since string) error {
	if err := account.Validate(); err != nil {
		return fmt.Errorf("subscribe: the account %w", err)
	}
	s := &subscription{account: account, mailboxes: mailboxes, since: since}
	if p, err := schema.ParsePosition(since); err == nil {
		s.last, s.known = p, true
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.subs[account] = s
	c.ask(s)
	return nil
}

// Unsubscribe stops following an account.
func (c *Client) Unsubscribe(account schema.Account) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, ok := c.subs[account]; !ok {
		return
	}
	delete(c.subs, account)
	c.lastID++
	c.send(AppendUnsubscribe(nil, c.lastID, account))
}

// ask sends a subscribe, if there is a connection. The caller holds mu.
func (c *Client) ask(s *subscription) {
	if c.conn == nil {
		return
	}
	c.lastID++
	s.id, s.askedAt, s.retryAt = c.lastID, time.Now(), time.Time{}
	c.send(AppendSubscribe(nil, s.id, s.account, s.mailboxes, s.since))
}

// send writes to the connection, if there is one. A failed write shows when Next
// reads: the connection is over. The caller holds mu.
func (c *Client) send(message []byte) {
	if c.conn == nil {
		return
	}
	if err := c.conn.Send(message); err != nil {
		_ = c.conn.NetConn().Close()
	}
}

// Close ends the client; a Next that waits returns ErrClosed.
func (c *Client) Close() error {
	c.end()
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.conn != nil {
		_ = c.conn.Close()
	}
	return nil
}
