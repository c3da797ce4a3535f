package demo

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mailbell/mailbell/schema"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const alice = "alice@example.com"

// fixture is a Handler with a log that is a slice.
type fixture struct {
	*testing.T
	h *Handler

	mu     sync.Mutex
	events []schema.Event // guarded by mu
	broken error          // what Publish answers; guarded by mu
}

func newFixture(t *testing.T, change func(*Config)) *fixture {
	t.Helper()
	f := &fixture{T: t}
	cfg := Config{
		Publish: f.publish,
		MintToken: func(account string, ttl time.Duration) (string, error) {
			return "token-of-" + account + "-for-" + ttl.String(), nil
		},
		Logger: slog.New(slog.NewTextHandler(io.Discard, nil)),
	}
	if change != nil {
		change(&cfg)
	}
	h, err := NewHandler(cfg)
	if err != nil {
		t.Fatal(err)
	}
	f.h = h
	return f
}

func (f *fixture) publish(_ context.Context, events ...schema.Event) ([]schema.Position, error) {
	f.mu.Lock()
	if f.broken != nil {
		f.mu.Unlock()
		return nil, f.broken
	}
	for _, e := range events {
		if err := e.Validate(); err != nil {
			f.Errorf("published %s: %v", e.Event, err)
		}
	}
	f.events = append(f.events, events...)
	f.mu.Unlock()
	for _, e := range events {
		f.h.Observe(e) // as a process does that shows its demo everything
	}
	return make([]schema.Position, len(events)), nil
}

func (f *fixture) published() []schema.Event {
	f.mu.Lock()
	defer f.mu.Unlock()
	return append([]schema.Event(nil), f.events...)
}

func (f *fixture) call(method, target, body string, head ...string) *httptest.ResponseRecorder {
	r := httptest.NewRequest(method, "http://127.0.0.1:8480"+target, strings.NewReader(body))
	if body != "" {
		r.Header.Set("Content-Type", "application/json")
	}
	for i := 0; i < len(head); i += 2 {
		r.Header.Set(head[i], head[i+1])
	}
	w := httptest.NewRecorder()
	f.h.ServeHTTP(w, r)
	return w
}

// login returns the Authorization header of an account.
func (f *fixture) login(account string) string {
	f.Helper()
	w := f.call("POST", "/demo/api/login", `{"account":`+strconv.Quote(account)+`}`)
	var answer struct{ Session string }
	if err := json.Unmarshal(w.Body.Bytes(), &answer); err != nil || w.Code != http.StatusOK {
		f.Fatalf("login: %d %s", w.Code, w.Body)
	}
	return "Bearer " + answer.Session
}

func (f *fixture) state(auth, mailbox string) stateJSON {
	f.Helper()
	w := f.call("GET", "/demo/api/state?mailbox="+mailbox, "", "Authorization", auth)
	var state stateJSON
	if err := json.Unmarshal(w.Body.Bytes(), &state); err != nil || w.Code != http.StatusOK {
		f.Fatalf("state: %d %s", w.Code, w.Body)
	}
	return state
}

func (f *fixture) act(auth, body string) *httptest.ResponseRecorder {
	return f.call("POST", "/demo/api/actions", body, "Authorization", auth, sessionHead, "window-1")
}

// line is a mailbox in short: "INBOX 6/2 next 7".
func (s stateJSON) line(name string) string {
	for _, box := range s.Mailboxes {
		if string(box.Name) == name {
			return name + " " + strconv.Itoa(int(box.Messages)) + "/" + strconv.Itoa(int(box.Unseen)) + " next " + strconv.Itoa(int(box.UIDNext))
		}
	}
	return name + " is not there"
}

