package notifier

import (
	"math/rand/v2"

	"github.com/gobwas/ws"
	"github.com/mailbell/mailbell/internal/auth"
	"github.com/mailbell/mailbell/schema"
)

// askSubscribe checks a client's subscribe and hands it to the hub.
func (sh *shard) askSubscribe(h handle, c *slot, f *schema.ClientFrame) {
	i := h.index()
	boxes, ok := sh.allow(i, c, f.Account, f.Mailboxes)
	switch {
	case !ok:
		sh.sendError(i, c, f.ID, true, schema.CodeForbidden, "the token does not allow to hear this account, or not all of these mailboxes")
	case int(c.nsubs)+int(c.pending) >= sh.cfg.MaxSubscriptions:
		sh.sendError(i, c, f.ID, true, schema.CodeTooMany, "the connection has as many subscriptions as it may: unsubscribe from something first")
	default:
		c.pending++
		sh.inbox.post(op{kind: opSubscribe, h: h, id: f.ID, account: f.Account, boxes: boxes, since: f.Since, sinceInvalid: f.SinceInvalid})
	}
}

// allow says which mailboxes of the account the connection may hear; nil is all.
func (sh *shard) allow(i uint32, c *slot, account schema.Account, boxes []schema.Mailbox) ([]schema.Mailbox, bool) {
	if c.flags&flagGrants != 0 {
		return sh.grants[i].Allow(account, boxes)
	}
	if !sh.accounts.is(c.subject, string(account)) {
		return nil, false
	}
	grants := [1]auth.Grant{{Account: account}}
	return auth.Access{Grants: grants[:]}.Allow(account, boxes)
}

// endSubscription answers an unsubscribe. To end what has not begun is no error.
func (sh *shard) endSubscription(i uint32, c *slot, id uint64, account schema.Account) {
	if a := sh.accounts.wanted(string(account)); a != 0 {
		if n := sh.subs.find(c, a); n != 0 {
			sh.unsubscribe(c, n)
		}
	}
	sh.tmp = schema.AppendUnsubscribed(newFrame(sh.tmp), id)
	sh.pushControl(i, c, seal(sh.tmp, ws.OpText))
}

// unsubscribe ends a subscription; the hub takes its want back.
func (sh *shard) unsubscribe(c *slot, n uint32) {
	account := sh.subs.all.at(n).account
	sh.filters.drop(sh.subs.remove(c, n))
	sh.inbox.post(op{kind: opDrop, accountID: account})
}

// The following are called by the hub, and only by it: deliveries, answers and what
// is missed reach a connection in the order in which the hub decides them.

// delivery is an event on its way to an account's subscriptions.
type delivery struct {
	account nameID
	offset  int64
	event   []byte // as it stands on the log, for its mailbox
	frame   []byte // built once for all
}

// deliverTurn is how many subscriptions are looked at before the shard's other users have their turn.
const deliverTurn = 256

// deliver sends events to all that want them, in order. Only the hub, which is here, adds subscriptions, so that while
// mu is given back some can go, but none can come.
func (sh *shard) deliver(batch []delivery) {
	sh.enter()
	defer sh.leave()
	left := deliverTurn
	for k := range batch {
		d := &batch[k]
		var mailbox, old schema.Mailbox
		looked := false
		for n := sh.subs.first(d.account); n != 0; {
			s := sh.subs.all.at(n)
			next := s.next
			if d.offset > s.floor {
				s.floor = d.offset
				f := s.filter & filterMask
				if f != 0 && !looked {
					mailbox, old = schema.EventMailboxes(d.event)
					looked = true
				}
				if sh.filters.pass(f, mailbox, old) {
					sh.pushEvent(s.slot, sh.slots.all.at(s.slot), n, d.frame)
				}
			}
			n = next
			if left--; left == 0 {
				left = deliverTurn
				sh.breathe()
				if n != 0 && sh.subs.all.at(n).account != d.account { // it has gone: by the floors nobody gets it twice
					n = sh.subs.first(d.account)
				}
			}
		}
	}
}

// answer is what the hub has found for a subscribe.
type answer struct {
	h       handle
	id      uint64
	account schema.Account
	aid     nameID
	boxes   []schema.Mailbox
	pos     schema.Position  // from here on events flow
	since   *schema.Position // of the client; a replay starts after it
	catchUp schema.CatchUp
	afterMs uint32
	records []record
}

// record is an event with its offset.
type record struct {
	offset int64
	event  []byte
}

