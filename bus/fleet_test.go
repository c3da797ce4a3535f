package bus

import (
	"errors"
	"testing"
	"time"

	"github.com/mailbell/mailbell/bus/placement"
	"github.com/mailbell/mailbell/bus/routing"
)

func TestWhatWasHandedOutCounts(t *testing.T) {
	now := time.UnixMilli(1_800_000_000_000)
	f := newFleet(emptiest(t), false)
	f.join(Notifier{Link: 1, Node: "a", Weight: 1, Since: now})
	f.join(Notifier{Link: 2, Node: "b", Weight: 2, Since: now})
	f.load(1, Load{Connections: 10, FreeAcceptsPerSecond: 1e6}, now)
	f.load(2, Load{Connections: 10, FreeAcceptsPerSecond: 1e6}, now)
	got := map[string]int{}
	for range 50 {
		n, _, ok := f.pick(placement.Client{}, now)
		if !ok {
			t.Fatal("nobody")
		}
		got[n.Node]++
	}
	// 10 + a and (10 + b) / 2 are level at last.
	if got["a"] != 13 && got["a"] != 14 || got["a"]+got["b"] != 50 {
		t.Errorf("handed out %v", got)
	}
	// They come: what was pending is now counted by the notifier.
	f.load(2, Load{Connections: 40, TicketConnections: 30}, now)
	for _, n := range f.Snapshot(now) {
		if n.Node == "b" && n.Pending != got["b"]-30 {
			t.Errorf("%d pending, want %d", n.Pending, got["b"]-30)
		}
	}
	// Those who never come are forgotten with their tickets.
	later := now.Add(ticketTTL + time.Second)
	for _, n := range f.Snapshot(later) {
		if n.Pending != 0 || n.State != Silent {
			t.Errorf("%s: %d pending, %s", n.Node, n.Pending, n.State)
		}
	}
}

func TestWhoIsGivenClients(t *testing.T) {
	now := time.UnixMilli(1_800_000_000_000)
	for _, tt := range []struct {
		name string
		load Load
		ago  time.Duration
		want NotifierState
	}{
		{"fine", Load{Connections: 9}, 0, Serving},
		{"full", Load{Connections: 10}, 0, Full},
		{"draining", Load{Draining: true}, 0, Draining},
		{"silent", Load{}, 4 * time.Second, Silent},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := newFleet(emptiest(t), false)
			f.join(Notifier{Link: 1, Node: "a", Weight: 1, Capacity: 10, Since: now.Add(-time.Hour)})
			f.load(1, tt.load, now.Add(-tt.ago))
			if s := f.Snapshot(now)[0].State; s != tt.want {
				t.Errorf("state %s, want %s", s, tt.want)
			}
			if _, _, ok := f.pick(placement.Client{}, now); ok != (tt.want == Serving) {
				t.Errorf("picked: %t", ok)
			}
		})
	}
	probed := newFleet(emptiest(t), true)
	probed.join(Notifier{Link: 1, Node: "a", Weight: 1, Since: now})
	probed.load(1, Load{}, now)
	for _, step := range []struct {
		err  error
		want NotifierState
	}{
		{nil, Serving}, {errors.New("refused"), Serving}, {errors.New("refused"), Unreachable}, {nil, Serving},
		{errProbeSlow, Serving}, {errProbeSlow, Unreachable}, {errProbeSlow, Unreachable}, {nil, Serving},
	} {
		probed.tried(1, time.Millisecond, true, step.err)
		if s := probed.Snapshot(now)[0].State; s != step.want {
			t.Errorf("after %v: %s, want %s", step.err, s, step.want)
		}
	}
	probed.load(1, Load{AcceptsPerSecond: 500}, now)
	for i, want := range []NotifierState{Serving, Serving, Serving, Unreachable} {
		probed.tried(1, 0, false, errProbeSlow)
		if s := probed.Snapshot(now)[0].State; s != want {
			t.Errorf("busy with others, slow for the %d. time: %s, want %s", i+1, s, want)
		}
	}
	f := newFleet(nowhere{}, false)
	f.join(Notifier{Link: 1, Node: "a", Weight: 1, Since: now})
	if _, _, ok := f.pick(placement.Client{}, now); ok {
		t.Error("a placement without a choice was followed")
	}
	f.leave(1)
	f.load(1, Load{}, now)
	if len(f.Snapshot(now)) != 0 {
		t.Error("left, but there")
	}
}

func emptiest(t *testing.T) placement.Policy {
	t.Helper()
	p, err := placement.New(placement.LeastConnections, nil)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

type nowhere struct{}

func (nowhere) Place(placement.Client, []placement.Node) int { return -1 }

// TestTurns: at 100 accepts a second a crowd gets turns 10 ms apart, and whoever is too many has to ask again.
func TestTurns(t *testing.T) {
	now := time.UnixMilli(1_800_000_000_000)
	f := newFleet(emptiest(t), false)
	for id, name := range map[routing.LinkID]string{1: "a", 2: "b"} {
		f.join(Notifier{Link: id, Node: name, Weight: 1, Since: now})
		f.load(id, Load{FreeAcceptsPerSecond: 100}, now)
	}
	var last time.Duration
	taken, away := 0, 0
	for range 5000 {
		_, wait, ok := f.pick(placement.Client{}, now)
		if !ok {
			away++
			// The k-th who is turned away finds a turn after k/200 s.
			due := time.Duration(away) * time.Second / 200
			if wait < max(time.Second, due*3/4) || wait > max(time.Second, due*5/4) {
				t.Fatalf("the %d. who is turned away is to come back after %v", away, wait)
			}
			continue
		}
		taken, last = taken+1, max(last, wait)
	}
	if want := 2 * 100 * int((longestWait+paceBurst)/time.Second); taken < want || taken > want+60 {
		t.Errorf("%d got a turn, want about %d", taken, want)
	}
	if last < longestWait-time.Second || last > longestWait+time.Second {
		t.Errorf("the last turn is in %v, want about %v", last, longestWait)
	}
	later := now.Add(longestWait)
	f.load(1, Load{FreeAcceptsPerSecond: 100}, later)
	if _, wait, ok := f.pick(placement.Client{}, later); !ok || wait > longestWait {
		t.Errorf("later: wait %v, %v", wait, ok)
	}
}

func TestAgentLine(t *testing.T) {
	now := time.UnixMilli(1_800_000_000_000)
	f := newFleet(emptiest(t), false)
	for id, n := range map[routing.LinkID]Notifier{1: {Node: "a"}, 2: {Node: "b"}, 3: {Node: "c"}, 4: {Node: "d", Since: now.Add(-time.Hour)}} {
		n.Link, n.Weight = id, 1
		f.join(n)
	}
	f.load(1, Load{Connections: 900}, now)
	f.load(2, Load{Connections: 1900}, now)
	f.load(3, Load{Draining: true}, now)
	for name, want := range map[string]string{
		"a": "up ready 100%", "b": "up ready 50%", "c": "up drain", "d": "down # silent", "e": "down # not linked",
	} {
		if got := f.agentLine(name, now); got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
}
