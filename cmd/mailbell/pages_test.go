package main

import (
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/mailbell/mailbell/bench"
	"github.com/mailbell/mailbell/bench/report"
	"github.com/mailbell/mailbell/internal/chromiumproc"
)

// The sizes in which pages are looked at.
const (
	wide, tall              = 1240, 1500
	phoneWidth, phoneHeight = 390, 844
)

func valueOf[T any](t *testing.T, tab *chromiumproc.Tab, expression string) T {
	t.Helper()
	v, err := chromiumproc.Evaluate[T](tab, expression)
	if err != nil {
		t.Fatalf("%s: %v", expression, err)
	}
	return v
}

// onPhone looks at the page on a phone, where nothing may stick out at the side.
func onPhone(t *testing.T, tab *chromiumproc.Tab, name string) {
	t.Helper()
	tab.Resize(phoneWidth, phoneHeight)
	tab.Until(`innerWidth === ` + strconv.Itoa(phoneWidth))
	if over := valueOf[int](t, tab, `document.documentElement.scrollWidth - innerWidth`); over > 0 {
		t.Errorf("%s sticks out of a phone's screen by %d pixels", name, over)
	}
	tab.Screenshot(name + "-phone")
}

// TestConsole reads figures of a running mailbell from the page.
func TestConsole(t *testing.T) {
	s := startSite(t)
	watch := start(t, strings.NewReader(""), "watch", "--account", "alice@example.com", "--server", s.server, "--data", s.data)
	watch.wait(t, watch.err, "watching")
	publish := func() {
		c := start(t, strings.NewReader(""), "publish", "--account", "alice@example.com", "--mailbox", "INBOX", "--uidvalidity", "1", "--uid", "5", "--server", s.server, "--data", s.data)
		if code := c.end(t); code != 0 {
			t.Fatalf("publish: exit %d", code)
		}
	}
	publish()
	tab := chromiumproc.Open(t, wide, tall)
	look := func(tab *chromiumproc.Tab) {
		tab.Go("http://" + s.port + "/console/")
		tab.Until(`document.getElementById("connections")?.textContent === "1"`)
		publish()
		tab.Until(`document.getElementById("p99").textContent !== "–" && document.querySelectorAll("#delays .row").length > 0`)
	}
	look(tab)
	if state, partitions := tab.Text("#state"), valueOf[int](t, tab, `document.querySelectorAll("#partitions i.owned").length`); state != "all is well" || partitions != 4 {
		t.Errorf("the console shows %d partitions that are served, %q", partitions, state)
	}
	search := func(tab *chromiumproc.Tab) {
		tab.Type("#search input", "alice@example.com")
		tab.Click("#search button")
		tab.See("#account-text")
	}
	search(tab)
	for account, parts := tab.Text("#account"), []string{"served by", "1 subscription", "127.0.0.1", "all mailboxes"}; len(parts) > 0; parts = parts[1:] {
		if !strings.Contains(account, parts[0]) {
			t.Errorf("the search shows %q, which lacks %q", account, parts[0])
		}
	}
	tab.Screenshot("console")
	onPhone(t, tab, "console")
	dark := chromiumproc.OpenDark(t, wide, tall)
	look(dark)
	dark.Screenshot("console-dark")
}

// drawReport draws a report of the comparisons that docs/ has, and returns them.
func drawReport(t *testing.T) (path string, all []report.Comparison) {
	t.Helper()
	for _, store := range []string{"memory", "sqlite", "dovecot"} {
		f, err := os.Open("../../docs/comparison/" + store + ".json")
		if err != nil {
			t.Fatal(err)
		}
		c, err := report.Read(f)
		f.Close()
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, c)
	}
	path = filepath.Join(t.TempDir(), "report.html")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := report.HTML(f, all...); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	return path, all
}

// site is what the calculator is asked for.
type calculated struct {
	store                                                       int // of the comparisons
	users, interval, changes, burst, mailboxes, header, aServer float64
}

// figures computes what the page has to show, by row: poll, push, push without fetch.
func (c calculated) figures(u bench.CompareUnits) map[string][3]float64 {
	rate := c.changes / 3600
	same := math.Exp(-rate / c.burst * c.interval)
	polls, events, hours := c.users/c.interval, c.users*rate, c.users/3600
	fetches, servers := events*u.FetchesPerEvent, math.Ceil(c.users/c.aServer)
	body := func(bytes float64) float64 {
		return u.Poll304Bytes + max(0, bytes-u.Poll304Bytes)*c.mailboxes/float64(u.Mailboxes)
	}
	reads := func(n float64) float64 { return n + u.ReadsPerMailbox*(c.mailboxes-float64(u.Mailboxes)) }
	bareCores, bareBytes := servers*u.PushBaseCores+(hours*u.HoldUsPerHour+events*u.EventUs)/1e6, hours*u.HoldBytesPerHour+events*u.EventBytes
	return map[string][3]float64{
		"requests": {polls, fetches, 0},
		"events":   {0, events, events},
		"cores":    {servers*u.PollBaseCores + polls*(same*u.Poll304Us+(1-same)*u.Poll200Us)/1e6, bareCores + servers*u.PollBaseCores + fetches*u.FetchUs/1e6, bareCores},
		"mbit": {polls * (c.header + same*u.Poll304Bytes + (1-same)*body(u.Poll200Bytes)) * 8 / 1e6,
			(bareBytes + fetches*(c.header+body(u.FetchBytes))) * 8 / 1e6, bareBytes * 8 / 1e6},
		"reads": {polls * (same*reads(u.Poll304Reads) + (1-same)*reads(u.Poll200Reads)), fetches * reads(u.FetchReads), 0},
	}
}

