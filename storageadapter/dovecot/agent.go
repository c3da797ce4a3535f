// Package dovecot is the agent beside a Dovecot server: it takes what Dovecot's push
// notifications report, makes events of it and gets them into the log.
//
// Two reporters are understood. The Lua script of deploy/dovecot reports everything:
// new messages, flags, expunges, mailboxes. Dovecot's own OX driver reports new messages
// only and needs no script. Where both are configured a message that both report becomes one
// event, the one that came first.
//
// Dovecot waits for the answer while it delivers a message or runs an IMAP command, so the
// agent answers as soon as the events are on its own disk (package spool), whatever state the
// log is in, and publishes them behind that.
//
// Invariants:
//   - What was answered 202 is in the spool or on the log. A spool without room is answered 507.
//   - Events leave the spool in the order in which they were accepted, so those of an account
//     keep their order over an outage of the log, too.
//   - One transaction of Dovecot (an IMAP command, a delivery) becomes one event for each kind
//     of change and mailbox, not one for each message.
//
// Goroutines: Run publishes from the spool in its caller's goroutine; the spool has one of its
// own from NewAgent to Close. ServeHTTP may be called by many goroutines.
package dovecot

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"mime"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/mailbell/mailbell/internal/auth"
	"github.com/mailbell/mailbell/schema"
	"github.com/mailbell/mailbell/storageadapter"
	"github.com/mailbell/mailbell/storageadapter/spool"
)

// Where the agent listens.
const (
	NotifyPath = "/preliminary/http-notify/v1/notify" // PUT, the path that OX App Suite made known
	EventsPath = "/dovecot/v1/events"                 // POST, mailbell.lua
)

// Defaults of Config.
const (
	DefaultMaxBodyBytes  = 16 << 20
	DefaultMaxRequests   = 64
	DefaultAcceptTimeout = 500 * time.Millisecond
	DefaultDedupeWindow  = 10 * time.Second
)

// Publisher puts encoded events on the log: *storageadapter.Publisher, or a failing one in tests.
type Publisher interface {
	PublishEncoded(ctx context.Context, events ...storageadapter.Encoded) ([]schema.Position, error)
}

// Config of an Agent. Publisher, Spool.Dir, and Tokens or TrustLoopback are needed.
type Config struct {
	Publisher Publisher
	// Spool is where accepted events wait. Its Logger and Registerer default to those below.
	Spool spool.Config

	// Tokens says who may report: a service token with scope publish, as Bearer token or as
	// the password of Basic authentication (which is what the OX driver can send).
	Tokens *auth.ServiceTokens
	// TrustLoopback lets programs on the same machine report without a token, as long as the
	// request says that it is JSON, and did not come through a proxy or from a browser.
	TrustLoopback bool

	// Shared lists the prefixes of Dovecot's shared namespaces, such as "shared/%u/": events
	// of a mailbox below it go to its owner's account under the owner's name for the mailbox. %u
	// stands for the owner's full name, %n for the part before the @ (same domain as the actor).
	Shared []string

	MaxBodyBytes  int64         // of a report; 0 means DefaultMaxBodyBytes
	MaxRequests   int           // at a time, further ones get 503; 0 means DefaultMaxRequests
	AcceptTimeout time.Duration // for the body and the disk together; 0 means DefaultAcceptTimeout
	DedupeWindow  time.Duration // in which both reporters' messages are matched; 0 means DefaultDedupeWindow

	Logger     *slog.Logger          // nil means slog.Default()
	Registerer prometheus.Registerer // nil means that no metrics are registered

	now   func() time.Time // nil means time.Now
	newID func() string    // nil means schema.NewID
}

// Validate says what is wrong with the configuration.
func (c *Config) Validate() error {
	switch {
	case c.Publisher == nil:
		return errors.New("dovecot agent: no publisher given")
	case c.Tokens == nil && !c.TrustLoopback:
		return errors.New("dovecot agent: nobody could report: give service tokens, or trust this machine's own programs")
	case c.MaxBodyBytes < 0, c.MaxRequests < 0, c.AcceptTimeout < 0, c.DedupeWindow < 0:
		return errors.New("dovecot agent: a limit is negative: leave it 0 for its default")
	}
	for _, prefix := range c.Shared {
		if strings.Count(prefix, "%u")+strings.Count(prefix, "%n") != 1 || !strings.Contains(prefix, "%") || len(strings.SplitN(prefix, "%", 2)[1]) < 2 {
			return fmt.Errorf("dovecot agent: shared prefix %q must have one %%u or %%n and the separator behind it, such as \"shared/%%u/\"", prefix)
		}
	}
	return c.Spool.Validate()
}

