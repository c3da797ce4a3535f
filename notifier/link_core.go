package notifier

import (
	"cmp"
	"slices"
	"time"

	"github.com/mailbell/mailbell/schema"
	"github.com/mailbell/mailbell/schema/link"
)

// linkID names one link for its life; 0 is none.
type linkID uint64

// maxBatch is how many accounts one Subscribe or Unsubscribe carries.
const maxBatch = 4096

// maxPending bounds the subscribes that wait for an answer.
const maxPending = 1 << 17

// coreOut is what the core wants done. It is implemented by the hub and by the transcripts.
type coreOut interface {
	// send puts a message on a link, behind those before it.
	send(l linkID, m *link.FromNotifier)
	// event hands an event to all subscriptions of an account.
	event(a nameID, account string, pos schema.Position, event []byte)
	// subscribed answers a client and begins its subscription; it returns whether one was added.
	subscribed(a *answer) bool
	// denied answers a client's subscribe with an error.
	denied(h handle, id uint64, code schema.ErrorCode, message string)
	// missed tells all subscriptions of an account that everything up to pos may have been missed.
	missed(a nameID, account string, pos schema.Position, spread uint32)
	// cut ends a link that does not keep to the contract.
	cut(l linkID, why string)
}

// core is what a notifier knows of partitions, their owners and positions, and of subscribes that wait. It does
// no I/O and reads no clock: each method takes what has happened and says through
// coreOut what follows. It belongs to the hub's goroutine.
//
// Invariants:
//   - While a partition has an owner, every account of it that someone wants has been asked for there, or is in a
//     list that the next flush sends.
//   - pos covers what all live accounts of the partition have been given or told. It stands still
//     while a re-subscription is being answered, because a part of the accounts is behind then.
//   - An account of which a client has a subscription is live, or is asked for by a Subscribe or Resume that has no answer.
//   - What a client has been given is also kept per subscription (sub.floor), so a replay that overlaps costs
//     nothing but time.
type core struct {
	out      coreOut
	accounts *names
	timeout  time.Duration // of a subscribe

	parts       []partition // empty until the first Welcome
	nodes       map[linkID]string
	unplaced    []*pending // subscribes from before it
	dirty       []int32    // partitions with something to send at the next flush
	requests    map[uint64]*request
	pending     map[uint64]*pending
	lastRequest uint64

	lost  bool // a partition has lost its owner since the last flush
	hasty int  // how often someone may be asked to stand in before the next tick
}

// partition is one of the log's.
type partition struct {
	owner      linkID // 0: none is known
	generation uint64 // that the owner, or who stands in for it, calls itself by
	fence      uint64 // generation of the last owner; who comes with an older one is of the past
	fencedBy   string // the last owner's name; what it says of itself later is newer, whatever the generation
	standIn    bool   // the owner only stands in
	tries      int    // how often someone was asked to, since there was an owner
	asked      bool   // someone was, since the last tick
	claims     []claim
	lacking    time.Time // since when it has no owner, or one that only stands in; zero: it has one, as far as the tick knows
	known      bool      // pos is
	epoch      uint64
	offset     int64
	// A re-subscription's Subscribes that are unanswered, and the furthest head of the answered ones.
	resubs    int
	resubFrom int64 // the offset after which they ask
	resubHead link.Offset
	split     bool // some accounts have been told of another epoch, others not yet

	waiting []*pending // unanswered subscribes, in order

	dirty   bool
	unsubs  []string
	subs    []string   // not live yet: they have nothing to catch up with
	resumes []*pending // to be asked after subs
}

// pending is a client's subscribe that has not been answered. It holds one want of its account.
type pending struct {
	request      uint64
	h            handle
	id           uint64
	account      schema.Account
	aid          nameID
	boxes        []schema.Mailbox
	since        *schema.Position
	sinceInvalid bool
	partition    int32
	deadline     time.Time
}

// request is a Subscribe that has not been answered.
type request struct {
	partition int32
	accounts  []string
	again     bool // part of a re-subscription
}

func newCore(out coreOut, accounts *names, timeout time.Duration) *core {
	return &core{out: out, accounts: accounts, timeout: timeout, lastRequest: uint64(askedFirst),
		requests: make(map[uint64]*request), pending: make(map[uint64]*pending)}
}

