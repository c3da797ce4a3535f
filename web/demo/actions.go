package demo

import (
	"context"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/mailbell/mailbell/schema"
)

// publishTimeout bounds how long an action waits for the log.
const publishTimeout = 5 * time.Second

// maxActionFlags bounds the flags of one action.
const maxActionFlags = 16

// request is the body of POST /demo/api/actions.
type request struct {
	Action  string         `json:"action"`
	Mailbox schema.Mailbox `json:"mailbox"`
	To      schema.Mailbox `json:"to"`     // move, rename
	UIDs    string         `json:"uids"`   // a uidset
	Add     []string       `json:"add"`    // flags
	Remove  []string       `json:"remove"` // flags
	session string         // of the page, for its own echo
}

// problem is an answer that is the asker's fault or nobody's; status is HTTP's.
type problem struct {
	status  int
	message string
}

func (p *problem) Error() string { return p.message }

func refuse(status int, format string, args ...any) error {
	return &problem{status: status, message: fmt.Sprintf(format, args...)}
}

// plan is what an action would do: its events, in order, and the contents of the messages they bring.
type plan struct {
	events   []schema.Event
	contents map[int]map[uint32]content // by the event's index and the UID
}

// do plans an action, publishes its events, and applies them once they are acknowledged.
func (h *Handler) do(ctx context.Context, a *account, req request) ([]schema.Event, error) {
	a.order.Lock()
	defer a.order.Unlock()
	p, err := h.store.plan(a, req, time.Now())
	if err != nil || len(p.events) == 0 {
		return nil, err
	}
	h.store.remember(p.events)
	ctx, cancel := context.WithTimeout(ctx, publishTimeout)
	defer cancel()
	if _, err := h.cfg.Publish(ctx, p.events...); err != nil {
		h.cfg.Logger.Warn("demo: publish", "account", a.name, "action", req.Action, "err", err)
		return nil, refuse(http.StatusServiceUnavailable, "the log can't be reached, nothing was changed; try again")
	}
	h.store.commit(a, p)
	return p.events, nil
}

func (s *store) commit(a *account, p *plan) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := range p.events {
		s.apply(a, &p.events[i], p.contents[i])
	}
}

