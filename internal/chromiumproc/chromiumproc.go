// Package chromiumproc drives a real, headless Chromium in tests: one tab of a browser of its own for each test,
// closed when the test ends. A machine without Chromium fails the test; nothing is skipped.
package chromiumproc

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	cdplog "github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"
)

const (
	// patience is how long a test waits for what should happen at once.
	patience = 60 * time.Second
	// pollEvery is how often the page is looked at.
	pollEvery = 10 * time.Millisecond
	// screenshotsVariable names the folder that keeps screenshots; without it they go to the test's artifacts.
	screenshotsVariable = "TEST_SCREENSHOTS"
)

// Tab is a tab of a browser. What fails in it fails its test.
type Tab struct {
	t             testing.TB
	ctx           context.Context
	console       *console
	width, height int
}

// console is what a tab complained of: exceptions, refused requests, console.error. Shown when a test fails.
type console struct {
	mu    sync.Mutex
	lines []string // guarded by mu
}

const maxConsole = 50 // lines

func (c *console) listen(event any) {
	line := ""
	switch e := event.(type) {
	case *cdplog.EventEntryAdded:
		line = fmt.Sprintf("%s: %s %s", e.Entry.Level, e.Entry.Text, e.Entry.URL)
	case *runtime.EventExceptionThrown:
		line = "exception: " + describe(e.ExceptionDetails)
	case *runtime.EventConsoleAPICalled:
		args := make([]string, len(e.Args))
		for i, a := range e.Args {
			args[i] = string(a.Value) + a.Description
		}
		line = fmt.Sprintf("console.%s: %s", e.Type, strings.Join(args, " "))
	default:
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.lines) < maxConsole {
		c.lines = append(c.lines, line)
	}
}

func describe(e *runtime.ExceptionDetails) string {
	text := fmt.Sprintf("%s at %s:%d", e.Text, e.URL, e.LineNumber+1)
	if e.Exception != nil {
		text += " " + e.Exception.Description
	}
	return text
}

func (c *console) String() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return strings.Join(c.lines, "\n")
}

// Open starts Chromium with a window of this size, in pixels.
func Open(t testing.TB, width, height int) *Tab {
	t.Helper()
	return open(t, width, height)
}

// OpenDark is Open for somebody who prefers dark pages.
func OpenDark(t testing.TB, width, height int) *Tab {
	t.Helper()
	return open(t, width, height, chromedp.Flag("blink-settings", "preferredColorScheme=0"))
}

func open(t testing.TB, width, height int, more ...chromedp.ExecAllocatorOption) *Tab {
	t.Helper()
	path, err := exec.LookPath("chromium")
	if err != nil {
		t.Fatal("chromium is missing: apt-get install chromium, or make deps")
	}
	var output bytes.Buffer
	options := append([]chromedp.ExecAllocatorOption{
		chromedp.ExecPath(path), chromedp.NoSandbox, chromedp.NoFirstRun, chromedp.DisableGPU, chromedp.UserDataDir(t.TempDir()),
		chromedp.WindowSize(width, height), chromedp.Flag("disable-quic", true), chromedp.Flag("disable-background-networking", true),
		chromedp.Flag("disable-component-update", true), chromedp.Flag("disable-sync", true), chromedp.CombinedOutput(&output)}, more...)
	ctx, cancel := chromedp.NewContext(context.Background(), chromedp.WithAllocatorOptions(options...))
	tab := &Tab{t, ctx, new(console), width, height}
	t.Cleanup(func() {
		_ = chromedp.Cancel(ctx) // closes the browser and waits for it
		cancel()
	})
	if err := tab.begin(); err != nil {
		t.Fatalf("chromium: %v\n%s", err, &output)
	}
	tab.watch()
	return tab
}

// begin opens the tab: with its own context, because a tab closes when the context of its first action ends.
func (b *Tab) begin() error {
	return chromedp.Do(b.ctx, chromedp.EmulateViewport(int64(b.width), int64(b.height)))
}

// Beside opens another tab of the same browser, in a window of its own so that both are visible.
func (b *Tab) Beside() *Tab {
	b.t.Helper()
	ctx, cancel := chromedp.NewContext(b.ctx)
	b.t.Cleanup(cancel)
	tab := &Tab{b.t, ctx, new(console), b.width, b.height}
	if err := tab.begin(); err != nil {
		b.t.Fatalf("another tab: %v", err)
	}
	tab.watch()
	return tab
}

func (b *Tab) watch() {
	b.t.Helper()
	if err := chromedp.Listen(b.ctx, b.console.listen); err != nil {
		b.t.Fatalf("listen to the page's console: %v", err)
	}
}

