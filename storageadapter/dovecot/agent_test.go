package dovecot

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/mailbell/mailbell/internal/auth"
	"github.com/mailbell/mailbell/schema"
	"github.com/mailbell/mailbell/storageadapter"
	"github.com/mailbell/mailbell/storageadapter/spool"
)

func expunge(account string, uid int) string {
	return fmt.Sprintf(`{"user":%q,"events":[{"name":"MessageExpunge","mailbox":"INBOX","uid":%d,"uid_validity":9}],"status":{}}`, account, uid)
}

func report(t testing.TB, server *httptest.Server, body string) int {
	t.Helper()
	resp, err := server.Client().Post(server.URL+EventsPath, "application/json", strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	_, _ = io.Copy(io.Discard, resp.Body)
	resp.Body.Close()
	return resp.StatusCode
}

func uidsOf(events []schema.Event, account string) []string {
	var uids []string
	for _, e := range events {
		if string(e.Account) == account {
			uids = append(uids, e.UIDSet)
		}
	}
	return uids
}

func tokens(t *testing.T) (file *auth.ServiceTokens, publish, connect string) {
	t.Helper()
	publish, line1, err := auth.NewServiceToken("dovecot", auth.ScopePublish)
	if err != nil {
		t.Fatal(err)
	}
	connect, line2, err := auth.NewServiceToken("webmail", auth.ScopeConnect)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "tokens")
	if err := os.WriteFile(path, []byte(line1+"\n"+line2+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	file, err = auth.LoadServiceTokens(path)
	if err != nil {
		t.Fatal(err)
	}
	return file, publish, connect
}

func TestWhoMayReport(t *testing.T) {
	file, publish, connect := tokens(t)
	open := newAgent(t, Config{TrustLoopback: true})
	closed := newAgent(t, Config{Tokens: file})
	both := newAgent(t, Config{Tokens: file, TrustLoopback: true})
	bearer := func(token string) func(*http.Request) {
		return func(r *http.Request) { r.Header.Set("Authorization", "Bearer "+token) }
	}
	for _, c := range []struct {
		name   string
		agent  *Agent
		remote string
		change func(*http.Request)
		want   int
	}{
		{"loopback trusted", open, "127.0.0.1:5", nil, 202},
		{"loopback trusted, IPv6", open, "[::1]:5", nil, 202},
		{"loopback trusted, Unix socket", open, "@", nil, 202},
		{"from elsewhere", open, "192.0.2.1:5", nil, 403},
		{"through a proxy on this machine", open, "127.0.0.1:5", func(r *http.Request) { r.Header.Set("X-Forwarded-For", "192.0.2.1") }, 403},
		{"a page in a browser on this machine", open, "127.0.0.1:5", func(r *http.Request) { r.Header.Set("Origin", "https://attacker.example") }, 403},
		{"a browser that says only where the page is from", both, "[::1]:5", func(r *http.Request) { r.Header.Set("Sec-Fetch-Site", "cross-site") }, 401},
		{"what a form of a page can send", open, "127.0.0.1:5", func(r *http.Request) { r.Header.Set("Content-Type", "text/plain") }, 415},
		{"no content type", open, "127.0.0.1:5", func(r *http.Request) { r.Header.Del("Content-Type") }, 415},
		{"no content type, but a token", both, "127.0.0.1:5", func(r *http.Request) {
			r.Header.Del("Content-Type")
			r.Header.Set("Authorization", "Bearer "+publish)
		}, 202},
		{"Dovecot's OX driver", open, "127.0.0.1:5", func(r *http.Request) { r.Header.Set("Content-Type", "application/json; charset=utf-8") }, 202},
		{"no token", closed, "127.0.0.1:5", nil, 401},
		{"bearer token", closed, "192.0.2.1:5", bearer(publish), 202},
		{"basic password", closed, "192.0.2.1:5", func(r *http.Request) { r.SetBasicAuth("mailbell", publish) }, 202},
		{"wrong token", closed, "192.0.2.1:5", bearer("wrong"), 401},
		{"wrong password", closed, "192.0.2.1:5", func(r *http.Request) { r.SetBasicAuth("mailbell", "wrong") }, 401},
		{"wrong scope", closed, "192.0.2.1:5", bearer(connect), 403},
		{"either, with token", both, "192.0.2.1:5", bearer(publish), 202},
		{"either, loopback", both, "127.0.0.1:5", nil, 202},
		{"either, neither", both, "192.0.2.1:5", nil, 401},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := httptest.NewRequest(http.MethodPost, EventsPath, strings.NewReader(expunge("a", 1)))
			r.RemoteAddr = c.remote
			r.Header.Set("Content-Type", "application/json")
			if c.change != nil {
				c.change(r)
			}
			w := httptest.NewRecorder()
			c.agent.ServeHTTP(w, r)
			if w.Code != c.want {
				t.Fatalf("%d %s, want %d", w.Code, w.Body, c.want)
			}
			if (w.Code == 401) != (w.Header().Get("WWW-Authenticate") != "") {
				t.Fatalf("%d with WWW-Authenticate %q", w.Code, w.Header().Get("WWW-Authenticate"))
			}
		})
	}
}

