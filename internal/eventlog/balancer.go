package eventlog

import (
	"hash/fnv"
	"slices"
	"strings"

	kafka "github.com/segmentio/kafka-go"
)

// balancerName is what the members of a group have to have in common.
const balancerName = "mailbell-rendezvous"

// balancer gives partitions to nodes by bounded rendezvous hashing: each node and partition have a score that nobody
// chooses, a partition goes to the node with the highest score that is not full yet, and no node gets more than its
// share, rounded up. So when a node comes or goes, little more than its own share moves, and a node that comes back
// under its name gets what it had.
type balancer struct{ node string }

func (b balancer) ProtocolName() string      { return balancerName }
func (b balancer) UserData() ([]byte, error) { return []byte(b.node), nil }

// AssignGroups implements kafka.GroupBalancer. The group's leader calls it.
func (b balancer) AssignGroups(members []kafka.GroupMember, partitions []kafka.Partition) kafka.GroupMemberAssignments {
	nodes := nodeNames(members)
	byTopic := make(map[string][]int)
	for _, p := range partitions {
		byTopic[p.Topic] = append(byTopic[p.Topic], p.ID)
	}
	given := make(kafka.GroupMemberAssignments, len(members))
	for _, m := range members {
		given[m.ID] = make(map[string][]int)
	}
	for topic, ids := range byTopic {
		for i, owned := range rendezvous(nodes, ids) {
			given[members[i].ID][topic] = owned
		}
	}
	return given
}

// nodeNames returns a name for each member: the node id that it sent. Two members with one node id, which happens when
// a node was replaced a moment ago, are told apart by their member ids.
func nodeNames(members []kafka.GroupMember) []string {
	seen := make(map[string]int, len(members))
	for _, m := range members {
		seen[string(m.UserData)]++
	}
	names := make([]string, len(members))
	for i, m := range members {
		if names[i] = string(m.UserData); names[i] == "" || seen[names[i]] > 1 {
			names[i] += "\x00" + m.ID
		}
	}
	return names
}

// rendezvous returns the partitions of each node, in ascending order. It depends on nothing but its arguments, and not
// on their order.
func rendezvous(nodes []string, partitions []int) [][]int {
	owned := make([][]int, len(nodes))
	if len(nodes) == 0 {
		return owned
	}
	type pair struct {
		score     uint64
		node      int
		partition int
	}
	pairs := make([]pair, 0, len(nodes)*len(partitions))
	for n, node := range nodes {
		for _, p := range partitions {
			pairs = append(pairs, pair{score(node, p), n, p})
		}
	}
	slices.SortFunc(pairs, func(a, b pair) int {
		switch {
		case a.score != b.score:
			if a.score > b.score {
				return -1
			}
			return 1
		case a.partition != b.partition:
			return a.partition - b.partition
		}
		return strings.Compare(nodes[a.node], nodes[b.node])
	})
	taken := make(map[int]bool, len(partitions))
	share, larger := len(partitions)/len(nodes), len(partitions)%len(nodes)
	for _, p := range pairs {
		switch have := len(owned[p.node]); {
		case taken[p.partition] || have > share:
			continue
		case have == share:
			if larger == 0 {
				continue
			}
			larger--
		}
		owned[p.node] = append(owned[p.node], p.partition)
		taken[p.partition] = true
	}
	for i := range owned {
		slices.Sort(owned[i])
	}
	return owned
}

// score is a number that looks random but is always the same for a node and a partition.
func score(node string, partition int) uint64 {
	h := fnv.New64a()
	_, _ = h.Write([]byte(node))
	_, _ = h.Write([]byte{0, byte(partition >> 24), byte(partition >> 16), byte(partition >> 8), byte(partition)})
	x := h.Sum64()
	// FNV's high bits hardly depend on the last bytes; this is the finalizer of splitmix64.
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}