// Go navigates and waits for the page to load.
func (b *Tab) Go(url string) {
	b.t.Helper()
	b.do("go to "+url, chromedp.Navigate(url))
}

// Resize changes the size of the window, in pixels.
func (b *Tab) Resize(width, height int) {
	b.t.Helper()
	b.do("resize", chromedp.EmulateViewport(int64(width), int64(height)))
}

// Click clicks what a CSS selector names, once it is visible.
func (b *Tab) Click(selector string) {
	b.t.Helper()
	b.do("click "+selector, chromedp.Click(selector))
}

// Type types into what a CSS selector names, once it is visible.
func (b *Tab) Type(selector, text string) {
	b.t.Helper()
	b.do("type into "+selector, chromedp.SendKeys(selector, text))
}

func (b *Tab) do(what string, action chromedp.Action[chromedp.Void]) {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.ctx, patience)
	defer cancel()
	if err := chromedp.Do(ctx, action); err != nil {
		b.fail(what, err)
	}
}

// See waits until the page has an element that a CSS selector names.
func (b *Tab) See(selector string) {
	b.t.Helper()
	b.Until(fmt.Sprintf(`document.querySelector(%s) !== null`, quote(selector)))
}

// Gone waits until the page has no such element.
func (b *Tab) Gone(selector string) {
	b.t.Helper()
	b.Until(fmt.Sprintf(`document.querySelector(%s) === null`, quote(selector)))
}

// Until waits until a JavaScript expression is true.
func (b *Tab) Until(expression string) {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.ctx, patience)
	defer cancel()
	for {
		action := chromedp.Poll[bool](expression, chromedp.WithPollingInterval(pollEvery), chromedp.WithPollingTimeout(0))
		_, err := chromedp.Run(ctx, action)
		if err == nil {
			return
		}
		if ctx.Err() != nil || !leftPage(err) {
			b.fail("wait for "+expression, err)
		}
	}
}

// leftPage tells whether a page could not answer because another one took its place meanwhile.
func leftPage(err error) bool {
	for _, text := range []string{"navigated or closed", "context was destroyed", "Cannot find context", "Not attached to an active page"} {
		if strings.Contains(err.Error(), text) {
			return true
		}
	}
	return false
}

func (b *Tab) fail(what string, err error) {
	b.t.Helper()
	b.Screenshot("failed")
	b.t.Fatalf("%s: %v; the page shows\n%s\nand says\n%s", what, err, b.Text("body"), b.console)
}

// Text returns what the element that a CSS selector names shows, or "absent".
func (b *Tab) Text(selector string) string {
	b.t.Helper()
	text, err := Evaluate[string](b, fmt.Sprintf(`document.querySelector(%s)?.innerText ?? "absent"`, quote(selector)))
	if err != nil {
		return err.Error()
	}
	return text
}

// Evaluate returns the value of a JavaScript expression; a promise is waited for.
func Evaluate[T any](b *Tab, expression string) (T, error) {
	ctx, cancel := context.WithTimeout(b.ctx, patience)
	defer cancel()
	return chromedp.Run(ctx, chromedp.Evaluate[T](expression, chromedp.EvalAwaitPromise))
}

// Screenshot keeps a picture of the page as TEST-NAME.png, and logs where.
func (b *Tab) Screenshot(name string) {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.ctx, patience)
	defer cancel()
	png, err := chromedp.Run(ctx, chromedp.CaptureScreenshot())
	if err != nil {
		b.t.Errorf("screenshot: %v", err)
		return
	}
	b.keep(name+".png", png)
}

// Print keeps the page as it is printed, on A4, as NAME.pdf, and returns that.
func (b *Tab) Print(name string) []byte {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.ctx, patience)
	defer cancel()
	pdf, err := chromedp.Run(ctx, chromedp.PrintToPDF(chromedp.PDFPaper(chromedp.PaperA4)))
	if err != nil {
		b.fail("print", err)
	}
	b.keep(name+".pdf", pdf)
	return pdf
}

// keep writes a file where screenshots go.
func (b *Tab) keep(name string, content []byte) {
	b.t.Helper()
	dir := os.Getenv(screenshotsVariable)
	if dir == "" {
		dir = b.t.ArtifactDir()
	}
	path := filepath.Join(dir, strings.ReplaceAll(b.t.Name(), "/", "-")+"-"+name)
	err := os.MkdirAll(dir, 0o755)
	if err == nil {
		err = os.WriteFile(path, content, 0o644)
	}
	if err != nil {
		b.t.Errorf("keep %s: %v", name, err)
		return
	}
	b.t.Logf("kept: %s", path)
}

func quote(s string) string {
	b, _ := json.Marshal(s)
	return string(b)
}
