package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/getkin/kin-openapi/openapi3filter"
	"github.com/getkin/kin-openapi/routers"
	"github.com/getkin/kin-openapi/routers/legacy"
	"github.com/mailbell/mailbell/internal/auth"
	"github.com/mailbell/mailbell/schema"
)

// Answers to what the page does not have (405), or that need a broken log, a full
// disk, a crowd or no notifier; the packages' own tests provoke them.
var notProvoked = map[string]bool{
	"publishEvents 405": true, "dovecotNotify 405": true, "dovecotEvents 405": true,
	"publishEvents 503": true, "connect 503": true, "connectFor 503": true,
	"socket 408": true, "socket 429": true, "socket 431": true, "socket 505": true, "socket 405": true,
	"dovecotNotify 503": true, "dovecotEvents 503": true, "dovecotNotify 507": true, "dovecotEvents 507": true,
	"connect 405":    true, // CPU profiles and traces take a second each
	"cpuProfile 200": true, "executionTrace 200": true,
	"ready 503": true, "socket 503": true, "demoAction 503": true, "socket 101": true,
	"fleetStream 200": true, "fleetDrain 202": true,
}

// exchange is one request to a running server, and the status that it must get.
type exchange struct {
	name, method, url string
	header            map[string]string
	body              string
	want              int
	badRequest        bool // the request breaks the page on purpose
}

func TestServerKeepsToOpenAPI(t *testing.T) {
	for _, kind := range []string{"text/html", "text/javascript", "application/x-ndjson"} {
		openapi3filter.RegisterBodyDecoder(kind, openapi3filter.FileBodyDecoder)
		defer openapi3filter.UnregisterBodyDecoder(kind)
	}
	doc, err := openapi3.NewLoader().LoadFromFile("../../docs/openapi.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if err := doc.Validate(t.Context()); err != nil {
		t.Fatal(err)
	}
	router, err := legacy.NewRouter(doc)
	if err != nil {
		t.Fatal(err)
	}
	s := startSite(t, "--dovecot")
	seen := map[string]bool{}
	for _, x := range exchanges(t, s) {
		t.Run(x.name, func(t *testing.T) { x.check(t, router, seen) })
	}
	for _, item := range doc.Paths.Map() {
		for _, op := range item.Operations() {
			for status := range op.Responses.Map() {
				key := op.OperationID + " " + status
				if !seen[key] && !notProvoked[key] {
					t.Errorf("no exchange shows the answer %s", key)
				}
			}
		}
	}
}

func (x *exchange) check(t *testing.T, router routers.Router, seen map[string]bool) {
	req, err := http.NewRequestWithContext(t.Context(), x.method, x.url, strings.NewReader(x.body))
	if err != nil {
		t.Fatal(err)
	}
	for k, v := range x.header {
		req.Header.Set(k, v)
	}
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DisableCompression: true, ExpectContinueTimeout: patience}, Timeout: patience}
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	if resp.StatusCode != x.want {
		t.Fatalf("status %d, want %d: %.300s", resp.StatusCode, x.want, body)
	}
	route, params, err := router.FindRoute(req)
	if resp.StatusCode == http.StatusMethodNotAllowed && err != nil {
		return // rightly so: the page does not have this method
	}
	if err != nil {
		t.Fatal(err)
	}
	seen[route.Operation.OperationID+" "+resp.Status[:3]] = true
	again := req.Clone(t.Context())
	again.Body = io.NopCloser(strings.NewReader(x.body))
	input := &openapi3filter.RequestValidationInput{Request: again, PathParams: params, Route: route, Options: &openapi3filter.Options{
		AuthenticationFunc: openapi3filter.NoopAuthenticationFunc, IncludeResponseStatus: true,
	}}
	if err := openapi3filter.ValidateRequest(t.Context(), input); (err != nil) != x.badRequest {
		t.Errorf("the page finds the request: %v", err)
	}
	output := &openapi3filter.ResponseValidationInput{RequestValidationInput: input, Status: resp.StatusCode, Header: resp.Header, Options: input.Options}
	output.SetBodyBytes(body)
	if err := openapi3filter.ValidateResponse(t.Context(), output); err != nil {
		t.Errorf("the page finds the answer: %v\n%.300s", err, body)
	}
}

const goodEvent = `{"id":"1","event":"MessageNew","account":"alice@example.com","mailbox":"INBOX","uidValidity":1,"uidset":"5","timestamp":"2026-11-21T05:17:58Z"}`

