package routing

import (
	"hash/maphash"
	"math"
)

// key stands for an account: two independent 64-bit hashes, so that routes need no
// names. Within one partition no two accounts share a key in practice; if two did,
// a link would get events that it did not ask for, and would drop them by name.
type key struct{ a, b uint64 }

// hash is the short form, for the window and the index. They bear collisions.
func (k key) hash() uint32 { return uint32(k.a) }

// hasher makes keys. Its seeds are of this process, so that nobody can choose accounts that collide.
type hasher struct {
	a, b maphash.Seed
	mask uint64 // tests narrow the short hash to force collisions
}

func newHasher() hasher {
	return hasher{maphash.MakeSeed(), maphash.MakeSeed(), math.MaxUint64}
}

func (h *hasher) bytes(account []byte) key {
	return key{maphash.Bytes(h.a, account) & h.mask, maphash.Bytes(h.b, account)}
}

func (h *hasher) string(account string) key {
	return key{maphash.String(h.a, account) & h.mask, maphash.String(h.b, account)}
}

// id returns the hash of an account's event id, 0 for an event without one.
func (h *hasher) id(k key, id []byte) uint32 {
	if len(id) == 0 {
		return 0
	}
	return max(1, uint32(maphash.Bytes(h.b, id)^k.b))
}

// routes says which links want an account. Most accounts have one link, which
// stands in the map's value; further ones are a chain of nodes. Nothing in it is a pointer.
type routes struct {
	accounts map[key]int32 // a link's slot, or minus the number of the chain's first node
	nodes    []node        // nodes[0] is not used
	free     int32         // chain of unused nodes
	count    int           // pairs of account and link
}

type node struct {
	slots [3]int32 // -1: none
	next  int32    // 0: the last
}

func (r *routes) reset() { *r = routes{accounts: make(map[key]int32), nodes: make([]node, 1)} }

// add reports whether the pair is new.
func (r *routes) add(k key, slot int32) bool {
	v, ok := r.accounts[k]
	switch {
	case !ok:
		r.accounts[k] = slot
	case v == slot:
		return false
	case v >= 0:
		n := r.newNode()
		r.nodes[n].slots[0], r.nodes[n].slots[1] = v, slot
		r.accounts[k] = -n
	default:
		if !r.addToChain(-v, slot) {
			return false
		}
	}
	r.count++
	return true
}

func (r *routes) addToChain(first, slot int32) bool {
	hole, at := int32(0), 0
	for n := first; n != 0; n = r.nodes[n].next {
		for i, s := range r.nodes[n].slots {
			if s == slot {
				return false
			}
			if s < 0 && hole == 0 {
				hole, at = n, i
			}
		}
	}
	if hole == 0 {
		hole = r.newNode()
		r.nodes[hole].next, r.nodes[first].next = r.nodes[first].next, hole
	}
	r.nodes[hole].slots[at] = slot
	return true
}

// remove reports whether the pair was there.
func (r *routes) remove(k key, slot int32) bool {
	v, ok := r.accounts[k]
	switch {
	case !ok || v >= 0 && v != slot:
		return false
	case v == slot:
		delete(r.accounts, k)
	case !r.removeFromChain(-v, slot):
		return false
	default:
		r.shorten(k, -v)
	}
	r.count--
	return true
}

func (r *routes) removeFromChain(first, slot int32) bool {
	for n := first; n != 0; n = r.nodes[n].next {
		for i, s := range r.nodes[n].slots {
			if s == slot {
				r.nodes[n].slots[i] = -1
				return true
			}
		}
	}
	return false
}

// shorten puts an account back to the plain form when one link is left of its chain.
func (r *routes) shorten(k key, first int32) {
	left, count := int32(-1), 0
	for n := first; n != 0; n = r.nodes[n].next {
		for _, s := range r.nodes[n].slots {
			if s >= 0 {
				left = s
				count++
			}
		}
	}
	if count > 1 {
		return
	}
	for n := first; n != 0; {
		next := r.nodes[n].next
		r.nodes[n].next = r.free
		r.free = n
		n = next
	}
	if count == 0 {
		delete(r.accounts, k)
		return
	}
	r.accounts[k] = left
}

func (r *routes) newNode() int32 {
	n := r.free
	if n == 0 {
		r.nodes = append(r.nodes, node{})
		n = int32(len(r.nodes) - 1)
	} else {
		r.free = r.nodes[n].next
	}
	r.nodes[n] = node{slots: [3]int32{-1, -1, -1}}
	return n
}

// each calls fn with the slots of the links that want the account.
func (r *routes) each(k key, fn func(slot int32)) {
	v, ok := r.accounts[k]
	if !ok {
		return
	}
	if v >= 0 {
		fn(v)
		return
	}
	for n := -v; n != 0; n = r.nodes[n].next {
		for _, s := range r.nodes[n].slots {
			if s >= 0 {
				fn(s)
			}
		}
	}
}

// removeLink drops all pairs of a link. It reads the whole map: a link ends
// seldom, and a list of accounts per link would cost more than the map itself.
func (r *routes) removeLink(slot int32) {
	for k, v := range r.accounts {
		if v == slot || v < 0 {
			r.remove(k, slot)
		}
	}
}
