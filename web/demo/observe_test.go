package demo

import (
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mailbell/mailbell/schema"
)

// heard builds an event of another store.
func heard(name schema.EventName, mailbox schema.Mailbox, uids string, with func(*schema.Event)) schema.Event {
	e := schema.Event{ID: schema.NewID(), Event: name, Account: alice, Mailbox: mailbox, UIDSet: uids, Timestamp: time.Unix(1795238277, 0)}
	if with != nil {
		with(&e)
	}
	return e
}

func counts(messages, unseen uint32) func(*schema.Event) {
	return func(e *schema.Event) { e.Messages, e.Unseen = &messages, &unseen }
}

func TestObserve(t *testing.T) {
	tests := []struct {
		name   string
		events []schema.Event
		lines  []string
		rows   string // of INBOX, newest first: uid and flags
	}{
		{"new mail without counts", []schema.Event{heard(schema.MessageNew, "INBOX", "7", nil)},
			[]string{"INBOX 7/3 next 8"}, `7[] 6[] 5[] 4[\Flagged \Seen] 3[\Seen] 2[\Answered \Seen] 1[\Seen]`},
		{"the same mail twice", []schema.Event{heard(schema.MessageNew, "INBOX", "6", nil)},
			[]string{"INBOX 6/2 next 7"}, ""},
		{"flags", []schema.Event{
			heard(schema.MessageRead, "INBOX", "5:6", nil), heard(schema.MessageTrash, "INBOX", "1", nil),
			heard(schema.FlagsClear, "INBOX", "2:4", func(e *schema.Event) { e.FlagNames = []string{`\Seen`, `\Flagged`} }),
			heard(schema.FlagsSet, "INBOX", "4", func(e *schema.Event) { e.FlagNames = []string{"$Junk"} }),
		}, []string{"INBOX 6/3 next 7"}, `6[\Seen] 5[\Seen] 4[$Junk] 3[] 2[\Answered] 1[\Deleted \Seen]`},
		{"expunge and expire", []schema.Event{heard(schema.MessageExpunge, "INBOX", "1:2", nil), heard(schema.MessageExpire, "INBOX", "6,99", nil)},
			[]string{"INBOX 3/1 next 7"}, `5[] 4[\Flagged \Seen] 3[\Seen]`},
		{"another uidvalidity: the mailbox starts over", []schema.Event{heard(schema.MessageNew, "INBOX", "300", func(e *schema.Event) {
			e.UIDValidity, e.UIDNext = 42, 301
			counts(12, 4)(e)
		})}, []string{"INBOX 12/4 next 301"}, "300[]"},
		{"unread alone", []schema.Event{heard(schema.MessageNew, "INBOX", "7", func(e *schema.Event) {
			counts(0, 9)(e)
			e.Messages = nil
		})}, []string{"INBOX 9/9 next 8"}, ""},
		{"messages alone", []schema.Event{heard(schema.MessageExpunge, "INBOX", "1:5", func(e *schema.Event) { e.Messages = new(uint32) })},
			[]string{"INBOX 0/0 next 7"}, "6[]"},
		{"a truncated event still counts", []schema.Event{heard(schema.FlagsSet, "INBOX", "", func(e *schema.Event) {
			e.Truncated, e.FlagNames = true, []string{`\Seen`}
			counts(9000, 0)(e)
		})}, []string{"INBOX 9000/0 next 7"}, ""},
		{"folders", []schema.Event{
			heard(schema.MailboxCreate, "P", "", nil), heard(schema.MailboxCreate, "P.C", "", nil), heard(schema.MailboxCreate, "Px", "", nil),
			heard(schema.MailboxRename, "Q", "", func(e *schema.Event) { e.OldMailbox = "P" }),
			heard(schema.MailboxDelete, "Sent", "", nil), heard(schema.MailboxUnSubscribe, "Px", "", nil), heard(schema.MailboxSubscribe, "New", "", nil),
		}, []string{"P is not there", "P.C is not there", "Q 0/0 next 1", "Q.C 0/0 next 1", "Px 0/0 next 1", "New 0/0 next 1", "Sent is not there"}, ""},
		{"about the account only", []schema.Event{heard(schema.Login, "", "", nil), heard("vnd.example.Note", "", "", nil)},
			[]string{"INBOX 6/2 next 7"}, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			f := newFixture(t, nil)
			auth := f.login(alice)
			for _, e := range tt.events {
				f.h.Observe(e)
			}
			state := f.state(auth, "INBOX")
			for _, line := range tt.lines {
				name, _, _ := strings.Cut(line, " ")
				if got := state.line(name); got != line {
					t.Errorf("state %q, want %q", got, line)
				}
			}
			var rows []string
			for _, row := range state.Messages {
				rows = append(rows, fmt.Sprint(row.UID, row.Flags))
			}
			got := strings.ReplaceAll(strings.Join(rows, ";"), " [", "[")
			if got = strings.ReplaceAll(got, ";", " "); tt.rows != "" && got != tt.rows {
				t.Errorf("rows  %s\nwant  %s", got, tt.rows)
			}
		})
	}
}