func exchanges(t *testing.T, s *site) []exchange {
	t.Helper()
	key, err := madeByRun(s.data, "--key", func(d auth.Dev) string { return d.PrivateKeyFile })
	if err != nil {
		t.Fatal(err)
	}
	jwt, err := auth.MintToken(key, auth.Claims{Account: "alice@example.com"})
	if err != nil {
		t.Fatal(err)
	}
	const asJSON = "application/json"
	service := map[string]string{"Authorization": "Bearer " + s.serviceToken(t), "Content-Type": asJSON}
	with := func(base map[string]string, key, value string) map[string]string {
		h := map[string]string{key: value}
		for k, v := range base {
			if k != key {
				h[k] = v
			}
		}
		return h
	}
	publisher, connector := scopedTokens(t, s)
	publishes, connects := with(service, "Authorization", "Bearer "+publisher), with(service, "Authorization", "Bearer "+connector)
	far := map[string]string{"Content-Type": asJSON, "Origin": "https://elsewhere.example.com"}
	nobody := map[string]string{"Content-Type": asJSON}
	large := strings.Repeat(" ", 17<<20)
	patient := with(nobody, "Expect", "100-continue") // else the answer may be lost in what is still being sent
	lines := with(service, "Content-Type", "application/x-ndjson")
	user := map[string]string{"Authorization": "Bearer " + jwt}
	foreign := map[string]string{"Authorization": "Bearer " + jwt, "Origin": "https://elsewhere.example.com"}
	events, connect := s.server+"/v1/events", s.server+"/v1/connect"
	socket, port := "http://"+s.sockets+schema.SocketPath, "http://"+s.port
	all := []exchange{
		{"publish one", "POST", events, service, goodEvent, 200, false},
		{"publish an array", "POST", events, service, "[" + goodEvent + "," + goodEvent + "]", 200, false},
		{"publish lines", "POST", events, lines, goodEvent + "\n" + goodEvent + "\n", 200, false},
		{"publish nothing", "POST", events, service, "[]", 400, true},
		{"publish without account", "POST", events, service, `{"id":"1","event":"Login","timestamp":"2026-11-21T05:17:58Z"}`, 400, true},
		{"publish an unknown event", "POST", events, service, strings.Replace(goodEvent, "MessageNew", "MessageOld", 1), 400, true},
		{"publish a bad second", "POST", events, service, "[" + goodEvent + `,{"id":""}]`, 400, true},
		{"publish without a token", "POST", events, nobody, goodEvent, 401, false},
		{"publish too much", "POST", events, lines, strings.Repeat(goodEvent+"\n", 10_001), 413, false},
		{"publish XML", "POST", events, with(service, "Content-Type", "application/xml"), "<event/>", 415, true},
		{"get events", "GET", events, service, "", 405, true},
		{"connect", "GET", connect, user, "", 200, false},
		{"connect as nobody", "GET", connect, nil, "", 401, false},
		{"connect from elsewhere", "GET", connect, foreign, "", 403, false},
		{"connect for a user", "POST", connect, service, `{"account":"alice@example.com","accounts":["team@example.com",{"account":"bob@example.com","mailboxes":["INBOX"]}]}`, 200, false},
		{"connect for nobody", "POST", connect, service, `{}`, 400, true},
		{"connect with a JWT for a user", "POST", connect, with(nobody, "Authorization", "Bearer "+jwt), `{"account":"alice@example.com"}`, 401, false},
		{"connect with a large body", "POST", connect, service, `{"account":"` + strings.Repeat("a", 1<<17) + `"}`, 413, true},
		{"connect with a form", "POST", connect, with(service, "Content-Type", "application/x-www-form-urlencoded"), "account=alice", 415, true},
		{"preflight", "OPTIONS", connect, map[string]string{"Origin": s.server, "Access-Control-Request-Method": "GET"}, "", 204, false},
		{"preflight from elsewhere", "OPTIONS", connect, map[string]string{"Origin": "https://elsewhere.example.com", "Access-Control-Request-Method": "GET"}, "", 403, false},
		{"no handshake", "GET", socket, user, "", 426, true},
		{"another subprotocol", "GET", socket, with(handshake(user), "Sec-WebSocket-Protocol", "chat"), "", 400, false},
		{"socket as nobody", "GET", socket, handshake(nil), "", 401, false},
		{"socket from elsewhere", "GET", socket, handshake(foreign), "", 403, false},
		{"metrics", "GET", port + "/metrics", nil, "", 200, false},
		{"fleet", "GET", port + "/fleet", nil, "", 200, false},
		{"drain of nobody", "POST", port + "/fleet/drain", map[string]string{"Content-Type": "application/json"}, `{"notifier":"nobody"}`, 400, false},
		{"health", "GET", port + "/healthz", nil, "", 200, false},
		{"ready", "GET", port + "/readyz", nil, "", 200, false},
		{"profiles", "GET", port + "/debug/pprof/", nil, "", 200, false},
		{"publish with a token for webmails", "POST", events, connects, goodEvent, 403, false},
		{"connect with a token for mail stores", "POST", connect, publishes, `{"account":"alice@example.com"}`, 403, false},
		{"a page's notice", "PUT", s.server + "/preliminary/http-notify/v1/notify", far, `{"user":"a","event":"messageNew","folder":"INBOX"}`, 401, false},
		{"a page's events", "POST", s.server + "/dovecot/v1/events", far, luaReport, 401, false},
		{"a form's notice", "PUT", s.server + "/preliminary/http-notify/v1/notify", map[string]string{"Content-Type": "text/plain"}, "{}", 415, true},
		{"a form's events", "POST", s.server + "/dovecot/v1/events", map[string]string{"Content-Type": "text/plain"}, luaReport, 415, true},
		{"a page's notice with a webmail's token", "PUT", s.server + "/preliminary/http-notify/v1/notify", with(far, "Authorization", "Bearer "+connector), `{"user":"a","event":"messageNew","folder":"INBOX"}`, 403, false},
		{"a page's events with a webmail's token", "POST", s.server + "/dovecot/v1/events", with(far, "Authorization", "Bearer "+connector), luaReport, 403, false},
		{"Dovecot's huge notice", "PUT", s.server + "/preliminary/http-notify/v1/notify", patient, large, 413, true},
		{"the script's huge events", "POST", s.server + "/dovecot/v1/events", patient, large, 413, true},
		{"console", "GET", port + "/console/", nil, "", 200, false},
		{"console's status", "GET", port + "/console/api/status", nil, "", 200, false},
		{"console's account", "GET", port + "/console/api/account?name=alice@example.com", nil, "", 200, false},
		{"console's account without a name", "GET", port + "/console/api/account", nil, "", 400, true},
		{"command line", "GET", port + "/debug/pprof/cmdline", nil, "", 200, false},
		{"symbols", "GET", port + "/debug/pprof/symbol", nil, "", 200, false},
		{"Dovecot's notice", "PUT", s.server + "/preliminary/http-notify/v1/notify", nobody,
			`{"user":"alice@example.com","imap-uidvalidity":1,"imap-uid":7,"folder":"INBOX","event":"messageNew","unseen":2}`, 202, false},
		{"Dovecot's bad notice", "PUT", s.server + "/preliminary/http-notify/v1/notify", nobody, `[`, 400, true},
		{"the script's events", "POST", s.server + "/dovecot/v1/events", nobody, luaReport, 202, false},
		{"the script's bad events", "POST", s.server + "/dovecot/v1/events", nobody, `7`, 400, false},
	}
	return append(all, demoExchanges(t, s)...)
}

