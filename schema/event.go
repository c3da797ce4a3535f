package schema

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"time"
	"unicode/utf8"

	"github.com/oklog/ulid/v2"
)

// Limits of an event.
const (
	MaxEventBytes  = 64 << 10 // of JSON
	MaxIDBytes     = 128
	MaxFlagNames   = 256
	maxActorBytes  = 1024 // user, service, session
	maxFlagBytes   = 255
	maxJMAPStates  = 32
	modSeqMaxValue = 1<<63 - 1 // RFC 7162, section 3.1
)

// Event is something that happened in the mail store, as it stands on the log:
// one JSON object. The zero value of an optional field means that it is absent.
type Event struct {
	ID          string    // unique per event, for deduplication; 1 to 128 printable ASCII characters
	Event       EventName // what happened
	Account     Account   // the owner of the mailbox
	Mailbox     Mailbox   // where; for a rename, the new name
	OldMailbox  Mailbox   // MailboxRename only: the name before
	UIDValidity uint32    // RFC 9051, section 2.3.1.1
	UIDSet      string    // sorted sequence set of the messages concerned
	UIDNext     uint32    // after the event; 0 = unknown
	ModSeq      string    // highest mod-sequence after the event, a decimal of up to 63 bits (RFC 7162)
	Messages    *uint32   // messages in the mailbox after the event; nil = unknown
	Unseen      *uint32   // of them without \Seen; nil = unknown
	FlagNames   []string  // flags set or cleared, or those of a new message; nil = absent
	User        string    // the actor: who caused it
	Service     string    // through what: imap, lmtp, ...
	Session     string    // the store's session that caused it
	Timestamp   time.Time // when, by the store's clock
	Truncated   bool      // the uidset was longer than MaxUIDSetBytes and is left out
	JMAPStates  map[string]string

	// Extra holds the fields that this version does not know, as they came: name and JSON. None may have a known name.
	Extra map[string]json.RawMessage
}

// FieldError says which field of an event is wrong, how, and what right looks like.
type FieldError struct {
	Field   string // the JSON key; empty when the whole is not an object
	Problem string // such as "is missing"
	Example string // JSON of a right value; may be empty
}

func (e *FieldError) Error() string {
	s := "event " + e.Problem
	if e.Field != "" {
		s = fmt.Sprintf("event field %q %s", e.Field, e.Problem)
	}
	if e.Example != "" {
		s += "; for example " + e.Example
	}
	return s
}

// examples of right values, for the errors.
var examples = map[string]string{
	"id":          `"01JD5Z8QF3VYB6M0XW7R9K2T4C"`,
	"event":       `"MessageNew"`,
	"account":     `"alice@example.com"`,
	"mailbox":     `"INBOX"`,
	"oldMailbox":  `"Drafts/2025"`,
	"uidValidity": `1424683682`,
	"uidset":      `"1:300,405"`,
	"uidnext":     `406`,
	"modseq":      `"715194045007"`,
	"messages":    `12`,
	"unseen":      `3`,
	"flagNames":   `["\\Seen","$Junk"]`,
	"user":        `"bob@example.com"`,
	"service":     `"imap"`,
	"session":     `"PhnWe8JgYqF/AAAB"`,
	"timestamp":   `"2026-11-21T05:17:58Z"`,
	"truncated":   `true`,
	"jmapStates":  `{"Email":"s73","Mailbox":"s12"}`,
}

func wrong(field, format string, args ...any) *FieldError {
	return &FieldError{Field: field, Problem: fmt.Sprintf(format, args...), Example: examples[field]}
}

// NewID returns an id for an event: a ULID, which sorts by time.
func NewID() string { return ulid.Make().String() }

// SetUIDs sets the uidset, or marks the event as truncated when the set's text is longer than
// [MaxUIDSetBytes].
func (e *Event) SetUIDs(s *UIDSet) {
	e.UIDSet, e.Truncated = s.String(), false
	if len(e.UIDSet) > MaxUIDSetBytes {
		e.UIDSet, e.Truncated = "", true
	}
}

// Validate checks every rule for an event; the error is a *[FieldError].
func (e *Event) Validate() error {
	if err := e.validate(); err != nil {
		return err
	}
	return nil
}

func (e *Event) validate() *FieldError {
	if err := e.validateIdentity(); err != nil {
		return err
	}
	if err := e.validateMailbox(); err != nil {
		return err
	}
	if err := e.validateMessages(); err != nil {
		return err
	}
	if err := e.validateActor(); err != nil {
		return err
	}
	return e.validateExtra()
}

