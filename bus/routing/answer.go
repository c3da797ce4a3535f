package routing

import (
	"slices"
	"time"

	"github.com/mailbell/mailbell/schema"
)

// Subscribe adds routes from accounts to a link and, with a position, replays what they had since.
func (p *Partition) Subscribe(now time.Time, link LinkID, s Subscribe) []Output {
	p.beginAnswer()
	p.take(now, request{link: link, subscribe: &s, generation: s.Generation, accounts: len(s.Accounts), wait: wait(s.After)})
	return p.out
}

// Resume answers one client subscription. The account is routed to the link from here on, if it was not before.
func (p *Partition) Resume(now time.Time, link LinkID, r Resume) []Output {
	p.beginAnswer()
	p.take(now, request{link: link, resume: &r, generation: r.Generation, accounts: 1, wait: wait(r.Since)})
	return p.out
}

// Unsubscribe removes routes. Accounts that the link did not have are passed over.
func (p *Partition) Unsubscribe(now time.Time, link LinkID, accounts []string) []Output {
	p.beginAnswer()
	p.take(now, request{link: link, unsubscribe: accounts, generation: p.generation, accounts: len(accounts)})
	return p.out
}

func (p *Partition) beginAnswer() {
	p.begin()
	p.records = p.records[:0]
}

func wait(at *Position) Position {
	if at == nil {
		return Position{}
	}
	return *at
}

// take answers a request now or parks it.
func (p *Partition) take(now time.Time, r request) {
	switch {
	case p.generation == 0 || r.generation != p.generation:
		p.answer(r, NotOwner)
	case p.early(r) || p.parked.blocked(r.link):
		r.deadline = now.Add(p.cfg.ParkFor)
		if p.parked.accounts+r.accounts > p.cfg.ParkedAccounts {
			p.parked.hurry(r.link, now)
			r.deadline = now
		}
		p.parked.add(r)
		p.unpark(now)
	default:
		p.run(now, r, false)
	}
}

// early reports whether the request's position is one that this partition has not
// read to yet: its former owner was further on.
func (p *Partition) early(r request) bool { return r.wait.Epoch == p.epoch && r.wait.Offset > p.head }

// run does what the request asks. When late is true the head has not come to the position in time.
func (p *Partition) run(now time.Time, r request, late bool) {
	switch {
	case r.subscribe != nil:
		p.runSubscribe(now, r.link, r.subscribe, late)
	case r.resume != nil:
		p.runResume(now, r.link, r.resume, late)
	default:
		slot, ok := p.links[r.link]
		if !ok {
			return
		}
		for _, a := range r.unsubscribe {
			p.routes.remove(p.hasher.string(a), slot)
		}
	}
}

func (p *Partition) runSubscribe(now time.Time, link LinkID, s *Subscribe, late bool) {
	slot := p.slot(link)
	for _, a := range s.Accounts {
		p.routes.add(p.hasher.string(a), slot)
	}
	out := Output{Kind: Subscribed, Link: link, Request: s.Request, Generation: p.generation, Head: p.Head(), Answer: Fresh}
	if s.After != nil {
		out.Answer = p.reattach(s, late)
	}
	switch out.Answer {
	case Resync:
		out.SpreadMs = p.spread.add(now, len(s.Accounts), p.cfg.FetchesPerSecond)
	case Replay:
		records := p.replayed()
		p.out = append(p.out, Output{Kind: Delivery, Link: link, Request: s.Request, Generation: p.generation, Head: p.Head(), Records: records})
		p.stats.Deliveries += uint64(len(records))
	}
	p.stats.Answers[out.Answer]++
	p.out = append(p.out, out)
}

// reattach picks what the accounts of a Subscribe had since its position.
func (p *Partition) reattach(s *Subscribe, late bool) Answer {
	p.picked = p.picked[:0]
	if late || s.After.Epoch != p.epoch {
		return Resync
	}
	after, size := s.After.Offset, 0
	for _, a := range s.Accounts {
		h := p.hasher.string(a).hash()
		if p.index.quietSince(h, after) {
			continue
		}
		if after < p.window.floor {
			return Resync
		}
		whole := p.window.each([]byte(a), h, after, func(n uint64, at *place) bool {
			size += int(at.event)
			p.picked = append(p.picked, n)
			return size <= p.cfg.ReattachBytes
		})
		if !whole {
			return Resync
		}
	}
	if len(p.picked) == 0 {
		return Current
	}
	return Replay
}

func (p *Partition) runResume(now time.Time, link LinkID, r *Resume, late bool) {
	p.routes.add(p.hasher.string(r.Account), p.slot(link))
	out := Output{Kind: Resumed, Link: link, Request: r.Request, Generation: p.generation, Head: p.Head(), Answer: Fresh}
	if r.Since != nil {
		out.Answer = p.since(r, late)
	}
	switch out.Answer {
	case Resync:
		out.SpreadMs = p.spread.add(now, 1, p.cfg.FetchesPerSecond)
	case Replay:
		out.Records = p.replayed()
	}
	p.stats.Answers[out.Answer]++
	p.out = append(p.out, out)
}

// since picks what one account, in some mailboxes, had since a client's position.
func (p *Partition) since(r *Resume, late bool) Answer {
	p.picked = p.picked[:0]
	since := r.Since.Offset
	if late || r.Since.Epoch != p.epoch {
		return Resync
	}
	h := p.hasher.string(r.Account).hash()
	if p.index.quietSince(h, since) {
		return Current
	}
	if since < p.window.floor {
		return Resync
	}
	size := 0
	whole := p.window.each([]byte(r.Account), h, since, func(n uint64, at *place) bool {
		if !concerns(p.window.eventOf(at), r.Mailboxes) {
			return true
		}
		size += int(at.event)
		p.picked = append(p.picked, n)
		return len(p.picked) <= p.cfg.ReplayRecords && size <= p.cfg.ReplayBytes
	})
	switch {
	case !whole:
		return Resync
	case len(p.picked) == 0:
		return Current
	}
	return Replay
}

// concerns reports whether a subscription to some mailboxes wants the event: it
// names one of them, as its mailbox or a rename's old name. An event of the account
// as a whole (quota, login) is for those who may hear all of it.
func concerns(event []byte, mailboxes []string) bool {
	if len(mailboxes) == 0 {
		return true
	}
	mailbox, old := schema.EventMailboxes(event)
	return mailbox != "" && slices.Contains(mailboxes, string(mailbox)) || old != "" && slices.Contains(mailboxes, string(old))
}

// answer says to a request that nothing else is known.
func (p *Partition) answer(r request, a Answer) {
	out := Output{Link: r.link, Generation: r.generation, Answer: a}
	switch {
	case r.subscribe != nil:
		out.Kind, out.Request = Subscribed, r.subscribe.Request
	case r.resume != nil:
		out.Kind, out.Request = Resumed, r.resume.Request
	default:
		return
	}
	p.stats.Answers[a]++
	p.out = append(p.out, out)
}
