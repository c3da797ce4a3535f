package bus

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/url"
	"slices"
	"sync"
	"time"

	"github.com/mailbell/mailbell/bus/placement"
	"github.com/mailbell/mailbell/bus/routing"
	"github.com/mailbell/mailbell/internal/rendezvous"
	"github.com/mailbell/mailbell/schema/link"
)

// loadFresh is how old a notifier's last load may be before clients are kept from
// it. Load comes every second.
const loadFresh = 3 * time.Second

// Notifier is one notifier as this node sees it.
type Notifier struct {
	// From its Hello.
	Link     routing.LinkID `json:"-"`
	Node     string         `json:"node"`
	Instance string         `json:"instance"` // new at each start of its process
	URL      string         `json:"url"`      // what clients are told
	Version  string         `json:"version,omitempty"`
	Zone     string         `json:"zone,omitempty"`
	Capacity uint64         `json:"capacity"` // 0: unlimited
	Weight   float64        `json:"weight"`   // positive

	Since   time.Time     `json:"since"` // when the link came up
	Load    Load          `json:"load"`
	LoadAt  time.Time     `json:"loadAt"`  // zero before the first
	Pending int           `json:"pending"` // handed out by this node's gateway and not yet connected
	Reach   Reach         `json:"reach"`
	State   NotifierState `json:"state"`
}

// Reach is what came of connecting to a notifier's public address.
type Reach struct {
	OK       bool          `json:"ok"`       // the last tries worked
	Response time.Duration `json:"response"` // nanoseconds that the last handshake took that worked
	Problem  string        `json:"problem,omitempty"`
}

// Load is what a notifier says of itself each second.
type Load struct {
	Connections          uint64  `json:"connections"`
	AcceptsPerSecond     float64 `json:"acceptsPerSecond"`
	CPUCores             float64 `json:"cpuCores"`
	MemoryBytes          uint64  `json:"memoryBytes"`
	EventsPerSecond      float64 `json:"eventsPerSecond"`
	BacklogBytes         uint64  `json:"backlogBytes"`
	FreeAcceptsPerSecond float64 `json:"freeAcceptsPerSecond"` // this bus node's share
	Draining             bool    `json:"draining"`
	Custom               float64 `json:"custom"`
	Subscriptions        uint64  `json:"subscriptions"`
	TicketConnections    uint64  `json:"ticketConnections"` // tickets of this bus node that were used
	BusNodes             uint32  `json:"busNodes"`          // that have such a share each
}

// freeOfAll is what the notifier lets in beside those that come, from all bus nodes together; at least 1 a second.
func (l *Load) freeOfAll() float64 { return max(1, l.FreeAcceptsPerSecond*float64(max(1, l.BusNodes))) }

// NotifierState says whether a notifier is given clients, and if not why.
type NotifierState string

// The states.
const (
	Serving  NotifierState = "serving"
	Draining NotifierState = "draining"
	Full     NotifierState = "full"
	Silent   NotifierState = "silent"   // no load for 3 seconds
	Replaced NotifierState = "replaced" // a later process has the same name
	// Unreachable is one whose public address does not take connections, or has not yet been tried.
	Unreachable NotifierState = "unreachable"
)

// Fleet is the notifiers that are linked to this node. It is safe for use by many goroutines.
type Fleet struct {
	probed bool // a notifier serves only once its address has been tried

	mu sync.Mutex
	// Guarded by mu.
	policy  placement.Policy
	members map[routing.LinkID]*member
	order   []*member // by name, the latest of a name first
	nodes   []placement.Node
	picked  []*member     // of nodes
	changed time.Time     // when somebody joined, left, or began or ended a drain
	turned  pending       // clients who were told to ask again, since all turns are taken
	news    chan struct{} // closed and replaced when an address was tried for the first time
}

type member struct {
	Notifier
	key     uint64 // for hashing
	pending pending
	pace    pace
	probes  uint64 // tickets that we used ourselves and that its load has not shown yet
	tried   bool
	failed  int // probes in a row
	excused int // probes in a row that were slow while it was busy
}

func newFleet(p placement.Policy, probed bool) *Fleet {
	return &Fleet{policy: p, probed: probed, members: make(map[routing.LinkID]*member), news: make(chan struct{})}
}

// join adds a notifier. It reports whether another one of that name is there.
func (f *Fleet) join(n Notifier) (twin bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, m := range f.members {
		twin = twin || m.Node == n.Node
	}
	f.members[n.Link] = &member{Notifier: n, key: rendezvous.Key(n.Node)}
	f.reorder(n.Since)
	return twin
}

