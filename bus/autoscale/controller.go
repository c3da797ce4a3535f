package autoscale

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

const (
	// settle is how long an instance looks at the fleet before it decides. One that stood by has looked all the time.
	settle = 3 * time.Second
	// again is when an end that failed is tried again, and when a node that was told to drain and does not counts as not told.
	again = time.Minute
	// restart is how long a node that somebody else drained may be empty: one that is started anew is so for a moment.
	restart = 10 * time.Second
)

// Controller decides. It is not safe for use by several goroutines.
type Controller struct {
	policy Policy

	began    time.Time // when it first looked; zero before
	lastOut  time.Time
	lastIn   time.Time
	asked    []time.Time     // nodes asked for that have not come
	known    map[string]bool // true once it has been healthy: until then it is on its way
	retiring map[string]*retirement
}

type retirement struct {
	told  time.Time
	end   time.Time // zero: somebody else's drain, which is over when the node is empty, since it closes who is left
	ended bool      // In was decided
	retry time.Time // not before, since it failed
}

// NewController makes one that has seen nothing yet.
func NewController(p Policy) (*Controller, error) {
	if err := p.Validate(); err != nil {
		return nil, err
	}
	return &Controller{policy: p.withDefaults()}, nil
}

// census is the fleet at a glance.
type census struct {
	healthy, connections int
	present              int // in whatever state
	min                  int
	reason               string // for min
}

func (c *census) average() float64 { return float64(c.connections) / float64(max(1, c.healthy)) }

// Watch looks at the fleet while another instance decides, so that this one knows it when it has to.
func (c *Controller) Watch(now time.Time, nodes []Node) { c.look(now, nodes, false) }

// Decide looks at the fleet and returns what to do now. Call it about once a second.
func (c *Controller) Decide(now time.Time, nodes []Node) []Decision {
	seen := c.look(now, nodes, true)
	if now.Sub(c.began) < settle {
		return nil
	}
	out := c.finish(now, nodes)
	have := seen.healthy + len(c.asked)
	room := c.policy.Max - seen.present - len(c.asked) // one that is not healthy may become so
	switch {
	case have < seen.min:
		if n := min(seen.min-have, room); n > 0 {
			out = append(out, c.grow(now, n, fmt.Sprintf("%d healthy nodes and %d on their way, %s", seen.healthy, len(c.asked), seen.reason)))
		}
	case seen.average() > c.policy.OutAbove:
		if n := min(c.policy.Step, room); n > 0 && now.Sub(c.lastOut) >= c.policy.OutEvery && len(c.asked) == 0 {
			out = append(out, c.grow(now, n, fmt.Sprintf("%.0f connections a node on average, above %.0f", seen.average(), c.policy.OutAbove)))
		}
	case c.mayShrink(now, nodes, &seen):
		if d, ok := c.shrink(now, nodes, &seen); ok {
			out = append(out, d)
		}
	}
	return out
}

// look notes who came and who went. What begins while another instance leads is that one's doing.
func (c *Controller) look(now time.Time, nodes []Node, leads bool) census {
	first := c.known == nil
	if first {
		c.began, c.known, c.retiring = now, make(map[string]bool), make(map[string]*retirement)
		c.lastIn = now // unknown, and being late does no harm
	}
	others := first || !leads
	present := make(map[string]bool, len(nodes))
	seen := c.census(now, len(nodes))
	for _, n := range nodes {
		present[n.Name] = true
		was, known := c.known[n.Name]
		if others && !known && n.Since.After(c.lastOut) {
			c.lastOut = n.Since
		}
		if n.Draining && c.retiring[n.Name] == nil {
			c.lastIn = now
			c.retiring[n.Name] = &retirement{told: now}
		}
		if n.Healthy {
			seen.healthy++
			seen.connections += n.Connections
			if !was && !first && len(c.asked) > 0 {
				c.asked = c.asked[1:]
			}
		}
		c.known[n.Name] = was || n.Healthy
	}
	for name := range c.known {
		if !present[name] {
			delete(c.known, name)
			delete(c.retiring, name)
		}
	}
	c.asked = slices.DeleteFunc(c.asked, func(at time.Time) bool { return now.Sub(at) > c.policy.Launch })
	return seen
}

