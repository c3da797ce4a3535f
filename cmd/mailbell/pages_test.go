package main

import (
	"context"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/chromedp/chromedp"
	"github.com/mailbell/mailbell/bench/report"
)

// browser starts a Chromium that ends with the test.
func browser(t *testing.T) context.Context {
	t.Helper()
	options := append([]chromedp.ExecAllocatorOption{}, chromedp.DefaultExecAllocatorOptions[:]...)
	for _, flag := range []string{"no-sandbox", "disable-gpu", "disable-quic", "disable-component-update", "disable-sync", "disable-background-networking"} {
		options = append(options, chromedp.Flag(flag, true))
	}
	options = append(options, chromedp.UserDataDir(t.TempDir()), chromedp.WindowSize(1200, 1400))
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	ctx, cancel = chromedp.NewExecAllocator(ctx, options...)
	t.Cleanup(cancel)
	ctx, cancel = chromedp.NewContext(ctx)
	t.Cleanup(func() { _ = chromedp.Cancel(ctx); cancel() })
	return ctx
}

func open(t *testing.T, ctx context.Context, url string) {
	t.Helper()
	if err := chromedp.Do(ctx, chromedp.Navigate(url)); err != nil {
		t.Fatal(err)
	}
}

// see evaluates an expression in the page until it is true, and returns its value.
func see[T any](t *testing.T, ctx context.Context, expression string) T {
	t.Helper()
	v, err := chromedp.Run(ctx, chromedp.Poll[T](expression))
	if err != nil {
		t.Fatalf("%s: %v", expression, err)
	}
	return v
}

// TestConsole reads figures of a running mailbell from the page.
func TestConsole(t *testing.T) {
	s := startSite(t)
	watch := start(t, strings.NewReader(""), "watch", "--account", "alice@example.com", "--server", s.server, "--data", s.data)
	watch.wait(t, watch.err, "watching")
	publish := start(t, strings.NewReader(""), "publish", "--account", "alice@example.com", "--mailbox", "INBOX", "--uidvalidity", "1", "--uid", "5", "--server", s.server, "--data", s.data)
	if code := publish.end(t); code != 0 {
		t.Fatalf("publish: exit %d", code)
	}
	ctx := browser(t)
	open(t, ctx, "http://"+s.port+"/console/")
	see[bool](t, ctx, `document.getElementById("connections")?.textContent === "1" && document.getElementById("p99").textContent !== "–"`)
	connections := see[string](t, ctx, `document.getElementById("connections").textContent`)
	state := see[string](t, ctx, `document.getElementById("state").textContent`)
	partitions := see[int](t, ctx, `document.querySelectorAll("#partitions i").length`)
	see[bool](t, ctx, `document.querySelector("#search input").value = "alice@example.com", document.querySelector("#search button").click(), true`)
	account := see[string](t, ctx, `document.getElementById("account-text") && document.getElementById("account").innerText`)
	if connections != "1" || partitions != 4 || state != "all is well" {
		t.Errorf("the console shows %s connections, %d partitions, %q", connections, partitions, state)
	}
	for _, part := range []string{"served by", "1 subscription", "127.0.0.1", "all mailboxes"} {
		if !strings.Contains(account, part) {
			t.Errorf("the search shows %q, which lacks %q", account, part)
		}
	}
}

// TestReportPage opens the report that docs/ has: charts are drawn, and the calculator multiplies.
func TestReportPage(t *testing.T) {
	path, err := filepath.Abs("../../docs/comparison.html")
	if err != nil {
		t.Fatal(err)
	}
	ctx := browser(t)
	open(t, ctx, "file://"+path)
	cell := func(row string) string {
		return see[string](t, ctx, `document.querySelector('#scaled tr[data-row="`+row+`"] td')?.textContent`)
	}
	requests, cores := cell("requests"), cell("cores")
	same := see[string](t, ctx, `document.getElementById("same").textContent`)
	charts := see[int](t, ctx, `document.querySelectorAll(".chart svg path").length > 50 && document.querySelectorAll(".chart svg").length`)
	loaded := see[string](t, ctx, `"loaded " + performance.getEntriesByType("resource").map(e => e.name).join(" ")`)
	if requests != "50,000" || same != "60.0 %" {
		t.Errorf("the article's case is %s polls a second and %s of 304, want 50,000 and 60.0 %%", requests, same)
	}
	if charts < 6 || loaded != "loaded " {
		t.Errorf("%d charts; the page has %s", charts, loaded)
	}
	c := readComparison(t, "../../docs/comparison/memory.json")
	u := c.Result.Units
	want := 50000 * (0.6*u.Poll304Us + 0.4*u.Poll200Us) / 1e6
	if got, err := strconv.ParseFloat(strings.ReplaceAll(cores, ",", ""), 64); err != nil || math.Abs(got-want) > 0.01*want+0.01 {
		t.Errorf("the calculator says %s cores for polling, want %.3g", cores, want)
	}
}

func readComparison(t *testing.T, name string) report.Comparison {
	t.Helper()
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	c, err := report.Read(f)
	if err != nil {
		t.Fatal(err)
	}
	return c
}
