package dovecot

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/emersion/go-imap/v2"
	"github.com/emersion/go-imap/v2/imapclient"

	"github.com/mailbell/mailbell/internal/dovecotproc"
	"github.com/mailbell/mailbell/schema"
)

const (
	alice = "a@example.com"
	bob   = "b@example.com"
)

// startDovecot starts Dovecot until the test ends. Without one the test fails: see the error.
func startDovecot(t *testing.T, opts dovecotproc.Options) *dovecotproc.Server {
	t.Helper()
	d, err := dovecotproc.Start(t.Context(), opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("Dovecot's log:\n%s", d.Log())
		}
		d.Stop()
	})
	return d
}

func login(t *testing.T, d *dovecotproc.Server, user string) *imapclient.Client {
	t.Helper()
	c, err := imapclient.DialInsecure(d.IMAPAddr(), nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	must(t, c.Login(user, dovecotproc.Password).Wait())
	return c
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func deliver(t *testing.T, d *dovecotproc.Server, to, subject string) {
	t.Helper()
	must(t, d.Deliver(t.Context(), to, dovecotproc.Message("sender@example.org", to, subject, "text")))
}

// brief is an event as the tables below have it: what a reader wants to see of it.
func brief(e schema.Event) string {
	s := fmt.Sprintf("%s %s %s", e.Account, e.Event, e.Mailbox)
	if e.OldMailbox != "" {
		s += " from " + string(e.OldMailbox)
	}
	if e.UIDSet != "" {
		s += " uids " + e.UIDSet
	}
	if len(e.FlagNames) > 0 {
		s += " " + strings.Join(e.FlagNames, " ")
	}
	if e.Messages != nil && e.Unseen != nil {
		s += fmt.Sprintf(" (%d messages, %d unseen, next %d)", *e.Messages, *e.Unseen, e.UIDNext)
	}
	if e.User != string(e.Account) {
		s += " by " + e.User
	}
	if e.Service != "" {
		s += " " + e.Service
	}
	return s
}

func briefs(events []schema.Event) string {
	var lines []string
	for _, e := range events {
		lines = append(lines, brief(e))
	}
	return strings.Join(lines, "\n")
}

// expect runs one step and waits for the events that it shall bring, one a line.
func (l *memoryLog) expect(t *testing.T, name, want string, step func()) {
	t.Helper()
	want = strings.TrimSpace(strings.ReplaceAll(want, "\t", ""))
	l.mu.Lock()
	before := len(l.events)
	l.mu.Unlock()
	step()
	n := 1 + strings.Count(want, "\n")
	events := l.wait(t, name, func(_ int, events []schema.Event) bool { return len(events) >= before+n })
	if got := briefs(events[before:]); got != want {
		t.Fatalf("%s:\ngot\n%s\nwant\n%s", name, got, want)
	}
}

func TestRealDovecot(t *testing.T) {
	log := newMemoryLog()
	_, server := startAgent(t, Config{Publisher: log})
	d := startDovecot(t, dovecotproc.Options{AgentURL: server.URL})
	log.expect(t, "first delivery makes INBOX", `
		a@example.com MailboxCreate INBOX (0 messages, 0 unseen, next 1) lmtp
		a@example.com MessageNew INBOX uids 1 (1 messages, 1 unseen, next 2) lmtp`,
		func() { deliver(t, d, alice, "one") })
	log.expect(t, "delivery", `a@example.com MessageNew INBOX uids 2 (2 messages, 2 unseen, next 3) lmtp`,
		func() { deliver(t, d, alice, "two") })
	log.expect(t, "delivery", `a@example.com MessageNew INBOX uids 3 (3 messages, 3 unseen, next 4) lmtp`,
		func() { deliver(t, d, alice, "three") })

	c := login(t, d, alice)
	_, err := c.Select("INBOX", nil).Wait()
	must(t, err)
	store := func(uids imap.UIDSet, op imap.StoreFlagsOp, flags ...imap.Flag) func() {
		return func() { must(t, c.Store(uids, &imap.StoreFlags{Op: op, Flags: flags}, nil).Close()) }
	}
	all := imap.UIDSet{{Start: 1, Stop: 3}}
	steps := []struct {
		name, want string
		do         func()
	}{
		{"read one", `a@example.com FlagsSet INBOX uids 2 \Seen (3 messages, 2 unseen, next 4) imap`,
			store(imap.UIDSetNum(2), imap.StoreFlagsAdd, imap.FlagSeen)},
		{"flag and keyword on all", `a@example.com FlagsSet INBOX uids 1:3 $Work \Flagged (3 messages, 2 unseen, next 4) imap`,
			store(all, imap.StoreFlagsAdd, imap.FlagFlagged, "$Work")},
		{"only what changes counts", `
			a@example.com FlagsSet INBOX uids 1,3 \Seen (3 messages, 0 unseen, next 4) imap`,
			store(all, imap.StoreFlagsAdd, imap.FlagSeen, imap.FlagFlagged)},
		{"clear", `a@example.com FlagsClear INBOX uids 1:3 $Work \Seen (3 messages, 3 unseen, next 4) imap`,
			store(all, imap.StoreFlagsDel, imap.FlagSeen, "$Work")},
		{"replace", `
			a@example.com FlagsClear INBOX uids 1 \Flagged (3 messages, 3 unseen, next 4) imap
			a@example.com FlagsSet INBOX uids 1 \Answered (3 messages, 3 unseen, next 4) imap`,
			store(imap.UIDSetNum(1), imap.StoreFlagsSet, imap.FlagAnswered)},
		{"create", `a@example.com MailboxCreate Entwürfe "neu" (0 messages, 0 unseen, next 1) imap`,
			func() { must(t, c.Create(`Entwürfe "neu"`, nil).Wait()) }},
		{"copy is one event, whatever the flags", `a@example.com MessageAppend Entwürfe "neu" uids 1:3 (3 messages, 3 unseen, next 4) imap`,
			func() { _, err := c.Copy(all, `Entwürfe "neu"`).Wait(); must(t, err) }},
		{"move", `
			a@example.com MessageAppend Entwürfe "neu" uids 4:5 \Flagged (5 messages, 5 unseen, next 6) imap
			a@example.com MessageExpunge INBOX uids 2:3 (1 messages, 1 unseen, next 4) imap`,
			func() { _, err := c.Move(imap.UIDSet{{Start: 2, Stop: 3}}, `Entwürfe "neu"`).Wait(); must(t, err) }},
		{"rename", `a@example.com MailboxRename Old from Entwürfe "neu" (5 messages, 5 unseen, next 6) imap`,
			func() { must(t, c.Rename(`Entwürfe "neu"`, "Old", nil).Wait()) }},
		{"subscribe", `a@example.com MailboxSubscribe Old (5 messages, 5 unseen, next 6) imap`,
			func() { must(t, c.Subscribe("Old").Wait()) }},
		{"unsubscribe", `a@example.com MailboxUnSubscribe Old (5 messages, 5 unseen, next 6) imap`,
			func() { must(t, c.Unsubscribe("Old").Wait()) }},
		{"append", `a@example.com MessageAppend INBOX uids 4 \Draft \Seen (2 messages, 1 unseen, next 5) imap`, func() {
			text := "Subject: draft\r\n\r\ntext\r\n"
			w := c.Append("INBOX", int64(len(text)), &imap.AppendOptions{Flags: []imap.Flag{imap.FlagSeen, imap.FlagDraft}})
			_, err := io.WriteString(w, text)
			must(t, err)
			must(t, w.Close())
			_, err = w.Wait()
			must(t, err)
		}},
		{"delete and expunge", `
			a@example.com FlagsSet INBOX uids 1,4 \Deleted (2 messages, 1 unseen, next 5) imap
			a@example.com MessageExpunge INBOX uids 1,4 (0 messages, 0 unseen, next 5) imap`,
			func() {
				store(imap.UIDSetNum(1, 4), imap.StoreFlagsAdd, imap.FlagDeleted)()
				must(t, c.Expunge().Close())
			}},
		{"delete a mailbox", `
			a@example.com MessageExpunge Old uids 1:5 (0 messages, 0 unseen, next 6) imap
			a@example.com MailboxDelete Old imap`,
			func() { must(t, c.Delete("Old").Wait()) }},
	}
	for _, s := range steps {
		log.expect(t, s.name, s.want, s.do)
	}
	must(t, c.Logout().Wait())
	events := log.wait(t, "all", func(int, []schema.Event) bool { return true })
	for _, e := range events {
		if e.Session == "" || e.Event != schema.MailboxDelete && (e.UIDValidity == 0 || e.ModSeq == "") {
			t.Errorf("no session, uidValidity or modseq: %s", describe([]schema.Event{e}))
		}
	}
	if strings.Contains(d.Log(), "mailbell:") {
		t.Error("the script logged something")
	}
}

// TestRealBigStore: a STORE on 5,000 messages is one report of some hundred bytes and one event.
func TestRealBigStore(t *testing.T) {
	const messages = 5000
	log := newMemoryLog()
	_, server := startAgent(t, Config{Publisher: log})
	var largest int64
	counting := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		largest = max(largest, r.ContentLength) // one report at a time: Dovecot waits
		server.Config.Handler.ServeHTTP(w, r)
	}))
	defer counting.Close()
	d := startDovecot(t, dovecotproc.Options{AgentURL: counting.URL})
	c := login(t, d, alice)
	_, err := c.Select("INBOX", nil).Wait()
	must(t, err)
	text := "Subject: x\r\n\r\nx\r\n"
	var pending []*imapclient.AppendCommand
	for range 100 {
		w := c.Append("INBOX", int64(len(text)), nil)
		_, err := io.WriteString(w, text)
		must(t, err)
		must(t, w.Close())
		pending = append(pending, w)
	}
	for _, w := range pending {
		_, err := w.Wait()
		must(t, err)
	}
	for n := 100; n < messages; n += 100 {
		_, err := c.Copy(imap.SeqSet{{Start: 1, Stop: 100}}, "INBOX").Wait()
		must(t, err)
	}
	start := time.Now()
	must(t, c.Store(imap.SeqSet{{Start: 1, Stop: 0}}, &imap.StoreFlags{Op: imap.StoreFlagsAdd, Flags: []imap.Flag{imap.FlagDeleted}, Silent: true}, nil).Close())
	t.Logf("STORE on %d messages with its report: %v; largest report %d bytes", messages, time.Since(start), largest)
	events := log.wait(t, "the STORE", func(_ int, events []schema.Event) bool {
		return len(events) > 0 && events[len(events)-1].Event == schema.FlagsSet
	})
	if e := events[len(events)-1]; e.UIDSet != fmt.Sprintf("1:%d", messages) {
		t.Fatalf("%s", describe(events[len(events)-1:]))
	}
	if largest > 2000 {
		t.Fatalf("a report of %d bytes", largest)
	}
}