func TestBadReports(t *testing.T) {
	a := newAgent(t, Config{MaxBodyBytes: 1000})
	for _, c := range []struct {
		name, method, path, body string
		want                     int
	}{
		{"wrong path", "POST", "/dovecot/v2/events", "{}", 404},
		{"wrong method", "GET", EventsPath, "", 405},
		{"wrong method for OX", "POST", NotifyPath, "{}", 405},
		{"too large", "POST", EventsPath, strings.Repeat(" ", 1001), 413},
		{"not JSON", "POST", EventsPath, "x", 400},
		{"not an object", "POST", EventsPath, "[]", 400},
		{"bad account", "POST", EventsPath, `{"user":"a\nb","events":[]}`, 400},
		{"OX not JSON", "PUT", NotifyPath, "x", 400},
		{"OX without folder", "PUT", NotifyPath, `{"user":"a","event":"messageNew","imap-uidvalidity":1,"imap-uid":1}`, 400},
		{"OX with a UID too large", "PUT", NotifyPath, `{"user":"a","event":"messageNew","folder":"INBOX","imap-uidvalidity":1,"imap-uid":4294967296}`, 400},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := httptest.NewRequest(c.method, c.path, strings.NewReader(c.body))
			r.RemoteAddr = "127.0.0.1:1"
			r.Header.Set("Content-Type", "application/json")
			w := httptest.NewRecorder()
			a.ServeHTTP(w, r)
			if w.Code != c.want {
				t.Fatalf("%d %s, want %d", w.Code, w.Body, c.want)
			}
		})
	}
}

func TestConfig(t *testing.T) {
	good := Config{Publisher: newMemoryLog(), TrustLoopback: true, Spool: spool.Config{Dir: "d"}}
	for _, c := range []struct {
		change func(*Config)
		want   string
	}{
		{func(*Config) {}, ""},
		{func(c *Config) { c.Shared = []string{"shared/%u/", "#u.%n."} }, ""},
		{func(c *Config) { c.Publisher = nil }, "no publisher"},
		{func(c *Config) { c.TrustLoopback = false }, "nobody could report"},
		{func(c *Config) { c.MaxRequests = -1 }, "negative"},
		{func(c *Config) { c.Spool.Dir = "" }, "no folder"},
		{func(c *Config) { c.Shared = []string{"shared/"} }, "must have"},
		{func(c *Config) { c.Shared = []string{"shared/%u"} }, "must have"},
	} {
		cfg := good
		c.change(&cfg)
		err := cfg.Validate()
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("got %v, want %q", err, c.want)
		}
	}
}

