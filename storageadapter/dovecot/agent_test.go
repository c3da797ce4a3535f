package dovecot

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/mailbell/mailbell/internal/auth"
	"github.com/mailbell/mailbell/schema"
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
