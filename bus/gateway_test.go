package bus

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/mailbell/mailbell/internal/auth"
	"github.com/mailbell/mailbell/schema"
	"github.com/mailbell/mailbell/schema/link"
)

// gateway is a node with keys and one notifier.
type gateway struct {
	node       *Node
	url        string
	key        string // the file that users' tokens are signed with
	user       string // a user's token
	service    string // may connect
	publisher  string // may not
	welcomeKey *link.TicketKey
	notifier   *fakeNotifier
}

func newGateway(t *testing.T, change func(*Config)) *gateway {
	t.Helper()
	dir := t.TempDir()
	dev, err := auth.DevKeys(dir)
	if err != nil {
		t.Fatal(err)
	}
	keys, err := auth.OpenKeys(context.Background(), auth.KeysConfig{Source: dev.PublicKeyFile})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(keys.Close)
	publisher, line, err := auth.NewServiceToken("mta", auth.ScopePublish)
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(dev.ServiceTokensFile)
	if err != nil {
		t.Fatal(err)
	}
	tokens := filepath.Join(dir, "tokens")
	if err := os.WriteFile(tokens, append(b, line+"\n"...), 0o600); err != nil {
		t.Fatal(err)
	}
	service, err := auth.LoadServiceTokens(tokens)
	if err != nil {
		t.Fatal(err)
	}
	origins, err := auth.ParseOrigins("https://mail.example.com")
	if err != nil {
		t.Fatal(err)
	}
	user, err := auth.MintToken(dev.PrivateKeyFile, auth.Claims{Account: "alice@example.com", Accounts: []auth.Grant{{Account: "team@example.com", Mailboxes: []schema.Mailbox{"INBOX"}}}})
	if err != nil {
		t.Fatal(err)
	}
	cfg := Config{NodeID: "b1", Log: newFakeLog(1), Keys: keys, ServiceTokens: service, Origins: origins}
	if change != nil {
		change(&cfg)
	}
	g := &gateway{key: dev.PrivateKeyFile, user: user, service: dev.ServiceToken, publisher: publisher}
	g.node, _ = startNode(t, cfg)
	s := httptest.NewServer(g.node.Gateway())
	t.Cleanup(s.Close)
	g.url = s.URL + ConnectPath
	return g
}

func (g *gateway) join(t *testing.T, name string) {
	t.Helper()
	g.notifier = connect(t, g.node.LinkAddr(), nil)
	g.notifier.send(hello(name))
	g.welcomeKey = g.notifier.next().GetWelcome().GetTicketKeys()[0]
}