// TestRealBothReporters: the OX driver and the script together make one event of a message.
func TestRealBothReporters(t *testing.T) {
	file, token, _ := tokens(t)
	for _, c := range []struct {
		name    string
		lua, ox bool
		want    string
	}{
		{"OX alone", false, true, `
			b@example.com MessageNew INBOX uids 1
			b@example.com MessageNew INBOX uids 2`},
		{"OX alone, trusted", false, true, `
			b@example.com MessageNew INBOX uids 1
			b@example.com MessageNew INBOX uids 2`},
		{"both", true, true, `
			b@example.com MailboxCreate INBOX (0 messages, 0 unseen, next 1) doveadm
			b@example.com MessageNew INBOX uids 1 (1 messages, 1 unseen, next 2) lmtp
			b@example.com MessageNew INBOX uids 2 (2 messages, 2 unseen, next 3) lmtp`},
	} {
		t.Run(c.name, func(t *testing.T) {
			log := newMemoryLog()
			trusted := strings.HasSuffix(c.name, "trusted")
			_, server := startAgent(t, Config{Publisher: log, Tokens: file, TrustLoopback: trusted})
			opts := dovecotproc.Options{Token: token}
			if c.lua {
				opts.AgentURL = server.URL
			}
			if c.ox {
				opts.OXURL = "http://mailbell:" + token + "@" + strings.TrimPrefix(server.URL, "http://") + NotifyPath + "?account=%u"
				if trusted {
					opts.OXURL = server.URL + NotifyPath + "?account=%u"
				}
			}
			d := startDovecot(t, opts)
			must(t, d.SetOXUser(t.Context(), bob, "11@3"))
			deliver(t, d, bob, "one")
			deliver(t, d, bob, "two")
			// Each answer came after the events were in the spool, so the last one ends the test.
			must(t, reportEnd(server, token))
			log.wait(t, "the end", func(_ int, events []schema.Event) bool {
				return len(events) > 0 && events[len(events)-1].Account == "end"
			})
			got := briefs(log.events[:len(log.events)-1])
			if want := strings.TrimSpace(strings.ReplaceAll(c.want, "\t", "")); got != want {
				t.Fatalf("got\n%s\nwant\n%s", got, want)
			}
			if strings.Contains(d.Log(), "Error when sending") || strings.Contains(d.Log(), "mailbell:") {
				t.Error("Dovecot logged an error")
			}
		})
	}
}

