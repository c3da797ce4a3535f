package placement

import (
	"math"

	"github.com/mailbell/mailbell/internal/rendezvous"
)

// hashBound is how much fuller than the mean consistent hashing lets a node become
// (Mirrokni, Thorup, Zadimoghaddam: Consistent Hashing with Bounded Loads, 2016).
const hashBound = 1.1

// byHash is rendezvous hashing: a node that comes or goes moves only its own share. With a bound, who prefers a node that is too full gets the next in the order.
type byHash struct {
	key   func(Client) string
	bound float64 // 0: none
}

func (p byHash) Place(c Client, nodes []Node) int {
	limit := math.Inf(1)
	if p.bound > 0 {
		connections, weight := 0, 0.0
		for i := range nodes {
			connections += nodes[i].count()
			weight += nodes[i].Weight
		}
		limit = p.bound * float64(connections+1) / weight
	}
	key := rendezvous.Key(p.key(c))
	var best rendezvous.Best
	for i := range nodes {
		if n := &nodes[i]; float64(n.count()+1) <= max(limit*n.Weight, 1) {
			best.Offer(i, key, n.Key, n.Weight)
		}
	}
	if best.Index() < 0 { // tiny fleets, where one more is over every limit
		return least((*Node).fill).Place(c, nodes)
	}
	return best.Index()
}
