package placement

import (
	"math"
	"time"
)

// Evenness says when connections are moved, as parts of the mean. The zero value means the defaults.
type Evenness struct {
	// Start is how far from the mean the fullest or the emptiest node must be; 0 means 0.05.
	Start float64
	// Slack is how much fuller than the mean a node may stay; 0 means 0.01.
	Slack float64
	// Once is for policies whose next placements would undo moves: they are ordered once after each change of the fleet.
	Once bool
	// ByAccount moves, after each change of the fleet, those whose account belongs elsewhere by rendezvous hashing, and
	// once more when those who were too young to be moved then are old enough.
	ByAccount bool
}

// orderAgain is when the too young are old enough: a notifier's default --move-age, and what it takes to move the others.
const orderAgain = 90 * time.Second

// Rounds remembers which change of the fleet moves were ordered for last. Not for concurrent use.
type Rounds struct {
	change, ordered time.Time
	last            bool
}

// Due reports whether moves are to be ordered at now, for a fleet that changed last at change, and counts them as ordered.
func (r *Rounds) Due(e Evenness, change, now time.Time) bool {
	switch {
	case !e.Once && !e.ByAccount:
		return true // as often as it takes
	case !change.Equal(r.change):
		r.last = e.Once
	case r.last || now.Sub(r.ordered) < orderAgain:
		return false
	default:
		r.last = true
	}
	r.change, r.ordered = change, now
	return true
}

// Leave is how many connections a node should send away.
type Leave struct {
	Node        int // index
	Connections int
}

// Rebalance returns how many connections should leave which nodes so that all are level: only what
// is above the mean for a node's weight, and nothing while all are near it. Pending ones count where they go.
func Rebalance(nodes []Node, e Evenness) []Leave {
	if e.Start == 0 {
		e.Start = 0.05
	}
	if e.Slack == 0 {
		e.Slack = 0.01
	}
	connections, weight := 0, 0.0
	for i := range nodes {
		connections += nodes[i].count()
		weight += nodes[i].Weight
	}
	if len(nodes) < 2 || connections == 0 {
		return nil
	}
	mean := float64(connections) / weight
	uneven := false
	var leaves []Leave
	for i := range nodes {
		n := &nodes[i]
		want := mean * n.Weight
		off := float64(n.count()) - want
		// A handful is not worth a move.
		uneven = uneven || math.Abs(off) > max(e.Start*want, 10)
		if over := int(float64(n.count()) - want*(1+e.Slack)); over > 0 {
			leaves = append(leaves, Leave{Node: i, Connections: min(over, n.Connections)})
		}
	}
	if !uneven {
		return nil
	}
	return leaves
}

// Imbalance is how full the fullest node is, for its weight, as a multiple of the mean; 1 is even.
func Imbalance(nodes []Node) float64 {
	connections, weight, highest := 0, 0.0, 0.0
	for i := range nodes {
		connections += nodes[i].Connections
		weight += nodes[i].Weight
		highest = max(highest, float64(nodes[i].Connections)/nodes[i].Weight)
	}
	if connections == 0 {
		return 1
	}
	return highest * weight / float64(connections)
}

// EvennessOf is how even a policy's fleet is kept. Who is moved asks again: a policy that would send most of them straight
// back must not move by numbers.
func EvennessOf(policy string) Evenness {
	switch policy {
	case HashAccount, ConsistentHash:
		return Evenness{ByAccount: true}
	case HashAddress: // nor by address: that of a client behind a network's gate may change at any time
		return Evenness{Start: math.Inf(1)}
	case RoundRobin, WeightedRoundRobin, LeastLoad, LeastResponseTime:
		return Evenness{Once: true}
	}
	return Evenness{}
}
