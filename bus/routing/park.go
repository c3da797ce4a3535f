package routing

import (
	"slices"
	"time"
)

// request is a Subscribe, a Resume or an Unsubscribe of one link.
type request struct {
	link        LinkID
	subscribe   *Subscribe
	resume      *Resume
	unsubscribe []string

	generation uint64
	accounts   int
	wait       Position // what the head has to reach first
	deadline   time.Time
}

// parked holds the requests that wait, in the order in which they came. A new
// owner may for a moment have read less than the former one had delivered.
//
// A Subscribe that waits holds back everything behind it on its link, because what comes
// later counts on it. A Resume, whose position a client made up perhaps, holds back nobody.
type parked struct {
	requests []request
	accounts int
	blocking map[LinkID]int // requests in the way of later ones
}

func (q *parked) blocked(link LinkID) bool { return q.blocking[link] > 0 }

func (q *parked) add(r request) {
	if r.resume == nil {
		if q.blocking == nil {
			q.blocking = make(map[LinkID]int)
		}
		q.blocking[r.link]++
	}
	q.requests = append(q.requests, r)
	q.accounts += r.accounts
}

// hurry ends the waiting of all that a link has here.
func (q *parked) hurry(link LinkID, now time.Time) {
	for i := range q.requests {
		if r := &q.requests[i]; r.link == link && r.deadline.After(now) {
			r.deadline = now
		}
	}
}

func (q *parked) drop(link LinkID) {
	q.requests = slices.DeleteFunc(q.requests, func(r request) bool {
		if r.link == link {
			q.accounts -= r.accounts
			return true
		}
		return false
	})
	delete(q.blocking, link)
}

// unpark runs the requests whose time has come, in order.
func (p *Partition) unpark(now time.Time) {
	if len(p.parked.requests) == 0 {
		return
	}
	waiting := p.parked
	p.parked = parked{}
	for _, r := range waiting.requests {
		late := !now.Before(r.deadline)
		if early := p.early(r); p.parked.blocked(r.link) || early && !late {
			p.parked.add(r)
		} else {
			p.run(now, r, early)
		}
	}
}
