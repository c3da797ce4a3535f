package main

import (
	"encoding/json"
	"io"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"strings"
	"testing"

	"github.com/mailbell/mailbell/internal/dovecotproc"
)

// TestRoundcubeSession asks for tickets as a page must not.
func TestRoundcubeSession(t *testing.T) {
	t.Parallel()
	s := startRoundcube(t, "")
	t.Run("a ticket takes a POST with the token", s.ticketTakesPost)
}

func (s *roundcubeSite) ticketTakesPost(t *testing.T) {
	jar, err := cookiejar.New(nil)
	must(t, err)
	client := &http.Client{Jar: jar, Transport: &http.Transport{DisableKeepAlives: true}, Timeout: patience}
	const tokenField = `"request_token":"`
	_, login := s.ask(t, client, "GET", "", "", "")
	_, page := s.ask(t, client, "POST", "_task=login", "", url.Values{
		"_task": {"login"}, "_action": {"login"}, "_user": {alice}, "_pass": {dovecotproc.Password}, "_token": {between(login, tokenField, `"`)},
	}.Encode())
	token := between(page, tokenField, `"`)

	const (
		query   = "_task=mail&_action=plugin.mailbell.ticket"
		folders = "_task=mail&_action=plugin.mailbell.folders"
		form    = "_remote=1"
	)
	for _, c := range []struct {
		name, method, query, token, body string
		want                             int
	}{
		{"as the page asks", "POST", query, token, form, 200},
		{"GET", "GET", query + "&_remote=1", token, "", 405},
		{"GET with the token in the address", "GET", query + "&_remote=1&_token=" + token, "", "", 405},
		{"HEAD", "HEAD", query, token, "", 405},
		{"no token", "POST", query + "&_remote=1", "", form, 403},
		{"another token", "POST", query + "&_remote=1", "wrong", form, 403},
		{"no token, no form", "POST", query + "&_remote=1", "", "", 403},
		{"folders by GET", "GET", folders, token, "", 405},
		{"folders, no token, no form", "POST", folders, "", "", 403},
	} {
		resp, text := s.ask(t, client, c.method, c.query, c.token, c.body)
		var answer struct {
			Env struct {
				Ticket struct{ URL string } `json:"mailbell_ticket"`
			}
		}
		_ = json.Unmarshal([]byte(text), &answer) // a refusal is no JSON
		if resp.StatusCode != c.want || (answer.Env.Ticket.URL != "") != (c.want == 200) {
			t.Errorf("%s: %s %s, want %d", c.name, resp.Status, text, c.want)
		}
		if allow := resp.Header.Get("Allow"); c.want == 405 && allow != "POST" {
			t.Errorf("%s: Allow %q", c.name, allow)
		}
	}
}

// ask is one request to Roundcube. A body is a form.
func (s *roundcubeSite) ask(t *testing.T, client *http.Client, method, query, token, body string) (*http.Response, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, s.web.URL()+"/?"+query, strings.NewReader(body))
	must(t, err)
	if body != "" {
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	}
	if token != "" {
		req.Header.Set("X-Roundcube-Request", token)
	}
	resp, err := client.Do(req)
	must(t, err)
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	must(t, err)
	return resp, string(text)
}