func (e *Event) validateIdentity() *FieldError {
	switch {
	case e.ID == "":
		return wrong("id", "is missing")
	case len(e.ID) > MaxIDBytes || !printable(e.ID):
		return wrong("id", "must be 1 to %d printable ASCII characters without spaces", MaxIDBytes)
	case e.Event == "":
		return wrong("event", "is missing")
	case e.Event.kind() == kindUnknown:
		return wrong("event", "is %s, which is no event of RFC 5423 and does not begin with %q", quote(string(e.Event)), VendorPrefix)
	case e.Account == "":
		return wrong("account", "is missing")
	case e.Timestamp.IsZero():
		return wrong("timestamp", "is missing")
	case e.Timestamp.UTC().Year() < 1 || e.Timestamp.UTC().Year() > 9999:
		return wrong("timestamp", "has a year that RFC 3339 cannot write in UTC")
	}
	if err := e.Account.Validate(); err != nil {
		return wrong("account", "%v", err)
	}
	return nil
}

func (e *Event) validateMailbox() *FieldError {
	if e.Mailbox == "" && e.Event.kind() != kindAccount {
		return wrong("mailbox", "is missing; %s is about a mailbox", e.Event)
	}
	if e.Mailbox != "" {
		if err := e.Mailbox.Validate(); err != nil {
			return wrong("mailbox", "%v", err)
		}
	}
	switch {
	case e.Event == MailboxRename && e.OldMailbox == "":
		return wrong("oldMailbox", "is missing; MailboxRename needs the name before")
	case e.Event != MailboxRename && e.OldMailbox != "":
		return wrong("oldMailbox", "is only for MailboxRename")
	case e.OldMailbox != "":
		if err := e.OldMailbox.Validate(); err != nil {
			return wrong("oldMailbox", "%v", err)
		}
	}
	return nil
}

func (e *Event) validateMessages() *FieldError {
	if e.Event.kind() == kindMessage {
		switch {
		case e.UIDValidity == 0:
			return wrong("uidValidity", "is missing; %s is about messages", e.Event)
		case e.UIDSet == "" && !e.Truncated:
			return wrong("uidset", "is missing; %s is about messages", e.Event)
		}
	}
	if e.Truncated && e.UIDSet != "" {
		return wrong("truncated", "is true, so the uidset must be left out")
	}
	if e.UIDSet != "" {
		if len(e.UIDSet) > MaxUIDSetBytes {
			return wrong("uidset", "has %d bytes, the limit is %d; leave it out and set \"truncated\":true", len(e.UIDSet), MaxUIDSetBytes)
		}
		if err := checkUIDSet(e.UIDSet); err != nil {
			return err
		}
	}
	if e.ModSeq != "" {
		if n, err := strconv.ParseUint(e.ModSeq, 10, 64); err != nil || n > modSeqMaxValue || e.ModSeq[0] == '+' || (e.ModSeq[0] == '0' && len(e.ModSeq) > 1) {
			return wrong("modseq", "must be a string with a decimal number of at most 63 bits")
		}
	}
	if len(e.FlagNames) > MaxFlagNames {
		return wrong("flagNames", "has %d names, the limit is %d", len(e.FlagNames), MaxFlagNames)
	}
	for i, f := range e.FlagNames {
		if f == "" || len(f) > maxFlagBytes || !printable(f) {
			return wrong("flagNames", "has a bad name at index %d: 1 to %d printable ASCII characters without spaces", i, maxFlagBytes)
		}
	}
	return nil
}

// checkUIDSet accepts only the one text form that UIDSet.String writes.
func checkUIDSet(text string) *FieldError {
	if isCanonicalUIDSet(text) {
		return nil
	}
	set, err := ParseUIDSet(text)
	if err != nil {
		return wrong("uidset", "has a bad part: %v", err)
	}
	return &FieldError{Field: "uidset", Problem: "must be sorted, ranges joined and nothing twice", Example: quote(set.String())}
}

func (e *Event) validateActor() *FieldError {
	for _, f := range [...]struct{ name, value string }{{"user", e.User}, {"service", e.Service}, {"session", e.Session}} {
		if len(f.value) > maxActorBytes || !utf8.ValidString(f.value) {
			return wrong(f.name, "must be UTF-8 of at most %d bytes", maxActorBytes)
		}
	}
	if len(e.JMAPStates) > maxJMAPStates {
		return wrong("jmapStates", "has %d types, the limit is %d", len(e.JMAPStates), maxJMAPStates)
	}
	return nil
}

