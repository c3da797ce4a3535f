package bench

import "math"

const simEven = 0.05 // every node this near the mean is even

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
