package autoscale

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

// clockwork lets a controller decide each second and collects what it says, as "second decision".
type clockwork struct {
	*Controller
	begin  time.Time
	second int
}

func newClockwork(t *testing.T, p Policy) *clockwork {
	t.Helper()
	c, err := NewController(p)
	if err != nil {
		t.Fatal(err)
	}
	return &clockwork{Controller: c, begin: time.Date(2026, 11, 23, 0, 0, 0, 0, time.UTC)}
}

func (c *clockwork) now() time.Time { return c.begin.Add(time.Duration(c.second) * time.Second) }

func (c *clockwork) run(seconds int, nodes func() []Node, each func(Decision)) (said []string) {
	for range seconds {
		for _, d := range c.Decide(c.now(), nodes()) {
			said = append(said, fmt.Sprintf("%d %s", c.second, strings.SplitN(d.String(), ":", 2)[0]))
			if each != nil {
				each(d)
			}
		}
		c.second++
	}
	return said
}

func always(nodes ...Node) func() []Node { return func() []Node { return nodes } }

func TestOnlyOwnNodesAreEnded(t *testing.T) {
	c := newClockwork(t, Policy{Min: 1, InEvery: 10 * time.Second, OutEvery: time.Second})
	nodes := []Node{{Name: "foreign", Healthy: true, Foreign: true}, {Name: "away", Draining: true, Foreign: true}, {Name: "mine", Connections: 5, Healthy: true}}
	got := c.run(30, func() []Node { return nodes }, func(d Decision) {
		nodes[2].Healthy, nodes[2].Draining = d.Action == In, true
	})
	if fmt.Sprint(got) != "[10 drain mine over 5m0s]" {
		t.Errorf("%q", got)
	}
	if got := newClockwork(t, Policy{Min: 1, InEvery: time.Second, OutEvery: time.Second}).run(30, always(nodes[0], Node{Name: "b", Healthy: true, Foreign: true}), nil); got != nil {
		t.Errorf("nothing of ours: %q", got)
	}
}

// An end that fails is tried again after a minute, not each second.
func TestFailedEndIsTriedAgainLater(t *testing.T) {
	c := newClockwork(t, Policy{Min: 1})
	got := c.run(140, always(Node{Name: "a", Healthy: true}, Node{Name: "b", Draining: true}), func(d Decision) { c.Failed(d) })
	if fmt.Sprint(got) != "[10 end b 70 end b 130 end b]" {
		t.Errorf("%q", got)
	}
}

// A node that is started anew is draining and empty for a moment: it must not be ended meanwhile.
func TestRestartIsNotTheEnd(t *testing.T) {
	c := newClockwork(t, Policy{Min: 1, InEvery: time.Hour})
	got := c.run(60, func() []Node {
		away := c.second >= 20 && c.second < 28
		return []Node{{Name: "a", Healthy: true}, {Name: "b", Healthy: !away, Draining: away}}
	}, nil)
	if got != nil {
		t.Errorf("%q", got)
	}
}

// Nodes that are there but not healthy may become so: they count for the maximum.
func TestMaximumCountsTheUnhealthy(t *testing.T) {
	c := newClockwork(t, Policy{Min: 3, Max: 4, Launch: 10 * time.Second})
	nodes := []Node{{Name: "a"}, {Name: "b"}, {Name: "c"}}
	asked := 0
	c.run(60, func() []Node { return nodes }, func(d Decision) {
		asked += d.Count
		nodes = append(nodes, Node{Name: fmt.Sprint("new", len(nodes))})
	})
	if asked != 1 || len(nodes) != 4 {
		t.Errorf("asked for %d beside 3 that are not healthy, with a maximum of 4", asked)
	}
}

// A node is seen before its address was tried: it has come when it is healthy.
func TestNodesThatComeUnhealthy(t *testing.T) {
	c := newClockwork(t, Policy{Min: 1, OutAbove: 100, OutEvery: 5 * time.Second, Launch: time.Hour})
	nodes := []Node{{Name: "a", Healthy: true, Connections: 1000}}
	got := c.run(10, func() []Node {
		for i := range nodes {
			nodes[i].Healthy = true // a second after it was seen
		}
		if c.second == 5 {
			nodes = append(nodes, Node{Name: "b", Connections: 1000})
		}
		return nodes
	}, nil)
	if fmt.Sprint(got) != "[3 start 1 8 start 1]" || len(c.asked) != 1 {
		t.Errorf("%q, %d on their way", got, len(c.asked))
	}
}

// A drain that was made longer ends the node only then.
func TestLongerDrainIsWaitedFor(t *testing.T) {
	c := newClockwork(t, Policy{Min: 1, InEvery: time.Second, OutEvery: time.Second, DrainOver: 10 * time.Second})
	nodes := []Node{{Name: "a", Healthy: true, Connections: 50}, {Name: "b", Healthy: true, Connections: 40}}
	got := c.run(60, func() []Node { return nodes }, func(d Decision) {
		if d.Action == Drain {
			nodes[1].Healthy, nodes[1].Draining = false, true
			c.Lasts(d, 40*time.Second)
		}
	})
	if fmt.Sprint(got) != "[3 drain b over 10s 43 end b]" {
		t.Errorf("%q", got)
	}
}

// A dry run says the same again each time that it would be done, and a drain that nobody follows blocks nothing.
func TestDrainThatIsNotDone(t *testing.T) {
	policy := Policy{Min: 1, InEvery: 100 * time.Second, OutEvery: time.Second}
	nodes := always(Node{Name: "a", Healthy: true}, Node{Name: "b", Healthy: true})
	c := newClockwork(t, policy)
	if got := c.run(250, nodes, func(d Decision) { c.Failed(d) }); fmt.Sprint(got) != "[100 drain b over 5m0s 200 drain b over 5m0s]" {
		t.Errorf("dry run: %q", got)
	}
	if got := newClockwork(t, policy).run(250, nodes, nil); fmt.Sprint(got) != "[100 drain b over 5m0s 200 drain b over 5m0s]" {
		t.Errorf("lost: %q", got)
	}
}

// One that stood by decides in the first second of its lease, and goes on with the drain of its predecessor.
func TestStandbyKnowsTheFleet(t *testing.T) {
	c := newClockwork(t, Policy{Min: 2, DrainOver: 10 * time.Second, InEvery: time.Hour})
	leaving := Node{Name: "b", Draining: true, Connections: 100}
	for ; c.second < 60; c.second++ {
		leaving.Connections--
		c.Watch(c.now(), []Node{{Name: "a", Healthy: true}, leaving})
	}
	got := c.run(50, func() []Node {
		leaving.Connections--
		return []Node{{Name: "a", Healthy: true}, leaving}
	}, nil)
	if fmt.Sprint(got) != "[60 start 1 99 end b]" {
		t.Errorf("%q", got)
	}
}