func (f *Fleet) leave(id routing.LinkID) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.members, id)
	f.reorder(time.Now())
}

func (f *Fleet) reorder(now time.Time) {
	f.changed = now
	f.order = slices.SortedFunc(maps.Values(f.members), func(a, b *member) int {
		return cmp.Or(cmp.Compare(a.Node, b.Node), b.Since.Compare(a.Since), cmp.Compare(b.Link, a.Link))
	})
}

func (f *Fleet) load(id routing.LinkID, l Load, now time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	m := f.members[id]
	if m == nil {
		return
	}
	came := 0.0
	if !m.LoadAt.IsZero() && l.TicketConnections > m.Load.TicketConnections {
		used := l.TicketConnections - m.Load.TicketConnections
		ours := min(used, m.probes)
		m.probes -= ours
		m.pending.came(used - ours)
		came = float64(used-ours) / max(now.Sub(m.LoadAt).Seconds(), 0.1)
	}
	if m.Load.Draining != l.Draining {
		f.changed = now
	}
	// What it lets in beyond what comes, and what comes from us.
	m.pace.rate = max(1, l.FreeAcceptsPerSecond+came)
	m.Load, m.LoadAt = l, now
}

// drains takes notifiers out that are told to drain, before their load says so.
func (f *Fleet) drains(names []string, now time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.changed = now
	for _, m := range f.order {
		if slices.Contains(names, m.Node) {
			m.Load.Draining = true
		}
	}
}

// tried notes what came of connecting to a notifier's address.
func (f *Fleet) tried(id routing.LinkID, took time.Duration, ticket bool, err error) (was, is bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	m := f.members[id]
	if m == nil {
		return false, false
	}
	was = m.Reach.OK
	if !m.tried {
		m.tried = true
		defer func() {
			close(f.news)
			f.news = make(chan struct{})
		}()
	}
	switch {
	case err == nil:
		m.failed, m.excused = 0, 0
		m.Reach = Reach{OK: true, Response: took}
		if ticket {
			m.probes++
		}
	case errors.Is(err, errProbeSlow) && m.Load.AcceptsPerSecond >= busyAccepts && m.excused < probeExcuses:
		m.excused++
		// It takes others at this moment: it is busy, not dead.
	default:
		m.failed++
		m.Reach.Problem = err.Error()
		m.Reach.OK = m.Reach.OK && m.failed < probeFailures
	}
	return was, m.Reach.OK
}

// waitTried waits until no address is untried, and reports whether there was one to wait for.
func (f *Fleet) waitTried(ctx context.Context, patience time.Duration) (waited bool) {
	if !f.probed {
		return false
	}
	over := time.NewTimer(patience)
	defer over.Stop()
	for {
		f.mu.Lock()
		untried, news := false, f.news
		for _, m := range f.order {
			untried = untried || !m.tried
		}
		f.mu.Unlock()
		if !untried {
			return waited
		}
		waited = true
		select {
		case <-news:
		case <-over.C:
			return true
		case <-ctx.Done():
			return false
		}
	}
}

// Snapshot returns the fleet as it is now, in the order of names.
func (f *Fleet) Snapshot(now time.Time) []Notifier {
	f.mu.Lock()
	defer f.mu.Unlock()
	all := make([]Notifier, 0, len(f.order))
	for i, m := range f.order {
		m.pending.expire(now)
		n := m.Notifier
		n.Pending, n.State = m.pending.total, f.state(i, now)
		all = append(all, n)
	}
	return all
}

// state is that of the i-th in order.
func (f *Fleet) state(i int, now time.Time) NotifierState {
	m := f.order[i]
	heard := m.LoadAt
	if heard.IsZero() {
		heard = m.Since
	}
	switch {
	case i > 0 && f.order[i-1].Node == m.Node:
		return Replaced
	case m.Load.Draining:
		return Draining
	case now.Sub(heard) > loadFresh:
		return Silent
	case f.probed && !m.Reach.OK:
		return Unreachable
	case m.Capacity > 0 && m.Load.Connections+uint64(m.pending.total) >= m.Capacity:
		return Full
	}
	return Serving
}

// quietSince is when the fleet last changed.
func (f *Fleet) quietSince() time.Time {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.changed
}

// freeAccepts is how many connections a second the serving notifiers take beside those that come now, from all bus nodes.
func (f *Fleet) freeAccepts(now time.Time) float64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	rate := 0.0
	for i, m := range f.order {
		if f.state(i, now) == Serving {
			rate += m.Load.freeOfAll()
		}
	}
	return rate
}

