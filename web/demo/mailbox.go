package demo

import (
	"cmp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/mailbell/mailbell/schema"
)

// Flags that the store itself knows. RFC 9051, section 2.3.2.
const (
	flagSeen    = `\Seen`
	flagDeleted = `\Deleted`
)

// message is what the store knows of a message. One that was only heard of has no more than a UID and flags.
type message struct {
	uid   uint32
	flags []string // sorted
	content
}

type content struct {
	from, subject, text string
	date                time.Time
}

// known reports whether there is more than a UID and flags.
func (m *message) known() bool { return m.subject != "" }

func (m *message) has(flag string) bool { return slices.Contains(m.flags, flag) }

// mailbox is one folder. messages and unseen can be higher than what rows show: an event of another
// store tells the counts, not the messages that were there before.
type mailbox struct {
	uidValidity uint32
	uidNext     uint32
	modSeq      uint64
	messages    uint32
	unseen      uint32
	subscribed  bool
	rows        []*message // by ascending UID
}

func (m *mailbox) find(uid uint32) (int, bool) {
	return slices.BinarySearchFunc(m.rows, uid, func(row *message, uid uint32) int { return cmp.Compare(row.uid, uid) })
}

// in returns the rows that a uidset names.
func (m *mailbox) in(set *schema.UIDSet) []*message {
	var rows []*message
	for _, row := range m.rows {
		if set.Contains(row.uid) {
			rows = append(rows, row)
		}
	}
	return rows
}

// apply makes the mailbox what it is after a message event. The contents of new messages are given by UID;
// limit is how many rows it may have.
func (m *mailbox) apply(e *schema.Event, contents map[uint32]content, limit int) {
	if e.UIDValidity != 0 && e.UIDValidity != m.uidValidity {
		// Another incarnation of the mailbox: nothing that was known of it holds. RFC 9051, section 2.3.1.1.
		*m = mailbox{uidValidity: e.UIDValidity, uidNext: 1, subscribed: m.subscribed}
	}
	set, err := schema.ParseUIDSet(e.UIDSet)
	if err != nil && !e.Truncated {
		return
	}
	switch e.Event {
	case schema.MessageNew, schema.MessageAppend:
		m.add(e, contents, limit)
	case schema.MessageExpunge, schema.MessageExpire:
		m.remove(&set)
	case schema.MessageRead:
		m.flag(&set, []string{flagSeen}, true)
	case schema.MessageTrash:
		m.flag(&set, []string{flagDeleted}, true)
	case schema.FlagsSet:
		m.flag(&set, e.FlagNames, true)
	case schema.FlagsClear:
		m.flag(&set, e.FlagNames, false)
	}
	m.count(e)
}

// count takes what the event says of the mailbox as a whole; the store that published it knows better.
func (m *mailbox) count(e *schema.Event) {
	if e.UIDValidity != 0 {
		m.uidValidity = e.UIDValidity
	}
	m.uidNext = max(m.uidNext, e.UIDNext, 1)
	if modSeq, err := strconv.ParseUint(e.ModSeq, 10, 64); err == nil {
		m.modSeq = max(m.modSeq, modSeq)
	}
	if e.Messages != nil {
		m.messages = *e.Messages
	}
	if e.Unseen != nil {
		m.unseen = *e.Unseen
	}
	// An event may tell one count alone: the other one gives way.
	if e.Messages != nil {
		m.unseen = min(m.unseen, m.messages)
	} else {
		m.messages = max(m.messages, m.unseen)
	}
}

func (m *mailbox) add(e *schema.Event, contents map[uint32]content, limit int) {
	flags := slices.Clone(e.FlagNames)
	slices.Sort(flags)
	for _, uid := range highestUIDs(e.UIDSet, limit) {
		at, there := m.find(uid)
		if there {
			continue
		}
		row := &message{uid: uid, flags: slices.Compact(slices.Clone(flags)), content: contents[uid]}
		if row.date.IsZero() {
			row.date = e.Timestamp
		}
		m.rows = slices.Insert(m.rows, at, row)
		m.messages++
		if !row.has(flagSeen) {
			m.unseen++
		}
		m.uidNext = max(m.uidNext, uid+1)
	}
	if over := len(m.rows) - limit; over > 0 {
		m.rows = slices.Delete(m.rows, 0, over)
	}
}

func (m *mailbox) remove(set *schema.UIDSet) {
	m.rows = slices.DeleteFunc(m.rows, func(row *message) bool {
		if !set.Contains(row.uid) {
			return false
		}
		m.messages = less(m.messages)
		if !row.has(flagSeen) {
			m.unseen = less(m.unseen)
		}
		return true
	})
}

func (m *mailbox) flag(set *schema.UIDSet, flags []string, on bool) {
	for _, row := range m.in(set) {
		seen := row.has(flagSeen)
		row.flags = withFlags(row.flags, flags, on)
		switch now := row.has(flagSeen); {
		case now && !seen:
			m.unseen = less(m.unseen)
		case seen && !now:
			m.unseen++
		}
	}
}

// withFlags returns a new, sorted list: readers may still hold the old one.
func withFlags(have, flags []string, on bool) []string {
	after := slices.DeleteFunc(slices.Clone(have), func(flag string) bool { return slices.Contains(flags, flag) })
	if on {
		after = append(after, flags...)
	}
	slices.Sort(after)
	return slices.Compact(after)
}

func less(n uint32) uint32 { return max(n, 1) - 1 }

// highestUIDs lists at most limit identifiers of a valid uidset, ascending, the highest ones.
func highestUIDs(set string, limit int) []uint32 {
	var uids []uint32
	parts := strings.Split(set, ",")
	for i := len(parts) - 1; i >= 0; i-- {
		from, to, isRange := strings.Cut(parts[i], ":")
		lo, err := strconv.ParseUint(from, 10, 32)
		if err != nil {
			break
		}
		hi := lo
		if isRange {
			if hi, err = strconv.ParseUint(to, 10, 32); err != nil {
				break
			}
		}
		for uid := hi; uid >= lo && uid > 0 && len(uids) < limit; uid-- {
			uids = append(uids, uint32(uid))
		}
	}
	slices.Reverse(uids)
	return uids
}