func (c *Config) setDefaults() {
	if c.MaxBodyBytes == 0 {
		c.MaxBodyBytes = DefaultMaxBodyBytes
	}
	if c.MaxRequests == 0 {
		c.MaxRequests = DefaultMaxRequests
	}
	if c.AcceptTimeout == 0 {
		c.AcceptTimeout = DefaultAcceptTimeout
	}
	if c.DedupeWindow == 0 {
		c.DedupeWindow = DefaultDedupeWindow
	}
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
	if c.Spool.Logger == nil {
		c.Spool.Logger = c.Logger
	}
	if c.Spool.Registerer == nil {
		c.Spool.Registerer = c.Registerer
	}
	if c.now == nil {
		c.now = time.Now
	}
	if c.newID == nil {
		c.newID = schema.NewID
	}
}

// Agent takes Dovecot's reports as an http.Handler. Make one with NewAgent.
type Agent struct {
	// Static after construction.
	cfg      Config
	log      *slog.Logger
	metrics  *metrics
	spool    *spool.Spool
	seen     *deduper
	shared   []sharedPrefix
	requests chan struct{} // a token for each request that is worked on
}

// NewAgent opens the spool. The agent accepts reports at once and publishes while Run runs.
func NewAgent(cfg Config) (*Agent, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	cfg.setDefaults()
	store, err := spool.Open(cfg.Spool)
	if err != nil {
		return nil, fmt.Errorf("dovecot agent: %w", err)
	}
	a := &Agent{
		cfg:      cfg,
		log:      cfg.Logger,
		metrics:  newMetrics(cfg.Registerer),
		spool:    store,
		seen:     newDeduper(cfg.DedupeWindow),
		requests: make(chan struct{}, cfg.MaxRequests),
	}
	for _, prefix := range cfg.Shared {
		a.shared = append(a.shared, parseSharedPrefix(prefix))
	}
	return a, nil
}

// Close gives the spool's folder free. What is in it is published after the next start.
func (a *Agent) Close() error { return a.spool.Close() }

// Spooled returns how many events wait for the log, and their bytes on disk.
func (a *Agent) Spooled() (events int, bytes int64) { return a.spool.Len() }

// refusal is an answer other than 202.
type refusal struct {
	status  int
	message string
	header  [2]string
}

func refuse(status int, format string, args ...any) *refusal {
	return &refusal{status: status, message: fmt.Sprintf(format, args...)}
}

// ServeHTTP implements http.Handler for NotifyPath and EventsPath.
func (a *Agent) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	start := time.Now()
	var source source
	var refused *refusal
	switch r.URL.Path {
	case NotifyPath:
		source = sourceOX
		refused = a.serve(w, r, http.MethodPut, a.notifyEvents)
	case EventsPath:
		source = sourceLua
		refused = a.serve(w, r, http.MethodPost, a.luaEvents)
	default:
		http.NotFound(w, r)
		return
	}
	status := http.StatusAccepted
	if refused != nil {
		status = refused.status
		if refused.header[0] != "" {
			w.Header().Set(refused.header[0], refused.header[1])
		}
		http.Error(w, refused.message, status)
	} else {
		w.WriteHeader(status)
	}
	a.metrics.answered(source, status, time.Since(start))
}

func (a *Agent) serve(w http.ResponseWriter, r *http.Request, method string, events func(*http.Request, string) ([]schema.Event, error)) *refusal {
	if r.Method != method {
		return &refusal{http.StatusMethodNotAllowed, "use " + method, [2]string{"Allow", method}}
	}
	if refused := a.authorize(r); refused != nil {
		return refused
	}
	select {
	case a.requests <- struct{}{}:
		defer func() { <-a.requests }()
	default:
		return &refusal{http.StatusServiceUnavailable, "too many reports at a time", [2]string{"Retry-After", "1"}}
	}
	deadline := time.Now().Add(a.cfg.AcceptTimeout)
	ctx, cancel := context.WithDeadline(r.Context(), deadline)
	defer cancel()
	body, refused := a.readBody(w, r, deadline)
	if refused != nil {
		return refused
	}
	evs, err := events(r, body)
	if err != nil {
		return refuse(http.StatusBadRequest, "%v", err)
	}
	return a.accept(ctx, evs)
}

