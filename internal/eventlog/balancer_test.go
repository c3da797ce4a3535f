package eventlog

import (
	"fmt"
	"math/rand/v2"
	"reflect"
	"slices"
	"testing"

	kafka "github.com/segmentio/kafka-go"
)

func members(nodes ...string) []kafka.GroupMember {
	var ms []kafka.GroupMember
	for i, n := range nodes {
		ms = append(ms, kafka.GroupMember{ID: fmt.Sprintf("member-%s-%d", n, i), Topics: []string{"t"}, UserData: []byte(n)})
	}
	return ms
}

func topicPartitions(n int) []kafka.Partition {
	ps := make([]kafka.Partition, n)
	for i := range ps {
		ps[i] = kafka.Partition{Topic: "t", ID: i}
	}
	return ps
}

// owners returns the node of each partition.
func owners(t *testing.T, b kafka.GroupBalancer, ms []kafka.GroupMember, partitions int) []string {
	t.Helper()
	owner := make([]string, partitions)
	for id, topics := range b.AssignGroups(ms, topicPartitions(partitions)) {
		i := slices.IndexFunc(ms, func(m kafka.GroupMember) bool { return m.ID == id })
		for _, p := range topics["t"] {
			if owner[p] != "" {
				t.Fatalf("partition %d has two owners", p)
			}
			owner[p] = string(ms[i].UserData)
		}
	}
	for p, o := range owner {
		if o == "" {
			t.Fatalf("partition %d has no owner", p)
		}
	}
	return owner
}

func moved(a, b []string) int {
	n := 0
	for i := range a {
		if a[i] != b[i] {
			n++
		}
	}
	return n
}

func TestBalancerShares(t *testing.T) {
	for _, partitions := range []int{1, 7, 16, 64, 256} {
		for nodes := 1; nodes <= 9; nodes++ {
			var names []string
			for i := range nodes {
				names = append(names, fmt.Sprintf("bus-%d", i+1))
			}
			count := make(map[string]int)
			for _, o := range owners(t, balancer{}, members(names...), partitions) {
				count[o]++
			}
			for _, n := range names {
				if c := count[n]; c < partitions/nodes || c > (partitions+nodes-1)/nodes {
					t.Errorf("%d partitions, %d nodes: %s has %d", partitions, nodes, n, c)
				}
			}
		}
	}
}

// Who leads the group, and the order of its members, must not matter.
func TestBalancerOrder(t *testing.T) {
	names := []string{"bus-1", "bus-2", "bus-3", "bus-4", "bus-5"}
	want := owners(t, balancer{node: "bus-1"}, members(names...), 64)
	for range 20 {
		rand.Shuffle(len(names), func(i, j int) { names[i], names[j] = names[j], names[i] })
		if got := owners(t, balancer{node: names[0]}, members(names...), 64); !reflect.DeepEqual(got, want) {
			t.Fatalf("order %v: got %v, want %v", names, got, want)
		}
	}
}

// A fourth node joins three: little more than its share moves, and when it leaves again everything is as before. Over
// 200 sets of names 18 of 64 partitions move on average; at least 16 have to, and round robin moves 46.
func TestBalancerMoves(t *testing.T) {
	tests := []struct {
		partitions        int
		mean, most        float64 // of rendezvous hashing
		least, roundRobin int
	}{
		{partitions: 16, mean: 5, most: 8, least: 4, roundRobin: 10},
		{partitions: 64, mean: 18.5, most: 24, least: 16, roundRobin: 46},
		{partitions: 256, mean: 70, most: 80, least: 64, roundRobin: 190},
	}
	for _, tt := range tests {
		t.Run(fmt.Sprint(tt.partitions), func(t *testing.T) {
			sum, most, least := 0, 0, tt.partitions
			const sets = 200
			for set := range sets {
				name := func(i int) string { return fmt.Sprintf("node-%d-%d", set, i) }
				three, four := members(name(1), name(2), name(3)), members(name(1), name(2), name(3), name(4))
				before := owners(t, balancer{}, three, tt.partitions)
				n := moved(before, owners(t, balancer{}, four, tt.partitions))
				sum, most, least = sum+n, max(most, n), min(least, n)
				if n := moved(before, owners(t, balancer{}, three, tt.partitions)); n != 0 {
					t.Fatalf("%d partitions are elsewhere after the fourth has left", n)
				}
				rr := kafka.RoundRobinGroupBalancer{}
				if n := moved(owners(t, rr, three, tt.partitions), owners(t, rr, four, tt.partitions)); n != tt.roundRobin {
					t.Fatalf("round robin moved %d, not %d", n, tt.roundRobin)
				}
			}
			mean := float64(sum) / sets
			t.Logf("%d partitions: %.1f move, %d to %d; round robin %d", tt.partitions, mean, least, most, tt.roundRobin)
			if mean > tt.mean || float64(most) > tt.most || least < tt.least {
				t.Errorf("%.1f move, %d to %d; want at most %.1f, %d to %.0f", mean, least, most, tt.mean, tt.least, tt.most)
			}
		})
	}
}

// A node that comes back with another member id gets what it had.
func TestBalancerReturns(t *testing.T) {
	before := owners(t, balancer{}, members("bus-1", "bus-2", "bus-3"), 64)
	if n := moved(before, owners(t, balancer{}, members("bus-3", "bus-1", "bus-2"), 64)); n != 0 {
		t.Errorf("%d partitions moved though the nodes are the same", n)
	}
}

// Two members with one node id, and members without one, are told apart.
func TestBalancerTwins(t *testing.T) {
	ms := members("bus-1", "bus-1", "", "")
	count := make(map[string]int)
	for id, topics := range (balancer{}).AssignGroups(ms, topicPartitions(64)) {
		count[id] += len(topics["t"])
	}
	for _, m := range ms {
		if count[m.ID] != 16 {
			t.Errorf("%s has %d partitions, want 16", m.ID, count[m.ID])
		}
	}
	if got := rendezvous(nil, []int{1, 2}); len(got) != 0 {
		t.Errorf("without nodes: %v", got)
	}
}

func BenchmarkBalancer(b *testing.B) {
	ms, ps := members("bus-1", "bus-2", "bus-3", "bus-4"), topicPartitions(256)
	b.ReportAllocs()
	for b.Loop() {
		balancer{}.AssignGroups(ms, ps)
	}
}