// reportEnd reports an event of an account of its own.
func reportEnd(server *httptest.Server, token string) error {
	r, err := http.NewRequest(http.MethodPost, server.URL+EventsPath, strings.NewReader(expunge("end", 1)))
	if err != nil {
		return err
	}
	r.Header.Set("Authorization", "Bearer "+token)
	resp, err := server.Client().Do(r)
	if err != nil {
		return err
	}
	return resp.Body.Close()
}

func TestRealSharedMailbox(t *testing.T) {
	log := newMemoryLog()
	_, server := startAgent(t, Config{Publisher: log, Shared: []string{"shared/%u/"}})
	d := startDovecot(t, dovecotproc.Options{AgentURL: server.URL, Shared: true})
	owner := login(t, d, bob)
	log.expect(t, "creation", "b@example.com MailboxCreate Team (0 messages, 0 unseen, next 1) imap",
		func() { must(t, owner.Create("Team", nil).Wait()) })
	must(t, owner.SetACL("Team", alice, imap.RightModificationReplace, imap.RightSet("lrwstipe")).Wait())
	actor := login(t, d, alice)
	const name = "shared/" + bob + "/Team"
	text := "Subject: x\r\n\r\nx\r\n"
	w := actor.Append(name, int64(len(text)), nil)
	_, err := io.WriteString(w, text)
	must(t, err)
	must(t, w.Close())
	_, err = w.Wait()
	must(t, err)
	events := log.wait(t, "the append", func(_ int, events []schema.Event) bool {
		return len(events) > 0 && events[len(events)-1].Event == schema.MessageAppend
	})
	want := "b@example.com MessageAppend Team uids 1 (1 messages, 1 unseen, next 2) by a@example.com imap"
	if got := brief(events[len(events)-1]); got != want {
		t.Fatalf("got %s, want %s", got, want)
	}
}