func (p *partition) pos(i int32) schema.Position {
	return schema.Position{Epoch: p.epoch, Partition: i, Offset: p.offset}
}

func (c *core) nextRequest() uint64 {
	for {
		c.lastRequest++
		if low := uint32(c.lastRequest); low >= askedFirst && low != askedAgain { // the low half marks accounts
			return c.lastRequest
		}
	}
}

// place is where an account's events are and how far they have been handed out. It reports false while that cannot be said:
// what the account's subscriptions were given may be of another epoch than the partition's position.
func (c *core) place(a nameID) (account schema.Account, pos schema.Position, ok bool) {
	account = schema.Account(c.accounts.name(a))
	i := schema.PartitionOf(account, len(c.parts))
	return account, c.parts[i].pos(i), !c.parts[i].split
}

// subscribe takes a client's checked subscribe.
func (c *core) subscribe(o *op, now time.Time) {
	if len(c.pending) >= maxPending {
		c.out.denied(o.h, o.id, schema.CodeUnavailable, "too many subscribes wait for an answer: try again later")
		return
	}
	aid, _ := c.accounts.want(string(o.account), 0)
	p := &pending{request: c.nextRequest(), h: o.h, id: o.id, account: o.account, aid: aid, boxes: o.boxes,
		since: o.since, sinceInvalid: o.sinceInvalid, partition: -1, deadline: now.Add(c.timeout)}
	c.pending[p.request] = p
	if len(c.parts) == 0 {
		c.unplaced = append(c.unplaced, p)
		return
	}
	c.put(p)
}

// put begins to answer a subscribe at its partition.
func (c *core) put(p *pending) {
	p.partition = schema.PartitionOf(p.account, len(c.parts))
	part := &c.parts[p.partition]
	if p.since != nil && p.since.Partition != p.partition {
		p.since, p.sinceInvalid = nil, true // the topic had another number of partitions
	}
	part.waiting = append(part.waiting, p)
	if part.owner == 0 {
		return
	}
	asked := c.accounts.asked(p.aid)
	if asked == askedLive && p.since == nil && !p.sinceInvalid && part.known && part.resubs == 0 {
		c.answer(p, &answer{pos: part.pos(p.partition), catchUp: schema.Fresh})
		return
	}
	c.ask(part, p, asked)
}

// ask queues what has to be asked of the owner for a subscribe.
func (c *core) ask(part *partition, p *pending, asked uint32) {
	if asked == askedNot {
		c.accounts.setAsked(p.aid, askedNot, askedQueued)
		part.subs = append(part.subs, string(p.account))
	}
	part.resumes = append(part.resumes, p)
	c.soil(p.partition)
}

func (c *core) soil(i int32) {
	if part := &c.parts[i]; !part.dirty {
		part.dirty = true
		c.dirty = append(c.dirty, i)
	}
}

// answer answers a subscribe that has found its place.
func (c *core) answer(p *pending, a *answer) {
	c.forget(p)
	a.h, a.id, a.account, a.aid, a.boxes, a.since = p.h, p.id, p.account, p.aid, p.boxes, p.since
	if p.sinceInvalid {
		a.catchUp, a.records = schema.Resync, nil
	}
	if !c.out.subscribed(a) {
		c.drop(p.aid)
	}
}

// forget takes a subscribe from all lists but that of the next flush, which looks again.
func (c *core) forget(p *pending) {
	delete(c.pending, p.request)
	list := &c.unplaced
	if p.partition >= 0 {
		list = &c.parts[p.partition].waiting
	}
	if i := slices.Index(*list, p); i >= 0 {
		*list = slices.Delete(*list, i, i+1)
	}
	if len(*list) == 0 {
		*list = nil
	}
}

// cancel ends a client's unanswered subscribes to an account.
func (c *core) cancel(h handle, account schema.Account) {
	list := c.unplaced
	if len(c.parts) > 0 {
		list = c.parts[schema.PartitionOf(account, len(c.parts))].waiting
	}
	for _, p := range slices.Clone(list) {
		if p.h == h && p.account == account {
			c.forget(p)
			c.out.denied(p.h, p.id, schema.CodeUnavailable, "unsubscribed before it was answered")
			c.drop(p.aid)
		}
	}
}