// subscribed begins the subscription and answers the client. It reports whether a subscription was
// added, which then owns the pending one's want.
func (sh *shard) subscribed(a *answer) (added bool) {
	sh.enter()
	defer sh.leave()
	c := sh.slots.of(a.h)
	if c == nil || c.state != slotOpen {
		return false
	}
	i := a.h.index()
	c.pending--
	filter := sh.filters.take(a.boxes)
	n := sh.subs.find(c, a.aid)
	if n == 0 {
		n = sh.subs.add(i, c, a.aid, filter, a.pos.Offset)
		added = true
	} else { // the same account again: the later one counts
		s := sh.subs.all.at(n)
		sh.filters.drop(s.filter & filterMask)
		s.filter = s.filter&^filterMask | filter
		s.floor = a.pos.Offset
	}
	sh.metrics.catchUps.WithLabelValues(string(a.catchUp)).Inc()
	pos := a.pos
	if a.catchUp == schema.Replay && a.since != nil {
		pos = *a.since // so far has the client got when it reads the answer
	}
	sh.tmp = schema.AppendSubscribed(newFrame(sh.tmp), a.id, a.account, pos, a.catchUp, a.afterMs)
	sh.pushControl(i, c, seal(sh.tmp, ws.OpText))
	pos = a.pos
	for _, r := range a.records {
		if filter != 0 {
			if mailbox, old := schema.EventMailboxes(r.event); !sh.filters.pass(filter, mailbox, old) {
				continue
			}
		}
		pos.Offset = r.offset
		sh.tmp = schema.AppendEvent(newFrame(sh.tmp), a.account, pos, r.event)
		sh.pushEvent(i, c, n, seal(sh.tmp, ws.OpText))
	}
	return added
}

// denied answers a subscribe with an error.
func (sh *shard) denied(h handle, id uint64, code schema.ErrorCode, message string) {
	sh.enter()
	defer sh.leave()
	if c := sh.slots.of(h); c != nil && c.state == slotOpen {
		c.pending--
		sh.sendError(h.index(), c, id, true, code, message)
	}
}

// unsubscribed answers an unsubscribe that the hub had to order behind the subscribes.
func (sh *shard) unsubscribed(h handle, id uint64, account schema.Account) {
	sh.enter()
	defer sh.leave()
	if c := sh.slots.of(h); c != nil && c.state == slotOpen {
		sh.endSubscription(h.index(), c, id, account)
	}
}

// whereabouts tells an account's name and how far its partition has been handed out, or that this can't be said just now.
type whereabouts func(nameID) (schema.Account, schema.Position, bool)

// tellMissed tells a client that was too slow which accounts to fetch, each at a moment of its own within spread ms. It reports
// false when some have to be told later.
func (sh *shard) tellMissed(h handle, where whereabouts, spread uint32) (all bool) {
	sh.enter()
	defer sh.leave()
	all = true
	c := sh.slots.of(h)
	if c == nil || c.state != slotOpen {
		return all
	}
	for n := c.subs; n != 0; n = sh.subs.all.at(n).ofSlot {
		s := sh.subs.all.at(n)
		if s.filter&subMissed == 0 {
			continue
		}
		account, pos, ok := where(s.account)
		if !ok {
			all = false
			continue
		}
		s.filter &^= subMissed | subQueued
		pos.Offset = max(pos.Offset, s.floor)
		s.floor = pos.Offset
		sh.pushMissed(h.index(), c, account, pos, schema.MissedSlow, spreadMs(spread))
	}
	return all
}

// missed tells all subscriptions of an account that events up to pos can't be given, each to fetch at a moment of
// its own within spread ms.
func (sh *shard) missed(a nameID, account schema.Account, pos schema.Position, spread uint32) {
	sh.enter()
	defer sh.leave()
	for n := sh.subs.first(a); n != 0; n = sh.subs.all.at(n).next {
		s := sh.subs.all.at(n)
		s.floor = pos.Offset
		if s.filter&subMissed != 0 {
			continue // it will be told, with a later position
		}
		sh.pushMissed(s.slot, sh.slots.all.at(s.slot), account, pos, schema.MissedWindow, spreadMs(spread))
	}
}

func (sh *shard) pushMissed(i uint32, c *slot, account schema.Account, pos schema.Position, reason schema.MissedReason, afterMs uint32) {
	sh.metrics.missed.WithLabelValues(string(reason)).Inc()
	sh.tmp = schema.AppendMissed(newFrame(sh.tmp), account, pos, reason, afterMs)
	sh.pushControl(i, c, seal(sh.tmp, ws.OpText))
}

// spreadMs is a moment in 1 to spread, or 0 for none.
func spreadMs(spread uint32) uint32 {
	if spread == 0 {
		return 0
	}
	return 1 + rand.Uint32N(spread)
}