func (a *Agent) readBody(w http.ResponseWriter, r *http.Request, deadline time.Time) (string, *refusal) {
	if r.ContentLength > a.cfg.MaxBodyBytes {
		return "", refuse(http.StatusRequestEntityTooLarge, "the report has more than %d bytes", a.cfg.MaxBodyBytes)
	}
	// Not every ResponseWriter has deadlines; those of a server do.
	_ = http.NewResponseController(w).SetReadDeadline(deadline)
	body, err := readString(http.MaxBytesReader(w, r.Body, a.cfg.MaxBodyBytes), r.ContentLength)
	if err != nil {
		if _, ok := errors.AsType[*http.MaxBytesError](err); ok {
			return "", refuse(http.StatusRequestEntityTooLarge, "the report has more than %d bytes", a.cfg.MaxBodyBytes)
		}
		return "", refuse(http.StatusBadRequest, "the report did not arrive whole: %v", err)
	}
	// The connection is kept for the next report.
	_ = http.NewResponseController(w).SetReadDeadline(time.Time{})
	return body, nil
}

func (a *Agent) authorize(r *http.Request) *refusal {
	if a.cfg.TrustLoopback && fromThisMachine(r) {
		if isJSON(r) {
			return nil
		}
		if r.Header.Get("Authorization") == "" {
			return refuse(http.StatusUnsupportedMediaType, "content type %q is not for reports: send application/json", r.Header.Get("Content-Type"))
		}
	}
	challenge := [2]string{"WWW-Authenticate", `Basic realm="mailbell"`}
	if a.cfg.Tokens == nil {
		return refuse(http.StatusForbidden, "only programs on this machine may report: configure service tokens for others")
	}
	_, token, ok := r.BasicAuth()
	if !ok {
		var err error
		if token, err = auth.BearerToken(r.Header.Get("Authorization")); err != nil {
			return &refusal{http.StatusUnauthorized, err.Error(), challenge}
		}
	}
	_, err := a.cfg.Tokens.Check(token, auth.ScopePublish)
	switch {
	case err == nil:
		return nil
	case errors.Is(err, auth.ErrScope):
		return refuse(http.StatusForbidden, "%v", err)
	}
	return &refusal{http.StatusUnauthorized, err.Error(), challenge}
}

// isJSON reports whether the body is declared as JSON, which no page of a browser can do towards another
// host without asking it first.
func isJSON(r *http.Request) bool {
	kind, _, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	return err == nil && kind == "application/json"
}

// fromThisMachine reports whether the peer is a program on this machine that speaks for
// itself. A proxy on this machine speaks for others, and a browser for the page that it shows.
func fromThisMachine(r *http.Request) bool {
	for _, header := range []string{"Forwarded", "X-Forwarded-For", "X-Real-Ip", "Via", "Origin", "Sec-Fetch-Site"} {
		if r.Header.Get(header) != "" {
			return false
		}
	}
	if r.RemoteAddr == "@" { // a Unix socket
		return true
	}
	host, _, err := net.SplitHostPort(r.RemoteAddr)
	if err != nil {
		return false
	}
	ip := net.ParseIP(host)
	return ip != nil && ip.IsLoopback()
}

// accept puts the events into the spool, all or none.
func (a *Agent) accept(ctx context.Context, events []schema.Event) *refusal {
	recs := make([]spool.Record, 0, len(events))
	for i := range events {
		e := &events[i]
		b, err := e.Encode()
		if err != nil {
			a.metrics.dropped.WithLabelValues(dropInvalid).Inc()
			a.log.Warn("dropped an event that Dovecot reported", "account", e.Account, "event", e.Event, "err", err)
			continue
		}
		recs = append(recs, spool.Record{Key: string(e.Account), Value: b})
	}
	if err := a.spool.Append(ctx, recs...); err != nil {
		a.seen.forget(events)
		a.metrics.refused.Add(float64(len(recs)))
		if errors.Is(err, spool.ErrFull) {
			return refuse(http.StatusInsufficientStorage, "%v", err)
		}
		return &refusal{http.StatusServiceUnavailable, err.Error(), [2]string{"Retry-After", "1"}}
	}
	a.metrics.accepted.Add(float64(len(recs)))
	return nil
}
