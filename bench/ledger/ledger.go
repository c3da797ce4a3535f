package ledger

import (
	"encoding/json"
	"fmt"
	"iter"
	"maps"
	"slices"
)

// Ledger is what the publishing side knows: the offset of each acknowledged event.
type Ledger struct {
	offsets map[uint32][]int64 // account -> offset by sequence number - 1; unacknowledged is -1
	acked   int
}

// unacknowledged marks an event whose fate the publisher does not know. It may arrive or not.
const unacknowledged = -1

// NewLedger returns an empty ledger.
func NewLedger() *Ledger { return &Ledger{offsets: make(map[uint32][]int64)} }

// Acknowledge books that the log has an event. Sequence numbers that are jumped over
// are unacknowledged.
func (l *Ledger) Acknowledge(account, seq uint32, offset int64) {
	if seq == 0 {
		panic("ledger: sequence numbers begin at 1")
	}
	list := l.offsets[account]
	for uint32(len(list)) < seq {
		list = append(list, unacknowledged)
	}
	if list[seq-1] == unacknowledged {
		l.acked++
	}
	list[seq-1] = offset
	l.offsets[account] = list
}

// Acknowledged returns how many events the log has.
func (l *Ledger) Acknowledged() int { return l.acked }

// Accounts returns the accounts that have events.
func (l *Ledger) Accounts() []uint32 { return slices.Collect(maps.Keys(l.offsets)) }

// Add books all that another ledger has.
func (l *Ledger) Add(other *Ledger) {
	for account, list := range other.offsets {
		for i, offset := range list {
			if offset != unacknowledged {
				l.Acknowledge(account, uint32(i+1), offset)
			}
		}
	}
}

// All yields the account and number of each acknowledged event, those of one account in order.
func (l *Ledger) All() iter.Seq2[uint32, uint32] {
	return func(yield func(account, seq uint32) bool) {
		for account, list := range l.offsets {
			for i, offset := range list {
				if offset != unacknowledged && !yield(account, uint32(i+1)) {
					return
				}
			}
		}
	}
}

// MarshalJSON writes the offsets by account.
func (l *Ledger) MarshalJSON() ([]byte, error) { return json.Marshal(l.offsets) }

// UnmarshalJSON reads what MarshalJSON wrote.
func (l *Ledger) UnmarshalJSON(b []byte) error {
	*l = *NewLedger()
	if err := json.Unmarshal(b, &l.offsets); err != nil {
		return err
	}
	for _, list := range l.offsets {
		for _, offset := range list {
			if offset != unacknowledged {
				l.acked++
			}
		}
	}
	return nil
}

// Verdict is the difference between what was acknowledged and what one or more
// subscriptions saw.
type Verdict struct {
	Expected   int // events that subscriptions had to hear of
	Delivered  int // of them: received
	Told       int // of them: covered by missed or resync
	Lost       int // of them: neither
	Duplicates int
	Misordered int
	Examples   []string // of what was lost, at most maxExamples
}

const maxExamples = 10

// Check adds one subscription to the verdict. What lies before the subscription is not expected; since an observer can't tell
// that from what it was told later, `since` is the offset at which it subscribed.
func (l *Ledger) Check(v *Verdict, o Observation, since int64) {
	v.Duplicates += int(o.Duplicates)
	v.Misordered += int(o.Misordered)
	list := l.offsets[o.Account]
	missing := func(from, to uint32, told int64) {
		for seq := from; seq <= to && seq <= uint32(len(list)); seq++ {
			offset := list[seq-1]
			switch {
			case offset == unacknowledged || offset <= since:
			case offset <= told:
				v.Expected++
				v.Told++
			default:
				v.Expected++
				v.Lost++
				if len(v.Examples) < maxExamples {
					v.Examples = append(v.Examples, fmt.Sprintf("%s event %d at offset %d (told up to %d, last heard %d)", AccountName(o.Account), seq, offset, told, o.Last))
				}
			}
		}
	}
	absent := 0
	for _, g := range o.Gaps {
		missing(g.From, g.To, g.Told)
		absent += int(g.To-g.From) + 1
	}
	missing(o.Last+1, uint32(len(list)), o.Told)
	v.Expected += int(o.Last) - absent
	v.Delivered += int(o.Last) - absent
}
