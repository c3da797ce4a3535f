package dovecot

import (
	"strconv"
	"sync"
	"time"

	"github.com/mailbell/mailbell/schema"
)

// source is who reported.
type source string

const (
	sourceOX  source = "ox"
	sourceLua source = "lua"
)

// maxSeen bounds each half of the deduper's memory. When it is reached within half a window,
// the window gets shorter: a message may then become two events, never none.
const maxSeen = 16 << 10

// deduper remembers which new messages a reporter brought lately, so that the other reporter's
// word about the same message is dropped. Dovecot asks its drivers one after the other, in
// one process, so the second report never overtakes the first one's answer.
type deduper struct {
	window time.Duration

	mu         sync.Mutex
	young, old map[message]source // guarded by mu
	youngSince time.Time          // guarded by mu
}

// message names a message for good (RFC 9051, section 2.3.1.1).
type message struct {
	account     schema.Account
	mailbox     schema.Mailbox
	uidValidity uint32
	uid         uint32
}

func newDeduper(window time.Duration) *deduper {
	return &deduper{window: window, young: make(map[message]source), old: make(map[message]source)}
}

// first reports whether m is news from by: the other reporter has not brought it lately.
func (d *deduper) first(m message, by source, now time.Time) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.rotate(now)
	if seen, ok := d.lookup(m); ok && seen != by {
		return false
	}
	d.young[m] = by
	return true
}

func (d *deduper) lookup(m message) (source, bool) {
	if s, ok := d.young[m]; ok {
		return s, true
	}
	s, ok := d.old[m]
	return s, ok
}

// rotate forgets what is older than a window, in two halves.
func (d *deduper) rotate(now time.Time) {
	age := now.Sub(d.youngSince)
	if age < d.window && len(d.young) < maxSeen {
		return
	}
	d.old, d.young = d.young, d.old
	clear(d.young)
	if age >= 2*d.window {
		clear(d.old)
	}
	d.youngSince = now
}

// fresh leaves out the new messages that the other reporter has brought.
func (d *deduper) fresh(events []schema.Event, by source, now time.Time) []schema.Event {
	kept := events[:0]
	for _, e := range events {
		if m, ok := singleMessage(&e); ok && !d.first(m, by, now) {
			continue
		}
		kept = append(kept, e)
	}
	return kept
}

// forget takes back what was said of events that were not accepted in the end.
func (d *deduper) forget(events []schema.Event) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for i := range events {
		if m, ok := singleMessage(&events[i]); ok {
			delete(d.young, m)
			delete(d.old, m)
		}
	}
}

// singleMessage returns the message of an event that both reporters may bring. Dovecot
// delivers one message a transaction, so an event for several has come from Lua alone.
func singleMessage(e *schema.Event) (message, bool) {
	if e.Event != schema.MessageNew {
		return message{}, false
	}
	uid, err := strconv.ParseUint(e.UIDSet, 10, 32)
	if err != nil {
		return message{}, false
	}
	return message{e.Account, e.Mailbox, e.UIDValidity, uint32(uid)}, true
}
