package dovecot

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/mailbell/mailbell/schema"
)

func TestShared(t *testing.T) {
	a := newAgent(t, Config{Shared: []string{"shared/%u/", "#users.%n."}})
	for _, c := range []struct {
		mailbox, old string
		want         string // account mailbox old
	}{
		{"INBOX", "", "bob@example.com INBOX "},
		{"shared/alice@example.com/Team/x", "", "alice@example.com Team/x "},
		{"shared/alice@example.com", "", "bob@example.com shared/alice@example.com "},
		{"#users.alice.Team", "", "alice@example.com Team "},
		{"shared/alice@example.com/B", "shared/alice@example.com/A", "alice@example.com B A"},
		{"shared/alice@example.com/B", "shared/carol@example.com/A", "bob@example.com shared/alice@example.com/B shared/carol@example.com/A"},
		{"shared/alice@example.com/B", "A", "bob@example.com shared/alice@example.com/B A"},
	} {
		e := schema.Event{Account: "bob@example.com", Mailbox: schema.Mailbox(c.mailbox), OldMailbox: schema.Mailbox(c.old)}
		a.toOwner(&e)
		if got := fmt.Sprintf("%s %s %s", e.Account, e.Mailbox, e.OldMailbox); got != c.want {
			t.Errorf("%s (%s): got %q, want %q", c.mailbox, c.old, got, c.want)
		}
	}
}

func TestDeduperForgets(t *testing.T) {
	d := newDeduper(time.Second)
	now := time.Unix(1000, 0)
	m := message{"a", "INBOX", 9, 1}
	for _, step := range []struct {
		after time.Duration
		by    source
		want  bool
	}{
		{0, sourceOX, true}, {0, sourceLua, false}, {0, sourceOX, true},
		{900 * time.Millisecond, sourceLua, false}, {3 * time.Second, sourceLua, true}, {0, sourceOX, false},
	} {
		now = now.Add(step.after)
		if got := d.first(m, step.by, now); got != step.want {
			t.Fatalf("%v at %v: %v", step, now, got)
		}
	}
	for uid := range uint32(5 * maxSeen) {
		d.first(message{"a", "INBOX", 9, uid}, sourceLua, now)
	}
	if n := len(d.young) + len(d.old); n > 2*maxSeen {
		t.Fatalf("%d messages remembered", n)
	}
}

// FuzzNotice: what is accepted of the OX driver's report is one event that the log takes.
func FuzzNotice(f *testing.F) {
	f.Add("a@example.com", `{"user":"11@3","event":"messageNew","folder":"INBOX","imap-uidvalidity":9,"imap-uid":1,"unseen":2}`)
	f.Add("", `{"user":"a","event":"messageNew","folder":"\u0000","imap-uidvalidity":4294967295,"imap-uid":4294967296}`)
	f.Add("shared/b", `{"event":"messageNew","folder":"shared/b@example.com/Team","imap-uidvalidity":1,"imap-uid":1}`)
	a := newAgent(f, Config{Shared: []string{"shared/%u/"}})
	f.Fuzz(func(t *testing.T, account, body string) {
		r := httptest.NewRequest(http.MethodPut, NotifyPath+"?"+url.Values{accountParam: {account}}.Encode(), nil)
		events, err := a.notifyEvents(r, body)
		if err != nil && len(events) > 0 || len(events) > 1 {
			t.Fatalf("%d events, %v", len(events), err)
		}
		for _, e := range events {
			b, err := e.Encode()
			if err == nil {
				_, err = schema.DecodeEvent(b)
			}
			if err != nil {
				t.Fatalf("%s: %v", b, err)
			}
		}
	})
}

func FuzzTransaction(f *testing.F) {
	f.Add(expunge("a", 1))
	f.Add(verboseStore(3))
	f.Add(`{"user":"a","events":[{"name":"FlagsSet","mailbox":"x","uidset":"1:4294967295,7","flags":["\\Seen",null,5]}],"status":{"x":{"err":"gone"}}}`)
	f.Fuzz(func(t *testing.T, body string) {
		tr, err := parseTransaction(body)
		if err != nil {
			return
		}
		for _, e := range tr.events(schema.NewID, time.Now()) {
			if b, err := e.Encode(); err == nil {
				if _, err := schema.DecodeEvent(b); err != nil {
					t.Fatalf("%s: %v", b, err)
				}
			}
		}
	})
}

// verboseStore is the report of a STORE +\Deleted as Dovecot has it: three events a message.
func verboseStore(messages int) string {
	var b strings.Builder
	b.WriteString(`{"events":[`)
	for uid := 1; uid <= messages; uid++ {
		if uid > 1 {
			b.WriteByte(',')
		}
		fmt.Fprintf(&b, `{"flags":[],"flags_old":["\u005cRecent"],"keywords":[],"keywords_old":[],"mailbox":"Bulk","name":"FlagsClear","uid":%d,"uid_validity":1795238281},`, uid)
		fmt.Fprintf(&b, `{"flags":["\u005cDeleted"],"keywords":[],"mailbox":"Bulk","name":"FlagsSet","uid":%d,"uid_validity":1795238281},`, uid)
		fmt.Fprintf(&b, `{"mailbox":"Bulk","name":"MessageTrash","uid":%d,"uid_validity":1795238281}`, uid)
	}
	fmt.Fprintf(&b, `],"nev":%d,"status":{"Bulk":{"highest_modseq":32,"messages":%d,"uidnext":%d,"uidvalidity":1795238281,"unseen":0}},"success":true,"user":"bob@example.com"}`,
		3*messages, messages, messages+1)
	return b.String()
}

func TestVerboseStoreIsOneEvent(t *testing.T) {
	body := verboseStore(5000)
	if len(body) < 1_690_000 {
		t.Fatalf("the body has %d bytes", len(body))
	}
	tr, err := parseTransaction(body)
	if err != nil {
		t.Fatal(err)
	}
	events := tr.events(schema.NewID, time.Now())
	if len(events) != 1 || events[0].UIDSet != "1:5000" || events[0].Event != schema.FlagsSet || tr.reported != 15000 {
		t.Fatalf("%d reported, %s", tr.reported, describe(events))
	}
}

func BenchmarkTransaction(b *testing.B) {
	for _, messages := range []int{1, 5000} {
		body := verboseStore(messages)
		b.Run(fmt.Sprintf("messages=%d", messages), func(b *testing.B) {
			b.SetBytes(int64(len(body)))
			b.ReportAllocs()
			now := time.Now()
			for b.Loop() {
				tr, err := parseTransaction(body)
				if err != nil || len(tr.events(schema.NewID, now)) != 1 {
					b.Fatal(err)
				}
			}
		})
	}
}
