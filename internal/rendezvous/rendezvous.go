// Package rendezvous is rendezvous hashing (Thaler and Ravishankar, 1998) with weights: everybody has an order of preference
// among the nodes that depends on nothing but names, so a node that comes or goes moves only its own share. The
// bus places clients by it, and notifiers find by it whose place is elsewhere.
package rendezvous

import "math"

// Best is the node that a key prefers among those offered. The zero value has seen none.
type Best struct {
	index int // one more than it is
	score float64
}

// Offer takes part in the choice as the i-th, with the key of a node's name. The weight is positive.
func (b *Best) Offer(i int, key, node uint64, weight float64) {
	// u is evenly spread in (0, 1); the highest weight / -ln(u) wins, with a chance in proportion to its weight.
	u := (float64(mix(key^node)>>11) + 0.5) / (1 << 53)
	if weight <= b.score*(1-u) { // since -ln(u) >= 1-u
		return
	}
	if score := weight / -math.Log(u); score > b.score {
		b.index, b.score = i+1, score
	}
}

// Index is who was chosen, -1 if nobody was offered.
func (b *Best) Index() int { return b.index - 1 }

// Key hashes a name (FNV-1a, mixed).
func Key(name string) uint64 {
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