// TestRealDeadAgent: an agent that is gone costs nothing, one that hangs costs the script's
// timeout once, and mail is delivered all the same.
func TestRealDeadAgent(t *testing.T) {
	const timeout = time.Second // the script's own
	// What this machine may need on top of that and of what a delivery takes with an agent that answers.
	const slack = 500 * time.Millisecond
	hung, err := net.Listen("tcp", "127.0.0.1:0") // takes connections and never reads
	must(t, err)
	defer hung.Close()
	gone, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	gone.Close()
	log := newMemoryLog()
	_, alive := startAgent(t, Config{Publisher: log})
	var baseline time.Duration
	for _, c := range []struct {
		name   string
		url    string
		lo, hi time.Duration // of a delivery, beyond the baseline
	}{
		{"alive", alive.URL, 0, timeout},
		{"gone", "http://" + gone.Addr().String(), 0, timeout},
		{"hung", "http://" + hung.Addr().String(), timeout, timeout + slack},
	} {
		t.Run(c.name, func(t *testing.T) {
			d := startDovecot(t, dovecotproc.Options{AgentURL: c.url})
			deliver(t, d, alice, "makes INBOX")
			took := time.Hour
			for range 3 { // the best one is the least disturbed by what else runs here
				start := time.Now()
				deliver(t, d, alice, "measured")
				took = min(took, time.Since(start))
			}
			t.Logf("a delivery took %v", took)
			if c.name == "alive" {
				baseline = took
				return
			}
			if took < c.lo || took > baseline+c.hi {
				t.Errorf("a delivery took %v, want %v to %v", took, c.lo, baseline+c.hi)
			}
			must(t, d.WaitForLog(t.Context(), "saved mail to INBOX", 4))
			must(t, d.WaitForLog(t.Context(), "mailbell: the agent at", 4))
			checkRest(t, d, c.lo, baseline+c.hi)
		})
	}
}

