package bench

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"strconv"
	"time"

	"github.com/mailbell/mailbell/bus/placement"
	"github.com/mailbell/mailbell/internal/rendezvous"
)

// The simulated world. A step is a tenth of a second; loads are reported every tenth step.
const (
	simSteps      = 10   // a second
	simDelay      = 3    // steps from the gateway's answer to the connection
	simFill       = 200  // seconds in which all connect at first
	simScene      = 600  // seconds that a scene lasts at most
	simChurn      = 2e-4 // of the connections leave and come, a second
	simMoves      = 2e-3 // of the connections are moved at most, a second
	simMoveAge    = 60   // seconds
	simSettle     = 10   // seconds
	simCrashSpan  = 20   // seconds over which those return whose node died: clients' jitter and admission
	simLeaveSpan  = 60   // seconds of a drain
	simEven       = 0.05 // every node this near the mean is even
	simSampleSecs = 5
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

type simGateway struct {
	policy  placement.Policy
	nodes   []placement.Node // those that take clients, as last reported
	index   []int32          // of nodes
	pending []int            // by node: on their way
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

// movePlan is what a node has to send away.
type movePlan struct {
	node   int32
	left   int
	perSec float64
	budget float64
	conns  []uint32 // those that belong elsewhere; nil: any
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

func (s *simulation) run(ctx context.Context) (PlacementPolicy, error) {
	p := PlacementPolicy{Name: s.name}
	scenes := []struct {
		name string
		play func()
	}{
		{"fill", s.fill}, {"join", s.join}, {"leave", s.leave}, {"crash", s.crash},
	}
	for _, scene := range scenes {
		r, err := s.scene(ctx, scene.name, scene.play)
		if err != nil {
			return p, err
		}
		p.Scenes = append(p.Scenes, r)
		p.Imbalance = max(p.Imbalance, r.Imbalance)
		p.Moved += r.Moved
		switch {
		case r.SecondsToEven < 0:
			p.SecondsToEven = -1
		case p.SecondsToEven >= 0:
			p.SecondsToEven = max(p.SecondsToEven, r.SecondsToEven)
		}
	}
	p.SameNode = s.sameNode()
	return p, nil
}

// scene lets something happen and the fleet work until all is even, and for a while after.
func (s *simulation) scene(ctx context.Context, name string, play func()) (PlacementScene, error) {
	r := PlacementScene{Name: name, SecondsToEven: -1}
	play()
	start, moved := s.second(), s.moved
	evenFor := 0
	for s.second()-start < simScene {
		if err := ctx.Err(); err != nil {
			return r, err
		}
		s.tick()
		if s.step%simSteps != 0 {
			continue
		}
		highest, lowest, grown := s.spread()
		r.Imbalance = round3(highest)
		r.Peak = max(r.Peak, round3(grown))
		if (s.second()-start)%simSampleSecs == 0 {
			r.Curve = append(r.Curve, r.Imbalance)
		}
		if name == "fill" && s.second()-start < simFill+1 {
			continue
		}
		if highest > 1+simEven || lowest < 1-simEven || s.returning() {
			evenFor = 0
			continue
		}
		if evenFor == 0 {
			r.SecondsToEven = float64(s.second() - start)
			if name == "fill" {
				r.SecondsToEven -= simFill
			}
		}
		if evenFor++; evenFor > 20 {
			break
		}
	}
	if evenFor == 0 {
		r.SecondsToEven = -1
	}
	r.Moved = s.moved - moved
	return r, nil
}

// returning says that more come back than those who come and go all the time.
func (s *simulation) returning() bool {
	usual := 4*int(simChurn*float64(len(s.conns))/simSteps) + 100
	for _, w := range s.waiting {
		if len(w) > usual {
			return true
		}
	}
	return false
}

// fill has all connect, evenly over time.
func (s *simulation) fill() {
	for i := range s.conns {
		s.later(uint32(i), int(int64(i)*simFill*simSteps/int64(len(s.conns))))
	}
}

func (s *simulation) join() {
	for range s.cfg.Nodes / 10 {
		s.begin()
	}
}

// leave drains a twentieth of the nodes.
func (s *simulation) leave() {
	s.remove(func(n *simNode) {
		for _, c := range n.conns {
			s.conns[c].node = -1
			s.later(c, s.random.IntN(simLeaveSpan*simSteps))
		}
	})
}

// crash kills a twentieth of the nodes at once.
func (s *simulation) crash() {
	s.remove(func(n *simNode) {
		for _, c := range n.conns {
			s.conns[c].node = -1
			s.later(c, s.random.IntN(simCrashSpan*simSteps))
		}
	})
}

func (s *simulation) remove(each func(*simNode)) {
	for range s.cfg.Nodes / 20 {
		n := s.nodes[s.random.IntN(len(s.nodes))]
		if n.gone {
			continue
		}
		n.gone = true
		each(n)
		n.conns = nil
	}
	s.changed = s.second()
	for _, g := range s.gateways { // they see at once that the link is gone
		g.look(s)
	}
}

// later has a connection come in so many steps.
func (s *simulation) later(conn uint32, steps int) {
	at := (s.step + steps) % len(s.waiting)
	s.waiting[at] = append(s.waiting[at], conn)
}

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

// plan orders moves as the bus does: by the real arithmetic, once the fleet has been quiet for a while.
func (s *simulation) plan() {
	now := s.second()
	if now < s.busy || now-s.changed < simSettle || now < simFill+simSettle {
		return
	}
	evenness := placement.EvennessOf(s.name)
	at := func(second int) time.Time { return time.Unix(int64(second), 0) }
	if !s.rounds.Due(evenness, at(s.changed), at(now)) {
		return
	}
	var nodes []placement.Node
	var index []int32
	for i, n := range s.nodes {
		if !n.gone {
			nodes = append(nodes, n.Node)
			index = append(index, int32(i))
		}
	}
	if evenness.ByAccount {
		s.sort(nodes, index)
		return
	}
	leaves := placement.Rebalance(nodes, evenness)
	total := 0
	for _, l := range leaves {
		total += l.Connections
	}
	if total == 0 {
		return
	}
	rate := simMoves * float64(len(s.conns))
	s.outgoing = s.outgoing[:0]
	for _, l := range leaves {
		s.outgoing = append(s.outgoing, movePlan{node: index[l.Node], left: l.Connections, perSec: rate * float64(l.Connections) / float64(total)})
	}
	s.busy = now + int(float64(total)/rate) + simSettle
}

// sort has every node send those away whose account belongs elsewhere.
func (s *simulation) sort(nodes []placement.Node, index []int32) {
	s.outgoing = s.outgoing[:0]
	for here, i := range index {
		o := movePlan{node: i, perSec: simMoves * float64(len(s.nodes[i].conns))}
		for _, conn := range s.nodes[i].conns {
			var best rendezvous.Best
			key := rendezvous.Key(s.client(conn).Account)
			for k := range nodes {
				best.Offer(k, key, nodes[k].Key, nodes[k].Weight)
			}
			if best.Index() != here {
				o.conns = append(o.conns, conn)
			}
		}
		if o.left = len(o.conns); o.left > 0 {
			s.outgoing = append(s.outgoing, o)
		}
	}
}

// send carries the moves out. Nobody is moved who came within the last minute.
func (s *simulation) send() {
	for i := range s.outgoing {
		o := &s.outgoing[i]
		n := s.nodes[o.node]
		for o.budget += o.perSec / simSteps; o.budget >= 1 && o.left > 0; o.budget-- {
			o.left--
			for range 8 {
				if len(n.conns) == 0 {
					break
				}
				conn := n.conns[s.random.IntN(len(n.conns))]
				if o.conns != nil {
					conn = o.conns[o.left]
				}
				if s.conns[conn].node != o.node || s.second()-int(s.conns[conn].since) < simMoveAge {
					continue
				}
				s.disconnect(conn)
				s.later(conn, 1+s.random.IntN(simSteps))
				s.moved++
				break
			}
		}
	}
}

// spread returns the fullest and the emptiest node, for their weights, as parts of the mean. grown is the fullest of
// all that have been there for a while.
func (s *simulation) spread() (highest, lowest, grown float64) {
	total, weight := 0, 0.0
	for _, n := range s.nodes {
		if !n.gone {
			total += len(n.conns)
			weight += n.Weight
		}
	}
	if total < len(s.conns)/100 {
		return 1, 1, 1
	}
	mean := float64(total) / weight
	lowest = math.Inf(1)
	for _, n := range s.nodes {
		if n.gone {
			continue
		}
		fill := float64(len(n.conns)) / n.Weight / mean
		highest, lowest = max(highest, fill), min(lowest, fill)
		if s.second()-n.begun > simSettle {
			grown = max(grown, fill)
		}
	}
	return highest, lowest, grown
}

// sameNode is the share of second tabs at the node of the first.
func (s *simulation) sameNode() float64 {
	users := uint32(float64(len(s.conns)) / tabs)
	same, all := 0, 0
	for conn := users; conn < uint32(len(s.conns)); conn++ {
		a, b := s.conns[conn].node, s.conns[conn%users].node
		if a >= 0 && b >= 0 {
			all++
			if a == b {
				same++
			}
		}
	}
	return round3(float64(same) / float64(max(1, all)))
}
