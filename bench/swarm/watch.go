package swarm

import (
	"bytes"
	"math/rand/v2"
	"time"

	"github.com/mailbell/mailbell/schema"
)

// What a swarm does among faults, as the web client does: it asks a silent connection whether it lives, gives up one that
// does not come up, and comes back when it is told to.

const (
	sweepEvery  = 500 * time.Millisecond
	pongTimeout = 5 * time.Second
	maxLate     = 1 << 18
)

var pingFrame = appendClientFrame(nil, opText, []byte(`{"type":"ping","id":2}`))

// Late is an event that arrived long after it was due.
type Late struct {
	Account uint32 `json:"a"`
	Seq     uint32 `json:"s"`
	SentAt  int64  `json:"f"` // when it was due, Unix milliseconds
	At      int64  `json:"t"` // when it arrived
}

// sweep looks after connections that are silent or don't come up. Called with mu held.
func (s *Swarm) sweep(now time.Time) {
	if s.cfg.PingSeconds <= 0 || now.Sub(s.swept) < sweepEvery {
		return
	}
	s.swept = now
	ping := time.Duration(s.cfg.PingSeconds * float64(time.Second))
	for i := range s.conns {
		c := &s.conns[i]
		silent := time.Duration(now.UnixNano() - c.heardAt)
		switch {
		case c.state == connecting || c.state == shaking || c.state == subscribing:
			if c.deadline < now.UnixNano() {
				s.counts.fail("does not come up (%d)", c.state)
				s.drop(i, now, 0)
			}
		case c.state != live:
		case c.pinged && silent > ping+pongTimeout:
			s.counts.fail("no pong")
			s.drop(i, now, 0)
		case !c.pinged && silent > ping:
			c.pinged = true
			s.send(i, pingFrame)
		}
	}
}

// heard notes that a connection lives.
func (c *conn) heard(now time.Time) { c.heardAt, c.pinged = now.UnixNano(), false }

// Return drops a share of the live connections, from 0 to 1; they come back if the swarm does.
func (s *Swarm) Return(share float64) {
	s.mu.Lock()
	now := time.Now()
	for i := range s.conns {
		if s.conns[i].state == live && rand.Float64() < share {
			s.drop(i, now, 0)
		}
	}
	s.mu.Unlock()
	s.rouse()
}

// late notes an event that took long.
func (s *Swarm) noteLate(account, seq uint32, sentAt int64, now time.Time) {
	if now.UnixNano()-sentAt > int64(s.cfg.late()) && len(s.late) < maxLate {
		s.late = append(s.late, Late{account, seq, sentAt / 1e6, now.UnixNano() / 1e6})
	}
}

var uidsetMarker = []byte(`"uidset":"`)

// reported takes an event that an adapter made of reports: its UIDs are the sequence numbers.
func (s *Swarm) reported(i int, payload []byte, now time.Time) {
	_, rest, ok := bytes.Cut(payload, uidsetMarker)
	if !ok {
		return
	}
	text, _, _ := bytes.Cut(rest, []byte{'"'})
	set, err := schema.ParseUIDSet(string(text))
	if err != nil {
		s.counts.fail("uidset: %v", err)
		return
	}
	for lo, hi := range set.Ranges() {
		for seq := lo; seq <= hi && seq-lo < 1<<16; seq++ {
			if s.conns[i].observer.Event(seq) {
				s.news(i, seq, now)
			}
		}
	}
}

// past reports whether the client is at or beyond a position, as the web client reckons.
func (c *conn) past(p schema.Position) bool {
	if !c.hasPos {
		return false
	}
	cmp, comparable := p.Compare(c.position)
	return comparable && cmp <= 0
}