// checkRest: a session that ran into the timeout once leaves the agent alone for a while.
func checkRest(t *testing.T, d *dovecotproc.Server, lo, hi time.Duration) {
	t.Helper()
	c := login(t, d, alice)
	_, err := c.Select("INBOX", nil).Wait()
	must(t, err)
	start := time.Now()
	for _, flag := range []imap.Flag{"a", "b", "c", "d", "e", "f"} {
		must(t, c.Store(imap.SeqSetNum(1), &imap.StoreFlags{Op: imap.StoreFlagsAdd, Flags: []imap.Flag{flag}, Silent: true}, nil).Close())
	}
	if took := time.Since(start); took < lo || took > hi {
		t.Errorf("six commands took %v, want %v to %v", took, lo, hi)
	}
}

// TestRealBrokenAgent: whatever the agent answers, mail is delivered.
func TestRealBrokenAgent(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		w.WriteHeader(http.StatusInsufficientStorage)
	}))
	defer server.Close()
	for name, url := range map[string]string{"507": server.URL, "no URL at all": "nonsense://"} {
		t.Run(name, func(t *testing.T) {
			d := startDovecot(t, dovecotproc.Options{AgentURL: url})
			deliver(t, d, alice, "x")
			must(t, d.WaitForLog(t.Context(), "saved mail to INBOX", 1))
			must(t, d.WaitForLog(t.Context(), "mailbell: ", 1))
		})
	}
}

// TestConfigToPaste: Dovecot understands deploy/dovecot/mailbell.conf, also with every
// setting in it turned on.
func TestConfigToPaste(t *testing.T) {
	b, err := os.ReadFile("../../deploy/dovecot/mailbell.conf")
	must(t, err)
	settings := regexp.MustCompile(`(?m)^( *)#((?:  )?(?:[a-z_0-9]+ = |protocol imap|imap_metadata|}))`)
	for name, text := range map[string]string{"as it is": string(b), "with everything": settings.ReplaceAllString(string(b), "$1$2")} {
		t.Run(name, func(t *testing.T) {
			conf := filepath.Join(t.TempDir(), "dovecot.conf")
			must(t, os.WriteFile(conf, []byte("mail_plugins = quota\n"+text+"protocol lmtp {\n  mail_plugins = $mail_plugins sieve\n}\n"), 0o600))
			out, err := exec.Command("doveconf", "-n", "-c", conf).CombinedOutput()
			if err != nil {
				t.Fatalf("doveconf: %v: %s\n%s", err, out, text)
			}
			for _, want := range []string{"quota notify push_notification mail_lua push_notification_lua sieve", "push_notification_driver = lua:file=/etc/dovecot/mailbell.lua"} {
				if !strings.Contains(string(out), want) {
					t.Errorf("no %q in\n%s", want, out)
				}
			}
			if everything := name != "as it is"; everything != strings.Contains(string(out), "imap_metadata = yes") || everything != strings.Contains(string(out), "ox:url=") {
				t.Errorf("%s", out)
			}
		})
	}
}
