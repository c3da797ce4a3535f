package schema

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"reflect"
	"strings"
	"testing"
	"time"
)

func u32(n uint32) *uint32 { return &n }

// fullEvent has every field.
func fullEvent() Event {
	return Event{
		ID: "01JD5Z8QF3VYB6M0XW7R9K2T4C", Event: MessageNew, Account: "alice@example.com", Mailbox: "INBOX",
		UIDValidity: 1424683682, UIDSet: "5", UIDNext: 6, ModSeq: "715194045007",
		Messages: u32(12), Unseen: u32(0), FlagNames: []string{}, User: "bob@example.com", Service: "lmtp",
		Session: "PhnWe8JgYqF/AAAB", Timestamp: time.Date(2026, 11, 21, 5, 17, 58, 253_000_000, time.UTC),
		JMAPStates: map[string]string{"Mailbox": "s12", "Email": "s73"},
		Extra:      map[string]json.RawMessage{"vnd.b": json.RawMessage(`[1, 2]`), "vnd.a": json.RawMessage(`{"x":1e3}`)},
	}
}

const fullEventJSON = `{"id":"01JD5Z8QF3VYB6M0XW7R9K2T4C","event":"MessageNew","account":"alice@example.com","mailbox":"INBOX",` +
	`"uidValidity":1424683682,"uidset":"5","uidnext":6,"modseq":"715194045007","messages":12,"unseen":0,"flagNames":[],` +
	`"user":"bob@example.com","service":"lmtp","session":"PhnWe8JgYqF/AAAB","timestamp":"2026-11-21T05:17:58.253Z",` +
	`"jmapStates":{"Email":"s73","Mailbox":"s12"},"vnd.a":{"x":1e3},"vnd.b":[1, 2]}`

func TestEventGolden(t *testing.T) {
	e := fullEvent()
	b, err := e.Encode()
	if err != nil {
		t.Fatal(err)
	}
	if string(b) != fullEventJSON {
		t.Errorf("encoded\n%s\nwant\n%s", b, fullEventJSON)
	}
	back, err := DecodeEvent(b)
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(back, e) {
		t.Errorf("decoded %+v, want %+v", back, e)
	}
}

func TestEventEscapes(t *testing.T) {
	e := fullEvent()
	e.Mailbox = `Übung "a\b" <&> ` + "\u2028" + "日本"
	b, err := e.Encode()
	if err != nil {
		t.Fatal(err)
	}
	if want := `"mailbox":"Übung \"a\\b\" <&> ` + "\u2028" + `日本"`; !strings.Contains(string(b), want) {
		t.Errorf("%s does not contain %s", b, want)
	}
	if back, err := DecodeEvent(b); err != nil || back.Mailbox != e.Mailbox {
		t.Errorf("mailbox came back as %q, %v", back.Mailbox, err)
	}
}

// TestEventRules takes a right event, changes one thing, and reads the error. The table is in a file so that it can be read
// as the list of rules: name, JSON merged over the right event (null removes), error.
func TestEventRules(t *testing.T) {
	table, err := os.ReadFile("testdata/event_rules.txt")
	if err != nil {
		t.Fatal(err)
	}
	var got bytes.Buffer
	cases := 0
	for line := range strings.Lines(string(table)) {
		if strings.HasPrefix(line, "#") || strings.TrimSpace(line) == "" || strings.HasPrefix(line, "\t") {
			if !strings.HasPrefix(line, "\t") {
				got.WriteString(line)
			}
			continue
		}
		cases++
		got.WriteString(line)
		_, err := DecodeEvent(merged(t, strings.TrimSpace(line)))
		var field *FieldError
		switch {
		case err == nil:
			got.WriteString("\tok\n")
		case errors.As(err, &field):
			got.WriteString("\t" + err.Error() + "\n")
		default:
			t.Errorf("%s: error %T is not a FieldError", line, err)
		}
	}
	if cases < 50 {
		t.Errorf("only %d cases were read", cases)
	}
	compareGolden(t, "testdata/event_rules.txt", got.Bytes())
}