func (c *Controller) census(now time.Time, present int) census {
	seen := census{present: present, min: c.policy.Min, reason: fmt.Sprintf("the minimum is %d", c.policy.Min)}
	for _, s := range c.policy.Schedules {
		if s.Min > seen.min && s.Active(now) {
			seen.min, seen.reason = s.Min, fmt.Sprintf("the minimum is %d by the schedule %q", s.Min, s.Text)
		}
	}
	return seen
}

func (c *Controller) grow(now time.Time, n int, reason string) Decision {
	for range n {
		c.asked = append(c.asked, now)
	}
	c.lastOut = now
	return Decision{At: now, Action: Out, Count: n, Reason: reason}
}

// Lasts tells how long the drain that was decided takes: it may be longer than was asked for.
func (c *Controller) Lasts(d Decision, took time.Duration) {
	if r := c.retiring[d.Node]; r != nil {
		r.end = d.At.Add(took)
	}
}

// Failed takes a decision back that was not carried out: it is made again after a while.
func (c *Controller) Failed(d Decision) {
	switch d.Action {
	case Out: // stays asked for, which keeps it from being tried every second
	case Drain:
		delete(c.retiring, d.Node)
	case In:
		if r := c.retiring[d.Node]; r != nil {
			r.ended, r.retry = false, d.At.Add(again)
		}
	}
}

func (c *Controller) mayShrink(now time.Time, nodes []Node, seen *census) bool {
	return seen.average() < c.policy.InBelow && seen.healthy > seen.min && len(c.asked) == 0 && !c.shrinking(nodes) &&
		now.Sub(c.lastIn) >= c.policy.InEvery && now.Sub(c.lastOut) >= c.policy.OutEvery &&
		// What is left must not be too much for the others at once.
		float64(seen.connections)/float64(max(1, seen.healthy-1)) < c.policy.OutAbove
}

// shrinking reports whether one is on its way out. Those that somebody else has to end are not waited for.
func (c *Controller) shrinking(nodes []Node) bool {
	return slices.ContainsFunc(nodes, func(n Node) bool { return !n.Foreign && c.retiring[n.Name] != nil })
}

// shrink begins to take away the node with the fewest connections, of those that can be ended.
func (c *Controller) shrink(now time.Time, nodes []Node, seen *census) (Decision, bool) {
	best := -1
	for i, n := range nodes {
		if n.Healthy && !n.Foreign && (best < 0 || n.Connections < nodes[best].Connections ||
			n.Connections == nodes[best].Connections && strings.Compare(n.Name, nodes[best].Name) > 0) {
			best = i
		}
	}
	if best < 0 {
		return Decision{}, false
	}
	c.lastIn = now
	c.retiring[nodes[best].Name] = &retirement{told: now, end: now.Add(c.policy.DrainOver)}
	return Decision{At: now, Action: Drain, Node: nodes[best].Name, Over: c.policy.DrainOver,
		Reason: fmt.Sprintf("%.0f connections a node on average, below %.0f; this one has the fewest, %d", seen.average(), c.policy.InBelow, nodes[best].Connections)}, true
}

// finish ends the nodes that are empty or whose drain is over.
func (c *Controller) finish(now time.Time, nodes []Node) (out []Decision) {
	for _, n := range nodes {
		r := c.retiring[n.Name]
		if r != nil && !n.Draining && now.Sub(r.told) >= again {
			delete(c.retiring, n.Name)
			continue
		}
		if r == nil || r.ended || !n.Draining || n.Foreign || now.Before(r.retry) {
			continue
		}
		reason := ""
		switch {
		case n.Connections == 0 && (!r.end.IsZero() || now.Sub(r.told) >= restart):
			reason = "it is drained and empty"
		case !r.end.IsZero() && !now.Before(r.end):
			reason = fmt.Sprintf("its drain is over, %d connections are left", n.Connections)
		default:
			continue
		}
		r.ended = true
		out = append(out, Decision{At: now, Action: In, Node: n.Name, Reason: reason})
	}
	return out
}
