package schema

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strconv"
	"time"
	"unicode/utf8"

	"github.com/tidwall/gjson"
)

// DecodeEvent reads one event's JSON and checks every rule. It is strict: one object,
// nothing after it, no key twice, no null, the right type everywhere. Fields that it does not know go
// to Extra unchanged. The error is a *[FieldError].
func DecodeEvent(b []byte) (Event, error) {
	if len(b) > MaxEventBytes {
		return Event{}, tooLarge(len(b))
	}
	if !utf8.Valid(b) {
		return Event{}, &FieldError{Problem: "is not valid UTF-8"}
	}
	if !gjson.ValidBytes(b) {
		return Event{}, &FieldError{Problem: "is not valid JSON: " + jsonProblem(b)}
	}
	root := gjson.ParseBytes(b)
	if !root.IsObject() {
		return Event{}, &FieldError{Problem: "must be a JSON object", Example: `{"id":…,"event":"MessageNew",…}`}
	}
	d := decoder{}
	root.ForEach(func(key, value gjson.Result) bool {
		d.field(key.String(), value)
		return d.err == nil
	})
	if d.err == nil {
		d.err = d.event.validate()
	}
	if d.err != nil {
		return Event{}, d.err
	}
	return d.event, nil
}

// jsonProblem returns encoding/json's words for what is wrong with b.
func jsonProblem(b []byte) string {
	var v any
	err := json.Unmarshal(b, &v)
	if err == nil {
		return "unknown problem"
	}
	if syntax, ok := err.(*json.SyntaxError); ok {
		return fmt.Sprintf("%v at byte %d", syntax, syntax.Offset)
	}
	return err.Error()
}

// decoder collects the fields of one object.
type decoder struct {
	event Event
	seen  map[string]struct{}
	err   *FieldError
}

func (d *decoder) field(key string, v gjson.Result) {
	if d.seen == nil {
		d.seen = make(map[string]struct{}, 24)
	}
	if _, twice := d.seen[key]; twice {
		d.err = &FieldError{Field: key, Problem: "stands twice"}
		return
	}
	d.seen[key] = struct{}{}
	e := &d.event
	switch key {
	case "id":
		e.ID = d.text(key, v)
	case "event":
		e.Event = EventName(d.text(key, v))
	case "account":
		e.Account = Account(d.text(key, v))
	case "mailbox":
		e.Mailbox = Mailbox(d.text(key, v))
	case "oldMailbox":
		e.OldMailbox = Mailbox(d.text(key, v))
	case "uidValidity":
		e.UIDValidity = d.positive(key, v)
	case "uidset":
		e.UIDSet = d.text(key, v)
	case "uidnext":
		e.UIDNext = d.positive(key, v)
	case "modseq":
		e.ModSeq = d.text(key, v)
	case "messages":
		n := d.number(key, v)
		e.Messages = &n
	case "unseen":
		n := d.number(key, v)
		e.Unseen = &n
	case "flagNames":
		e.FlagNames = d.texts(key, v)
	case "user":
		e.User = d.text(key, v)
	case "service":
		e.Service = d.text(key, v)
	case "session":
		e.Session = d.text(key, v)
	case "timestamp":
		e.Timestamp = d.time(key, v)
	case "truncated":
		e.Truncated = d.boolean(key, v)
	case "jmapStates":
		e.JMAPStates = d.textMap(key, v)
	default:
		if e.Extra == nil {
			e.Extra = make(map[string]json.RawMessage)
		}
		e.Extra[key] = json.RawMessage(v.Raw)
	}
}

func (d *decoder) wrong(key, format string, args ...any) {
	if d.err == nil {
		d.err = wrong(key, format, args...)
	}
}

func (d *decoder) text(key string, v gjson.Result) string {
	if v.Type != gjson.String {
		d.wrong(key, "must be a string, not %s", typeOf(v))
	} else if v.Str == "" {
		d.wrong(key, "is empty; leave it out where it has no value")
	}
	return v.Str
}

func (d *decoder) number(key string, v gjson.Result) uint32 {
	n, err := strconv.ParseUint(v.Raw, 10, 32)
	if v.Type != gjson.Number || err != nil {
		d.wrong(key, "must be a whole number from 0 to 4294967295, not %s", typeOf(v))
	}
	return uint32(n)
}

