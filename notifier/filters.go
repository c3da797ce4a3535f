package notifier

import (
	"slices"
	"strings"

	"github.com/mailbell/mailbell/schema"
)

// filters interns sets of mailboxes, so that a subscription holds four bytes
// whether it hears of all mailboxes (0) or of some.
type filters struct {
	byKey map[string]uint32
	all   []filter // all[0] is not used
	free  []uint32
}

type filter struct {
	key   string
	boxes []schema.Mailbox
	refs  int
}

// take returns the index of the set with one more reference; nil is 0, all mailboxes.
func (f *filters) take(boxes []schema.Mailbox) uint32 {
	if boxes == nil {
		return 0
	}
	boxes = slices.Clone(boxes)
	slices.Sort(boxes)
	boxes = slices.Compact(boxes)
	var key strings.Builder
	for _, b := range boxes {
		key.WriteString(string(b))
		key.WriteByte(0) // no name has it
	}
	if i, ok := f.byKey[key.String()]; ok {
		f.all[i].refs++
		return i
	}
	if f.byKey == nil {
		f.byKey, f.all = make(map[string]uint32), make([]filter, 1)
	}
	entry := filter{key: key.String(), boxes: boxes, refs: 1}
	i := uint32(len(f.all))
	if n := len(f.free); n > 0 {
		i = f.free[n-1]
		f.free = f.free[:n-1]
		f.all[i] = entry
	} else {
		f.all = append(f.all, entry)
	}
	f.byKey[entry.key] = i
	return i
}

// drop takes back one reference.
func (f *filters) drop(i uint32) {
	if i == 0 {
		return
	}
	e := &f.all[i]
	e.refs--
	if e.refs > 0 {
		return
	}
	delete(f.byKey, e.key)
	*e = filter{}
	f.free = append(f.free, i)
}

// pass reports whether an event of these mailboxes is for the set. What is about no mailbox
// (quotas, logins) is only for those who hear of all.
func (f *filters) pass(i uint32, mailbox, old schema.Mailbox) bool {
	if i == 0 {
		return true
	}
	for _, b := range f.all[i].boxes {
		if b == mailbox || old != "" && b == old {
			return true
		}
	}
	return false
}
