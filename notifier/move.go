package notifier

import (
	"cmp"
	"context"
	"math"
	"slices"
	"time"

	"github.com/mailbell/mailbell/internal/rendezvous"
	"github.com/mailbell/mailbell/schema"
	"github.com/mailbell/mailbell/schema/link"
)

// movable is a connection that may be moved.
type movable struct {
	h    handle
	born uint32
	key  uint64 // of its account, for hashing
}

// movable appends the connections that are older than age and have not been asked to leave. Whom another node sent here
// has a connection that began after that, and so is moved on when age has passed at the earliest, whatever the nodes are
// told meanwhile. That holds for moves. A drain, by order or by SIGTERM, sends everybody away, and so does a MaxAge
// that is reached earlier.
func (sh *shard) movable(dst []movable, age time.Duration) []movable {
	sh.enter()
	defer sh.leave()
	now, old := sh.tick(), uint32(0)
	if age > 0 {
		old = ticks(age) + 1 // born and now are rounded down: their difference may be a tick more than has passed
	}
	for i := uint32(1); i < sh.slots.all.next; i++ {
		if c := sh.slots.all.at(i); c.state == slotOpen && c.flags&flagLeaving == 0 && now-c.born >= old {
			dst = append(dst, movable{sh.handleOf(i, c), c.born, rendezvous.Key(sh.accounts.name(c.subject))})
		}
	}
	return dst
}

// moveOne sends one client away, unless it has gone.
func (sh *shard) moveOne(h handle, spread, grace time.Duration, url string) bool {
	sh.enter()
	defer sh.leave()
	c := sh.slots.of(h)
	if c == nil || c.state != slotOpen || c.flags&flagLeaving != 0 {
		return false
	}
	sh.sendAway(h.index(), c, spread, grace, schema.ReconnectRebalance, url)
	return true
}

// move sends some connections to other nodes, at a pace, the youngest first: they have the least to lose.
func (s *Server) move(ctx context.Context, m *link.Move) {
	const step, grace = 100 * time.Millisecond, 10 * time.Second
	var all []movable
	for _, sh := range s.shards {
		all = sh.movable(all, s.cfg.MoveAge)
	}
	all = s.misplaced(all, m.Nodes)
	slices.SortFunc(all, func(a, b movable) int { return cmp.Compare(b.born, a.born) })
	left, budget := int(min(m.Connections, math.MaxInt32)), 0.0
	targets := m.Targets
	s.cfg.Logger.Info("the bus asks to move connections", "connections", left, "perSecond", m.PerSecond, "movable", len(all))
	ticker := time.NewTicker(step)
	defer ticker.Stop()
	for left > 0 && len(all) > 0 {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		for budget += max(m.PerSecond, 1) * step.Seconds(); budget >= 1 && left > 0 && len(all) > 0; {
			next := all[0]
			all = all[1:]
			var url string
			if len(targets) > 0 {
				url = targets[0].Url
			}
			if !s.shards[next.h.shard()].moveOne(next.h, step, grace, url) {
				continue
			}
			left, budget = left-1, budget-1
			if len(targets) > 0 {
				if targets[0].Connections <= 1 {
					targets = targets[1:]
				} else {
					targets[0].Connections--
				}
			}
		}
	}
}

// misplaced keeps those whose account belongs to another one of the nodes; all if there are none.
func (s *Server) misplaced(all []movable, nodes []*link.MoveNode) []movable {
	if len(nodes) == 0 {
		return all
	}
	us, keys := -1, make([]uint64, len(nodes))
	for i, n := range nodes {
		keys[i] = rendezvous.Key(n.Name)
		if n.Name == s.cfg.NodeID {
			us = i
		}
	}
	return slices.DeleteFunc(all, func(c movable) bool {
		var best rendezvous.Best
		for i, n := range nodes {
			best.Offer(i, c.key, keys[i], n.Weight)
		}
		return us < 0 || best.Index() == us
	})
}

// retireAt is the tick at which an open connection has reached its maximum age, 0 if there is none: up to a fifth earlier, by
// what its slot happens to be.
func (sh *shard) retireAt(c *slot) uint32 {
	if sh.cfg.MaxAge <= 0 || c.flags&flagLeaving != 0 {
		return 0
	}
	age := ticks(sh.cfg.MaxAge)
	spread := (c.gen*2654435761 ^ uint32(c.fd)*2246822519) >> 8
	return c.born + age - spread%(age/5+1)
}

// retire asks a connection that is old to come back.
func (sh *shard) retire(i uint32, c *slot) {
	sh.sendAway(i, c, time.Second, 10*time.Second, schema.ReconnectRebalance, "")
}
