package bench

import (
	"time"

	"github.com/mailbell/mailbell/bus/placement"
	"github.com/mailbell/mailbell/internal/rendezvous"
)

// When and how fast connections are moved.
const (
	simMoves   = 2e-3 // of the connections are moved at most, a second
	simMoveAge = 60   // seconds
	simSettle  = 10   // seconds
)

// movePlan is what a node has to send away.
type movePlan struct {
	node   int32
	left   int
	perSec float64
	budget float64
	conns  []uint32 // those that belong elsewhere; nil: any
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