// event is an event in short: name, mailbox, uidset, flags, counts.
func short(e schema.Event) string {
	var b strings.Builder
	b.WriteString(string(e.Event) + " " + string(e.Mailbox))
	if e.OldMailbox != "" {
		b.WriteString(" was " + string(e.OldMailbox))
	}
	if e.UIDSet != "" {
		b.WriteString(" " + e.UIDSet)
	}
	if len(e.FlagNames) > 0 {
		b.WriteString(" " + strings.Join(e.FlagNames, " "))
	}
	if e.Messages != nil {
		b.WriteString(" " + strconv.Itoa(int(*e.Messages)) + "/" + strconv.Itoa(int(*e.Unseen)) + " next " + strconv.Itoa(int(e.UIDNext)))
	}
	return b.String()
}

func TestActions(t *testing.T) {
	// INBOX starts with UIDs 1 to 6, of which 5 and 6 are unseen; Archive with 1 and 2, Trash with none.
	tests := []struct {
		name   string
		steps  []string
		events []string
		lines  []string
	}{
		{"deliver", []string{`{"action":"deliver"}`},
			[]string{"MessageNew INBOX 7 7/3 next 8"}, []string{"INBOX 7/3 next 8"}},
		{"read", []string{`{"action":"flag","mailbox":"INBOX","uids":"1:5","add":["\\Seen"]}`},
			[]string{`FlagsSet INBOX 5 \Seen 6/1 next 7`}, []string{"INBOX 6/1 next 7"}},
		{"unread and flag", []string{`{"action":"flag","mailbox":"INBOX","uids":"1,3","add":["$Work"],"remove":["\\Seen"]}`},
			[]string{"FlagsSet INBOX 1,3 $Work 6/2 next 7", `FlagsClear INBOX 1,3 \Seen 6/4 next 7`}, []string{"INBOX 6/4 next 7"}},
		{"nothing to change", []string{`{"action":"flag","mailbox":"INBOX","uids":"1","add":["\\Seen"]}`, `{"action":"delete","mailbox":"INBOX","uids":"99"}`},
			nil, []string{"INBOX 6/2 next 7"}},
		{"delete, then for good", []string{`{"action":"delete","mailbox":"INBOX","uids":"5:6"}`, `{"action":"delete","mailbox":"Trash","uids":"1:2"}`},
			[]string{"MessageAppend Trash 1:2 2/2 next 3", "MessageExpunge INBOX 5:6 4/0 next 7", "MessageExpunge Trash 1:2 0/0 next 3"},
			[]string{"INBOX 4/0 next 7", "Trash 0/0 next 3"}},
		{"move by flags", []string{`{"action":"move","mailbox":"INBOX","uids":"3:5","to":"Archive"}`},
			[]string{"MessageAppend Archive 3 3/1 next 4", `MessageAppend Archive 4 \Flagged \Seen 4/1 next 5`, `MessageAppend Archive 5 \Seen 5/1 next 6`, "MessageExpunge INBOX 3:5 3/1 next 7"},
			[]string{"INBOX 3/1 next 7", "Archive 5/1 next 6"}},
		{"folders", []string{
			`{"action":"create","mailbox":"Trips"}`, `{"action":"create","mailbox":"Trips/2026"}`,
			`{"action":"deliver","mailbox":"Trips/2026"}`, `{"action":"rename","mailbox":"Trips","to":"Travel"}`, `{"action":"remove","mailbox":"Travel"}`,
		}, []string{"MailboxCreate Trips 0/0 next 1", "MailboxCreate Trips/2026 0/0 next 1", "MessageNew Trips/2026 1 1/1 next 2", "MailboxRename Travel was Trips 0/0 next 1", "MailboxDelete Travel"},
			[]string{"Trips is not there", "Trips/2026 is not there", "Travel is not there", "Travel/2026 1/1 next 2"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			f := newFixture(t, nil)
			auth := f.login(alice)
			for _, step := range tt.steps {
				if w := f.act(auth, step); w.Code != http.StatusOK {
					t.Fatalf("%s: %d %s", step, w.Code, w.Body)
				}
			}
			var got []string
			for _, e := range f.published() {
				got = append(got, short(e))
				if e.Session != "window-1" || e.User != alice || e.Account != alice {
					t.Errorf("event of %q by %q in session %q", e.Account, e.User, e.Session)
				}
			}
			if strings.Join(got, "\n") != strings.Join(tt.events, "\n") {
				t.Errorf("events:\n%s\nwant:\n%s", strings.Join(got, "\n"), strings.Join(tt.events, "\n"))
			}
			state := f.state(auth, "INBOX")
			for _, line := range tt.lines {
				name, _, _ := strings.Cut(line, " ")
				if got := state.line(name); got != line {
					t.Errorf("state %q, want %q", got, line)
				}
			}
		})
	}
}

