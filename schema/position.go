package schema

import (
	"fmt"
	"strconv"
	"strings"
)

// Position is a place in the log: everything of the partition up to and
// including Offset is covered. Its text form is opaque to clients.
type Position struct {
	Epoch     uint64 // names one incarnation of the topic
	Partition int32
	Offset    int64
}

// MaxPositionBytes is the length of the longest text form.
const MaxPositionBytes = 16 + 1 + 10 + 1 + 19

// String returns the text form: epoch in hexadecimal, partition and offset in
// decimal, with dots between.
func (p Position) String() string { return string(p.AppendText(nil)) }

// AppendText appends the text form to dst.
func (p Position) AppendText(dst []byte) []byte {
	dst = strconv.AppendUint(dst, p.Epoch, 16)
	dst = append(dst, '.')
	dst = strconv.AppendInt(dst, int64(p.Partition), 10)
	dst = append(dst, '.')
	return strconv.AppendInt(dst, p.Offset, 10)
}

// Compare orders two positions of one partition and epoch: cmp is negative when p is earlier.
// Positions of different partitions or epochs have no order: ok is false.
func (p Position) Compare(q Position) (cmp int, ok bool) {
	if p.Epoch != q.Epoch || p.Partition != q.Partition {
		return 0, false
	}
	switch {
	case p.Offset < q.Offset:
		return -1, true
	case p.Offset > q.Offset:
		return 1, true
	}
	return 0, true
}

// ParsePosition reads the text form, exactly as String writes it.
func ParsePosition(s string) (Position, error) {
	fail := func() (Position, error) {
		if len(s) > MaxPositionBytes {
			s = s[:MaxPositionBytes] + "…"
		}
		return Position{}, fmt.Errorf("position %q is not one that mailbell gave out; use one as it stands in a frame, such as %q", s,
			Position{Epoch: 0x19aa3f5c2b4, Partition: 12, Offset: 48211}.String())
	}
	if len(s) > MaxPositionBytes {
		return fail()
	}
	epochText, rest, ok := strings.Cut(s, ".")
	if !ok {
		return fail()
	}
	partitionText, offsetText, ok := strings.Cut(rest, ".")
	if !ok {
		return fail()
	}
	epoch, err1 := strconv.ParseUint(epochText, 16, 64)
	partition, err2 := strconv.ParseInt(partitionText, 10, 32)
	offset, err3 := strconv.ParseInt(offsetText, 10, 64)
	p := Position{Epoch: epoch, Partition: int32(partition), Offset: offset}
	// The one text form of a value: no signs, leading zeros or capitals.
	if err1 != nil || err2 != nil || err3 != nil || partition < 0 || offset < 0 || p.String() != s {
		return fail()
	}
	return p, nil
}
