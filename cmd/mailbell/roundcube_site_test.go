package main

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/emersion/go-imap/v2/imapclient"

	"github.com/mailbell/mailbell/internal/chromiumproc"
	"github.com/mailbell/mailbell/internal/dovecotproc"
	"github.com/mailbell/mailbell/internal/roundcubeproc"
)

// roundcubeSite is a site with Debian's Roundcube, set up by the commands of docs/roundcube.md.
type roundcubeSite struct {
	t       *testing.T // the one that all its processes live as long as
	guide   *guide
	mail    *dovecotproc.Server
	web     *roundcubeproc.Server
	bell    *process
	runArgs []string
	http    string // mailbell's own
}

// guide is docs/roundcube.md, whose commands run with a folder of the test in place of the machine's.
type guide struct {
	root  string // stands for /etc and /var/lib
	text  string
	token string
}

// path is a file of the guide's as it is in this test.
func (g *guide) path(name string) string { return filepath.Join(g.root, name) }

// Commands that need a machine of their own: programs are started and restarted otherwise here.
var otherwise = regexp.MustCompile(`^(systemctl|doveadm) reload|^systemctl `)

func followGuide(t *testing.T) *guide {
	t.Helper()
	module, err := roundcubeproc.ModuleDir()
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(filepath.Join(module, "docs", "roundcube.md"))
	if err != nil {
		t.Fatal(err)
	}
	g := &guide{root: t.TempDir(), text: string(text)}
	for _, dir := range []string{"etc/dovecot/conf.d", "etc/nginx/sites-available", "etc/nginx/sites-enabled", "etc/systemd/system", "var/lib/roundcube/plugins"} {
		if err := os.MkdirAll(g.path(dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, command := range g.blocks("sh") {
		switch {
		case otherwise.MatchString(command):
		case strings.HasPrefix(command, "apt-get install "):
			out, err := exec.Command("dpkg-query", append([]string{"-W"}, strings.Fields(command)[2:]...)...).CombinedOutput()
			if err != nil {
				t.Fatalf("%s: %v\n%s", command, err, out)
			}
		default:
			run := exec.Command("sh", "-ec", regexp.MustCompile(`(^|\s)/(etc|var)/`).ReplaceAllString(command, "${1}"+g.root+"/${2}/"))
			run.Dir = module
			var complaints bytes.Buffer
			run.Stderr = &complaints
			out, err := run.Output()
			if err != nil {
				t.Fatalf("%s: %v\n%s", command, err, &complaints)
			}
			if strings.HasPrefix(command, "mailbell token") {
				g.token = strings.TrimSpace(string(out))
			}
		}
	}
	return g
}

// blocks returns the lines of the guide's code of a language.
func (g *guide) blocks(language string) []string {
	var lines []string
	for _, m := range regexp.MustCompile("(?s)```"+language+"\n(.*?)```").FindAllStringSubmatch(g.text, -1) {
		lines = append(lines, strings.Split(strings.TrimSpace(m[1]), "\n")...)
	}
	return lines
}

// startRoundcube starts mail, webmail and mailbell. site is of deploy/roundcube/nginx; empty means the guide's. Further
// settings of Roundcube come after the guide's.
func startRoundcube(t *testing.T, site string, settings ...string) *roundcubeSite {
	t.Helper()
	s := &roundcubeSite{t: t, guide: followGuide(t), http: freeAddress(t)}
	sockets := freeAddress(t)
	var err error
	s.mail, err = dovecotproc.Start(soon(t), dovecotproc.Options{
		AgentURL: "http://" + s.http, Script: s.guide.path("etc/dovecot/mailbell.lua"), Conf: s.guide.path("etc/dovecot/conf.d/11-mailbell.conf"),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(s.mail.Log())
		}
		s.mail.Stop()
	})
	sitePath := s.guide.path("etc/nginx/sites-enabled/roundcube")
	if site != "" {
		sitePath = filepath.Join("..", "..", "deploy", "roundcube", "nginx", site)
	}
	config := strings.Join(s.guide.blocks("php"), "\n")
	config = strings.NewReplacer("the token of step 2", s.guide.token, "127.0.0.1:8480", s.http).Replace(config)
	config += fmt.Sprintf("\n$config['newmail_notifier_basic'] = true;\n$config['refresh_interval'] = %d;\n$config['mailbell_rest'] = %d;\n$config['mailbell_timeout'] = %d;",
		int(userInterval.Seconds()), int(rest.Seconds()), int(gatewayTimeout.Seconds()))
	config += "\n" + strings.Join(settings, "\n")
	s.web, err = roundcubeproc.Start(soon(t), roundcubeproc.Options{
		IMAPAddr: s.mail.IMAPAddr(), Site: sitePath, Notifier: sockets, Config: config,
		Plugins: []string{"newmail_notifier", s.guide.path("var/lib/roundcube/plugins/mailbell")},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if log := s.web.Log(); t.Failed() && log != "" {
			t.Log(log)
		}
		s.web.Stop()
	})
	s.runArgs = s.mailbellRun(t, site, sockets)
	s.startBell()
	return s
}

// mailbellRun is what the guide's unit starts, with this test's folders and addresses.
func (s *roundcubeSite) mailbellRun(t *testing.T, site, sockets string) []string {
	t.Helper()
	unit, err := os.ReadFile(s.guide.path("etc/systemd/system/mailbell-run.service"))
	must(t, err)
	command := between(string(unit), "\nExecStart=/usr/bin/mailbell ", "\n")
	args := strings.Fields(strings.NewReplacer("%d/service-tokens", s.guide.path("etc/mailbell/service-tokens"), "/var/lib/", s.guide.path("var/lib/")+"/", "/etc/", s.guide.path("etc/")+"/",
		"wss://mail.example.com", "ws://"+s.web.Addr()).Replace(command))
	args = append(args, "--http", s.http, "--sockets", sockets, "--link", "127.0.0.1:0")
	if site == "cross-origin.conf" {
		args = append(args, "--public-url", "ws://"+s.web.BellAddr()+"/v1/ws", "--origins", s.web.URL())
	}
	return args
}

func (s *roundcubeSite) startBell() {
	s.t.Helper()
	s.bell = startProcess(s.t, s.runArgs...)
	s.bell.logged(s.t, "ready", "http")
}

func freeAddress(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// open signs somebody in and waits until the page hears events and has nothing more to ask.
func (s *roundcubeSite) open(t *testing.T, user string) *chromiumproc.Tab {
	t.Helper()
	tab := chromiumproc.Open(t, 1280, 800)
	tab.Go(s.web.URL() + "/")
	tab.Type("#rcmloginuser", user)
	tab.Type("#rcmloginpwd", dovecotproc.Password)
	tab.Click("#rcmloginsubmit")
	tab.See(".task-mail")
	quiet(tab)
	return tab
}

// quiet waits until the page hears events, and is settled.
func quiet(tab *chromiumproc.Tab) {
	tab.See("html[data-mailbell=up]")
	settled(tab)
}

// settled waits until what the page asks at its start is answered. Until then Roundcube still changes the page's address
// (history.replaceState), and a navigation of Chromium's driver that meets that never learns that the page has loaded.
func settled(tab *chromiumproc.Tab) {
	tab.Until(`performance.getEntriesByType("resource").some(r => r.name.includes("_action=list") && r.responseEnd > 0)`)
	tab.Until(`!rcmail.busy && jQuery.active === 0`)
}

// requests returns what PHP has answered since, without the pages' reading of files.
func (s *roundcubeSite) requests(t *testing.T, since time.Time, session string) []roundcubeproc.Request {
	t.Helper()
	all, err := s.web.Requests(since)
	if err != nil {
		t.Fatal(err)
	}
	return slices.DeleteFunc(all, func(r roundcubeproc.Request) bool { return !r.Dynamic() || session != "" && r.Session != session })
}

// session is the cookie of the last page that was asked for.
func (s *roundcubeSite) session(t *testing.T) string {
	t.Helper()
	r, err := s.web.WaitForRequest(soon(t), time.Time{}, func(r roundcubeproc.Request) bool { return r.Action == "getunread" })
	if err != nil {
		t.Fatal(err)
	}
	all, err := s.web.Requests(r.At)
	if err != nil {
		t.Fatal(err)
	}
	return all[len(all)-1].Session
}

// asked waits for a request with an action.
func (s *roundcubeSite) asked(t *testing.T, since time.Time, session, action string) roundcubeproc.Request {
	t.Helper()
	r, err := s.web.WaitForRequest(soon(t), since, func(r roundcubeproc.Request) bool { return r.Session == session && r.Action == action })
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// expect compares the actions that a session asked for.
func (s *roundcubeSite) expect(t *testing.T, what string, since time.Time, session string, want ...string) {
	t.Helper()
	var got []string
	for _, r := range s.requests(t, since, session) {
		got = append(got, r.Action)
	}
	if !slices.Equal(got, want) {
		t.Errorf("%s: requests %q, want %q", what, got, want)
	}
}

func (s *roundcubeSite) deliver(t *testing.T, to, subject string) {
	t.Helper()
	if err := s.mail.Deliver(soon(t), to, dovecotproc.Message("sam@example.com", to, subject, "Text.")); err != nil {
		t.Fatal(err)
	}
}

// another is another mail client of the same user.
func (s *roundcubeSite) another(t *testing.T, user string) *imapclient.Client {
	t.Helper()
	c, err := imapclient.DialInsecure(s.mail.IMAPAddr(), nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	if err := c.Login(user, dovecotproc.Password).Wait(); err != nil {
		t.Fatal(err)
	}
	return c
}

func row(subject string) string {
	return fmt.Sprintf(`[...document.querySelectorAll("#messagelist tbody tr")].find(r => r.innerText.includes(%q))`, subject)
}

// unreadOf is what the page shows as a folder's unread count.
func unreadOf(folder string) string {
	return fmt.Sprintf(`(rcmail.get_folder_li(%q, "", true)?.querySelector(":scope > a .unreadcount")?.innerText ?? "")`, folder)
}

func evaluate(t *testing.T, tab *chromiumproc.Tab, expression string) string {
	t.Helper()
	value, err := chromiumproc.Evaluate[any](tab, expression)
	if err != nil {
		t.Fatalf("%s: %v", expression, err)
	}
	return fmt.Sprint(value)
}

// waitUntil waits until a time is over in which something must not happen.
func waitUntil(t *testing.T, at time.Time) {
	t.Helper()
	timer := time.NewTimer(time.Until(at))
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-t.Context().Done():
		t.Fatal("the test ended")
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