// validateExtra keeps a program's own fields from breaking the object, or from standing beside a known field of the same
// name. What DecodeEvent found passes.
func (e *Event) validateExtra() *FieldError {
	for _, key := range slices.Sorted(maps.Keys(e.Extra)) {
		switch _, known := examples[key]; {
		case known:
			return &FieldError{Field: key, Problem: "is set in Extra; it has a field of its own"}
		case !utf8.ValidString(key):
			return &FieldError{Field: key, Problem: "is a name in Extra that is not valid UTF-8"}
		case !utf8.Valid(e.Extra[key]) || !json.Valid(e.Extra[key]):
			return &FieldError{Field: key, Problem: "is not valid JSON in Extra", Example: `{"x":1}`}
		}
	}
	return nil
}

// AppendJSON appends the event as it stands on the log: known fields in a fixed order, then
// the unknown ones sorted by name, without white space of its own and without HTML escapes.
func (e *Event) AppendJSON(dst []byte) []byte {
	dst = append(dst, `{"id":`...)
	dst = appendString(dst, e.ID)
	dst = appendText(dst, "event", string(e.Event))
	dst = appendText(dst, "account", string(e.Account))
	dst = appendText(dst, "mailbox", string(e.Mailbox))
	dst = appendText(dst, "oldMailbox", string(e.OldMailbox))
	if e.UIDValidity != 0 {
		dst = appendNumber(dst, "uidValidity", e.UIDValidity)
	}
	dst = appendText(dst, "uidset", e.UIDSet)
	if e.UIDNext != 0 {
		dst = appendNumber(dst, "uidnext", e.UIDNext)
	}
	dst = appendText(dst, "modseq", e.ModSeq)
	if e.Messages != nil {
		dst = appendNumber(dst, "messages", *e.Messages)
	}
	if e.Unseen != nil {
		dst = appendNumber(dst, "unseen", *e.Unseen)
	}
	if e.FlagNames != nil {
		dst = append(dst, `,"flagNames":[`...)
		for i, f := range e.FlagNames {
			if i > 0 {
				dst = append(dst, ',')
			}
			dst = appendString(dst, f)
		}
		dst = append(dst, ']')
	}
	dst = appendText(dst, "user", e.User)
	dst = appendText(dst, "service", e.Service)
	dst = appendText(dst, "session", e.Session)
	dst = append(dst, `,"timestamp":"`...)
	dst = e.Timestamp.UTC().AppendFormat(dst, time.RFC3339Nano)
	dst = append(dst, '"')
	if e.Truncated {
		dst = append(dst, `,"truncated":true`...)
	}
	if len(e.JMAPStates) > 0 {
		dst = append(dst, `,"jmapStates":{`...)
		for i, k := range slices.Sorted(maps.Keys(e.JMAPStates)) {
			if i > 0 {
				dst = append(dst, ',')
			}
			dst = append(appendString(dst, k), ':')
			dst = appendString(dst, e.JMAPStates[k])
		}
		dst = append(dst, '}')
	}
	if len(e.Extra) > 0 {
		for _, k := range slices.Sorted(maps.Keys(e.Extra)) {
			dst = append(appendString(append(dst, ','), k), ':')
			dst = append(dst, e.Extra[k]...)
		}
	}
	return append(dst, '}')
}

// Encode returns the validated event's JSON. The error is a *[FieldError], also for an
// event over [MaxEventBytes].
func (e *Event) Encode() ([]byte, error) {
	if err := e.validate(); err != nil {
		return nil, err
	}
	b := e.AppendJSON(make([]byte, 0, 384))
	if len(b) > MaxEventBytes {
		return nil, tooLarge(len(b))
	}
	return b, nil
}

// MarshalJSON is AppendJSON for encoding/json.
func (e Event) MarshalJSON() ([]byte, error) { return e.AppendJSON(nil), nil }

// UnmarshalJSON is [DecodeEvent] for encoding/json.
func (e *Event) UnmarshalJSON(b []byte) error {
	decoded, err := DecodeEvent(b)
	if err != nil {
		return err
	}
	*e = decoded
	return nil
}

func tooLarge(n int) *FieldError {
	return &FieldError{Problem: fmt.Sprintf("has %d bytes, the limit is %d", n, MaxEventBytes)}
}
