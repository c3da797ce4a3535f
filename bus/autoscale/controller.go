package autoscale

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// settle is how long a new leader looks before it decides: what the former one asked for may be on its way.
const settle = 3 * time.Second

// Controller decides. It is not safe for use by several goroutines.
type Controller struct {
	policy Policy

	began    time.Time // when it began to lead; zero before the first look
	lastOut  time.Time
	lastIn   time.Time
	asked    []time.Time // nodes asked for that have not come
	known    map[string]bool
	retiring map[string]retirement
}

type retirement struct {
	end   time.Time
	ended bool // In was decided
}

// NewController makes one that has seen nothing yet.
func NewController(p Policy) (*Controller, error) {
	if err := p.Validate(); err != nil {
		return nil, err
	}
	return &Controller{policy: p.withDefaults()}, nil
}

// Lead forgets what was known: another instance may have acted in between.
func (c *Controller) Lead() { *c = Controller{policy: c.policy} }

// census is the fleet at a glance.
type census struct {
	healthy, connections int
	min                  int
	reason               string // for min
}

func (c *census) average() float64 { return float64(c.connections) / float64(max(1, c.healthy)) }

// Decide looks at the fleet and returns what to do now. Call it about once a second.
func (c *Controller) Decide(now time.Time, nodes []Node) []Decision {
	seen := c.look(now, nodes)
	if now.Sub(c.began) < settle {
		return nil
	}
	out := c.finish(now, nodes)
	have := seen.healthy + len(c.asked)
	switch {
	case have < seen.min:
		n := min(seen.min-have, c.policy.Max-have)
		if n > 0 {
			out = append(out, c.grow(now, n, fmt.Sprintf("%d healthy nodes and %d on their way, %s", seen.healthy, len(c.asked), seen.reason)))
		}
	case seen.average() > c.policy.OutAbove:
		if n := min(c.policy.Step, c.policy.Max-have); n > 0 && now.Sub(c.lastOut) >= c.policy.OutEvery && len(c.asked) == 0 {
			out = append(out, c.grow(now, n, fmt.Sprintf("%.0f connections a node on average, above %.0f", seen.average(), c.policy.OutAbove)))
		}
	case c.mayShrink(now, &seen):
		if d, ok := c.shrink(now, nodes, &seen); ok {
			out = append(out, d)
		}
	}
	return out
}

// look notes who came and who went.
func (c *Controller) look(now time.Time, nodes []Node) census {
	first := c.known == nil
	if first {
		c.began, c.known, c.retiring = now, make(map[string]bool), make(map[string]retirement)
		c.lastIn = now // unknown, and being late does no harm
	}
	seen := census{min: c.policy.Min, reason: fmt.Sprintf("the minimum is %d", c.policy.Min)}
	for _, s := range c.policy.Schedules {
		if s.Min > seen.min && s.Active(now) {
			seen.min, seen.reason = s.Min, fmt.Sprintf("the minimum is %d by the schedule %q", s.Min, s.Text)
		}
	}
	present := make(map[string]bool, len(nodes))
	for _, n := range nodes {
		present[n.Name] = true
		if first && n.Since.After(c.lastOut) {
			c.lastOut = n.Since // the last that another leader started, perhaps
		}
		if n.Draining && (first || !c.known[n.Name]) {
			c.retiring[n.Name] = retirement{end: now.Add(c.policy.DrainOver)}
		}
		if n.Healthy {
			seen.healthy++
			seen.connections += n.Connections
			if !c.known[n.Name] && len(c.asked) > 0 {
				c.asked = c.asked[1:]
			}
		}
		c.known[n.Name] = true
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

func (c *Controller) grow(now time.Time, n int, reason string) Decision {
	for range n {
		c.asked = append(c.asked, now)
	}
	c.lastOut = now
	return Decision{At: now, Action: Out, Count: n, Reason: reason}
}

// Failed takes a decision back that could not be carried out: it is made again after a while.
func (c *Controller) Failed(d Decision) {
	switch d.Action {
	case Out: // stays asked for, which keeps it from being tried every second
	case Drain:
		delete(c.retiring, d.Node)
	case In:
		if r, ok := c.retiring[d.Node]; ok {
			c.retiring[d.Node] = retirement{end: r.end}
		}
	}
}

func (c *Controller) mayShrink(now time.Time, seen *census) bool {
	return seen.average() < c.policy.InBelow && seen.healthy > seen.min && len(c.asked) == 0 && len(c.retiring) == 0 &&
		now.Sub(c.lastIn) >= c.policy.InEvery && now.Sub(c.lastOut) >= c.policy.OutEvery &&
		// What is left must not be too much for the others at once.
		float64(seen.connections)/float64(max(1, seen.healthy-1)) < c.policy.OutAbove
}

// shrink begins to take away the node with the fewest connections.
func (c *Controller) shrink(now time.Time, nodes []Node, seen *census) (Decision, bool) {
	best := -1
	for i, n := range nodes {
		if n.Healthy && (best < 0 || n.Connections < nodes[best].Connections ||
			n.Connections == nodes[best].Connections && strings.Compare(n.Name, nodes[best].Name) > 0) {
			best = i
		}
	}
	if best < 0 {
		return Decision{}, false
	}
	c.lastIn = now
	c.retiring[nodes[best].Name] = retirement{end: now.Add(c.policy.DrainOver)}
	return Decision{At: now, Action: Drain, Node: nodes[best].Name, Over: c.policy.DrainOver,
		Reason: fmt.Sprintf("%.0f connections a node on average, below %.0f; this one has the fewest, %d", seen.average(), c.policy.InBelow, nodes[best].Connections)}, true
}

// finish ends the nodes that are empty or whose drain is over.
func (c *Controller) finish(now time.Time, nodes []Node) (out []Decision) {
	for _, n := range nodes {
		r, ok := c.retiring[n.Name]
		if !ok || r.ended || !n.Draining {
			continue
		}
		reason := ""
		switch {
		case n.Connections == 0:
			reason = "it is drained and empty"
		case !now.Before(r.end):
			reason = fmt.Sprintf("its drain is over, %d connections are left", n.Connections)
		default:
			continue
		}
		r.ended = true
		c.retiring[n.Name] = r
		out = append(out, Decision{At: now, Action: In, Node: n.Name, Reason: reason})
	}
	return out
}
