package bus

import "time"

// pending counts tickets that were handed out and not yet used, by the second.
type pending struct {
	seconds []handedOut
	total   int
}

type handedOut struct {
	at time.Time
	n  int
}

func (p *pending) add(now time.Time) {
	p.total++
	if n := len(p.seconds); n > 0 && now.Sub(p.seconds[n-1].at) < time.Second {
		p.seconds[n-1].n++
		return
	}
	p.seconds = append(p.seconds, handedOut{now, 1})
}

// came takes away n, the oldest first.
func (p *pending) came(n uint64) {
	for n > 0 && len(p.seconds) > 0 {
		take := int(min(n, uint64(p.seconds[0].n)))
		n -= uint64(take)
		p.total -= take
		if p.seconds[0].n -= take; p.seconds[0].n == 0 {
			p.seconds = p.seconds[1:]
		}
	}
}

// expire forgets those whose ticket is not valid any more.
func (p *pending) expire(now time.Time) {
	for len(p.seconds) > 0 && now.Sub(p.seconds[0].at) > ticketTTL {
		p.total -= p.seconds[0].n
		p.seconds = p.seconds[1:]
	}
}

const (
	// longestWait is how far ahead a client is given its turn; it must still be able to use its ticket then.
	longestWait = 20 * time.Second
	// longestRetry is what a client is told to wait at most before it asks again.
	longestRetry = time.Minute
	// paceBurst is how much of a second's accepts may come at once.
	paceBurst = 250 * time.Millisecond
)

// pace gives each client that goes to a notifier its turn, at the rate at which the notifier accepts.
type pace struct {
	rate float64   // a second; 0 is not known yet: no limit
	due  time.Time // when the next one is expected
}

// wait is how long a client who asks now has to wait.
func (p *pace) wait(now time.Time) time.Duration { return max(0, p.due.Sub(now)) }

// take is wait, and the turn is taken.
func (p *pace) take(now time.Time) time.Duration {
	wait := p.wait(now)
	if p.rate <= 0 {
		return wait
	}
	if floor := now.Add(-paceBurst); p.due.Before(floor) {
		p.due = floor
	}
	p.due = p.due.Add(time.Duration(float64(time.Second) / p.rate))
	return wait
}
