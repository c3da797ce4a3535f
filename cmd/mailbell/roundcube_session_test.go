package main

import (
	"encoding/json"
	"io"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/mailbell/mailbell/internal/chromiumproc"
	"github.com/mailbell/mailbell/internal/dovecotproc"
	"github.com/mailbell/mailbell/internal/roundcubeproc"
)

// triesAgain is within what a page that lost its socket asks for a ticket, and then for another when it got none.
const triesAgain = 3 * time.Second

// TestRoundcubeSession has sessions end while pages are open, and asks for tickets as a page must not. No page refreshes
// by itself, so that what asks is known.
func TestRoundcubeSession(t *testing.T) {
	t.Parallel()
	s := startRoundcube(t, "", "$config['refresh_interval'] = 1800;", "$config['mailbell_catch_up'] = 0;")
	t.Run("a ticket takes a POST with the token", s.ticketTakesPost)
	t.Run("it ended while somebody writes", s.endedWhileWriting)
	t.Run("it ended before the socket", s.endedBeforeSocket)
}

func (s *roundcubeSite) ticketTakesPost(t *testing.T) {
	s.bell.logged(t, "a notifier's public address works", "url") // until then the gateway has nobody to hand out
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

// endSessions takes all sessions away, as Roundcube does with those that were not used for long.
func (s *roundcubeSite) endSessions(t *testing.T) {
	t.Helper()
	const script = `$db = new PDO("sqlite:$argv[1]"); $db->setAttribute(PDO::ATTR_ERRMODE, PDO::ERRMODE_EXCEPTION); exit($db->exec("DELETE FROM session") > 0 ? 0 : 1);`
	if out, err := exec.Command("php", "-r", script, filepath.Join(s.web.Dir(), "db", "roundcube.db")).CombinedOutput(); err != nil {
		t.Fatalf("end sessions: %v\n%s", err, out)
	}
}

// openAfresh opens a page in a new browser and waits until it has asked all that it asks at its start.
func (s *roundcubeSite) openAfresh(t *testing.T) (tab *chromiumproc.Tab, session string) {
	t.Helper()
	since := time.Now()
	tab = s.open(t, alice)
	last, err := s.web.WaitForRequest(soon(t), since, func(r roundcubeproc.Request) bool { return r.Action == "check-recent" })
	must(t, err)
	return tab, last.Session
}

// endedWhileWriting: Roundcube stays with the message and asks no more, and neither does the plugin.
func (s *roundcubeSite) endedWhileWriting(t *testing.T) {
	tab, session := s.openAfresh(t)
	evaluate(t, tab, `rcmail.command("compose"), ""`)
	tab.Until(`globalThis.rcmail?.env.action === "compose" && !rcmail.busy`)
	tab.See("html[data-mailbell=up]")
	evaluate(t, tab, `rcmail.start_refresh = () => document.body.classList.add("refreshes"), ""`)
	s.endSessions(t)
	since := time.Now()
	tab.Type("#compose-subject", "Unsaved")
	evaluate(t, tab, `rcmail.command("savedraft"), ""`)
	tab.See("html[data-mailbell=down]")
	evaluate(t, tab, `rcmail.keep_alive(), ""`)
	s.asked(t, since, session, "keep-alive")
	tab.Until(`jQuery.active === 0`)
	if evaluate(t, tab, `document.body.matches(".refreshes")`) != "false" {
		t.Error("refreshes began anew in a session that has ended")
	}
	s.expect(t, "an ended session", since, "", "", "keep-alive") // the draft is a form's
}

// endedBeforeSocket: one ticket is asked for, and Roundcube's next refresh leads to the login page.
func (s *roundcubeSite) endedBeforeSocket(t *testing.T) {
	tab, _ := s.openAfresh(t)
	s.endSessions(t)
	since := time.Now()
	s.bell.kill(t)
	first, err := s.web.WaitForRequest(soon(t), since, roundcubeproc.Request.Dynamic)
	must(t, err)
	evaluate(t, tab, `dispatchEvent(new Event("online")), ""`) // a page that waits would ask now
	waitUntil(t, first.At.Add(triesAgain))
	s.expect(t, "an ended session", since, "", "plugin.mailbell.ticket")
	evaluate(t, tab, `rcmail.refresh(), ""`)
	tab.See("#rcmloginuser")
	s.expect(t, "an ended session, and a refresh", since, "", "plugin.mailbell.ticket", "refresh", "")
}