func merged(t *testing.T, change string) []byte {
	t.Helper()
	if !strings.HasPrefix(change, "{") {
		return []byte(strings.TrimPrefix(change, "raw "))
	}
	var order []string
	fields := map[string]json.RawMessage{}
	collect := func(text string) {
		dec := json.NewDecoder(strings.NewReader(text))
		if _, err := dec.Token(); err != nil {
			t.Fatal(err)
		}
		for dec.More() {
			key, err := dec.Token()
			if err != nil {
				t.Fatalf("%s: %v", text, err)
			}
			var v json.RawMessage
			if err := dec.Decode(&v); err != nil {
				t.Fatalf("%s: %v", text, err)
			}
			if _, has := fields[key.(string)]; !has {
				order = append(order, key.(string))
			}
			fields[key.(string)] = v
		}
	}
	collect(`{"id":"a1","event":"MessageNew","account":"alice@example.com","mailbox":"INBOX","uidValidity":1,"uidset":"5","timestamp":"2026-11-21T05:17:58Z"}`)
	collect(change)
	out := []byte{'{'}
	for _, k := range order {
		if string(fields[k]) == `"REMOVE"` {
			continue
		}
		if len(out) > 1 {
			out = append(out, ',')
		}
		out = append(append(appendString(out, k), ':'), fields[k]...)
	}
	return append(out, '}')
}

