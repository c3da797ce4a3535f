package bench

import (
	"fmt"
	"math/rand/v2"

	"github.com/mailbell/mailbell/bus/placement"
	"github.com/mailbell/mailbell/internal/rendezvous"
)

// The simulated world. A step is a tenth of a second; loads are reported every tenth step.
const (
	simSteps = 10   // a second
	simDelay = 3    // steps from the gateway's answer to the connection
	simChurn = 2e-4 // of the connections leave and come, a second
)

// simNode is a notifier.
type simNode struct {
	placement.Node
	speed float64  // of its CPU
	conns []uint32 // who is connected
	begun int      // second
	gone  bool
}

// simConn is a connection.
type simConn struct {
	node  int32 // -1: none
	place uint32
	since int32 // second
}

// arrival is a connection on its way.
type arrival struct {
	conn    uint32
	node    int32
	gateway int32
}

// simulation runs one policy through all scenes.
type simulation struct {
	name     string
	cfg      PlacementConfig
	random   *rand.Rand
	nodes    []*simNode
	conns    []simConn
	gateways []*simGateway
	step     int
	coming   [simDelay][]arrival // by step
	waiting  [][]uint32          // who comes back, by step from now
	outgoing []movePlan
	busy     int // second until which moves are under way
	changed  int // second
	rounds   placement.Rounds
	moved    int
	names    int
}

func newSimulation(name string, cfg PlacementConfig) (*simulation, error) {
	s := &simulation{name: name, cfg: cfg, random: rand.New(rand.NewPCG(cfg.Seed, 77)), conns: make([]simConn, cfg.Connections),
		waiting: make([][]uint32, simScene*simSteps)}
	for i := range s.conns {
		s.conns[i].node = -1
	}
	for range cfg.Gateways {
		p, err := placement.New(name, rand.New(rand.NewPCG(cfg.Seed, s.random.Uint64())))
		if err != nil {
			return nil, err
		}
		s.gateways = append(s.gateways, &simGateway{policy: p})
	}
	for range cfg.Nodes {
		s.begin()
	}
	return s, nil
}

// begin starts a node: a third of them each are small, twice and four times as large, and one in ten is slow for its size.
func (s *simulation) begin() {
	n := &simNode{speed: 1, begun: s.second()}
	n.Name = fmt.Sprintf("n%04d", s.names)
	n.Key = rendezvous.Key(n.Name)
	n.Weight = float64(int(1) << (s.names % 3))
	if s.names%10 == 9 {
		n.speed = 0.5
	}
	s.names++
	s.nodes = append(s.nodes, n)
	for _, g := range s.gateways {
		g.pending = append(g.pending, 0)
	}
	s.changed = s.second()
}

func (s *simulation) second() int { return s.step / simSteps }

// tick is a step of the world.
func (s *simulation) tick() {
	if s.step%simSteps == 0 {
		for _, n := range s.nodes {
			s.report(n)
		}
		for _, g := range s.gateways {
			g.look(s)
		}
		s.plan()
	}
	due := s.coming[s.step%simDelay]
	for _, a := range due {
		s.gateways[a.gateway].pending[a.node]--
		if s.nodes[a.node].gone {
			s.later(a.conn, simSteps)
			continue
		}
		s.connect(a.conn, a.node)
	}
	s.coming[s.step%simDelay] = due[:0]
	at := s.step % len(s.waiting)
	back := s.waiting[at]
	s.waiting[at] = nil
	for _, conn := range back {
		s.ask(conn)
	}
	s.churn()
	s.send()
	s.step++
}

// later has a connection come in so many steps.
func (s *simulation) later(conn uint32, steps int) {
	at := (s.step + steps) % len(s.waiting)
	s.waiting[at] = append(s.waiting[at], conn)
}

func (s *simulation) connect(conn uint32, node int32) {
	n := s.nodes[node]
	s.conns[conn] = simConn{node: node, place: uint32(len(n.conns)), since: int32(s.second())}
	n.conns = append(n.conns, conn)
}

func (s *simulation) disconnect(conn uint32) {
	c := &s.conns[conn]
	n := s.nodes[c.node]
	last := n.conns[len(n.conns)-1]
	n.conns[c.place] = last
	s.conns[last].place = c.place
	n.conns = n.conns[:len(n.conns)-1]
	c.node = -1
}

// churn is users who close a page and others who open one.
func (s *simulation) churn() {
	for range int(simChurn * float64(len(s.conns)) / simSteps) {
		conn := uint32(s.random.IntN(len(s.conns)))
		if s.conns[conn].node >= 0 {
			s.disconnect(conn)
			s.later(conn, 1+s.random.IntN(2*simSteps))
		}
	}
}
