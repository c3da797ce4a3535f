// Package console is the page on the operations port that shows what a fleet does now, and the JSON API that the page reads.
//
// Every process says of itself what it knows (a [Node]); asked for all, it asks its peers too, at most for PeerTimeout, and names those
// that did not answer. Nothing is stored: rates are for whoever asks twice. The port has no authentication, and the search
// shows who is connected: keep it on loopback or behind a network policy.
//
// A request that asks peers starts one goroutine for each and waits for them.
package console

import (
	"context"
	"embed"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/mailbell/mailbell/schema"
)

//go:embed page
var files embed.FS

// Paths of the page and its API, below which everything is.
const (
	Path        = "/console/"
	StatusPath  = Path + "api/status"
	AccountPath = Path + "api/account"
)

const (
	peerTimeout  = 1500 * time.Millisecond
	maxPeers     = 256
	maxPeerBytes = 8 << 20
	// Peers asked at a time by one request.
	peersAtOnce = 16
)

// Config says what this process is. Node and Part are needed.
type Config struct {
	Node    string
	Part    string // run, bus, notifier or adapter
	Version string

	Metrics func() []Metric // nil: none
	Bus     func() *Bus     // nil: this process is no bus node
	// Account says what this process knows of an account's subscriptions; nil: nothing.
	Account func(schema.Account) AccountAnswer

	Peers  []string     // host:port of other processes' operations ports
	Logger *slog.Logger // nil means slog.Default()
}

// Validate says what is wrong with the configuration.
func (c Config) Validate() error {
	switch {
	case c.Node == "" || c.Part == "":
		return errors.New("console: node and part must be named")
	case len(c.Peers) > maxPeers:
		return fmt.Errorf("console: %d peers, at most %d are asked", len(c.Peers), maxPeers)
	}
	for _, p := range c.Peers {
		if _, _, err := net.SplitHostPort(p); err != nil {
			return fmt.Errorf("console: peer %q: want host:port of an operations port: %w", p, err)
		}
	}
	return nil
}

// Status is the answer of StatusPath.
type Status struct {
	At     time.Time `json:"at"`
	Nodes  []Node    `json:"nodes"`
	Silent []Silent  `json:"silent"` // peers that did not answer
}

// Silent is a peer that did not answer.
type Silent struct {
	Address string `json:"address"`
	Problem string `json:"problem"`
}

// Node is one process.
type Node struct {
	Node      string    `json:"node"`
	Part      string    `json:"part"`
	Version   string    `json:"version"`
	StartedAt time.Time `json:"startedAt"`
	At        time.Time `json:"at"` // of the figures
	Address   string    `json:"address,omitempty"`
	Metrics   []Metric  `json:"metrics"`
	Bus       *Bus      `json:"bus,omitempty"`
}

// Metric is one value of docs/metrics.md; histograms have buckets instead.
type Metric struct {
	Name    string            `json:"name"`
	Labels  map[string]string `json:"labels,omitempty"`
	Value   float64           `json:"value"`
	Sum     float64           `json:"sum,omitempty"`     // of a histogram, whose Value is its count
	Buckets [][2]float64      `json:"buckets,omitempty"` // [upper bound in seconds, count so far]
}

// Bus is what a bus node knows.
type Bus struct {
	Partitions []Partition `json:"partitions"` // that this node reads
	Total      int         `json:"total"`      // partitions of the topic
	Notifiers  []Notifier  `json:"notifiers"`  // linked to this node
}

// Partition is one that a bus node reads.
type Partition struct {
	Partition    int32  `json:"partition"`
	State        string `json:"state"` // owned, standin, reading or leaving
	Generation   uint64 `json:"generation"`
	Head         int64  `json:"head"` // offset read last
	Routes       int    `json:"routes"`
	WindowEvents int    `json:"windowEvents"`
	WindowBytes  int64  `json:"windowBytes"`
}

// Notifier is one as its bus nodes see it; rates are its own, over its last second.
type Notifier struct {
	Node             string    `json:"node"`
	URL              string    `json:"url"`
	Version          string    `json:"version"`
	Zone             string    `json:"zone,omitempty"`
	State            string    `json:"state"`
	Since            time.Time `json:"since"`
	Connections      uint64    `json:"connections"`
	Capacity         uint64    `json:"capacity"` // 0: unlimited
	Subscriptions    uint64    `json:"subscriptions"`
	EventsPerSecond  float64   `json:"eventsPerSecond"`
	AcceptsPerSecond float64   `json:"acceptsPerSecond"`
	CPUCores         float64   `json:"cpuCores"`
	MemoryBytes      uint64    `json:"memoryBytes"`
	BacklogBytes     uint64    `json:"backlogBytes"`
}

// Account is the answer of AccountPath.
type Account struct {
	Account schema.Account  `json:"account"`
	Answers []AccountAnswer `json:"answers"`
	Silent  []Silent        `json:"silent"`
}

// AccountAnswer is what one process knows of an account.
type AccountAnswer struct {
	Node      string   `json:"node"`
	Part      string   `json:"part"`
	Partition int32    `json:"partition"` // of the account; -1 where it is not known
	Owner     bool     `json:"owner"`     // this bus node serves the partition
	Notifiers []string `json:"notifiers"` // that the owner sends the account's events to
	// Subscriptions of clients on this notifier, at most MaxSubscriptions of them.
	Subscriptions []Subscription `json:"subscriptions"`
	More          int            `json:"more"` // that are not listed
}

