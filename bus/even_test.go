package bus

import (
	"fmt"
	"testing"
	"time"

	"github.com/mailbell/mailbell/bus/placement"
	"github.com/mailbell/mailbell/schema/link"
)

// TestNewcomerGetsItsShare: one has 1,000 connections and a second joins. By numbers it is told to send half of them away; by
// account, to send those away that belong to the second.
func TestNewcomerGetsItsShare(t *testing.T) {
	for _, policy := range []string{placement.Room, placement.RoundRobin, placement.HashAccount} {
		t.Run(policy, func(t *testing.T) {
			t.Parallel()
			log := newFakeLog(1)
			n, _ := startNode(t, Config{NodeID: "b1", Log: log, MoveAfter: time.Millisecond, MovesPerSecond: 1e4, Evenness: placement.EvennessOf(policy)})
			full := dial(t, n, "full")
			log.assign(t, map[string][]int32{"b1": {0}})
			full.ownership(0)
			full.send(&link.Load{Connections: 1000, FreeAcceptsPerSecond: 1e6})
			eventually(t, "its load", func() bool { return n.fleet.Snapshot(time.Now())[0].Load.Connections > 0 })
			empty := dial(t, n, "empty")
			empty.send(&link.Load{FreeAcceptsPerSecond: 1e6})
			m := full.until("move", func(m *link.FromBus) bool { return m.GetMove() != nil }).GetMove()
			if policy != placement.HashAccount {
				if m.GetConnections() != 495 || len(m.GetNodes()) != 0 { // and 1 % of the mean may stay
					t.Errorf("told to move %v", m)
				}
				return
			}
			if m.GetConnections() != 1000 || fmt.Sprint(m.GetNodes()) != fmt.Sprint([]*link.MoveNode{{Name: "empty", Weight: 1}, {Name: "full", Weight: 1}}) {
				t.Errorf("told to move %v", m)
			}
		})
	}
}
