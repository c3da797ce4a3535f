package bench

import (
	"math"
	"strconv"
	"time"

	"github.com/mailbell/mailbell/bus/placement"
)

// simGateway is a bus node that hands out places.
type simGateway struct {
	policy  placement.Policy
	nodes   []placement.Node // those that take clients, as last reported
	index   []int32          // of nodes
	pending []int            // by node: on their way
}

// report is what a node says of itself.
func (s *simulation) report(n *simNode) {
	n.Connections = len(n.conns)
	capacity := 2 * float64(len(s.conns)) / float64(s.cfg.Nodes) // of weight 1, generously
	busy := min(0.95, float64(n.Connections)/(capacity*n.Weight*n.speed))
	noise := 0.9 + 0.2*s.random.Float64()
	n.Cores = n.Weight * busy * noise
	n.Response = time.Duration(float64(time.Millisecond) / n.speed / (1 - busy) * noise)
	n.Custom = float64(n.Connections) / n.Weight * noise
}

// look takes the reports. What is on its way counts as pending.
func (g *simGateway) look(s *simulation) {
	g.nodes, g.index = g.nodes[:0], g.index[:0]
	for i, n := range s.nodes {
		if n.gone {
			continue
		}
		view := n.Node
		view.Pending = g.pending[i]
		g.nodes = append(g.nodes, view)
		g.index = append(g.index, int32(i))
	}
}

// ask has a client ask one of the gateways.
func (s *simulation) ask(conn uint32) {
	k := s.random.IntN(len(s.gateways))
	g := s.gateways[k]
	i := g.policy.Place(s.client(conn), g.nodes)
	g.nodes[i].Pending++
	node := g.index[i]
	g.pending[node]++
	at := s.step % simDelay
	s.coming[at] = append(s.coming[at], arrival{conn, node, int32(k)})
}

// tabs is how many connections a user has, on average.
const tabs = 1.5

// client is who a connection is: of 10 users five have two tabs, and three in ten clients come from 2,000 large networks
// behind one address each, the largest far larger than most.
func (s *simulation) client(conn uint32) placement.Client {
	var c placement.Client
	users := uint32(float64(len(s.conns)) / tabs)
	switch s.name {
	case placement.HashAccount, placement.ConsistentHash:
		c.Account = strconv.Itoa(int(conn % users))
	case placement.HashAddress:
		if conn%10 < 3 {
			u := float64(conn*2654435761>>8) / (1 << 24)
			c.Address = "nat" + strconv.Itoa(int(math.Pow(2000, u)))
		} else {
			c.Address = strconv.Itoa(int(conn))
		}
	}
	return c
}
