package main

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"testing"

	"github.com/emersion/go-imap/v2"
	"github.com/emersion/go-imap/v2/imapclient"

	"github.com/mailbell/mailbell/internal/chromiumproc"
	"github.com/mailbell/mailbell/internal/dovecotproc"
	"github.com/mailbell/mailbell/internal/kafkaproc"
)

// TestMailRingsInBrowser follows mail from a real Dovecot into a real Chromium. A message that is
// delivered by LMTP, a flag, an expunge and a rename each show up in the demo page.
func TestMailRingsInBrowser(t *testing.T) {
	t.Run("embedded log", func(t *testing.T) {
		c := makeCredentials(t)
		all := startProcess(t, "run", "--data", c.data, "--sockets", "127.0.0.1:0", "--link", "127.0.0.1:0", "--http", "127.0.0.1:0", "--dovecot")
		http := "http://" + all.logged(t, "ready", "http")
		mailRings(t, http, http, c.serviceToken)
	})
	// adapter, bus and notifiers as processes of their own on Kafka; the page comes from a `run` on
	// the same Kafka, which is one more bus node and notifier.
	t.Run("Kafka", func(t *testing.T) {
		brokers := strings.Join(kafkaproc.ForTest(t, 1), ",")
		c := makeCredentials(t)
		adapter := startProcess(t, "adapter", "--brokers", brokers, "--partitions", "16", "--replication", "1", "--service-tokens", c.serviceTokens,
			"--http", "127.0.0.1:0", "--data", t.TempDir(), "--dovecot")
		agent := "http://" + adapter.logged(t, "ready", "http")
		bus := startProcess(t, "bus", "--brokers", brokers, "--link", "127.0.0.1:0", "--http", "127.0.0.1:0", "--jwt-keys", c.publicKey, "--service-tokens", c.serviceTokens)
		page := startProcess(t, "run", "--brokers", brokers, "--bus", bus.logged(t, "starting", "link"), "--data", c.data, "--sockets", "127.0.0.1:0", "--link", "127.0.0.1:0", "--http", "127.0.0.1:0")
		http := page.logged(t, "ready", "http")
		notifier := startProcess(t, "notifier", "--bus", bus.logged(t, "ready", "link")+","+page.logged(t, "ready", "link"),
			"--sockets", "127.0.0.1:0", "--jwt-keys", c.publicKey)
		notifier.logged(t, "ready", "sockets")
		mailRings(t, "http://"+http, agent, c.serviceToken)
	})
}

// mailRings does to a mailbox what people do, and looks at the page.
func mailRings(t *testing.T, web, agent, token string) {
	const user = "rita@example.com"
	ctx := soon(t)
	mail, err := dovecotproc.Start(ctx, dovecotproc.Options{AgentURL: agent, Token: token})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(mail.Log())
		}
		mail.Stop()
	})
	page := chromiumproc.Open(t, 1280, 800)
	page.Go(web + "/demo/?account=" + user)
	page.See(`[data-testid=connection][data-state=connected]`)

	if err := mail.Deliver(ctx, user, dovecotproc.Message("sam@example.com", user, "Lunch?", "At noon.")); err != nil {
		t.Fatal(err)
	}
	page.See(`[data-testid=activity-entry][data-event=MessageNew][data-mailbox=INBOX][data-uidset="1"]`)
	page.See(`[data-testid=folder-row][data-name=INBOX][data-unread="1"]`)
	page.See(`[data-testid=message-row][data-uid="1"][data-seen=false]`)
	mails := ringsSoon(t, page, func() {
		if err := mail.Deliver(ctx, user, dovecotproc.Message("sam@example.com", user, "Lunch?", "At one?")); err != nil {
			t.Fatal(err)
		}
	})

	imapClient, err := imapclient.DialInsecure(mail.IMAPAddr(), nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = imapClient.Close() })
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(imapClient.Login(user, dovecotproc.Password).Wait())
	_, err = imapClient.Select("INBOX", nil).Wait()
	must(err)
	must(imapClient.Store(imap.SeqSetNum(1), &imap.StoreFlags{Op: imap.StoreFlagsAdd, Flags: []imap.Flag{imap.FlagFlagged, imap.FlagSeen}}, nil).Close())
	page.See(`[data-testid=message-row][data-uid="1"][data-seen=true][data-flags*="Flagged"]`)
	page.See(fmt.Sprintf(`[data-testid=folder-row][data-name=INBOX][data-unread="%d"]`, mails))
	page.Screenshot("flagged")

	must(imapClient.Store(imap.SeqSetNum(1), &imap.StoreFlags{Op: imap.StoreFlagsAdd, Flags: []imap.Flag{imap.FlagDeleted}}, nil).Close())
	must(imapClient.Expunge().Close())
	page.See(`[data-testid=activity-entry][data-event=MessageExpunge][data-uidset="1"]`)
	page.Gone(`[data-testid=message-row][data-uid="1"]`)

	must(imapClient.Create("Plans", nil).Wait())
	page.See(`[data-testid=folder-row][data-name=Plans]`)
	must(imapClient.Rename("Plans", "Journeys", nil).Wait())
	page.See(`[data-testid=folder-row][data-name=Journeys]`)
	page.Gone(`[data-testid=folder-row][data-name=Plans]`)
}

// ringsSoon delivers some mails, the first of which warms up what is between here and the page: the best one is painted
// within 100 ms of its event's timestamp. The best, because the others share a machine with whatever else runs.
func ringsSoon(t *testing.T, page *chromiumproc.Tab, deliver func()) (mails int) {
	t.Helper()
	const within, most = 100.0, 40 // a machine that others keep busy may be late for a while; not always
	best, n := math.Inf(1), 2
	for ; best >= within && n < 2+most; n++ {
		deliver()
		took := fmt.Sprintf(`document.querySelector('[data-testid=activity-entry][data-event=MessageNew][data-uidset="%d"] .took')?.dataset.ms`, n)
		page.Until(took + " !== undefined")
		ms, err := chromiumproc.Evaluate[string](page, took)
		if err != nil {
			t.Fatal(err)
		}
		v, err := strconv.ParseFloat(ms, 64)
		if err != nil {
			t.Fatal(err)
		}
		best = min(best, v)
	}
	t.Logf("from the event's timestamp to the painted page: %v ms, the best of %d", best, n-2)
	if best >= within {
		t.Errorf("the best of %d mails was painted after %v ms, want less than %v", n-2, best, within)
	}
	return n - 2
}