func (g *gateway) do(t *testing.T, method, body string, header ...string) (*http.Response, string) {
	t.Helper()
	req, err := http.NewRequest(method, g.url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := http.DefaultTransport.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var b strings.Builder
	if _, err := b.WriteString(readAll(t, resp)); err != nil {
		t.Fatal(err)
	}
	return resp, b.String()
}

func readAll(t *testing.T, resp *http.Response) string {
	t.Helper()
	var raw json.RawMessage
	if resp.StatusCode == http.StatusNoContent {
		return ""
	}
	if err := json.NewDecoder(resp.Body).Decode(&raw); err != nil {
		t.Fatalf("status %d: the answer is not JSON: %v", resp.StatusCode, err)
	}
	return string(raw)
}

// ticket takes the ticket from an answer and verifies it as the notifier does.
func (g *gateway) ticket(t *testing.T, answer string) (ConnectAnswer, auth.Access) {
	t.Helper()
	var a ConnectAnswer
	if err := json.Unmarshal([]byte(answer), &a); err != nil {
		t.Fatal(err)
	}
	u, err := url.Parse(a.URL)
	if err != nil {
		t.Fatal(err)
	}
	var keys auth.TicketKeys
	if err := keys.Add(g.welcomeKey.GetId(), g.welcomeKey.GetPublicKey()); err != nil {
		t.Fatal(err)
	}
	access, err := keys.Verify(u.Query().Get("ticket"), "n1", time.Now())
	if err != nil {
		t.Fatalf("%s: %v", a.URL, err)
	}
	return a, access
}

func TestConnect(t *testing.T) {
	g := newGateway(t, nil)
	g.join(t, "n1")

	resp, body := g.do(t, "GET", "", "Authorization", "Bearer "+g.user, "Origin", "https://mail.example.com")
	if resp.StatusCode != 200 || resp.Header.Get("Cache-Control") != "no-store" || resp.Header.Get("Access-Control-Allow-Origin") != "https://mail.example.com" {
		t.Fatalf("%d %v %s", resp.StatusCode, resp.Header, body)
	}
	answer, access := g.ticket(t, body)
	if !strings.HasPrefix(answer.URL, "ws://n1.test:7480/v1/ws?ticket=") || answer.ExpiresIn != 30 || answer.RetryAfterMs != 0 {
		t.Errorf("answer %+v", answer)
	}
	if access.Subject != "alice@example.com" || len(access.Grants) != 2 || access.Grants[1].Mailboxes[0] != "INBOX" || access.Expires.IsZero() {
		t.Errorf("access %+v", access)
	}

	_, body = g.do(t, "GET", "", "Cookie", "mailbell_token="+g.user)
	g.ticket(t, body)

	_, body = g.do(t, "POST", `{"account":"bob@example.com","accounts":["team@example.com",{"account":"info@example.com","mailboxes":["INBOX"]}]}`,
		"Authorization", "Bearer "+g.service, "Content-Type", "application/json; charset=utf-8")
	_, access = g.ticket(t, body)
	if access.Subject != "bob@example.com" || len(access.Grants) != 3 || access.Client != "dev" || access.Expires.Before(time.Now().Add(23*time.Hour)) {
		t.Errorf("access %+v", access)
	}

	// A preflight.
	resp, _ = g.do(t, "OPTIONS", "", "Origin", "https://mail.example.com", "Access-Control-Request-Method", "GET")
	if resp.StatusCode != 204 || !strings.Contains(resp.Header.Get("Access-Control-Allow-Methods"), "GET") {
		t.Errorf("preflight %d %v", resp.StatusCode, resp.Header)
	}
	if n := g.node.Fleet().Snapshot(time.Now())[0]; n.Pending != 3 {
		t.Errorf("%d handed out", n.Pending)
	}
}

func TestConnectRefuses(t *testing.T) {
	g := newGateway(t, nil)
	g.join(t, "n1")
	user, service := "Bearer "+g.user, "Bearer "+g.service
	// Right, and each name within its limit, but more than a ticket can hold.
	var many []auth.Grant
	var list []string
	for i := range 70 {
		many = append(many, auth.Grant{Account: schema.Account(fmt.Sprintf("a-rather-long-name-of-a-shared-mailbox-%d@example.com", i))})
		list = append(list, strconv.Quote(string(many[i].Account)))
	}
	wide, err := auth.MintToken(g.key, auth.Claims{Account: "alice@example.com", Accounts: many})
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name, method, body string
		header             []string
		status             int
		code, message      string
	}{
		{"no token", "GET", "", nil, 401, "unauthorized", "Authorization: Bearer"},
		{"not a token", "GET", "", []string{"Authorization", "Bearer x"}, 401, "unauthorized", "JWT"},
		{"a service token for GET", "GET", "", []string{"Authorization", service}, 401, "unauthorized", "JWT"},
		{"a foreign page", "GET", "", []string{"Authorization", user, "Origin", "https://evil.example"}, 403, "forbidden", "origin"},
		{"a foreign page's preflight", "OPTIONS", "", []string{"Origin", "https://evil.example", "Access-Control-Request-Method", "GET"}, 403, "forbidden", "origin"},
		{"PUT", "PUT", "", nil, 405, "badRequest", "use GET"},
		{"POST without a token", "POST", "{}", nil, 401, "unauthorized", "Bearer"},
		{"a user's token for POST", "POST", `{"account":"a"}`, []string{"Authorization", user}, 401, "unauthorized", "service token"},
		{"a publisher", "POST", `{"account":"a"}`, []string{"Authorization", "Bearer " + g.publisher}, 403, "forbidden", "scope"},
		{"no body", "POST", "", []string{"Authorization", service}, 400, "badRequest", "empty"},
		{"no account", "POST", "{}", []string{"Authorization", service}, 400, "badRequest", "account is empty"},
		{"not JSON", "POST", "account=a", []string{"Authorization", service}, 400, "badRequest", `{"account":`},
		{"a form", "POST", "account=a", []string{"Authorization", service, "Content-Type", "application/x-www-form-urlencoded"}, 415, "badRequest", "application/json"},
		{"unknown key", "POST", `{"account":"a","ttl":1}`, []string{"Authorization", service}, 400, "badRequest", "ttl"},
		{"something behind", "POST", `{"account":"a"}{}`, []string{"Authorization", service}, 400, "badRequest", "follows"},
		{"bad account", "POST", `{"account":"a","accounts":["b","\u0000"]}`, []string{"Authorization", service}, 400, "badRequest", "entry 1"},
		{"twice", "POST", `{"account":"a","accounts":["a"]}`, []string{"Authorization", service}, 400, "badRequest", "twice"},
		{"no mailbox", "POST", `{"account":"a","accounts":[{"account":"b","mailboxes":[]}]}`, []string{"Authorization", service}, 400, "badRequest", "mailboxes"},
		{"unknown key inside", "POST", `{"account":"a","accounts":[{"account":"b","mailbox":"x"}]}`, []string{"Authorization", service}, 400, "badRequest", "mailbox"},
		{"a number", "POST", `{"account":"a","accounts":[7]}`, []string{"Authorization", service}, 400, "badRequest", "body"},
		{"too many accounts", "POST", `{"account":"a","accounts":[` + strings.Repeat(`"b",`, 300) + `"c"]}`, []string{"Authorization", service}, 400, "badRequest", "at most"},
		{"no address", "POST", `{"account":"a","address":"mail.example.com"}`, []string{"Authorization", service}, 400, "badRequest", "not an IP address"},
		{"a token for a larger ticket than there is", "GET", "", []string{"Authorization", "Bearer " + wide}, 403, "tooMany", "the limit is 4096"},
		{"a body for a larger ticket than there is", "POST", `{"account":"a","accounts":[` + strings.Join(list, ",") + `]}`, []string{"Authorization", service}, 400, "badRequest", "the limit is 4096"},
		{"too large", "POST", `{"account":"` + strings.Repeat("a", 100_000) + `"}`, []string{"Authorization", service}, 413, "tooLarge", "bytes"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			resp, body := g.do(t, tt.method, tt.body, tt.header...)
			var e struct {
				Error struct{ Code, Message string }
			}
			if err := json.Unmarshal([]byte(body), &e); err != nil {
				t.Fatal(err)
			}
			if resp.StatusCode != tt.status || e.Error.Code != tt.code || !strings.Contains(e.Error.Message, tt.message) {
				t.Errorf("%d %s, want %d %s …%s…", resp.StatusCode, body, tt.status, tt.code, tt.message)
			}
			if tt.status == 401 && resp.Header.Get("WWW-Authenticate") == "" {
				t.Error("no WWW-Authenticate")
			}
		})
	}
}