// TestOutage: while the log is away everything is accepted, and it comes out in order when
// the log is back, also over a restart of the agent.
func TestOutage(t *testing.T) {
	log := newMemoryLog()
	log.setFail(func(int, []storageadapter.Encoded) error { return storageadapter.ErrUnavailable })
	cfg := Config{Publisher: log, Spool: spool.Config{Dir: t.TempDir()}, TrustLoopback: true}
	t.Run("away", func(t *testing.T) {
		cfg := cfg
		reg := prometheus.NewRegistry()
		cfg.Registerer = reg
		a, server := startAgent(t, cfg)
		for uid := 1; uid <= 50; uid++ {
			if status := report(t, server, expunge("a", uid)); status != 202 {
				t.Fatalf("answered %d while the log is away", status)
			}
		}
		log.wait(t, "a retry", func(calls int, _ []schema.Event) bool { return calls >= 2 })
		if n, _ := a.Spooled(); n != 50 {
			t.Fatalf("%d events in the spool, want 50", n)
		}
		// The age that operators alert on grows, whether or not anything is tried.
		for age, last := 0.0, oldest(t, reg); age <= last; age = oldest(t, reg) {
			if last <= 0 {
				t.Fatalf("the oldest event has waited %v s", last)
			}
		}
	})
	t.Run("back", func(t *testing.T) {
		log.setFail(nil)
		_, server := startAgent(t, cfg)
		if status := report(t, server, expunge("a", 51)); status != 202 {
			t.Fatal(status)
		}
		events := log.wait(t, "51 events", func(_ int, events []schema.Event) bool { return len(events) >= 51 })
		for i, uid := range uidsOf(events, "a") {
			if uid != fmt.Sprint(i+1) {
				t.Fatalf("event %d is about UID %s", i, uid)
			}
		}
	})
}

// TestHangingLog: a log that never answers does not keep the agent from answering.
func TestHangingLog(t *testing.T) {
	publishing, release := make(chan struct{}), make(chan struct{})
	hang := sync.OnceFunc(func() { close(publishing); <-release })
	log := newMemoryLog()
	log.setFail(func(int, []storageadapter.Encoded) error { hang(); return nil })
	a, server := startAgent(t, Config{Publisher: log})
	for uid := 1; uid <= 20; uid++ {
		if status := report(t, server, expunge("a", uid)); status != 202 {
			t.Fatalf("answered %d", status)
		}
		<-publishing // from the first report on
	}
	if n, _ := a.Spooled(); n != 20 {
		t.Errorf("%d events in the spool, want 20", n)
	}
	close(release)
	log.wait(t, "20 events", func(_ int, events []schema.Event) bool { return len(events) == 20 })
}

// oldest reads mailbell_spool_oldest_seconds.
func oldest(t *testing.T, reg *prometheus.Registry) float64 {
	t.Helper()
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == "mailbell_spool_oldest_seconds" {
			return f.GetMetric()[0].GetGauge().GetValue()
		}
	}
	t.Fatal("the age of the oldest event is not exported")
	return 0
}