// scopedTokens gives the running server tokens that may only publish, and only connect.
func scopedTokens(t *testing.T, s *site) (publisher, connector string) {
	t.Helper()
	var lines string
	for _, scope := range []struct {
		token *string
		scope auth.Scope
	}{{&publisher, auth.ScopePublish}, {&connector, auth.ScopeConnect}} {
		token, line, err := auth.NewServiceToken(string(scope.scope), scope.scope)
		if err != nil {
			t.Fatal(err)
		}
		*scope.token = token
		lines += line + "\n"
	}
	file, err := os.OpenFile(filepath.Join(keysDir(s.data), "service-tokens"), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if _, err := file.WriteString(lines); err != nil {
		t.Fatal(err)
	}
	// The server looks at the file again within a second or so.
	seen := func(context.Context) error {
		if status := post(t, s.server+"/v1/events", connector, goodEvent); status != http.StatusForbidden {
			return fmt.Errorf("answered %d", status)
		}
		return nil
	}
	if err := waitReady(soon(t), seen); err != nil {
		t.Fatal(err)
	}
	return publisher, connector
}

// luaReport is what deploy/dovecot's script posts of a new mailbox.
const luaReport = `{"user":"alice@example.com","events":[{"name":"MailboxCreate","mailbox":"Archive"}]}`

// handshake adds what a WebSocket's handshake needs.
func handshake(header map[string]string) map[string]string {
	h := map[string]string{
		"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13",
		"Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==", "Sec-WebSocket-Protocol": "mailbell.v1",
	}
	for k, v := range header {
		h[k] = v
	}
	return h
}

func demoExchanges(t *testing.T, s *site) []exchange {
	t.Helper()
	nobody := map[string]string{"Content-Type": "application/json"}
	api := s.server + "/demo/api"
	session := demoSession(t, api, "carol@example.com")
	me := map[string]string{"Content-Type": "application/json", "Authorization": "Bearer " + session}
	return []exchange{
		{"demo page", "GET", s.server + "/demo/", nil, "", 200, false},
		{"client", "GET", s.server + "/mailbell.js", nil, "", 200, false},
		{"demo login", "POST", api + "/login", nobody, `{"account":"alice@example.com"}`, 200, false},
		{"demo login as nobody", "POST", api + "/login", nobody, `{"account":""}`, 400, true},
		{"demo login, long", "POST", api + "/login", nobody, `{"account":"` + strings.Repeat("a", 1<<15) + `"}`, 413, true},
		{"demo login by form", "POST", api + "/login", map[string]string{"Content-Type": "text/plain"}, `alice`, 415, true},
		{"demo state", "GET", api + "/state?mailbox=INBOX", me, "", 200, false},
		{"demo state, no session", "GET", api + "/state", nil, "", 401, false},
		{"demo deliver", "POST", api + "/actions", me, `{"action":"deliver"}`, 200, false},
		{"demo create", "POST", api + "/actions", me, `{"action":"create","mailbox":"Test"}`, 200, false},
		{"demo create again", "POST", api + "/actions", me, `{"action":"create","mailbox":"Test"}`, 409, false},
		{"demo rename nothing", "POST", api + "/actions", me, `{"action":"rename","mailbox":"None","to":"Other"}`, 404, false},
		{"demo unknown action", "POST", api + "/actions", me, `{"action":"fly"}`, 400, true},
		{"demo action, no session", "POST", api + "/actions", nobody, `{"action":"deliver"}`, 401, false},
		{"demo action, long", "POST", api + "/actions", me, `{"action":"create","mailbox":"` + strings.Repeat("a", 1<<15) + `"}`, 413, false},
		{"demo action by form", "POST", api + "/actions", map[string]string{"Content-Type": "text/plain", "Authorization": "Bearer " + session}, `deliver`, 415, true},
		{"demo message", "GET", api + "/message?mailbox=INBOX&uids=1:9", me, "", 200, false},
		{"demo message, bad set", "GET", api + "/message?mailbox=INBOX&uids=x", me, "", 400, false},
		{"demo message, no session", "GET", api + "/message?mailbox=INBOX&uids=1", nil, "", 401, false},
		{"demo state, unchanged", "GET", api + "/state?mailbox=INBOX", unchanged(t, api), "", 304, false},
	}
}

func demoSession(t *testing.T, api, account string) string {
	t.Helper()
	var login struct{ Session string }
	resp := do(t, "POST", api+"/login", map[string]string{"Content-Type": "application/json"}, `{"account":"`+account+`"}`)
	defer resp.Body.Close()
	if err := json.NewDecoder(resp.Body).Decode(&login); err != nil || login.Session == "" {
		t.Fatalf("no session: %v", err)
	}
	return login.Session
}

// unchanged are the headers by which somebody asks who has the state already. Nothing
// happens to that account.
func unchanged(t *testing.T, api string) map[string]string {
	t.Helper()
	h := map[string]string{"Authorization": "Bearer " + demoSession(t, api, "dave@example.com")}
	resp := do(t, "GET", api+"/state?mailbox=INBOX", h, "")
	defer resp.Body.Close()
	h["If-None-Match"] = resp.Header.Get("ETag")
	return h
}

func do(t *testing.T, method, url string, header map[string]string, body string) *http.Response {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, bytes.NewReader([]byte(body)))
	if err != nil {
		t.Fatal(err)
	}
	for k, v := range header {
		req.Header.Set(k, v)
	}
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 10 * time.Second}
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	return resp
}