func (s *store) plan(a *account, req request, now time.Time) (*plan, error) {
	planners := map[string]func(*planning) error{
		"deliver": (*planning).deliver,
		"flag":    (*planning).flag,
		"delete":  (*planning).delete,
		"move":    (*planning).move,
		"create":  (*planning).create,
		"rename":  (*planning).rename,
		"remove":  (*planning).removeMailbox,
	}
	planner := planners[req.Action]
	if planner == nil {
		return nil, refuse(http.StatusBadRequest, "action %q is unknown; known are %s", req.Action, strings.Join(slices.Sorted(maps.Keys(planners)), ", "))
	}
	if req.Mailbox == "" && req.Action == "deliver" {
		req.Mailbox = inbox
	}
	if err := req.Mailbox.Validate(); err != nil {
		return nil, refuse(http.StatusBadRequest, "mailbox %s; for example \"INBOX\"", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	p := &planning{s: s, a: a, req: req, now: now, plan: &plan{contents: map[int]map[uint32]content{}}}
	if err := planner(p); err != nil {
		return nil, err
	}
	return p.plan, nil
}

// planning is one action while it is planned, under store.mu. It changes nothing.
type planning struct {
	s    *store
	a    *account
	req  request
	now  time.Time
	plan *plan
}

// event adds an event about a mailbox.
func (p *planning) event(name schema.EventName, mailbox schema.Mailbox, box *mailbox, with func(*schema.Event)) {
	e := schema.Event{
		ID: schema.NewID(), Event: name, Account: p.a.name, Mailbox: mailbox,
		User: string(p.a.name), Service: "demo", Session: p.req.session, Timestamp: p.now,
	}
	if box != nil {
		box.modSeq++
		e.UIDValidity, e.UIDNext = box.uidValidity, box.uidNext
		e.ModSeq = strconv.FormatUint(box.modSeq, 10)
		e.Messages, e.Unseen = number(box.messages), number(box.unseen)
	}
	if with != nil {
		with(&e)
	}
	p.plan.events = append(p.plan.events, e)
}

func number(n uint32) *uint32 { return &n }

// box returns a copy of the counts of a mailbox, to be led on from event to event, and its rows.
func (p *planning) box(name schema.Mailbox) (*mailbox, error) {
	box := p.a.mailboxes[name]
	if box == nil {
		return nil, refuse(http.StatusNotFound, "there is no mailbox %q", name)
	}
	led := *box
	return &led, nil
}

// chosen returns the mailbox and the rows that the request names.
func (p *planning) chosen() (*mailbox, []*message, error) {
	box, err := p.box(p.req.Mailbox)
	if err != nil {
		return nil, nil, err
	}
	set, err := schema.ParseUIDSet(p.req.UIDs)
	if err != nil {
		return nil, nil, refuse(http.StatusBadRequest, "uids %s; for example \"1:3,7\"", err)
	}
	return box, box.in(&set), nil
}

func (p *planning) deliver() error {
	box, err := p.box(p.req.Mailbox)
	if err != nil {
		return err
	}
	if err := p.room(box, 1); err != nil {
		return err
	}
	p.bring(schema.MessageNew, p.req.Mailbox, box, []*message{{content: sample(box.uidNext, p.now)}}, []string{})
	return nil
}

func (p *planning) room(box *mailbox, n int) error {
	if len(box.rows)+n > p.s.cfg.MaxMessages {
		return refuse(http.StatusConflict, "the mailbox has its fill of %d messages; delete some", p.s.cfg.MaxMessages)
	}
	return nil
}

// bring adds an event by which messages come into a mailbox.
func (p *planning) bring(name schema.EventName, to schema.Mailbox, box *mailbox, rows []*message, flags []string) {
	var set schema.UIDSet
	contents := map[uint32]content{}
	for _, row := range rows {
		set.Add(box.uidNext)
		contents[box.uidNext] = row.content
		box.uidNext++
		box.messages++
		if !slices.Contains(flags, flagSeen) {
			box.unseen++
		}
	}
	p.plan.contents[len(p.plan.events)] = contents
	p.event(name, to, box, func(e *schema.Event) {
		e.SetUIDs(&set)
		e.FlagNames = flags
	})
}

func (p *planning) flag() error {
	if len(p.req.Add)+len(p.req.Remove) > maxActionFlags || len(p.req.Add)+len(p.req.Remove) == 0 {
		return refuse(http.StatusBadRequest, `add and remove name 1 to %d flags; for example "add":["\\Seen"]`, maxActionFlags)
	}
	for _, flag := range slices.Concat(p.req.Add, p.req.Remove) {
		if !validFlag(flag) {
			return refuse(http.StatusBadRequest, `flag %q is not one; for example "\\Flagged" or "$Work"`, flag)
		}
	}
	box, rows, err := p.chosen()
	if err != nil {
		return err
	}
	p.setFlags(schema.FlagsSet, box, rows, p.req.Add, true)
	p.setFlags(schema.FlagsClear, box, rows, p.req.Remove, false)
	return nil
}

// setFlags adds the event for the rows that change, if any.
func (p *planning) setFlags(name schema.EventName, box *mailbox, rows []*message, flags []string, on bool) {
	var set schema.UIDSet
	for _, row := range rows {
		after := withFlags(row.flags, flags, on)
		if slices.Equal(after, row.flags) {
			continue
		}
		set.Add(row.uid)
		switch {
		case on && slices.Contains(flags, flagSeen) && !row.has(flagSeen):
			box.unseen = less(box.unseen)
		case !on && slices.Contains(flags, flagSeen) && row.has(flagSeen):
			box.unseen++
		}
	}
	if set.Len() == 0 {
		return
	}
	p.event(name, p.req.Mailbox, box, func(e *schema.Event) {
		e.SetUIDs(&set)
		e.FlagNames = flags
	})
}

// validFlag accepts a system flag or a keyword: an atom. RFC 9051, section 9 (flag).
func validFlag(flag string) bool {
	atom := strings.TrimPrefix(flag, `\`)
	return atom != "" && len(flag) <= 64 && !strings.ContainsFunc(atom, func(r rune) bool {
		return r <= ' ' || r >= 0x7f || strings.ContainsRune(`(){%*"\]`, r)
	})
}

// delete moves to the trash, and from there to nowhere.
func (p *planning) delete() error {
	if p.req.Mailbox != trash && p.a.mailboxes[trash] != nil {
		p.req.To = trash
		return p.move()
	}
	box, rows, err := p.chosen()
	if err == nil {
		p.expunge(box, rows)
	}
	return err
}

func (p *planning) move() error {
	box, rows, err := p.chosen()
	if err != nil {
		return err
	}
	to, err := p.box(p.req.To)
	if err != nil {
		return err
	}
	if p.req.To == p.req.Mailbox {
		return refuse(http.StatusBadRequest, "the messages are in %q already", p.req.To)
	}
	if err := p.room(to, len(rows)); err != nil {
		return err
	}
	// One event for each set of flags: an event has one list of them for all of its messages.
	groups := map[string][]*message{}
	for _, row := range rows {
		key := strings.Join(row.flags, " ")
		groups[key] = append(groups[key], row)
	}
	for _, key := range slices.Sorted(maps.Keys(groups)) {
		p.bring(schema.MessageAppend, p.req.To, to, groups[key], append([]string{}, groups[key][0].flags...))
	}
	p.expunge(box, rows)
	return nil
}

func (p *planning) expunge(box *mailbox, rows []*message) {
	var set schema.UIDSet
	for _, row := range rows {
		set.Add(row.uid)
		box.messages = less(box.messages)
		if !row.has(flagSeen) {
			box.unseen = less(box.unseen)
		}
	}
	if set.Len() == 0 {
		return
	}
	p.event(schema.MessageExpunge, p.req.Mailbox, box, func(e *schema.Event) { e.SetUIDs(&set) })
}

func (p *planning) create() error {
	if p.a.mailboxes[p.req.Mailbox] != nil {
		return refuse(http.StatusConflict, "mailbox %q exists already", p.req.Mailbox)
	}
	if len(p.a.mailboxes) >= p.s.cfg.MaxMailboxes {
		return refuse(http.StatusConflict, "the account has its fill of %d mailboxes; delete some", p.s.cfg.MaxMailboxes)
	}
	p.event(schema.MailboxCreate, p.req.Mailbox, &mailbox{uidValidity: p.s.nextUIDValidity(), uidNext: 1}, nil)
	return nil
}

func (p *planning) rename() error {
	box, err := p.box(p.req.Mailbox)
	if err != nil {
		return err
	}
	if err := p.req.To.Validate(); err != nil {
		return refuse(http.StatusBadRequest, "to %s; for example \"Archive/2026\"", err)
	}
	switch {
	case p.req.Mailbox == inbox:
		return refuse(http.StatusBadRequest, "INBOX can't be renamed")
	case p.a.mailboxes[p.req.To] != nil:
		return refuse(http.StatusConflict, "mailbox %q exists already", p.req.To)
	case strings.HasPrefix(string(p.req.To), string(p.req.Mailbox)+"/"):
		return refuse(http.StatusBadRequest, "mailbox %q can't go below itself", p.req.Mailbox)
	}
	p.event(schema.MailboxRename, p.req.To, box, func(e *schema.Event) { e.OldMailbox = p.req.Mailbox })
	return nil
}

func (p *planning) removeMailbox() error {
	if p.req.Mailbox == inbox {
		return refuse(http.StatusBadRequest, "INBOX can't be deleted")
	}
	if _, err := p.box(p.req.Mailbox); err != nil {
		return err
	}
	p.event(schema.MailboxDelete, p.req.Mailbox, nil, nil)
	return nil
}
