package notifier

import (
	"hash/fnv"
	"slices"

	"github.com/mailbell/mailbell/schema"
	"github.com/mailbell/mailbell/schema/link"
)

// When the owner of a partition is lost, another bus node is asked to stand in at once, rather than when the group has
// found out that the owner is dead, which takes Kafka's session timeout. Every bus node reads the same log, so the
// clients get the same events in the same order, from the partition's position on. An owner, when one appears that is
// not of the past, takes over from the stand-in as from another owner.

// meet notes the name of the bus node at the end of a link.
func (c *core) meet(l linkID, node string) {
	if c.nodes == nil {
		c.nodes = make(map[linkID]string)
	}
	c.nodes[l] = node
}

// hastyStandIns is how often in a second someone may be asked at once when an owner says that it is none any more, beside
// the ends of links: finding out what clients want takes a look at every account.
const hastyStandIns = 8

// standIns asks for someone to stand in for partitions without an owner whose accounts clients want. Those for which
// someone does already are asked for again, which is how a stand-in knows that it is still needed.
func (c *core) standIns() {
	if len(c.nodes) == 0 || !c.anyUnowned() {
		return
	}
	wanted := make([]bool, len(c.parts))
	c.accounts.each(func(name string, asked *uint32) {
		wanted[schema.PartitionOf(schema.Account(name), len(c.parts))] = true
	})
	asks := make(map[linkID]*link.StandIn)
	for i := range c.parts {
		part := &c.parts[i]
		if !wanted[i] || !part.known || part.owner != 0 && !part.standIn {
			continue
		}
		l := part.owner
		part.asked = true
		if l == 0 {
			l = c.standInOf(int32(i), part.tries)
			part.tries++
		}
		if asks[l] == nil {
			asks[l] = new(link.StandIn)
		}
		asks[l].Partitions = append(asks[l].Partitions, &link.StandInPartition{Partition: uint32(i),
			After: &link.Offset{Epoch: part.epoch, Offset: part.offset}})
	}
	order := make([]linkID, 0, len(asks))
	for l := range asks {
		order = append(order, l)
	}
	slices.Sort(order)
	for _, l := range order {
		c.out.send(l, &link.FromNotifier{Body: &link.FromNotifier_StandIn{StandIn: asks[l]}})
	}
}

func (c *core) anyUnowned() bool {
	for i := range c.parts {
		if p := &c.parts[i]; p.known && (p.owner == 0 || p.standIn) {
			return true
		}
	}
	return false
}

// anyUnasked reports whether there is a partition without an owner for which nobody was asked to stand in since the last tick.
func (c *core) anyUnasked() bool {
	for i := range c.parts {
		if p := &c.parts[i]; p.known && p.owner == 0 && !p.asked {
			return true
		}
	}
	return false
}

// standInOf picks a node by rendezvous, so that all notifiers ask the same one; the next in line at each further try.
func (c *core) standInOf(i int32, tries int) linkID {
	type ranked struct {
		l     linkID
		score uint64
	}
	var all []ranked
	for l, node := range c.nodes {
		h := fnv.New64a()
		_, _ = h.Write([]byte{byte(i >> 24), byte(i >> 16), byte(i >> 8), byte(i)})
		_, _ = h.Write([]byte(node))
		all = append(all, ranked{l, h.Sum64()})
	}
	slices.SortFunc(all, func(a, b ranked) int {
		if a.score != b.score {
			if a.score > b.score {
				return -1
			}
			return 1
		}
		return int(int64(a.l) - int64(b.l))
	})
	return all[tries%len(all)].l
}

// standsIn takes a partition that a node stands in for. It is of use only to who has nobody better; true says that it is
// used, gained that it was not before.
func (c *core) standsIn(l linkID, o *link.OwnedPartition) (used, gained bool) {
	part := &c.parts[o.Partition]
	switch {
	case part.owner == l && part.standIn && part.generation == o.Generation:
		return true, false
	case part.owner != 0 && !(part.owner == l && part.standIn) || !part.known:
		return false, false
	}
	c.disown(int32(o.Partition))
	part.owner, part.standIn, part.generation = l, true, o.Generation
	part.resubHead = link.Offset{Epoch: o.Head.GetEpoch(), Offset: o.Head.GetOffset()}
	return true, true
}