func TestRefusals(t *testing.T) {
	tests := []struct {
		name, body string
		status     int
		want       string
	}{
		{"unknown action", `{"action":"explode","mailbox":"INBOX"}`, 400, "known are create, delete"},
		{"unknown field", `{"action":"deliver","subject":"x"}`, 400, `unknown field`},
		{"not json", `{"action":`, 400, "not what is expected"},
		{"too large", `{"action":"` + strings.Repeat("x", maxBody) + `"}`, 413, "more than"},
		{"no mailbox", `{"action":"delete","uids":"1"}`, 400, "is empty"},
		{"mailbox that isn't there", `{"action":"delete","mailbox":"Nope","uids":"1"}`, 404, `no mailbox "Nope"`},
		{"bad uids", `{"action":"delete","mailbox":"INBOX","uids":"1;3"}`, 400, `"1:3,7"`},
		{"no flags", `{"action":"flag","mailbox":"INBOX","uids":"1"}`, 400, "1 to 16 flags"},
		{"bad flag", `{"action":"flag","mailbox":"INBOX","uids":"1","add":["a b"]}`, 400, "is not one"},
		{"move to nowhere", `{"action":"move","mailbox":"INBOX","uids":"1","to":"Nope"}`, 404, "Nope"},
		{"move in place", `{"action":"move","mailbox":"INBOX","uids":"1","to":"INBOX"}`, 400, "already"},
		{"create again", `{"action":"create","mailbox":"Sent"}`, 409, "exists"},
		{"create control character", `{"action":"create","mailbox":"a\u0007"}`, 400, "control character"},
		{"rename INBOX", `{"action":"rename","mailbox":"INBOX","to":"Box"}`, 400, "INBOX"},
		{"rename onto another", `{"action":"rename","mailbox":"Sent","to":"Trash"}`, 409, "exists"},
		{"rename below itself", `{"action":"rename","mailbox":"Sent","to":"Sent/Sent"}`, 400, "below itself"},
		{"rename to nothing", `{"action":"rename","mailbox":"Sent"}`, 400, "is empty"},
		{"delete INBOX", `{"action":"remove","mailbox":"INBOX"}`, 400, "INBOX"},
		{"delete what isn't there", `{"action":"remove","mailbox":"Nope"}`, 404, "Nope"},
	}
	f := newFixture(t, nil)
	auth := f.login(alice)
	before := f.state(auth, "INBOX").line("INBOX")
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			w := f.act(auth, tt.body)
			var answer struct{ Message string }
			if err := json.Unmarshal(w.Body.Bytes(), &answer); err != nil {
				t.Fatalf("%v: %s", err, w.Body)
			}
			if w.Code != tt.status || !strings.Contains(answer.Message, tt.want) {
				t.Errorf("%d %q, want %d and %q", w.Code, answer.Message, tt.status, tt.want)
			}
		})
	}
	if len(f.published()) != 0 || f.state(auth, "INBOX").line("INBOX") != before {
		t.Error("a refused action left something behind")
	}
}

