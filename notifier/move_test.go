package notifier

import (
	"fmt"
	"testing"
	"time"

	"github.com/mailbell/mailbell/internal/rendezvous"
	"github.com/mailbell/mailbell/schema"
	"github.com/mailbell/mailbell/schema/link"
)

// The youngest go first, but nobody who has only just come.
func TestMovesTheYoungestThatIsOldEnough(t *testing.T) {
	r := start(t, func(cfg *Config) { cfg.MoveAge, cfg.Shards = time.Second, 1 })
	first := r.dial("first")
	begin := r.tick()
	eventually(t, "time passes", func() bool { return r.tick() > begin+1 })
	second := r.dial("second")
	eventually(t, "both are old enough", func() bool { return len(r.shards[0].movable(nil, r.cfg.MoveAge)) == 2 })
	young := r.dial("young")
	r.bus.tellAll(&link.FromBus{Body: &link.FromBus_Move{Move: &link.Move{Connections: 1, PerSecond: 100}}})
	if f := second.expect(schema.FrameReconnect); f.Reason != string(schema.ReconnectRebalance) || f.URL != "" {
		t.Errorf("%+v", f)
	}
	young.silent()
	first.silent()
}

// TestMovesOnlyWhoBelongsElsewhere: of 1,000 on one notifier about 500 move to a second, the ones that hashing places
// there; a second order finds nobody.
func TestMovesOnlyWhoBelongsElsewhere(t *testing.T) {
	const all = 1000
	r := start(t, func(cfg *Config) { cfg.MoveAge = -1 })
	clients := make(map[schema.Account]*client, all)
	for i := range all {
		account := schema.Account(fmt.Sprintf("u%d@example.com", i))
		clients[account] = r.dial(account)
	}
	here, there := rendezvous.Key(r.cfg.NodeID), rendezvous.Key("second")
	order := &link.Move{Connections: all, PerSecond: 1e5, Nodes: []*link.MoveNode{{Name: r.cfg.NodeID, Weight: 1}, {Name: "second", Weight: 1}}}
	r.bus.tellAll(&link.FromBus{Body: &link.FromBus_Move{Move: order}})
	moved := 0
	for account, c := range clients {
		var best rendezvous.Best
		best.Offer(0, rendezvous.Key(string(account)), here, 1)
		best.Offer(1, rendezvous.Key(string(account)), there, 1)
		if best.Index() == 1 {
			c.expect(schema.FrameReconnect)
			moved++
		}
	}
	var left []movable
	for _, sh := range r.shards {
		left = sh.movable(left, 0)
	}
	if moved < 450 || moved > 550 || len(left) != all-moved {
		t.Errorf("%d of %d moved, %d were left alone", moved, all, len(left))
	}
	if again := r.misplaced(left, order.Nodes); len(again) != 0 {
		t.Errorf("%d more would move", len(again))
	}
	order.Nodes[0].Name = "somebody else"
	if lost := r.misplaced(left, order.Nodes); len(lost) != 0 {
		t.Errorf("%d would move from a node that has no share", len(lost))
	}
}

// aged lets every open connection be so many ticks old, and returns which tick it is.
func (r *rig) aged(old uint32) (now uint32) {
	now = r.tick()
	for _, sh := range r.shards {
		sh.enter()
		for i := uint32(1); i < sh.slots.all.next; i++ {
			if c := sh.slots.all.at(i); c.state == slotOpen {
				c.born = now - old
			}
		}
		sh.leave()
	}
	return now
}

// TestNobodyIsMovedTwiceWithinAMinute: one notifier sends its clients to another, which is told at once to send
// clients away itself. Those that were there before go, and of those that have just come nobody: not until a minute has passed,
// unless the notifier is drained.
func TestNobodyIsMovedTwiceWithinAMinute(t *testing.T) {
	move := func(m *link.Move) *link.FromBus { return &link.FromBus{Body: &link.FromBus_Move{Move: m}} }
	giveUp := move(&link.Move{Connections: 1000, PerSecond: 1e5})
	for name, order := range map[string]*link.FromBus{
		"share":  giveUp,
		"joins":  move(&link.Move{Connections: 1000, PerSecond: 1e5, Nodes: []*link.MoveNode{{Name: "b", Weight: 1}, {Name: "c", Weight: 1e9}}}),
		"drains": {Body: &link.FromBus_Drain{Drain: &link.Drain{OverMs: 60_000, Reason: string(schema.ReconnectDrain)}}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			const minute = 60 * ticksPerSecond
			a := start(t, func(cfg *Config) { cfg.NodeID = "a" })
			b := start(t, func(cfg *Config) { cfg.NodeID = "b" })
			clients := make([]*client, 20)
			for i := range clients {
				clients[i] = a.dial(schema.Account(fmt.Sprintf("u%d@example.com", i)))
			}
			residents := []*client{b.dial("r1"), b.dial("r2"), b.dial("r3")}
			a.aged(2 * minute)
			b.aged(2 * minute)
			a.bus.tellAll(giveUp)
			for i, c := range clients {
				c.expect(schema.FrameReconnect)
				clients[i] = b.dial(schema.Account(fmt.Sprintf("u%d@example.com", i)))
			}
			b.bus.tellAll(order)
			for _, c := range residents { // the eldest: had anybody else to go, it would have been before them
				c.expect(schema.FrameReconnect)
			}
			if order.GetDrain() != nil {
				for _, c := range clients {
					if f := c.expect(schema.FrameReconnect); f.Reason != string(schema.ReconnectDrain) {
						t.Errorf("%+v", f)
					}
				}
				return
			}
			for _, c := range clients {
				c.silent()
			}
			// A difference of a minute's ticks may be less than a minute.
			for again := true; again; {
				now := b.aged(minute)
				var old []movable
				for _, sh := range b.shards {
					old = sh.movable(old, b.cfg.MoveAge)
				}
				if again = b.tick() != now; !again && len(old) != 0 {
					t.Errorf("%d can be moved before a minute has passed", len(old))
				}
			}
			b.aged(minute + 1)
			b.bus.tellAll(order)
			for _, c := range clients {
				c.expect(schema.FrameReconnect)
			}
		})
	}
}

func TestMaximumAge(t *testing.T) {
	r := start(t, func(cfg *Config) { cfg.MaxAge = time.Second })
	begin := time.Now()
	if f := r.dial("a").expect(schema.FrameReconnect); f.Reason != string(schema.ReconnectRebalance) {
		t.Errorf("%+v", f)
	}
	if took := time.Since(begin); took < 600*time.Millisecond || took > 10*time.Second {
		t.Errorf("after %v, want 0.8 to 1 s", took)
	}
}