func TestEventLimits(t *testing.T) {
	long := func(change func(*Event)) error {
		e := fullEvent()
		change(&e)
		_, err := e.Encode()
		return err
	}
	for name, tc := range map[string]struct {
		change func(*Event)
		field  string
		ok     bool
	}{
		"account at the limit":   {func(e *Event) { e.Account = Account(strings.Repeat("a", MaxAccountBytes)) }, "", true},
		"account over the limit": {func(e *Event) { e.Account = Account(strings.Repeat("a", MaxAccountBytes+1)) }, "account", false},
		"mailbox over the limit": {func(e *Event) { e.Mailbox = Mailbox(strings.Repeat("a", MaxMailboxBytes+1)) }, "mailbox", false},
		"id over the limit":      {func(e *Event) { e.ID = strings.Repeat("a", MaxIDBytes+1) }, "id", false},
		"uidset over the limit":  {func(e *Event) { e.UIDSet = oddUIDs(5000) }, "uidset", false},
		"too many flags":         {func(e *Event) { e.FlagNames = make([]string, MaxFlagNames+1) }, "flagNames", false},
		"session over the limit": {func(e *Event) { e.Session = strings.Repeat("a", maxActorBytes+1) }, "session", false},
		"event over the limit": {func(e *Event) {
			e.Extra["x"] = json.RawMessage(`"` + strings.Repeat("a", MaxEventBytes) + `"`)
		}, "", false},
	} {
		err := long(tc.change)
		var field *FieldError
		if (err == nil) != tc.ok || (err != nil && (!errors.As(err, &field) || field.Field != tc.field)) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := DecodeEvent(bytes.Repeat([]byte("x"), MaxEventBytes+1)); err == nil || !strings.Contains(err.Error(), "limit") {
		t.Errorf("decoding too much: %v", err)
	}
}

// TestExtra is about what only a Go program can get wrong: from JSON, known names and bad values never reach Extra.
func TestExtra(t *testing.T) {
	for name, tc := range map[string]struct{ key, value, want string }{
		"unknown":       {"vnd.x", `{"a":[1, null]}`, ""},
		"a known name":  {"account", `"mallory@example.com"`, "field of its own"},
		"optional name": {"oldMailbox", `"A"`, "field of its own"},
		"no value":      {"vnd.x", ``, "not valid JSON"},
		"half a value":  {"vnd.x", `{"a":`, "not valid JSON"},
		"two values":    {"vnd.x", `1,"account":"mallory@example.com"`, "not valid JSON"},
		"not UTF-8":     {"vnd.x", "\"\xff\"", "not valid JSON"},
		"a broken name": {"\xff", `1`, "not valid UTF-8"},
	} {
		e := fullEvent()
		e.Extra = map[string]json.RawMessage{tc.key: json.RawMessage(tc.value)}
		_, err := e.Encode()
		var field *FieldError
		switch {
		case tc.want == "" && err != nil:
			t.Errorf("%s: %v", name, err)
		case tc.want != "" && (!errors.As(err, &field) || field.Field != tc.key || !strings.Contains(err.Error(), tc.want)):
			t.Errorf("%s: %v, want %q", name, err, tc.want)
		}
	}
}

func TestIsObject(t *testing.T) {
	for value, want := range map[string]bool{
		fullEventJSON: true, "{}": true, " {\"a\":1}\n": true,
		"": false, "null": false, "[]": false, "1": false, `"text"`: false, "{": false, "{}{}": false, "text": false,
		"{\"a\":\"\xff\"}": false, "\x00\x01": false,
	} {
		if got := IsObject([]byte(value)); got != want {
			t.Errorf("%q: %v", value, got)
		}
	}
}

func oddUIDs(n int) string {
	var s UIDSet
	for i := range n {
		s.Add(uint32(2*i + 1))
	}
	return s.String()
}

func TestSetUIDsTruncates(t *testing.T) {
	var s UIDSet
	e := fullEvent()
	s.AddRange(1, 300)
	e.SetUIDs(&s)
	if e.UIDSet != "1:300" || e.Truncated {
		t.Errorf("uidset %q, truncated %v", e.UIDSet, e.Truncated)
	}
	for i := range uint32(5000) {
		s.Add(1000 + 2*i)
	}
	e.SetUIDs(&s)
	if e.UIDSet != "" || !e.Truncated {
		t.Errorf("uidset %q, truncated %v", e.UIDSet, e.Truncated)
	}
	if err := e.Validate(); err != nil {
		t.Error(err)
	}
}

func TestEventMailboxes(t *testing.T) {
	for event, want := range map[string][2]Mailbox{
		fullEventJSON: {"INBOX", ""},
		`{"id":"a","event":"MailboxRename","mailbox":"B","oldMailbox":"A"}`: {"B", "A"},
		`{"id":"a","event":"Login","account":"x"}`:                          {"", ""},
	} {
		if m, old := EventMailboxes([]byte(event)); m != want[0] || old != want[1] {
			t.Errorf("%s: %q %q", event, m, old)
		}
	}
}

func TestEventID(t *testing.T) {
	for event, want := range map[string]string{
		fullEventJSON:                           "01JD5Z8QF3VYB6M0XW7R9K2T4C",
		`{"event":"Login","id":"last"}`:         "last",
		`{"id":"esc\u0061ped","x":{"id":"no"}}`: "escaped",
		`{"x":{"id":"no"}}`:                     "",
		`{"id":`:                                "",
	} {
		if got := string(EventID([]byte(event))); got != want {
			t.Errorf("%s: %q, want %q", event, got, want)
		}
	}
}

func FuzzDecodeEvent(f *testing.F) {
	f.Add([]byte(fullEventJSON))
	f.Add([]byte(`{"id":"a1","event":"MailboxRename","account":"a","mailbox":"B","oldMailbox":"A","timestamp":"2026-11-21T05:17:58+02:00"}`))
	f.Add([]byte(`{"id":1}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		e, err := DecodeEvent(b)
		if err != nil {
			return
		}
		first := e.AppendJSON(nil)
		if !json.Valid(first) {
			t.Fatalf("not JSON: %s", first)
		}
		if len(first) > MaxEventBytes { // escapes such as \u0061 shrink, "\u2028" grows no more
			return
		}
		again, err := DecodeEvent(first)
		if err != nil {
			t.Fatalf("%s became %s: %v", b, first, err)
		}
		if second := again.AppendJSON(nil); !bytes.Equal(first, second) {
			t.Fatalf("%s became %s", first, second)
		}
	})
}

func BenchmarkDecodeEvent(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		if _, err := DecodeEvent([]byte(fullEventJSON)); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkIsObject(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		if !IsObject([]byte(fullEventJSON)) {
			b.Fatal("no object")
		}
	}
}

func BenchmarkEncodeEvent(b *testing.B) {
	e := fullEvent()
	b.ReportAllocs()
	for b.Loop() {
		if _, err := e.Encode(); err != nil {
			b.Fatal(err)
		}
	}
}