func TestLimits(t *testing.T) {
	f := newFixture(t, func(c *Config) { c.MaxMessages, c.MaxMailboxes, c.MaxAccounts = 7, 6, 2 })
	auth := f.login(alice)
	for _, step := range []struct {
		body   string
		status int
	}{
		{`{"action":"deliver"}`, 200}, {`{"action":"deliver"}`, 409},
		{`{"action":"create","mailbox":"One"}`, 200}, {`{"action":"create","mailbox":"Two"}`, 409},
	} {
		if w := f.act(auth, step.body); w.Code != step.status {
			t.Errorf("%s: %d, want %d", step.body, w.Code, step.status)
		}
	}
	bob := f.login("bob@example.com")
	f.state(auth, "INBOX") // alice was here last
	f.login("carol@example.com")
	if w := f.call("GET", "/demo/api/state", "", "Authorization", bob); w.Code != http.StatusUnauthorized {
		t.Errorf("the longest unused account: %d, want it gone", w.Code)
	}
	f.state(auth, "INBOX")
}

// A page that its socket tells of a change before Publish has returned still finds the change.
func TestReadingWaitsForThePublishing(t *testing.T) {
	told, release := make(chan struct{}), make(chan struct{})
	f := newFixture(t, func(c *Config) {
		publish := c.Publish
		c.Publish = func(ctx context.Context, events ...schema.Event) ([]schema.Position, error) {
			close(told)
			<-release
			return publish(ctx, events...)
		}
	})
	auth := f.login(alice)
	acted := make(chan int)
	go func() { acted <- f.act(auth, `{"action":"deliver"}`).Code }()
	<-told
	read := make(chan stateJSON)
	go func() { read <- f.state(auth, "INBOX") }()
	close(release)
	if got := (<-read).line("INBOX"); got != "INBOX 7/3 next 8" {
		t.Errorf("state %q: the page was told of a message that it does not find", got)
	}
	if code := <-acted; code != http.StatusOK {
		t.Errorf("deliver: %d", code)
	}
}

func TestLogUnreachable(t *testing.T) {
	f := newFixture(t, nil)
	auth := f.login(alice)
	f.mu.Lock()
	f.broken = errors.New("no broker")
	f.mu.Unlock()
	w := f.act(auth, `{"action":"deliver"}`)
	if w.Code != http.StatusServiceUnavailable || w.Header().Get("Retry-After") == "" {
		t.Errorf("%d %v", w.Code, w.Header())
	}
	if got := f.state(auth, "INBOX").line("INBOX"); got != "INBOX 6/2 next 7" {
		t.Errorf("state %q: it changed without an event", got)
	}
}

func TestLogin(t *testing.T) {
	f := newFixture(t, nil)
	w := f.call("POST", "/demo/api/login", `{"account":"alice@example.com"}`)
	for _, want := range []string{`"token":"token-of-alice@example.com-for-1h0m0s"`, `"gateway":"/v1/connect"`, `"expiresIn":3600`} {
		if !strings.Contains(w.Body.String(), want) {
			t.Errorf("login answers %s, want %s in it", w.Body, want)
		}
	}
	for _, body := range []string{`{}`, `{"account":""}`, `{"account":"a\nb"}`, `{"account":7}`, `[]`} {
		if w := f.call("POST", "/demo/api/login", body); w.Code != http.StatusBadRequest {
			t.Errorf("login with %s: %d", body, w.Code)
		}
	}
	if w := f.call("POST", "/demo/api/login", `{"account":"a"}`, "Content-Type", "text/plain"); w.Code != http.StatusUnsupportedMediaType {
		t.Errorf("a form of another site: %d", w.Code)
	}
	other := newFixture(t, nil)
	for _, auth := range []string{"", "Bearer ", "Bearer x.y", "Bearer " + f.h.session("nobody"), other.login(alice)} {
		if w := f.call("GET", "/demo/api/state", "", "Authorization", auth); w.Code != http.StatusUnauthorized {
			t.Errorf("session %q: %d, want 401", auth, w.Code)
		}
	}
}

