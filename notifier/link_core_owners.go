package notifier

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"github.com/mailbell/mailbell/schema"
	"github.com/mailbell/mailbell/schema/link"
)

// welcome takes a link into use. The number of partitions never changes while the system runs.
func (c *core) welcome(l linkID, partitions int) {
	switch {
	case partitions < 1 || partitions > 1<<16:
		c.out.cut(l, fmt.Sprintf("it says that the topic has %d partitions", partitions))
	case len(c.parts) == 0:
		c.parts = make([]partition, partitions)
		waiting := c.unplaced
		c.unplaced = nil
		for _, p := range waiting {
			c.put(p)
		}
	case len(c.parts) != partitions:
		c.out.cut(l, fmt.Sprintf("it says that the topic has %d partitions, others say %d: restart the notifiers after the topic was changed", partitions, len(c.parts)))
	}
}

// owned takes the complete set of partitions that a node serves now.
func (c *core) owned(l linkID, m *link.Owned) {
	c.dropClaims(l)
	keeps := make(map[int32]bool, len(m.Partitions))
	var gained []int32
	for _, o := range m.Partitions {
		i := int32(o.Partition)
		if int(o.Partition) >= len(c.parts) {
			c.out.cut(l, fmt.Sprintf("it owns partition %d of %d", o.Partition, len(c.parts)))
			return
		}
		part := &c.parts[i]
		if o.StandIn {
			used, gain := c.standsIn(l, o)
			if used {
				keeps[i] = true
			}
			if gain {
				gained = append(gained, i)
			}
			continue
		}
		if o.Generation < part.fence && !c.mayRestart(part, l) {
			part.claims = append(part.claims, claim{l, o.Generation, o.Head.GetEpoch(), o.Head.GetOffset()})
			continue // an owner of the past
		}
		keeps[i] = true
		if part.owner == l && !part.standIn && o.Generation == part.generation {
			continue // as before
		}
		c.own(i, claim{l, o.Generation, o.Head.GetEpoch(), o.Head.GetOffset()})
		gained = append(gained, i)
	}
	for i := range c.parts {
		if c.parts[i].owner == l && !keeps[int32(i)] {
			c.disown(int32(i))
			c.lost = true
		}
	}
	c.resubscribe(gained)
}

// claim is a node's word that it owns a partition.
type claim struct {
	l          linkID
	generation uint64
	epoch      uint64 // of its head
	offset     int64
}

// mayRestart reports whether a node is the last owner of a partition and nobody else owns it: a lower generation than before is
// then one of a group that counts from 1 again, as that of `mailbell run` does in a new process.
func (c *core) mayRestart(part *partition, l linkID) bool {
	return part.fencedBy == c.nodes[l] && (part.owner == 0 || part.standIn || part.owner == l)
}

// claimPatience is how long a partition is without an owner before one is believed whose generation is older than that of
// the last one. It is longer than the group takes to find a new owner. The group counts from 1 again when it was
// deleted, and then nobody comes with a generation that is high enough.
const claimPatience = 15 * time.Second

// own makes a link the owner of a partition; the caller subscribes again.
func (c *core) own(i int32, by claim) {
	c.disown(i)
	part := &c.parts[i]
	part.owner, part.generation, part.fence, part.tries, part.lacking = by.l, by.generation, by.generation, 0, time.Time{}
	part.fencedBy = c.nodes[by.l]
	if !part.known {
		part.known, part.epoch, part.offset = true, by.epoch, by.offset
	}
	part.resubHead = link.Offset{Epoch: by.epoch, Offset: by.offset}
}

// dropClaims forgets what a link has claimed.
func (c *core) dropClaims(l linkID) {
	for i := range c.parts {
		if part := &c.parts[i]; len(part.claims) > 0 {
			part.claims = slices.DeleteFunc(part.claims, func(cl claim) bool { return cl.l == l })
		}
	}
}

// takeClaims believes the latest of those that were taken for owners of the past, where nobody better has come for long.
func (c *core) takeClaims(now time.Time) {
	var gained []int32
	for i := range c.parts {
		part := &c.parts[i]
		switch {
		case part.owner != 0 && !part.standIn:
			part.lacking = time.Time{}
			continue
		case part.lacking.IsZero():
			part.lacking = now
		}
		if len(part.claims) == 0 || now.Sub(part.lacking) < claimPatience {
			continue
		}
		best := slices.MaxFunc(part.claims, func(a, b claim) int { return cmp.Compare(a.generation, b.generation) })
		part.claims = slices.DeleteFunc(part.claims, func(cl claim) bool { return cl == best })
		c.own(int32(i), best)
		gained = append(gained, int32(i))
	}
	c.resubscribe(gained)
}

// allOwned reports whether every partition has an owner.
func (c *core) allOwned() bool {
	for i := range c.parts {
		if c.parts[i].owner == 0 {
			return false
		}
	}
	return len(c.parts) > 0
}