// TestPartialFailure: of a batch, what failed is tried again, in order, and what the topic will
// never take is given up.
func TestPartialFailure(t *testing.T) {
	log := newMemoryLog()
	reg := prometheus.NewRegistry()
	a := newAgent(t, Config{Publisher: log, Registerer: reg})
	var events []schema.Event
	for uid := 1; uid <= 4; uid++ {
		events = append(events, schema.Event{ID: fmt.Sprint(uid), Event: schema.MessageExpunge, Account: "a", Mailbox: "INBOX",
			UIDValidity: 9, UIDSet: fmt.Sprint(uid), Timestamp: time.Now()})
	}
	if refused := a.accept(t.Context(), events); refused != nil {
		t.Fatal(refused.message)
	}
	log.setFail(func(call int, events []storageadapter.Encoded) error {
		switch call {
		case 1: // 1 is on the log, 2 too large, 3 and 4 failed
			return &storageadapter.PartialError{Failed: map[int]error{
				1: fmt.Errorf("append: %w", storageadapter.ErrTooLarge), 2: storageadapter.ErrUnavailable, 3: storageadapter.ErrUnavailable}}
		case 2:
			return errors.New("something else")
		}
		return nil
	})
	recs, err := a.spool.Next(t.Context(), 10, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	if err := a.publish(t.Context(), recs); err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(uidsOf(log.events, "a"), " "); got != "1 3 4" {
		t.Fatalf("on the log: %s", got)
	}
	if n := testutil.ToFloat64(a.metrics.dropped.WithLabelValues(dropTooLarge)); n != 1 {
		t.Fatalf("%v dropped as too large", n)
	}
}

func TestPartitionsChangedEndsRun(t *testing.T) {
	log := newMemoryLog()
	log.setFail(func(int, []storageadapter.Encoded) error { return storageadapter.ErrPartitionsChanged })
	a := newAgent(t, Config{Publisher: log})
	if refused := a.accept(t.Context(), []schema.Event{{ID: "1", Event: schema.Login, Account: "a", Timestamp: time.Now()}}); refused != nil {
		t.Fatal(refused.message)
	}
	if err := a.Run(t.Context()); !errors.Is(err, storageadapter.ErrPartitionsChanged) {
		t.Fatalf("Run: %v", err)
	}
	if n, _ := a.Spooled(); n != 1 {
		t.Fatalf("%d events in the spool, want 1", n)
	}
}

func TestFullSpool(t *testing.T) {
	log := newMemoryLog()
	log.setFail(func(int, []storageadapter.Encoded) error { return storageadapter.ErrUnavailable })
	reg := prometheus.NewRegistry()
	a, server := startAgent(t, Config{Publisher: log, Registerer: reg, Spool: spool.Config{Dir: t.TempDir(), MaxBytes: 16 << 10}})
	accepted, status := 0, 0
	for status = report(t, server, expunge("a", 1)); status == 202 && accepted < 1000; status = report(t, server, expunge("a", accepted+1)) {
		accepted++
	}
	if status != http.StatusInsufficientStorage {
		t.Fatalf("after %d events: %d, want 507", accepted, status)
	}
	if testutil.ToFloat64(a.metrics.refused) != 1 {
		t.Fatal("the refused event was not counted")
	}
	log.setFail(nil)
	events := log.wait(t, "what was accepted", func(_ int, events []schema.Event) bool { return len(events) >= accepted })
	if len(events) != accepted {
		t.Fatalf("%d events, %d accepted", len(events), accepted)
	}
}

func TestRefusedReportMayComeFromTheOther(t *testing.T) {
	a := newAgent(t, Config{})
	ox := `{"user":"a","event":"messageNew","folder":"INBOX","imap-uidvalidity":9,"imap-uid":1}`
	lua := `{"user":"a","events":[{"name":"MessageNew","mailbox":"INBOX","uid":1,"uid_validity":9}]}`
	a.spool.Close() // refuses everything
	for _, c := range []struct{ method, path, body string }{{"PUT", NotifyPath, ox}, {"POST", EventsPath, lua}} {
		r := httptest.NewRequest(c.method, c.path, strings.NewReader(c.body))
		r.RemoteAddr = "127.0.0.1:1"
		r.Header.Set("Content-Type", "application/json")
		w := httptest.NewRecorder()
		a.ServeHTTP(w, r)
		if w.Code != http.StatusServiceUnavailable {
			t.Fatalf("%s: %d, want 503: the other one's report was not accepted", c.path, w.Code)
		}
	}
}

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

// TestChurn: many reporters at a time, a log that fails now and then; every account's events
// come out complete and in order.
func TestChurn(t *testing.T) {
	const accounts, each = 8, 60
	log := newMemoryLog()
	log.setFail(func(call int, events []storageadapter.Encoded) error {
		if call%3 == 0 && len(events) > 1 {
			failed := make(map[int]error)
			for i := len(events) / 2; i < len(events); i++ {
				failed[i] = storageadapter.ErrUnavailable
			}
			return &storageadapter.PartialError{Failed: failed}
		}
		return nil
	})
	_, server := startAgent(t, Config{Publisher: log})
	var wg sync.WaitGroup
	for n := range accounts {
		wg.Go(func() {
			for uid := 1; uid <= each; uid++ {
				if status := report(t, server, expunge(fmt.Sprint("user", n), uid)); status != 202 {
					t.Errorf("answered %d", status)
				}
			}
		})
	}
	wg.Wait()
	events := log.wait(t, "all events", func(_ int, events []schema.Event) bool { return len(events) >= accounts*each })
	for n := range accounts {
		uids := uidsOf(events, fmt.Sprint("user", n))
		for i, uid := range uids {
			if uid != fmt.Sprint(i+1) {
				t.Fatalf("user%d: event %d is about UID %s", n, i, uid)
			}
		}
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

// BenchmarkReport is a whole report by HTTP: read, gathered, on the disk, answered.
func BenchmarkReport(b *testing.B) {
	for _, messages := range []int{1, 5000} {
		b.Run(fmt.Sprintf("messages=%d", messages), func(b *testing.B) {
			_, server := startAgent(b, Config{})
			body := verboseStore(messages)
			b.SetBytes(int64(len(body)))
			for b.Loop() {
				if status := report(b, server, body); status != 202 {
					b.Fatal(status)
				}
			}
		})
	}
}