func (d *decoder) positive(key string, v gjson.Result) uint32 {
	n := d.number(key, v)
	if n == 0 {
		d.wrong(key, "must be a whole number from 1 to 4294967295, not 0")
	}
	return n
}

func (d *decoder) boolean(key string, v gjson.Result) bool {
	if v.Type != gjson.True && v.Type != gjson.False {
		d.wrong(key, "must be true or false, not %s", typeOf(v))
	}
	return v.Type == gjson.True
}

func (d *decoder) time(key string, v gjson.Result) time.Time {
	t, err := time.Parse(time.RFC3339, v.Str)
	if v.Type != gjson.String || err != nil {
		d.wrong(key, "must be a string with an RFC 3339 time, not %s", typeOf(v))
	}
	return t
}

func (d *decoder) texts(key string, v gjson.Result) []string {
	if !v.IsArray() {
		d.wrong(key, "must be an array of strings, not %s", typeOf(v))
		return nil
	}
	list := []string{}
	v.ForEach(func(_, item gjson.Result) bool {
		if item.Type != gjson.String {
			d.wrong(key, "must have only strings, not %s at index %d", typeOf(item), len(list))
			return false
		}
		list = append(list, item.Str)
		return len(list) <= MaxFlagNames // Validate tells of the excess
	})
	return list
}

func (d *decoder) textMap(key string, v gjson.Result) map[string]string {
	if !v.IsObject() {
		d.wrong(key, "must be an object of strings, not %s", typeOf(v))
		return nil
	}
	m := make(map[string]string)
	v.ForEach(func(k, item gjson.Result) bool {
		if item.Type != gjson.String {
			d.wrong(key, "must have only strings, not %s at %s", typeOf(item), quote(k.Str))
			return false
		}
		m[k.String()] = item.Str
		return len(m) <= maxJMAPStates
	})
	return m
}

// typeOf describes a JSON value for an error, shortened.
func typeOf(v gjson.Result) string {
	switch v.Type {
	case gjson.Null:
		return "null"
	case gjson.True, gjson.False, gjson.Number:
		return clip(v.Raw)
	case gjson.String:
		return "the string " + quote(v.Str)
	}
	if v.IsArray() {
		return "an array"
	}
	return "an object"
}

// quote returns s as a JSON string, shortened, for an error.
func quote(s string) string { return string(appendString(nil, clip(s))) }

func clip(s string) string {
	const limit = 48
	if len(s) <= limit {
		return s
	}
	cut := limit
	for cut > 0 && !utf8.RuneStart(s[cut]) {
		cut--
	}
	return s[:cut] + "…"
}

// IsObject reports whether b is one JSON object in UTF-8: what an event frame can carry as it stands.
func IsObject(b []byte) bool {
	b = bytes.TrimLeft(b, " \t\r\n")
	return len(b) > 0 && b[0] == '{' && utf8.Valid(b) && gjson.ValidBytes(b)
}

// EventMailboxes returns the mailboxes that an event on the log concerns without decoding the rest: where it
// happened and, for a rename, the old name. Either may be empty.
func EventMailboxes(event []byte) (mailbox, old Mailbox) {
	mailbox = Mailbox(gjson.GetBytes(event, "mailbox").String())
	old = Mailbox(gjson.GetBytes(event, "oldMailbox").String())
	return mailbox, old
}

// EventID returns the id of an event on the log without decoding the rest, empty if it has none. The result may
// share event's memory.
func EventID(event []byte) []byte {
	const first = `{"id":"` // where AppendJSON puts it
	if len(event) > len(first) && string(event[:len(first)]) == first {
		rest := event[len(first):]
		if end := bytes.IndexByte(rest, '"'); end >= 0 && bytes.IndexByte(rest[:end], '\\') < 0 {
			return rest[:end]
		}
	}
	return []byte(gjson.GetBytes(event, "id").String())
}

// EventTime returns the timestamp of an event on the log without decoding the rest. It does not allocate. In an event that
// another producer wrote in another order, it may find the timestamp of a nested object.
func EventTime(event []byte) (at time.Time, ok bool) {
	_, rest, found := bytes.Cut(event, []byte(`,"timestamp":"`)) // inside of a string the quotes would be escaped
	if !found {
		return time.Time{}, false
	}
	text, _, found := bytes.Cut(rest, []byte{'"'})
	return at, found && at.UnmarshalText(text) == nil
}
