package schema

import (
	"fmt"
	"iter"
	"slices"
	"strconv"
	"strings"
)

// MaxUIDSetBytes is the longest text of a uidset in an event. Past it the set is
// left out and the event says "truncated".
const MaxUIDSetBytes = 8 << 10

// UIDSet is a set of IMAP unique identifiers, kept as sorted ranges that neither overlap
// nor touch. The zero value is the empty set.
type UIDSet struct {
	ranges []uidRange
}

type uidRange struct{ lo, hi uint32 }

// Add adds one identifier. Zero is not an identifier (RFC 9051, section 2.3.1.1) and is ignored.
func (s *UIDSet) Add(uid uint32) { s.AddRange(uid, uid) }

// AddRange adds lo to hi, both included, in either order. Adding in ascending order costs O(1).
func (s *UIDSet) AddRange(lo, hi uint32) {
	if lo > hi {
		lo, hi = hi, lo
	}
	if hi == 0 {
		return
	}
	lo = max(lo, 1)
	n := len(s.ranges)
	// The first range that ends at lo-1 or later is the first to touch the new one.
	first := n
	if n > 0 && s.ranges[n-1].hi >= lo-1 {
		first, _ = slices.BinarySearchFunc(s.ranges, lo-1, func(r uidRange, v uint32) int {
			if r.hi < v {
				return -1
			}
			return 1
		})
	}
	last := first
	for last < n && (hi == ^uint32(0) || s.ranges[last].lo <= hi+1) {
		last++
	}
	if first < last {
		lo = min(lo, s.ranges[first].lo)
		hi = max(hi, s.ranges[last-1].hi)
	}
	s.ranges = slices.Replace(s.ranges, first, last, uidRange{lo, hi})
}

// Ranges yields the set's ranges, both ends included, in ascending order.
func (s *UIDSet) Ranges() iter.Seq2[uint32, uint32] {
	return func(yield func(lo, hi uint32) bool) {
		for _, r := range s.ranges {
			if !yield(r.lo, r.hi) {
				return
			}
		}
	}
}

// Len returns how many identifiers the set has.
func (s *UIDSet) Len() int {
	n := 0
	for _, r := range s.ranges {
		n += int(r.hi-r.lo) + 1
	}
	return n
}

// Contains reports whether uid is in the set.
func (s *UIDSet) Contains(uid uint32) bool {
	_, found := slices.BinarySearchFunc(s.ranges, uid, func(r uidRange, v uint32) int {
		switch {
		case r.hi < v:
			return -1
		case r.lo > v:
			return 1
		}
		return 0
	})
	return found
}

// String returns the sequence set of RFC 9051, section 9 (sequence-set), in ascending order: "1:300,405".
func (s *UIDSet) String() string {
	var b []byte
	for i, r := range s.ranges {
		if i > 0 {
			b = append(b, ',')
		}
		b = strconv.AppendUint(b, uint64(r.lo), 10)
		if r.hi != r.lo {
			b = append(b, ':')
			b = strconv.AppendUint(b, uint64(r.hi), 10)
		}
	}
	return string(b)
}

// ParseUIDSet reads a sequence set of numbers. Any order and overlaps are accepted;
// "*" is not, since an event names messages and does not ask for them.
func ParseUIDSet(text string) (UIDSet, error) {
	var s UIDSet
	for part := range strings.SplitSeq(text, ",") {
		loText, hiText, isRange := strings.Cut(part, ":")
		lo, err := parseUID(loText)
		if err != nil {
			return UIDSet{}, err
		}
		hi := lo
		if isRange {
			if hi, err = parseUID(hiText); err != nil {
				return UIDSet{}, err
			}
		}
		s.AddRange(lo, hi)
	}
	return s, nil
}

// isCanonicalUIDSet reports whether text is what String writes for some set,
// without building the set.
func isCanonicalUIDSet(text string) bool {
	end := uint64(0) // of the range before, plus one: the next must begin beyond
	for more := true; more; {
		var part string
		part, text, more = strings.Cut(text, ",")
		loText, hiText, isRange := strings.Cut(part, ":")
		lo, err := parseUID(loText)
		if err != nil || uint64(lo) <= end {
			return false
		}
		hi := lo
		if isRange {
			if hi, err = parseUID(hiText); err != nil || hi <= lo {
				return false
			}
		}
		end = uint64(hi) + 1
	}
	return true
}

func parseUID(text string) (uint32, error) {
	n, err := strconv.ParseUint(text, 10, 32)
	if err != nil || n == 0 || text[0] == '0' || text[0] == '+' {
		if len(text) > 20 {
			text = text[:20] + "…"
		}
		return 0, fmt.Errorf("%q is not a UID (1 to 4294967295)", text)
	}
	return uint32(n), nil
}