// MaxSubscriptions is how many subscriptions of one account a process lists.
const MaxSubscriptions = 100

// Subscription is one client's.
type Subscription struct {
	Address   string           `json:"address"`
	Mailboxes []schema.Mailbox `json:"mailboxes"` // null: all
	Waiting   bool             `json:"waiting"`   // it is slow: events wait for it, or it will be told that it missed some
}

// Handler serves the page and its API below Path.
type Handler struct {
	// Static after New.
	cfg     Config
	started time.Time
	client  *http.Client
	mux     *http.ServeMux
}

// New makes a Handler.
func New(cfg Config) (*Handler, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	page, err := fs.Sub(files, "page")
	if err != nil {
		return nil, fmt.Errorf("console: %w", err)
	}
	h := &Handler{cfg: cfg, started: time.Now().UTC(), mux: http.NewServeMux(),
		client: &http.Client{Timeout: peerTimeout, Transport: &http.Transport{DisableKeepAlives: true}}}
	h.mux.HandleFunc("GET "+StatusPath, h.status)
	h.mux.HandleFunc("GET "+AccountPath, h.account)
	h.mux.Handle("GET "+Path, http.StripPrefix(Path, http.FileServerFS(page)))
	return h, nil
}

func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	header := w.Header()
	header.Set("Content-Security-Policy", "default-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'")
	header.Set("X-Content-Type-Options", "nosniff")
	header.Set("Referrer-Policy", "no-referrer")
	header.Set("Cache-Control", "no-store")
	h.mux.ServeHTTP(w, r)
}

func (h *Handler) self() Node {
	n := Node{Node: h.cfg.Node, Part: h.cfg.Part, Version: h.cfg.Version, StartedAt: h.started, At: time.Now().UTC(), Metrics: []Metric{}}
	if h.cfg.Metrics != nil {
		n.Metrics = h.cfg.Metrics()
	}
	if h.cfg.Bus != nil {
		n.Bus = h.cfg.Bus()
	}
	return n
}

func (h *Handler) status(w http.ResponseWriter, r *http.Request) {
	s := Status{At: time.Now().UTC(), Nodes: []Node{h.self()}, Silent: []Silent{}}
	if r.URL.Query().Get("local") == "" {
		var mu sync.Mutex
		h.askPeers(r.Context(), StatusPath+"?local=1", func(peer string, body io.Reader) error {
			var theirs Status
			if err := json.NewDecoder(body).Decode(&theirs); err != nil {
				return err
			}
			mu.Lock()
			defer mu.Unlock()
			for _, n := range theirs.Nodes {
				n.Address = peer
				s.Nodes = append(s.Nodes, n)
			}
			return nil
		}, &s.Silent)
		slices.SortStableFunc(s.Nodes[1:], func(a, b Node) int { return strings.Compare(a.Part+a.Node, b.Part+b.Node) })
	}
	answer(w, s)
}

func (h *Handler) account(w http.ResponseWriter, r *http.Request) {
	account := schema.Account(r.URL.Query().Get("name"))
	if err := account.Validate(); err != nil {
		http.Error(w, "name: "+err.Error()+": ask for one account, as in ?name=alice@example.com", http.StatusBadRequest)
		return
	}
	a := Account{Account: account, Answers: []AccountAnswer{}, Silent: []Silent{}}
	if h.cfg.Account != nil {
		own := h.cfg.Account(account)
		own.Node, own.Part = h.cfg.Node, h.cfg.Part
		a.Answers = append(a.Answers, own)
	}
	if r.URL.Query().Get("local") == "" {
		var mu sync.Mutex
		query := r.URL.Query()
		query.Set("local", "1")
		h.askPeers(r.Context(), AccountPath+"?"+query.Encode(), func(_ string, body io.Reader) error {
			var theirs Account
			if err := json.NewDecoder(body).Decode(&theirs); err != nil {
				return err
			}
			mu.Lock()
			defer mu.Unlock()
			a.Answers = append(a.Answers, theirs.Answers...)
			return nil
		}, &a.Silent)
	}
	answer(w, a)
}

// askPeers asks all peers at once, hands each answer to take, and lists who gave none.
func (h *Handler) askPeers(ctx context.Context, pathAndQuery string, take func(peer string, body io.Reader) error, silent *[]Silent) {
	var wg sync.WaitGroup
	var mu sync.Mutex
	places := make(chan struct{}, peersAtOnce)
	for _, peer := range h.cfg.Peers {
		wg.Go(func() {
			places <- struct{}{}
			defer func() { <-places }()
			if err := h.askPeer(ctx, peer, pathAndQuery, take); err != nil {
				mu.Lock()
				defer mu.Unlock()
				*silent = append(*silent, Silent{Address: peer, Problem: err.Error()})
			}
		})
	}
	wg.Wait()
	slices.SortFunc(*silent, func(a, b Silent) int { return strings.Compare(a.Address, b.Address) })
}

func (h *Handler) askPeer(ctx context.Context, peer, pathAndQuery string, take func(string, io.Reader) error) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+peer+pathAndQuery, nil)
	if err != nil {
		return err
	}
	resp, err := h.client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("answers %s", resp.Status)
	}
	return take(peer, io.LimitReader(resp.Body, maxPeerBytes))
}

func answer(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(v)
}
