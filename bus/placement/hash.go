package placement

import "math"

// hashBound is how much fuller than the mean consistent hashing lets a node become
// (Mirrokni, Thorup, Zadimoghaddam: Consistent Hashing with Bounded Loads, 2016).
const hashBound = 1.1

// byHash is rendezvous hashing (Thaler and Ravishankar, 1998) with weights: everybody has an order of preference
// among the nodes that depends on nothing but names. A node that comes or goes moves only its own
// share. With a bound, who prefers a node that is too full gets the next in the order.
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
	key := KeyOf(p.key(c))
	best, highest := -1, 0.0
	for i := range nodes {
		n := &nodes[i]
		if float64(n.count()+1) > max(limit*n.Weight, 1) {
			continue
		}
		// u is evenly spread in (0, 1); the node with the highest weight / -ln(u) wins, with a chance in proportion to its weight.
		u := (float64(mix(key^n.Key)>>11) + 0.5) / (1 << 53)
		if n.Weight <= highest*(1-u) { // since -ln(u) >= 1-u
			continue
		}
		if score := n.Weight / -math.Log(u); score > highest {
			best, highest = i, score
		}
	}
	if best < 0 { // tiny fleets, where one more is over every limit
		return least((*Node).fill).Place(c, nodes)
	}
	return best
}

// KeyOf hashes a name (FNV-1a, mixed).
func KeyOf(name string) uint64 {
	h := uint64(14695981039346656037)
	for i := range len(name) {
		h = (h ^ uint64(name[i])) * 1099511628211
	}
	return mix(h)
}

// mix is the finalizer of MurmurHash3.
func mix(h uint64) uint64 {
	h ^= h >> 33
	h *= 0xff51afd7ed558ccd
	h ^= h >> 33
	h *= 0xc4ceb9fe1a85ec53
	return h ^ h>>33
}
