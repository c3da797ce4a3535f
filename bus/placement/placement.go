// Package placement decides which notifier a client gets, and which notifiers should send
// some of theirs elsewhere. It is pure: values in, values out, no clock and no I/O. The gateway
// runs it, and so does the simulation of `mailbell bench placement`.
//
// Invariants:
//   - A policy sees only nodes that take clients, and returns the index of one of them.
//   - What was handed out and has not connected yet counts (Node.Pending), in every
//     policy that looks at load: a burst between two reports does not pile up.
//   - A policy belongs to one goroutine. There are no others here.
package placement

import (
	"fmt"
	"math"
	"math/rand/v2"
	"strings"
	"time"
)

// Node is a notifier as a policy sees it.
type Node struct {
	Name        string
	Key         uint64        // rendezvous.Key(Name); worth keeping, since hashing uses it for every client
	Weight      float64       // positive: the share of the clients that it should have, beside others
	Connections int           // as it last reported
	Pending     int           // handed out since, and not yet connected
	Cores       float64       // CPU that its process uses
	Response    time.Duration // how long a handshake through its public address took
	Custom      float64       // a metric of the operator's choice; less is better
}

// count is the node's connections, those included that are on their way.
func (n *Node) count() int { return n.Connections + n.Pending }

// fill is how full the node is for its weight.
func (n *Node) fill() float64 { return float64(n.count()) / n.Weight }

// grown is a value that was reported for Connections, as it will be with those on their way.
func (n *Node) grown(v float64) float64 {
	return v * float64(n.count()+1) / float64(n.Connections+1)
}

// Client is who asks where to connect.
type Client struct {
	Account string
	Address string // without a port
}

// Policy picks a node for a client.
type Policy interface {
	// Place returns the index of its choice. There is at least one node; they are in the order of their names.
	Place(c Client, nodes []Node) int
}

// Names of the policies.
const (
	RoundRobin         = "round-robin"
	WeightedRoundRobin = "weighted-round-robin"
	LeastConnections   = "least-connections"
	LeastLoad          = "least-load"
	LeastResponseTime  = "least-response-time"
	TwoChoices         = "two-choices"
	Room               = "room"
	HashAccount        = "hash-account"
	HashAddress        = "hash-address"
	ConsistentHash     = "consistent-hash"
	CustomLoad         = "custom-load"
)

// Default is the policy for who has no wish; docs/placement.md has the figures.
const Default = Room

// Names returns the names of all policies.
func Names() []string {
	return []string{RoundRobin, WeightedRoundRobin, LeastConnections, LeastLoad, LeastResponseTime, TwoChoices, Room,
		HashAccount, HashAddress, ConsistentHash, CustomLoad}
}

// New makes a policy; an empty name means Default. Those that draw lots draw them from random.
func New(name string, random *rand.Rand) (Policy, error) {
	switch name {
	case RoundRobin:
		return &roundRobin{}, nil
	case WeightedRoundRobin:
		return &weightedRoundRobin{credit: make(map[string]float64)}, nil
	case LeastConnections:
		return least((*Node).fill), nil
	case LeastLoad:
		return least(func(n *Node) float64 { return n.grown(n.Cores) / n.Weight }), nil
	case LeastResponseTime:
		return least(func(n *Node) float64 { return n.grown(float64(n.Response)) }), nil
	case CustomLoad:
		return least(func(n *Node) float64 { return n.grown(n.Custom) }), nil
	case TwoChoices:
		return &twoChoices{random}, nil
	case Room, "":
		return &room{two: twoChoices{random}}, nil
	case HashAccount:
		return byHash{key: func(c Client) string { return c.Account }}, nil
	case HashAddress:
		return byHash{key: func(c Client) string { return c.Address }}, nil
	case ConsistentHash:
		return byHash{key: func(c Client) string { return c.Account }, bound: hashBound}, nil
	}
	return nil, fmt.Errorf("placement %q: want one of %s", name, strings.Join(Names(), ", "))
}

// roundRobin takes one after the other.
type roundRobin struct{ next int }

func (p *roundRobin) Place(_ Client, nodes []Node) int {
	i := p.next % len(nodes)
	p.next = i + 1
	return i
}

// weightedRoundRobin is the smooth one of nginx: each turn every node earns its weight, and who has most pays all.
type weightedRoundRobin struct{ credit map[string]float64 }

func (p *weightedRoundRobin) Place(_ Client, nodes []Node) int {
	if len(p.credit) > 2*len(nodes)+16 { // of nodes that are gone
		clear(p.credit)
	}
	total, best, most := 0.0, 0, math.Inf(-1)
	for i := range nodes {
		n := &nodes[i]
		total += n.Weight
		credit := p.credit[n.Name] + n.Weight
		p.credit[n.Name] = credit
		if credit > most {
			best, most = i, credit
		}
	}
	p.credit[nodes[best].Name] = most - total
	return best
}

// least takes the node with the least of something; of equals the one with fewer connections.
type least func(n *Node) float64

func (p least) Place(_ Client, nodes []Node) int {
	best, min := 0, p(&nodes[0])
	for i := 1; i < len(nodes); i++ {
		v := p(&nodes[i])
		if v < min || v == min && nodes[i].fill() < nodes[best].fill() {
			best, min = i, v
		}
	}
	return best
}

// twoChoices draws two nodes by weight and takes the one that is less full: nearly as even as the
// emptiest of all, but several gateways with the same report do not all run to one node.
type twoChoices struct{ random *rand.Rand }

func (p *twoChoices) Place(_ Client, nodes []Node) int {
	if len(nodes) == 1 {
		return 0
	}
	heaviest := 0.0
	for i := range nodes {
		heaviest = max(heaviest, nodes[i].Weight)
	}
	a, b := p.draw(nodes, heaviest), p.draw(nodes, heaviest)
	for range 8 {
		if a != b {
			break
		}
		b = p.draw(nodes, heaviest)
	}
	if nodes[b].fill() < nodes[a].fill() {
		return b
	}
	return a
}

// draw picks a node with a chance in proportion to its weight.
func (p *twoChoices) draw(nodes []Node, heaviest float64) int {
	for range 64 {
		i := p.random.IntN(len(nodes))
		if nodes[i].Weight >= heaviest || p.random.Float64()*heaviest < nodes[i].Weight {
			return i
		}
	}
	return p.random.IntN(len(nodes))
}

// roomy is the part of the mean below which a node has room.
const roomy = 0.98

// room gives clients to the nodes that are clearly emptier than the mean, each with a chance in proportion to what it
// lacks, as long as there are such: a new node fills at once, from all gateways, and none fills it too far.
// When all are level it is two choices.
type room struct {
	two  twoChoices
	lack []float64
}

func (p *room) Place(c Client, nodes []Node) int {
	connections, weight := 0, 0.0
	for i := range nodes {
		connections += nodes[i].count()
		weight += nodes[i].Weight
	}
	mean := float64(connections+1) / weight
	p.lack = p.lack[:0]
	lack := 0.0
	for i := range nodes {
		n := &nodes[i]
		want := 0.0
		if n.fill() < roomy*mean {
			want = mean*n.Weight - float64(n.count())
		}
		lack += want
		p.lack = append(p.lack, lack)
	}
	// Lacking less than one connection each is level: small numbers.
	if lack < 1 {
		return p.two.Place(c, nodes)
	}
	at := p.two.random.Float64() * lack
	for i, upTo := range p.lack {
		if at < upTo {
			return i
		}
	}
	return p.two.Place(c, nodes)
}