func TestConnectWithoutNotifierOrKeys(t *testing.T) {
	g := newGateway(t, nil)
	resp, body := g.do(t, "GET", "", "Authorization", "Bearer "+g.user)
	if resp.StatusCode != 503 || resp.Header.Get("Retry-After") == "" || !strings.Contains(body, "no notifier") {
		t.Errorf("%d %v %s", resp.StatusCode, resp.Header, body)
	}
	g.join(t, "n1")
	g.notifier.send(&link.Load{Draining: true})
	eventually(t, "no client for a draining notifier", func() bool {
		resp, _ := g.do(t, "GET", "", "Authorization", "Bearer "+g.user)
		return resp.StatusCode == 503
	})
	bare := newGateway(t, func(c *Config) { c.Keys, c.ServiceTokens = nil, nil })
	if resp, body := bare.do(t, "GET", "", "Authorization", "Bearer "+g.user); resp.StatusCode != 503 || !strings.Contains(body, "--jwt-keys") {
		t.Errorf("%d %s", resp.StatusCode, body)
	}
	if resp, body := bare.do(t, "POST", "{}", "Authorization", "Bearer "+g.service); resp.StatusCode != 401 {
		t.Errorf("%d %s", resp.StatusCode, body)
	}
}

// FuzzConnectBody: whatever a service sends, what is accepted is valid.
func FuzzConnectBody(f *testing.F) {
	f.Add([]byte(`{"account":"alice@example.com","accounts":["team@example.com",{"account":"b","mailboxes":["INBOX"]}]}`))
	f.Add([]byte(`{"account":1}`))
	f.Add([]byte(`{"accounts":[null,{}]}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		var req connectRequest
		if decodeStrict(body, &req) != nil {
			return
		}
		access, err := req.access()
		if err != nil {
			return
		}
		if access.Subject.Validate() != nil || len(access.Grants) > auth.MaxGrants || access.Grants[0].Account != access.Subject {
			t.Errorf("%s gave %+v", body, access)
		}
		for _, g := range access.Grants {
			if g.Account.Validate() != nil || g.Mailboxes != nil && len(g.Mailboxes) == 0 {
				t.Errorf("%s gave %+v", body, access)
			}
		}
	})
}
