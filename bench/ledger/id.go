// Package ledger keeps the books of a bench: what was acknowledged on one side, what arrived on the other,
// and whether the difference was told. It is pure.
//
// Every event of a bench carries in its id the run, the account's number, a sequence number that counts the
// account's events from 1, and the time it was published. So a client can tell by itself what
// it missed, received twice or in the wrong order.
package ledger

import (
	"bytes"
	"fmt"
	"strconv"
	"strings"
)

// ID is what the id of a bench's event says.
type ID struct {
	Run     uint32 // tells the runs on one log apart
	Account uint32
	Seq     uint32 // 1, 2, ... per account
	SentAt  int64  // Unix time in nanoseconds
}

// AppendText appends the id's text form.
func (id ID) AppendText(dst []byte) []byte {
	dst = append(dst, 'b')
	dst = strconv.AppendUint(dst, uint64(id.Run), 36)
	dst = append(dst, '.')
	dst = strconv.AppendUint(dst, uint64(id.Account), 10)
	dst = append(dst, '.')
	dst = strconv.AppendUint(dst, uint64(id.Seq), 10)
	dst = append(dst, '.')
	return strconv.AppendInt(dst, id.SentAt, 10)
}

func (id ID) String() string { return string(id.AppendText(nil)) }

// ParseID reads the text form; ok is false for an id that no bench made.
func ParseID(text []byte) (id ID, ok bool) {
	if len(text) == 0 || text[0] != 'b' {
		return ID{}, false
	}
	var parts [4][]byte
	rest := text[1:]
	for i := range 3 {
		if parts[i], rest, ok = bytes.Cut(rest, []byte{'.'}); !ok {
			return ID{}, false
		}
	}
	parts[3] = rest
	run, ok0 := parseUint(parts[0], 36, 1<<32)
	account, ok1 := parseUint(parts[1], 10, 1<<32)
	seq, ok2 := parseUint(parts[2], 10, 1<<32)
	sent, ok3 := parseUint(parts[3], 10, 1<<63)
	return ID{uint32(run), uint32(account), uint32(seq), int64(sent)}, ok0 && ok1 && ok2 && ok3
}

// parseUint is strconv.ParseUint for bytes, without an allocation.
func parseUint(b []byte, base, limit uint64) (n uint64, ok bool) {
	if len(b) == 0 || len(b) > 19 {
		return 0, false
	}
	for _, c := range b {
		var digit uint64
		switch {
		case c >= '0' && c <= '9':
			digit = uint64(c - '0')
		case c >= 'a' && c <= 'z':
			digit = uint64(c-'a') + 10
		default:
			return 0, false
		}
		if digit >= base {
			return 0, false
		}
		n = n*base + digit
	}
	return n, n < limit
}

// AccountName returns the name of a bench's account.
func AccountName(n uint32) string { return fmt.Sprintf("u%07d@bench.example", n) }

// ParseAccount reads what AccountName wrote.
func ParseAccount(name string) (n uint32, ok bool) {
	digits, ok := strings.CutPrefix(name, "u")
	if !ok {
		return 0, false
	}
	if digits, ok = strings.CutSuffix(digits, "@bench.example"); !ok {
		return 0, false
	}
	v, err := strconv.ParseUint(digits, 10, 32)
	return uint32(v), err == nil
}