// drop takes back one want of an account.
func (c *core) drop(a nameID) {
	left, asked, name := c.accounts.unwant(a)
	if left > 0 || asked == askedNot || asked == askedQueued {
		return // flush does not send a queued name that nobody wants
	}
	i := schema.PartitionOf(schema.Account(name), len(c.parts))
	if part := &c.parts[i]; part.owner != 0 {
		part.unsubs = append(part.unsubs, name)
		c.soil(i)
	}
}

// tick gives up on what has waited for too long.
func (c *core) tick(now time.Time) {
	var late []*pending
	for _, p := range c.pending {
		if now.After(p.deadline) {
			late = append(late, p)
		}
	}
	slices.SortFunc(late, func(a, b *pending) int { return cmp.Compare(a.request, b.request) })
	for _, p := range late {
		c.forget(p)
		c.out.denied(p.h, p.id, schema.CodeUnavailable, "no bus node answers for this account just now: try again later")
		c.drop(p.aid)
	}
	c.takeClaims(now)
	c.hasty = hastyStandIns
	for i := range c.parts {
		c.parts[i].asked = false
	}
	c.standIns()
}

// flush sends what has been gathered: for each partition what is wanted no more, what is wanted, and
// then, in a message a link, what clients want to catch up with.
func (c *core) flush() {
	if c.lost && c.hasty > 0 && c.anyUnasked() {
		c.hasty--
		c.standIns()
	}
	c.lost = false
	resumes := make(map[linkID]*link.Resume)
	var order []linkID
	for _, i := range c.dirty {
		part := &c.parts[i]
		part.dirty = false
		if part.owner != 0 {
			c.flushPartition(i, part)
			for _, p := range part.resumes {
				if c.pending[p.request] != p {
					continue // cancelled meanwhile
				}
				if resumes[part.owner] == nil {
					resumes[part.owner] = new(link.Resume)
					order = append(order, part.owner)
				}
				resumes[part.owner].Items = append(resumes[part.owner].Items, resumeItem(p, part.generation))
			}
		}
		part.unsubs, part.subs, part.resumes = nil, nil, nil
	}
	c.dirty = c.dirty[:0]
	for _, l := range order {
		c.out.send(l, &link.FromNotifier{Body: &link.FromNotifier_Resume{Resume: resumes[l]}})
	}
}

func (c *core) flushPartition(i int32, part *partition) {
	for batch := range slices.Chunk(part.unsubs, maxBatch) {
		c.out.send(part.owner, &link.FromNotifier{Body: &link.FromNotifier_Unsubscribe{Unsubscribe: &link.Unsubscribe{
			Partition: uint32(i), Accounts: batch}}})
	}
	for batch := range slices.Chunk(part.subs, maxBatch) {
		request := c.nextRequest()
		accounts := make([]string, 0, len(batch))
		for _, name := range batch {
			if a := c.accounts.wanted(name); a != 0 && c.accounts.setAsked(a, askedQueued, uint32(request)) {
				accounts = append(accounts, name)
			}
		}
		if len(accounts) > 0 {
			c.sendSubscribe(i, request, accounts, false)
		}
	}
}

// sendSubscribe asks the owner for accounts; again means that they catch up from the partition's position.
func (c *core) sendSubscribe(i int32, number uint64, accounts []string, again bool) {
	part := &c.parts[i]
	c.requests[number] = &request{partition: i, accounts: accounts, again: again}
	m := &link.Subscribe{Request: number, Partition: uint32(i), Generation: part.generation, Accounts: accounts}
	if again {
		m.After = &link.Offset{Epoch: part.epoch, Offset: part.offset}
	}
	c.out.send(part.owner, &link.FromNotifier{Body: &link.FromNotifier_Subscribe{Subscribe: m}})
}

func resumeItem(p *pending, generation uint64) *link.ResumeItem {
	item := &link.ResumeItem{Request: p.request, Partition: uint32(p.partition), Generation: generation, Account: string(p.account)}
	for _, b := range p.boxes {
		item.Mailboxes = append(item.Mailboxes, string(b))
	}
	if p.since != nil {
		item.Since = &link.Offset{Epoch: p.since.Epoch, Offset: p.since.Offset}
	}
	return item
}