// pick chooses the notifier for a client, counts it as handed out, and says when it is the client's turn. Without
// a choice, wait is when it is worth while to ask again.
func (f *Fleet) pick(c placement.Client, now time.Time) (n Notifier, wait time.Duration, ok bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.nodes, f.picked = f.nodes[:0], f.picked[:0]
	crowded := false
	for i, m := range f.order {
		m.pending.expire(now)
		if f.state(i, now) != Serving {
			continue
		}
		if m.pace.wait(now) > longestWait {
			crowded = true
			continue
		}
		f.picked = append(f.picked, m)
		f.nodes = append(f.nodes, m.placed())
	}
	if len(f.nodes) == 0 {
		if crowded {
			return Notifier{}, f.turnAway(now), false
		}
		return Notifier{}, retryAfter + rand.N(retryAfter), false // not all at once
	}
	f.turned.came(1)
	i := f.policy.Place(c, f.nodes)
	if i < 0 || i >= len(f.nodes) {
		return Notifier{}, retryAfter, false
	}
	m := f.picked[i]
	m.pending.add(now)
	return m.Notifier, m.pace.take(now), true
}

// turnAway says when one for whom there is no turn is to ask again: when those that were turned away before have got one, at
// the rate at which turns become free.
func (f *Fleet) turnAway(now time.Time) time.Duration {
	f.turned.expire(now)
	f.turned.add(now)
	rate := 0.0
	for i, m := range f.order {
		if f.state(i, now) == Serving {
			rate += m.pace.rate
		}
	}
	wait := float64(f.turned.total) / max(rate, 1)
	wait *= 0.75 + rand.Float64()/2
	return max(retryAfter/2, min(longestRetry, time.Duration(wait*float64(time.Second))))
}

// placed is the member as a policy sees it.
func (m *member) placed() placement.Node {
	return placement.Node{Name: m.Node, Key: m.key, Weight: m.Weight, Connections: int(m.Load.Connections), Pending: m.pending.total,
		Cores: m.Load.CPUCores, Response: m.Reach.Response, Custom: m.Load.Custom}
}

// notifierOf checks a Hello.
func notifierOf(h *link.Hello, id routing.LinkID, now time.Time) (Notifier, error) {
	switch {
	case h.GetNode() == "" || len(h.GetNode()) > maxNodeID:
		return Notifier{}, fmt.Errorf("hello: node has %d bytes, want 1 to %d", len(h.GetNode()), maxNodeID)
	case h.GetInstance() == "" || len(h.GetInstance()) > maxNodeID:
		return Notifier{}, fmt.Errorf("hello: instance has %d bytes, want 1 to %d, new at each start of the process", len(h.GetInstance()), maxNodeID)
	case len(h.GetZone()) > maxNodeID || len(h.GetVersion()) > maxNodeID:
		return Notifier{}, fmt.Errorf("hello: zone or version is over %d bytes", maxNodeID)
	case !(h.GetWeight() >= 0) || h.GetWeight() > 1e9:
		return Notifier{}, fmt.Errorf("hello: weight %v, want a positive number, or 0 for 1", h.GetWeight())
	}
	u, err := url.Parse(h.GetPublicUrl())
	if err != nil || u.Scheme != "ws" && u.Scheme != "wss" || u.Host == "" || len(h.GetPublicUrl()) > 2048 {
		return Notifier{}, fmt.Errorf("hello: public_url %.200q, want such as wss://n1.example.com/v1/ws", h.GetPublicUrl())
	}
	n := Notifier{Link: id, Node: h.GetNode(), Instance: h.GetInstance(), URL: u.String(), Version: h.GetVersion(), Zone: h.GetZone(),
		Capacity: h.GetCapacity(), Weight: h.GetWeight(), Since: now}
	if n.Weight == 0 {
		n.Weight = 1
	}
	return n, nil
}

func loadOf(l *link.Load) Load {
	return Load{Connections: l.GetConnections(), AcceptsPerSecond: l.GetAcceptsPerSecond(), CPUCores: l.GetCpuCores(), MemoryBytes: l.GetMemoryBytes(),
		EventsPerSecond: l.GetEventsPerSecond(), BacklogBytes: l.GetBacklogBytes(), FreeAcceptsPerSecond: l.GetFreeAcceptsPerSecond(),
		Draining: l.GetDraining(), Custom: l.GetCustom(), Subscriptions: l.GetSubscriptions(), TicketConnections: l.GetTicketConnections(), BusNodes: l.GetBusNodes()}
}
