// Package demo is the demo page's other half: a small in-memory mail store with a JSON API, whose
// changes are published as events like those of any mail store, and the page itself.
//
// It is for trying mailbell out. Anybody who reaches it may log in as any account, so it belongs on a
// loopback address. Nothing is persisted: after a restart every mailbox has a new UIDVALIDITY, by which
// a page knows that it must start over.
//
// Invariants: an action changes the store only if its events are on the log; a page that is told of a change
// finds it, because reading waits for an action that is being published (5 s at most); the events of one
// account are published in the order of its changes; accounts, mailboxes and messages are bounded. The
// package starts no goroutines.
package demo

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/mailbell/mailbell/schema"
)

// Config says what the demo works with. Publish and MintToken are required, the rest has defaults.
type Config struct {
	// Publish puts events on the log and returns when they are acknowledged.
	Publish func(ctx context.Context, events ...schema.Event) ([]schema.Position, error)
	// MintToken makes the JWT by which the page asks the gateway for tickets.
	MintToken func(account string, ttl time.Duration) (string, error)

	// Gateway is the URL of the gateway as the page sees it; default "/v1/connect".
	Gateway string
	// Hosts are names under which the page may be reached besides IP addresses, localhost and names
	// without a dot. Others are refused: a page elsewhere could point its own name at this address.
	Hosts []string
	// SocketOrigins are the origins of the notifiers ("wss://n1.example.com"), for the page's
	// Content-Security-Policy; default: any.
	SocketOrigins []string

	MaxAccounts  int // kept at a time, the longest unused go first; default 64
	MaxMailboxes int // of an account; default 32
	MaxMessages  int // of a mailbox; default 500

	Logger *slog.Logger // default slog.Default()
}

// tokenTTL is how long the page's JWT lasts; the page logs in again when the gateway refuses it.
const tokenTTL = time.Hour

// Validate fills in the defaults and returns an error when something required is missing.
func (c *Config) Validate() error {
	if c.Publish == nil {
		return errors.New("demo config: Publish is missing; give it the publisher's Publish")
	}
	if c.MintToken == nil {
		return errors.New("demo config: MintToken is missing; give it what makes the development tokens")
	}
	for _, limit := range []*int{&c.MaxAccounts, &c.MaxMailboxes, &c.MaxMessages} {
		if *limit < 0 {
			return fmt.Errorf("demo config: a limit is %d; use 0 for the default", *limit)
		}
	}
	if c.Gateway == "" {
		c.Gateway = "/v1/connect"
	}
	if c.MaxAccounts == 0 {
		c.MaxAccounts = 64
	}
	if c.MaxMailboxes == 0 {
		c.MaxMailboxes = 32
	}
	if c.MaxMessages == 0 {
		c.MaxMessages = 500
	}
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
	return nil
}

// Handler serves the page at /demo/, the client at /mailbell.js, and the API below /demo/api/.
type Handler struct {
	// Static after NewHandler.
	cfg   Config
	key   []byte // signs sessions; new in each process
	mux   http.Handler
	store *store
}

// NewHandler makes the demo's handler. Mount it at "/": the root leads to the page.
func NewHandler(cfg Config) (*Handler, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	h := &Handler{cfg: cfg, key: make([]byte, 32), store: newStore(cfg, time.Now())}
	if _, err := rand.Read(h.key); err != nil {
		return nil, fmt.Errorf("demo: session key: %w", err)
	}
	page, err := newPage(cfg)
	if err != nil {
		return nil, err
	}
	mux := http.NewServeMux()
	mux.Handle("GET /demo/{$}", page)
	mux.Handle("GET /demo/{file}", page)
	mux.Handle("GET /mailbell.js", page)
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, r *http.Request) {
		page := url.URL{Path: "/demo/", RawQuery: r.URL.RawQuery}
		http.Redirect(w, r, page.String(), http.StatusTemporaryRedirect)
	})
	mux.HandleFunc("POST /demo/api/login", h.login)
	mux.HandleFunc("GET /demo/api/state", h.state)
	mux.HandleFunc("GET /demo/api/message", h.message)
	mux.HandleFunc("POST /demo/api/actions", h.action)
	h.mux = mux
	return h, nil
}

// ServeHTTP refuses names that could be another site's, then serves.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if !h.allowedHost(r.Host) {
		http.Error(w, "demo: this host name is not allowed; reach the page by its IP address or add the name to the demo's hosts", http.StatusForbidden)
		return
	}
	h.mux.ServeHTTP(w, r)
}

func (h *Handler) allowedHost(host string) bool {
	if name, _, err := net.SplitHostPort(host); err == nil {
		host = name
	}
	host = strings.ToLower(strings.Trim(host, "[]"))
	if _, err := netip.ParseAddr(host); err == nil {
		return true
	}
	return !strings.Contains(host, ".") || strings.HasSuffix(host, ".localhost") || slices.Contains(h.cfg.Hosts, host)
}

// Observe applies an event that somebody else published to the store, so that a page which asks for the
// state finds what its socket told it. Events of the demo's own actions are recognized and skipped.
// It never blocks on the log and may be called from within Publish.
func (h *Handler) Observe(event schema.Event) {
	h.store.observe(&event)
}