// inherit takes how far another process had handed out each partition, and asks the owners for what its
// clients may not have got. Their accounts are wanted and marked as live.
func (c *core) inherit(parts []movedPart) {
	if len(c.parts) == 0 {
		c.parts = make([]partition, len(parts))
		waiting := c.unplaced
		c.unplaced = nil
		for _, p := range waiting {
			c.put(p)
		}
	}
	var gained []int32
	for i := range min(len(parts), len(c.parts)) {
		part, was := &c.parts[i], parts[i]
		if was.generation > part.fence {
			if part.owner != 0 && !part.standIn {
				part.claims = append(part.claims, claim{part.owner, part.generation, part.resubHead.Epoch, part.resubHead.Offset})
				c.disown(int32(i)) // an owner of the past
			}
			part.fence, part.fencedBy = was.generation, ""
		}
		if was.known {
			part.known, part.epoch, part.offset = true, was.epoch, was.offset
		}
		if part.owner != 0 {
			gained = append(gained, int32(i))
		}
	}
	c.resubscribe(gained)
}

// down is the end of a link.
func (c *core) down(l linkID) {
	delete(c.nodes, l)
	c.dropClaims(l)
	for i := range c.parts {
		if c.parts[i].owner == l {
			c.disown(int32(i))
		}
	}
	c.standIns()
}

// disown forgets a partition's owner and what it was asked; clients notice nothing yet.
func (c *core) disown(i int32) {
	part := &c.parts[i]
	part.owner, part.standIn, part.resubs = 0, false, 0
	part.unsubs, part.subs, part.resumes = nil, nil, nil
	for number, r := range c.requests {
		if r.partition == i {
			delete(c.requests, number)
		}
	}
}

// resubscribe asks the new owners of partitions for all accounts that clients want: those that were live, from the
// partition's position on; the others, whose clients have no answer yet, as new ones.
func (c *core) resubscribe(gained []int32) {
	if len(gained) == 0 {
		return
	}
	slices.Sort(gained)
	live := make(map[int32][]string, len(gained))
	for _, i := range gained {
		live[i] = nil
	}
	c.accounts.each(func(name string, asked *uint32) {
		i := schema.PartitionOf(schema.Account(name), len(c.parts))
		if _, ok := live[i]; !ok {
			return
		}
		if *asked == askedLive || *asked == askedAgain {
			live[i] = append(live[i], name)
			*asked = askedAgain
		} else {
			*asked = askedNot // asked for by its clients' pending subscribes
		}
	})
	for _, i := range gained {
		part := &c.parts[i]
		part.resubFrom = part.offset
		slices.Sort(live[i])
		for batch := range slices.Chunk(live[i], maxBatch) {
			part.resubs++
			c.sendSubscribe(i, c.nextRequest(), batch, true)
		}
		if part.resubs == 0 {
			c.settle(part)
		}
		for _, p := range part.waiting {
			c.ask(part, p, c.accounts.asked(p.aid))
		}
	}
}

// settle moves the position to where a re-subscription has ended.
func (c *core) settle(part *partition) {
	part.split = false
	if part.epoch != part.resubHead.Epoch || part.offset < part.resubHead.Offset {
		part.epoch, part.offset = part.resubHead.Epoch, part.resubHead.Offset
	}
}

// latest returns the later one of a node's head and the partition's position, which may have come from a node
// that had read further.
func (p *partition) latest(head schema.Position) schema.Position {
	if p.known && p.epoch == head.Epoch {
		head.Offset = max(head.Offset, p.offset)
	}
	return head
}

// owns finds the partition if the link is its owner in this generation.
func (c *core) owns(l linkID, partition uint32, generation uint64) *partition {
	if int(partition) >= len(c.parts) {
		return nil
	}
	part := &c.parts[partition]
	if part.owner != l || part.generation != generation {
		return nil
	}
	return part
}

// subscribed takes an owner's answer to a Subscribe.
func (c *core) subscribed(l linkID, m *link.Subscribed) {
	r := c.requests[m.Request]
	part := c.owns(l, m.Partition, m.Generation)
	if r == nil || part == nil || r.partition != int32(m.Partition) {
		return
	}
	if m.CatchUp == link.CatchUp_CATCH_UP_NOT_OWNER {
		c.disown(r.partition) // it will say who it is, and so will the owner
		c.lost = true
		return
	}
	delete(c.requests, m.Request)
	pos := schema.Position{Epoch: m.Head.GetEpoch(), Partition: r.partition, Offset: m.Head.GetOffset()}
	resync := m.CatchUp == link.CatchUp_CATCH_UP_RESYNC
	if resync {
		pos = part.latest(pos)
	}
	for _, name := range r.accounts {
		a := c.accounts.wanted(name)
		if a == 0 {
			continue
		}
		if r.again {
			c.accounts.setAsked(a, askedAgain, askedLive)
		} else {
			c.accounts.setAsked(a, uint32(m.Request), askedLive)
		}
		if resync {
			c.out.missed(a, name, pos, m.SpreadMs)
		}
	}
	if !r.again {
		return
	}
	part.split = part.split || part.epoch != pos.Epoch
	if part.resubHead.Epoch != pos.Epoch || part.resubHead.Offset < pos.Offset {
		part.resubHead.Epoch, part.resubHead.Offset = pos.Epoch, pos.Offset
	}
	part.resubs--
	if part.resubs == 0 {
		c.settle(part)
	}
}

