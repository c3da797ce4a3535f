package bus

import (
	"strings"
	"testing"
	"time"

	"github.com/mailbell/mailbell/schema/link"
)

// TestDrainOfAZone: who is in the zone is told and nobody else, over the time that the others need to take all in, however
// many bus nodes share what is free.
func TestDrainOfAZone(t *testing.T) {
	n, _ := startNode(t, Config{NodeID: "b1", Log: newFakeLog(1)})
	fakes := map[string]*fakeNotifier{}
	for name, zone := range map[string]string{"a1": "a", "a2": "a", "b1": "b"} {
		f := connect(t, n.LinkAddr(), nil)
		h := hello(name)
		h.Zone = zone
		f.send(h)
		f.send(&link.Load{Connections: 300, FreeAcceptsPerSecond: 10, BusNodes: 3})
		fakes[name] = f
	}
	loaded := func() (all int) {
		for _, s := range n.fleet.Snapshot(time.Now()) {
			if !s.LoadAt.IsZero() {
				all++
			}
		}
		return all
	}
	eventually(t, "the loads", func() bool { return loaded() == 3 })
	drained, over, err := n.Drain("", "a", time.Second)
	if err != nil || strings.Join(drained, " ") != "a1 a2" || over != 20*time.Second {
		t.Errorf("%v over %v, %v; want both of zone a over 600/(10*3) s", drained, over, err)
	}
	for _, name := range drained {
		fakes[name].until("drain", func(m *link.FromBus) bool { return m.GetDrain().GetOverMs() == 20_000 })
	}
	for _, s := range n.fleet.Snapshot(time.Now()) {
		if (s.State == Draining) != (s.Zone == "a") {
			t.Errorf("%s is %s", s.Node, s.State)
		}
	}
	if _, _, err := n.Drain("", "b", time.Second); err == nil {
		t.Error("the last zone that takes clients was drained")
	}
	if _, _, err := n.Drain("b1", "", time.Second); err != nil {
		t.Errorf("the last notifier: %v", err)
	}
}

// A drain that nobody was told of is none.
func TestDrainUntold(t *testing.T) {
	n, _ := startNode(t, Config{NodeID: "b1", Log: newFakeLog(1)})
	n.fleet.join(Notifier{Link: 99, Node: "ghost", Weight: 1, Since: time.Now()}) // whose link has just ended
	if drained, _, err := n.Drain("ghost", "", time.Second); err == nil || len(drained) != 0 {
		t.Errorf("drained %v, %v", drained, err)
	}
	if s := n.fleet.Snapshot(time.Now())[0]; s.State == Draining {
		t.Error("it counts as draining")
	}
}
