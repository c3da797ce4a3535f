package chaos

import (
	"reflect"
	"testing"
	"time"
)

var testRules = []Rule{
	{Kind: BrokerKill, Weight: 3, Targets: []string{"k1", "k2", "k3"}, Shortest: time.Second, Longest: 8 * time.Second},
	{Kind: BusStop, Weight: 2, Targets: []string{"b1", "b2"}, Shortest: 2 * time.Second, Longest: 12 * time.Second},
	{Kind: CutOneWay, Weight: 2, Targets: []string{"b1", "b2", "k1"}, Peers: []string{"k1", "k2"}, Shortest: time.Second, Longest: 20 * time.Second},
	{Kind: ClientsReconnect, Weight: 1, Targets: []string{"c1"}},
}

func TestPlanIsItsSeeds(t *testing.T) {
	plan := func(seed uint64) []Fault {
		return Plan(seed, 30*time.Minute, 3*time.Second, testRules, [][]string{{"k1", "k2", "k3"}})
	}
	if a, b := plan(7), plan(7); !reflect.DeepEqual(a, b) {
		t.Error("the same seed has two plans")
	}
	if a, b := plan(7), plan(8); reflect.DeepEqual(a, b) {
		t.Error("two seeds have the same plan")
	}
}

// A target, and a group, is broken once at a time, and has time to come back.
func TestPlanLeavesTimeToHeal(t *testing.T) {
	brokers := []string{"k1", "k2", "k3"}
	group := map[string]string{"k1": "k", "k2": "k", "k3": "k"}
	for seed := range uint64(50) {
		free := make(map[string]time.Duration)
		kinds := make(map[Kind]int)
		for _, f := range Plan(seed, 30*time.Minute, 3*time.Second, testRules, [][]string{brokers}) {
			kinds[f.Kind]++
			if f.End() > 30*time.Minute || f.Target == f.Peer {
				t.Fatalf("seed %d: %+v", seed, f)
			}
			for _, name := range []string{f.Target, f.Peer} {
				if g, ok := group[name]; ok {
					name = g
				}
				if name != "" && f.At < free[name] {
					t.Fatalf("seed %d: %s is broken at %v and free from %v: %+v", seed, name, f.At, free[name], f)
				}
			}
			for _, name := range []string{f.Target, f.Peer} {
				if g, ok := group[name]; ok {
					name = g
				}
				free[name] = f.End() + settle
			}
		}
		for _, r := range testRules {
			if kinds[r.Kind] == 0 {
				t.Errorf("seed %d: no %s", seed, r.Kind)
			}
		}
	}
}

func TestPlanOfNothing(t *testing.T) {
	if plan := Plan(1, time.Minute, time.Second, nil, nil); plan != nil {
		t.Errorf("%v without rules", plan)
	}
	if plan := Plan(1, time.Minute, time.Second, []Rule{{Kind: DiskFull, Weight: 1}}, nil); len(plan) != 0 {
		t.Errorf("%v without targets", plan)
	}
}