func TestObserveIsBounded(t *testing.T) {
	f := newFixture(t, func(c *Config) { c.MaxAccounts, c.MaxMailboxes, c.MaxMessages = 4, 6, 10 })
	auth := f.login(alice)
	for i := range 50 {
		e := heard(schema.MessageNew, "INBOX", "1", nil)
		e.Account = schema.Account(fmt.Sprintf("user%d", i))
		f.h.Observe(e)
		f.h.Observe(heard(schema.MailboxCreate, schema.Mailbox(fmt.Sprintf("Box%d", i)), "", nil))
	}
	f.h.Observe(heard(schema.MessageNew, "INBOX", "100:4294967295", nil))
	if n := len(f.h.store.accounts); n > 4 {
		t.Errorf("%d accounts", n)
	}
	state := f.state(auth, "INBOX")
	if len(state.Mailboxes) != 6 || len(state.Messages) != 10 || state.Messages[0].UID != 4294967295 {
		t.Errorf("%d mailboxes, %d messages", len(state.Mailboxes), len(state.Messages))
	}
}

func TestRememberedIDsAreBounded(t *testing.T) {
	f := newFixture(t, nil)
	auth := f.login(alice)
	for range rememberedIDs {
		f.act(auth, `{"action":"flag","mailbox":"INBOX","uids":"1","add":["$A"]}`)
		f.act(auth, `{"action":"flag","mailbox":"INBOX","uids":"1","remove":["$A"]}`)
	}
	if own, ring := len(f.h.store.own), len(f.h.store.ownRing); own != rememberedIDs || ring != rememberedIDs {
		t.Errorf("%d and %d ids are remembered, the bound is %d", own, ring, rememberedIDs)
	}
}

// What the socket tells, in its order, is what the store answers: whoever acts and whoever watches.
func TestChurn(t *testing.T) {
	f := newFixture(t, nil)
	auth := f.login(alice)
	actions := []string{
		`{"action":"deliver"}`, `{"action":"flag","mailbox":"INBOX","uids":"1:99","add":["\\Seen"]}`,
		`{"action":"flag","mailbox":"INBOX","uids":"1:5","remove":["\\Seen"]}`, `{"action":"delete","mailbox":"INBOX","uids":"8"}`,
		`{"action":"move","mailbox":"Archive","uids":"1:3","to":"INBOX"}`, `{"action":"move","mailbox":"INBOX","uids":"9:12","to":"Archive"}`,
	}
	var wg sync.WaitGroup
	for g := range 4 {
		wg.Go(func() {
			for i := range 60 {
				f.act(auth, actions[(g+i)%len(actions)])
				f.state(auth, "INBOX")
				f.h.Observe(heard(schema.MessageNew, "Lists", fmt.Sprint(g*100+i+1), nil))
			}
		})
	}
	wg.Wait()
	last := map[schema.Mailbox]schema.Event{}
	for _, e := range f.published() {
		last[e.Mailbox] = e
	}
	state := f.state(auth, "INBOX")
	for _, name := range []schema.Mailbox{"INBOX", "Archive", "Trash"} {
		e := last[name]
		want := fmt.Sprintf("%s %d/%d next %d", name, *e.Messages, *e.Unseen, e.UIDNext)
		if got := state.line(string(name)); got != want {
			t.Errorf("the store has %q, the last event said %q", got, want)
		}
	}
	unseen := 0
	for _, row := range state.Messages {
		if !strings.Contains(strings.Join(row.Flags, " "), flagSeen) {
			unseen++
		}
	}
	if got, want := state.line("INBOX"), fmt.Sprintf("INBOX %d/%d", len(state.Messages), unseen); !strings.HasPrefix(got, want) {
		t.Errorf("the store counts %q, its rows are %q", got, want)
	}
}