// resumed takes an owner's answer to one client's subscribe.
func (c *core) resumed(l linkID, m *link.Resumed) {
	p := c.pending[m.Request]
	part := c.owns(l, m.Partition, m.Generation)
	if p == nil || part == nil || p.partition != int32(m.Partition) {
		return
	}
	if m.CatchUp == link.CatchUp_CATCH_UP_NOT_OWNER {
		c.disown(p.partition)
		c.lost = true
		return
	}
	// The answer may be to the first of two requests, and nobody asks for the account any more once its clients have one:
	// the owner counts it as wanted since it was asked.
	if asked := c.accounts.asked(p.aid); asked != askedLive && asked != askedAgain {
		c.accounts.setAsked(p.aid, asked, askedLive)
	}
	a := &answer{
		pos:     schema.Position{Epoch: m.Head.GetEpoch(), Partition: p.partition, Offset: m.Head.GetOffset()},
		catchUp: catchUpOf(m.CatchUp),
	}
	// The node may have read less than the one before it had sent, and this client is not of those that got it.
	switch a.catchUp {
	case schema.Current, schema.Replay:
		if a.pos.Epoch == part.epoch && a.pos.Offset < part.offset {
			part.offset = a.pos.Offset // the next node has to send it again; who has it drops it
		}
	default: // the client is going to ask the store, which knows all that was ever on the log
		a.pos = part.latest(a.pos)
	}
	switch a.catchUp {
	case schema.Replay:
		for _, r := range m.Records {
			a.records = append(a.records, record{offset: r.Offset, event: r.Event})
		}
	case schema.Resync:
		a.afterMs = spreadMs(m.SpreadMs)
	}
	c.answer(p, a)
}

func catchUpOf(c link.CatchUp) schema.CatchUp {
	switch c {
	case link.CatchUp_CATCH_UP_FRESH:
		return schema.Fresh
	case link.CatchUp_CATCH_UP_CURRENT:
		return schema.Current
	case link.CatchUp_CATCH_UP_REPLAY:
		return schema.Replay
	}
	return schema.Resync // what we don't know is no answer: never a guess
}

// deliveries takes events. Those of a link that does not own the partition, or not in this generation, are dropped:
// the owner will send them. So are those that an owner sent because of what was asked of it at a former time, as long as it
// has not answered what it was asked since: what lies before them is still to come. It returns how many events were taken
// and how many not.
func (c *core) deliveries(l linkID, m *link.Deliveries) (taken, fenced int) {
	for _, r := range m.Partitions {
		part := c.owns(l, r.Partition, r.Generation)
		if part == nil {
			fenced += len(r.Records)
			continue
		}
		i := int32(r.Partition)
		first := r.Upto
		if len(r.Records) > 0 {
			first = r.Records[0].Offset
		}
		c.sameEpoch(i, part, r.Epoch, first-1)
		again := c.requests[r.Request]
		replay := again != nil && again.again && again.partition == i
		for _, rec := range r.Records {
			a, asked := c.accounts.hears(rec.Account)
			if asked == askedAgain && !replay && (r.Epoch != part.epoch || rec.Offset > part.resubFrom) {
				fenced++
				continue
			}
			taken++
			if a != 0 {
				c.out.event(a, rec.Account, schema.Position{Epoch: r.Epoch, Partition: i, Offset: rec.Offset}, rec.Event)
			}
		}
		if part.resubs == 0 && part.epoch == r.Epoch {
			part.offset = max(part.offset, r.Upto)
		}
	}
	return taken, fenced
}

// positions takes how far quiet partitions have been read.
func (c *core) positions(l linkID, m *link.Positions) {
	for _, o := range m.Partitions {
		part := c.owns(l, o.Partition, o.Generation)
		if part == nil || part.resubs > 0 {
			continue
		}
		c.sameEpoch(int32(o.Partition), part, o.Head.GetEpoch(), o.Head.GetOffset())
		part.offset = max(part.offset, o.Head.GetOffset())
	}
}

// sameEpoch tells all clients of a partition that they missed something when its log is another one than before: offsets
// mean something else now.
func (c *core) sameEpoch(i int32, part *partition, epoch uint64, offset int64) {
	if part.epoch == epoch || part.resubs > 0 { // a re-subscription's answers tell by themselves
		return
	}
	part.epoch, part.offset = epoch, offset
	var all []string
	fetches := 0 // of all partitions: their logs change together
	c.accounts.each(func(name string, _ *uint32) {
		fetches++
		if schema.PartitionOf(schema.Account(name), len(c.parts)) == i {
			all = append(all, name)
		}
	})
	slices.Sort(all)
	for _, name := range all {
		if a := c.accounts.wanted(name); a != 0 {
			c.out.missed(a, name, part.pos(i), fetchSpread(float64(fetches)))
		}
	}
}