// check compares the page's table.
func (c calculated) check(t *testing.T, tab *chromiumproc.Tab, r bench.CompareResult) {
	t.Helper()
	want := c.figures(r.Units)
	want["wait"] = [3]float64{c.interval * 500, r.Push.LatencyMs.P50, r.Push.WithoutFetch.LatencyMs.P50}
	for row, values := range want {
		for i, value := range values {
			text := valueOf[string](t, tab, fmt.Sprintf(`document.querySelector('#scaled tr[data-row=%q]').cells[%d].textContent`, row, i+1))
			got, err := strconv.ParseFloat(strings.ReplaceAll(text, ",", ""), 64)
			if err != nil || math.Abs(got-value) > 0.01*value+0.001 {
				t.Errorf("%+v: %s, column %d: %q, want %.4g", c, row, i+1, text, value)
			}
		}
	}
}

// TestReportPage opens a report: charts are drawn, the calculator multiplies, nothing is loaded, and it fits a phone and paper.
func TestReportPage(t *testing.T) {
	path, all := drawReport(t)
	tab := chromiumproc.Open(t, wide, tall)
	tab.Go("file://" + path)
	tab.Until(`document.querySelectorAll(".chart svg path").length > 50`)
	if charts := valueOf[int](t, tab, `document.querySelectorAll(".chart svg").length`); charts != 7 {
		t.Errorf("%d charts", charts)
	}
	if loaded := valueOf[string](t, tab, `performance.getEntriesByType("resource").map(e => e.name).join(" ")`); loaded != "" {
		t.Errorf("the page loads %s", loaded)
	}
	if same := tab.Text("#same"); same != "60.0 %" {
		t.Errorf("in the article's case %s of the polls are 304", same)
	}
	article := calculated{users: 3e6, interval: 60, changes: math.Round(-math.Log(0.6)*60*100) / 100, burst: 1, aServer: 100_000, mailboxes: float64(all[0].Result.Settings.Mailboxes)}
	article.check(t, tab, all[0].Result)
	for _, c := range []calculated{
		{store: 1, users: 20000, interval: 30, changes: 12, burst: 1, mailboxes: 5, header: 400, aServer: 20_000},
		{store: 2, users: 1000, interval: 10, changes: 60, burst: 4, mailboxes: 20, aServer: 300},
	} {
		valueOf[bool](t, tab, fmt.Sprintf(`(() => {
			const f = document.getElementById("calculator").elements;
			Object.entries({store: %d, users: %v, interval: %v, changes: %v, burst: %v, mailboxes: %v, header: %v, servers: %v}).forEach(([k, v]) => { f[k].value = v; });
			f.users.dispatchEvent(new Event("input", {bubbles: true}));
			return true;
		})()`, c.store, c.users, c.interval, c.changes, c.burst, c.mailboxes, c.header, c.aServer))
		c.check(t, tab, all[c.store].Result)
	}
	valueOf[bool](t, tab, `(document.activeElement.blur(), scrollTo(0, 0), true)`)
	tab.Screenshot("report")
	checkPrint(t, tab)
	onPhone(t, tab, "report")
	dark := chromiumproc.OpenDark(t, wide, tall)
	dark.Go("file://" + path)
	dark.Until(`document.querySelectorAll(".chart svg path").length > 50`)
	dark.Screenshot("report-dark")
}

// checkPrint prints the page, and looks at how it is laid out on paper, where charts must not stick out of their cards.
func checkPrint(t *testing.T, tab *chromiumproc.Tab) {
	t.Helper()
	valueOf[bool](t, tab, `(addEventListener("beforeprint", () => { window.printed = [...document.querySelectorAll(".chart > svg")].map(s => s.getAttribute("viewBox")); }), true)`)
	if pdf := tab.Print("report"); len(pdf) < 50_000 {
		t.Errorf("what is printed has %d bytes", len(pdf))
	}
	if boxes := valueOf[string](t, tab, `(window.printed || []).join(",")`); strings.Count(boxes, "0 0 ") != 7 {
		t.Errorf("on paper the charts' view boxes are %q: without them they are not scaled", boxes)
	}
	tab.Until(`document.querySelectorAll(".chart svg path").length > 50 && !document.querySelector(".chart > svg")`) // the page is as it was
}
