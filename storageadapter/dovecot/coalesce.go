package dovecot

import (
	"slices"
	"strings"
	"time"

	"github.com/tidwall/gjson"

	"github.com/mailbell/mailbell/schema"
)

const (
	maxFlagBytes = 255
	flagRecent   = `\Recent` // the server's own, and no news to anyone (RFC 9051 dropped it)
)

// group returns the group of an event, a new one where it is the first of its kind.
func (t *transaction) group(key groupKey) *group {
	g := t.groups[key]
	if g == nil && len(t.order) >= maxGroups {
		// Too many kinds to tell apart: the messages of one name and mailbox go together.
		key = groupKey{name: key.name, mailbox: key.mailbox, validity: key.validity}
		g = t.groups[key]
		if g == nil && len(t.order) >= 2*maxGroups {
			return &group{skip: dropTooMany}
		}
	}
	if g == nil {
		g = newGroup(key)
		if len(t.order) >= maxGroups && g.skip == dropEmpty {
			g.skip, g.truncated = "", true
		}
		t.groups[key] = g
		t.order = append(t.order, g)
	}
	return g
}

func newGroup(key groupKey) *group {
	g := &group{
		name:       schema.EventName(gjson.Parse(key.name).String()),
		mailbox:    schema.Mailbox(gjson.Parse(key.mailbox).String()),
		oldMailbox: schema.Mailbox(gjson.Parse(key.old).String()),
		flags:      flagNames(key.flags, key.keywords),
	}
	g.uidValidity, _ = number32(gjson.Parse(key.validity)) // 0: the status may know it
	switch g.name {
	case "MailboxUnsubscribe": // Dovecot's spelling
		g.name = schema.MailboxUnSubscribe
	case schema.FlagsSet, schema.FlagsClear:
		// Dovecot reports both for each message that a STORE touches, the one that does
		// not apply without names.
		if len(g.flags) == 0 {
			g.skip = dropEmpty
		}
	case schema.MessageNew, schema.MessageAppend, schema.MessageExpunge, schema.MessageRead, schema.MessageTrash,
		schema.MailboxCreate, schema.MailboxDelete, schema.MailboxRename, schema.MailboxSubscribe:
	default:
		g.skip = dropUnknown
	}
	return g
}

// flagNames returns the flags and keywords together, sorted. In FlagsClear they are those that
// were cleared: Dovecot gives the ones before in flags_old and keywords_old, which say nothing
// that an event needs.
func flagNames(lists ...string) []string {
	names := []string{}
	for _, list := range lists {
		gjson.Parse(list).ForEach(func(_, v gjson.Result) bool {
			if name := v.String(); goodFlag(name) {
				names = append(names, name)
			}
			return true
		})
	}
	slices.Sort(names)
	names = slices.Compact(names)
	return names[:min(len(names), schema.MaxFlagNames)]
}

func goodFlag(name string) bool {
	if name == "" || len(name) > maxFlagBytes || strings.EqualFold(name, flagRecent) {
		return false
	}
	return !strings.ContainsFunc(name, func(r rune) bool { return r <= ' ' || r > '~' })
}

// events returns the transaction's events, in the order in which their kinds were first seen.
func (t *transaction) events(newID func() string, now time.Time) []schema.Event {
	if t.failed {
		t.dropped[dropFailed] += t.reported
		return nil
	}
	var events []schema.Event
	for _, g := range t.merged() {
		e := schema.Event{
			ID: newID(), Event: g.name, Account: t.account, Mailbox: g.mailbox, OldMailbox: g.oldMailbox,
			UIDValidity: g.uidValidity, User: t.actor, Service: t.service, Session: t.session, Timestamp: now,
		}
		if g.name != schema.MailboxDelete {
			t.status[g.mailbox].describe(&e)
		}
		if g.ofMessages() {
			g.describe(&e)
		}
		events = append(events, e)
	}
	return events
}

// describe adds the mailbox's state after the transaction.
func (s status) describe(e *schema.Event) {
	e.Messages, e.Unseen, e.UIDNext, e.ModSeq = s.messages, s.unseen, s.uidNext, s.modSeq
	if e.UIDValidity == 0 {
		e.UIDValidity = s.uidValidity
	}
}

// describe adds which messages and flags.
func (g *group) describe(e *schema.Event) {
	e.SetUIDs(&g.uids)
	if g.truncated {
		e.UIDSet, e.Truncated = "", true
	}
	switch g.name {
	case schema.FlagsSet, schema.FlagsClear, schema.MessageNew, schema.MessageAppend:
		e.FlagNames = g.flags
	}
}

func (g *group) ofMessages() bool {
	switch g.name {
	case schema.MailboxCreate, schema.MailboxDelete, schema.MailboxRename, schema.MailboxSubscribe, schema.MailboxUnSubscribe:
		return false
	}
	return true
}

// merged returns the groups that become events: without those to skip, with equal ones joined.
func (t *transaction) merged() []*group {
	var merged []*group
	for _, g := range t.order {
		if g.skip != "" {
			continue
		}
		if (g.name == schema.MessageRead || g.name == schema.MessageTrash) && t.setsFlags(g.mailbox) {
			t.dropped[dropEmpty] += max(g.uids.Len(), 1)
			continue // the FlagsSet beside it says the same
		}
		i := slices.IndexFunc(merged, func(m *group) bool { return m.joins(g) })
		if i < 0 {
			merged = append(merged, g)
			continue
		}
		m := merged[i]
		m.addSet(g.uids.String())
		m.truncated = m.truncated || g.truncated
		if !slices.Equal(m.flags, g.flags) {
			m.flags = nil
		}
	}
	return merged
}

// joins reports whether both groups are one event. New messages are, whatever their flags:
// one COPY is one event.
func (g *group) joins(h *group) bool {
	if g.name != h.name || g.mailbox != h.mailbox || g.oldMailbox != h.oldMailbox || g.uidValidity != h.uidValidity {
		return false
	}
	return g.name == schema.MessageNew || g.name == schema.MessageAppend || slices.Equal(g.flags, h.flags)
}

func (t *transaction) setsFlags(mailbox schema.Mailbox) bool {
	return slices.ContainsFunc(t.order, func(g *group) bool {
		return g.name == schema.FlagsSet && g.mailbox == mailbox && g.skip == ""
	})
}
