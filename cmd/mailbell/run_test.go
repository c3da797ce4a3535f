package main

import (
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"testing"
)

func TestRunPublishWatch(t *testing.T) {
	s := startSite(t)
	watch := start(t, nil, "watch", "--account", "alice@example.com", "--server", s.server, "--data", s.data, "--json", "--count", "2")
	watch.wait(t, watch.out, `"catchUp":"fresh"`)
	bob := start(t, nil, "watch", "--account", "bob@example.com", "--server", s.server, "--data", s.data, "--json")
	bob.wait(t, bob.out, `"catchUp":"fresh"`)

	publish := start(t, nil, "publish", "--account", "alice@example.com", "--mailbox", "INBOX", "--uidvalidity", "1",
		"--uid", "5", "--unseen", "3", "--server", s.server, "--data", s.data, "--json")
	if code := publish.end(t); code != 0 {
		t.Fatalf("publish ended with %d", code)
	}
	events := strings.NewReader(`{"id":"e2","event":"MailboxCreate","account":"bob@example.com","mailbox":"Archive","timestamp":"2026-11-21T05:17:58Z"}
{"id":"e3","event":"MailboxCreate","account":"alice@example.com","mailbox":"Archive","timestamp":"2026-11-21T05:17:58Z"}
`)
	if code := start(t, events, "publish", "--server", s.server, "--data", s.data).end(t); code != 0 {
		t.Fatalf("publish of stdin ended with %d", code)
	}
	if code := watch.end(t); code != 0 {
		t.Fatalf("watch ended with %d", code)
	}
	if got := watch.out.String(); !strings.Contains(got, `"uidset":"5"`) || !strings.Contains(got, `"id":"e3"`) || strings.Contains(got, "e2") {
		t.Errorf("watch of alice printed\n%s", got)
	}
	bob.wait(t, bob.out, `"id":"e2"`)
	if got := bob.out.String(); strings.Contains(got, "alice") {
		t.Errorf("bob heard of alice:\n%s", got)
	}

	// What happened since a position is told again.
	var published struct{ Position string }
	if err := json.Unmarshal([]byte(publish.out.String()), &published); err != nil {
		t.Fatal(err)
	}
	again := start(t, nil, "watch", "--account", "alice@example.com", "--since", published.Position, "--count", "1",
		"--server", s.server, "--data", s.data)
	if code := again.end(t); code != 0 || !strings.Contains(again.out.String(), "Archive  MailboxCreate") {
		t.Errorf("watch since %s ended with %d and printed %q", published.Position, code, again.out)
	}
}

// TestWaitsForBrokers: who starts before Kafka does waits for it, and says what to do if it never comes.
func TestWaitsForBrokers(t *testing.T) {
	c := makeCredentials(t)
	for _, args := range [][]string{
		{"run", "--data", c.data, "--sockets", "127.0.0.1:0"},
		{"bus", "--jwt-keys", c.publicKey, "--service-tokens", c.serviceTokens},
	} {
		p := start(t, nil, append(args, "--log-format", "json", "--http", "127.0.0.1:0", "--link", "127.0.0.1:0", "--ops", "127.0.0.1:0", "--brokers", "127.0.0.1:1")...)
		waits := p.logged(t, "waiting for the brokers; if none comes, ask mailbell doctor --brokers")
		if err, _ := waits["err"].(string); !strings.Contains(err, "127.0.0.1:1: connect: connection refused") {
			t.Errorf("mailbell %s says %v", args[0], waits)
		}
		p.stop()
		if code := p.end(t); code != 0 {
			t.Errorf("mailbell %s ended with %d when it was told to end", args[0], code)
		}
	}
}

func TestRunStopsAndKeepsWhatItHas(t *testing.T) {
	s := startSite(t)
	publish := func(s *site, uid string) (position string) {
		t.Helper()
		c := start(t, nil, "publish", "--account", "a", "--mailbox", "INBOX", "--uidvalidity", "1", "--uid", uid, "--server", s.server, "--data", s.data, "--json")
		if code := c.end(t); code != 0 {
			t.Fatalf("publish ended with %d: %s", code, c.err)
		}
		var published struct{ Position string }
		if err := json.Unmarshal([]byte(c.out.String()), &published); err != nil {
			t.Fatal(err)
		}
		return published.Position
	}
	before := publish(s, "7")
	publish(s, "1")
	s.stop()
	if code := s.end(t); code != 0 {
		t.Errorf("run ended with %d", code)
	}
	again := start(t, nil, "run", "--log-format", "json", "--data", s.data, "--partitions", "4",
		"--http", "127.0.0.1:0", "--sockets", "127.0.0.1:0", "--link", "127.0.0.1:0", "--ops", "127.0.0.1:0")
	attrs := again.logged(t, "ready")
	server := "http://" + attrs["http"].(string)
	publish(&site{data: s.data, server: server}, "2")
	// What was published before the stop is still there, between what came before and after it.
	watch := start(t, nil, "watch", "--account", "a", "--since", before, "--count", "2", "--json", "--server", server, "--data", s.data)
	if code := watch.end(t); code != 0 {
		t.Errorf("watch ended with %d: %s", code, watch.err)
	}
	heard := watch.out.String()
	if one, two := strings.Index(heard, `"uidset":"1"`), strings.Index(heard, `"uidset":"2"`); one < 0 || two < one || strings.Contains(heard, `"uidset":"7"`) {
		t.Errorf("since %s watch heard\n%s\nwant the messages 1 and 2", before, heard)
	}

	// A second process on the same folder is refused, and says so.
	second := start(t, nil, "run", "--data", s.data, "--partitions", "4",
		"--http", "127.0.0.1:0", "--sockets", "127.0.0.1:0", "--link", "127.0.0.1:0", "--ops", "127.0.0.1:0")
	if code := second.end(t); code != 1 {
		t.Errorf("the second process ended with %d", code)
	}
	second.wait(t, second.err, s.data)
}

func TestRunShowsWhereEverythingIs(t *testing.T) {
	s := startSite(t, "--dovecot")
	s.wait(t, s.out, "publish --account alice@example.com")
	for _, part := range []string{"demo page   " + s.server, "console     http://" + s.port + "/console/", "--server " + s.server, "--data " + s.data} {
		if !strings.Contains(s.out.String(), part) {
			t.Errorf("the greeting lacks %q:\n%s", part, s.out)
		}
	}
	for url, want := range map[string]string{
		s.server + "/":                    "<html",
		s.server + "/mailbell.js":         "export class Mailbell",
		"http://" + s.port + "/metrics":   "mailbell_build_info",
		"http://" + s.port + "/healthz":   "ok",
		"http://" + s.port + "/readyz":    "ready",
		s.server + "/v1/connect":          "token",
		"http://" + s.sockets + "/v1/ws/": "",
	} {
		if body := fetch(t, url); !strings.Contains(body, want) {
			t.Errorf("%s lacks %q:\n%.300s", url, want, body)
		}
	}
}

func fetch(t *testing.T, url string) string {
	t.Helper()
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: patience}
	resp, err := client.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(body)
}