func TestStateETag(t *testing.T) {
	f := newFixture(t, nil)
	auth := f.login(alice)
	get := func(mailbox, etag string) *httptest.ResponseRecorder {
		return f.call("GET", "/demo/api/state?mailbox="+mailbox, "", "Authorization", auth, "If-None-Match", etag)
	}
	first := get("INBOX", "")
	etag := first.Header().Get("ETag")
	same := get("INBOX", etag)
	if same.Code != http.StatusNotModified || same.Body.Len() != 0 || same.Header().Get("ETag") != etag {
		t.Errorf("unchanged: %d, %d bytes, ETag %s", same.Code, same.Body.Len(), same.Header().Get("ETag"))
	}
	if w := get("Sent", etag); w.Code != http.StatusOK {
		t.Errorf("another mailbox with the first one's ETag: %d", w.Code)
	}
	f.act(auth, `{"action":"deliver"}`)
	if w := get("INBOX", etag); w.Code != http.StatusOK || w.Header().Get("ETag") == etag {
		t.Errorf("after a change: %d %s", w.Code, w.Header().Get("ETag"))
	}
	restarted := newFixture(t, nil)
	if got := restarted.call("GET", "/demo/api/state", "", "Authorization", restarted.login(alice), "If-None-Match", etag); got.Code != http.StatusOK {
		t.Errorf("after a restart: %d", got.Code)
	}
}

// The figures that the page shows are what really goes over the wire.
func TestWireBytes(t *testing.T) {
	f := newFixture(t, nil)
	server := httptest.NewServer(f.h)
	defer server.Close()
	auth := f.login(alice)
	for _, zipped := range []bool{false, true} {
		raw, request := exchange(t, server, auth, zipped)
		response, err := http.ReadResponse(bufio.NewReader(bytes.NewReader(raw)), nil)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.Copy(io.Discard, response.Body)
		_ = response.Body.Close()
		head := response.Header.Get(wireHead)
		own := len(wireHead) + len(": ") + len(head) + len("\r\n")
		if want := strconv.Itoa(request) + ";" + strconv.Itoa(len(raw)-own); head != want {
			t.Errorf("zipped %v: the header says %s, the wire %s", zipped, head, want)
		}
	}
}

func TestMessage(t *testing.T) {
	f := newFixture(t, nil)
	auth := f.login(alice)
	f.h.Observe(schema.Event{ID: "x", Event: schema.MessageNew, Account: alice, Mailbox: "Drafts", UIDSet: "1", Timestamp: time.Now()})
	var answer struct {
		UIDValidity uint32
		Messages    []messageJSON
	}
	w := f.call("GET", "/demo/api/message?mailbox=INBOX&uids=2,5:9", "", "Authorization", auth)
	if err := json.Unmarshal(w.Body.Bytes(), &answer); err != nil || len(answer.Messages) != 3 || answer.Messages[0].Text == "" || answer.UIDValidity == 0 {
		t.Errorf("%v %s", err, w.Body)
	}
	if w := f.call("GET", "/demo/api/message?mailbox=Drafts&uids=1", "", "Authorization", auth); !strings.HasPrefix(w.Body.String(), `{"messages":[],`) {
		t.Errorf("a message that was only heard of: %s", w.Body)
	}
	if w := f.call("GET", "/demo/api/message?mailbox=INBOX&uids=x", "", "Authorization", auth); w.Code != http.StatusBadRequest {
		t.Errorf("bad uids: %d", w.Code)
	}
}

func TestConfig(t *testing.T) {
	mint := func(string, time.Duration) (string, error) { return "", nil }
	publish := func(context.Context, ...schema.Event) ([]schema.Position, error) { return nil, nil }
	for want, cfg := range map[string]Config{
		"Publish is missing":   {MintToken: mint},
		"MintToken is missing": {Publish: publish},
		"a limit is -1":        {Publish: publish, MintToken: mint, MaxMessages: -1},
	} {
		if _, err := NewHandler(cfg); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
}
