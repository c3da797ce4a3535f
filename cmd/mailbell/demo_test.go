package main

import (
	"fmt"
	"strconv"
	"testing"

	"github.com/mailbell/mailbell/internal/chromiumproc"
)

// demoTab is a window of the demo page.
type demoTab struct{ *chromiumproc.Tab }

func (d demoTab) test(id string) string { return `[data-testid=` + id + `]` }

// press clicks what a data-testid names.
func (d demoTab) press(id string) { d.Click(d.test(id)) }

func (d demoTab) folder(name, more string) string {
	return fmt.Sprintf(`[data-testid=folder-row][data-name=%q]%s`, name, more)
}

func (d demoTab) row(uid, more string) string {
	return fmt.Sprintf(`[data-testid=message-row][data-uid=%q]%s`, uid, more)
}

// open opens a folder and waits until its list is shown.
func (d demoTab) open(name string) {
	d.Click(d.folder(name, " button"))
	d.Until(fmt.Sprintf(`document.querySelector("[data-testid=folder-name]").textContent === %q`, name))
}

// answer fills in the page's question.
func (d demoTab) answer(t *testing.T, text string) {
	t.Helper()
	d.See(`[data-testid=ask][open]`)
	if _, err := chromiumproc.Evaluate[string](d.Tab, `document.querySelector("[data-testid=ask-input]").value = ""`); err != nil {
		t.Fatal(err)
	}
	d.Type(d.test("ask-input"), text)
	d.press("ask-ok")
}

// number reads an attribute of an element as a number.
func (d demoTab) number(t *testing.T, selector, attribute string) int {
	t.Helper()
	text, err := chromiumproc.Evaluate[string](d.Tab, fmt.Sprintf(`document.querySelector(%q)?.getAttribute(%q) ?? "absent"`, selector, attribute))
	if err != nil {
		t.Fatal(err)
	}
	n, err := strconv.Atoi(text)
	if err != nil {
		t.Fatalf("%s of %s is %q", attribute, selector, text)
	}
	return n
}

// TestDemoPage does everything that the demo page offers in one window, and sees it in another one of the same account.
func TestDemoPage(t *testing.T) {
	s := startSite(t)
	url := s.server + "/demo/?account=dora@example.com"
	a := demoTab{chromiumproc.Open(t, 1440, 900)}
	a.Go(url)
	b := demoTab{a.Beside()}
	b.Go(url)
	const connected = `[data-testid=connection][data-state=connected]`
	a.See(connected)
	b.See(connected)

	// A delivery.
	unread := b.number(t, b.folder("INBOX", ""), "data-unread")
	a.press("deliver")
	arrived := `[data-testid=activity-entry][data-event=MessageNew]`
	b.See(arrived)
	uid := strconv.Itoa(b.number(t, arrived, "data-uidset"))
	for _, tab := range []demoTab{a, b} {
		tab.See(tab.row(uid, `[data-seen=false][data-known=true]`))
		tab.See(tab.folder("INBOX", fmt.Sprintf(`[data-unread="%d"]`, unread+1)))
	}

	// Reading, flagging, deleting it.
	a.Click(a.row(uid, " .row-open"))
	b.See(b.row(uid, `[data-seen=true]`))
	b.See(b.folder("INBOX", fmt.Sprintf(`[data-unread="%d"]`, unread)))
	a.press("action-flag")
	b.See(b.row(uid, `[data-flags*=Flagged]`))
	trash := b.number(t, b.folder("Trash", ""), "data-messages")
	a.press("action-delete")
	b.Gone(b.row(uid, ""))
	b.See(b.folder("Trash", fmt.Sprintf(`[data-messages="%d"]`, trash+1)))

	// From the trash it goes for good.
	a.open("Trash")
	b.open("Trash")
	inTrash := `[data-testid=message-row][data-mailbox=Trash]`
	b.See(inTrash)
	a.See(inTrash)
	gone := strconv.Itoa(a.number(t, inTrash, "data-uid"))
	a.Click(a.row(gone, " .row-open"))
	a.press("action-delete")
	b.See(fmt.Sprintf(`[data-testid=activity-entry][data-event=MessageExpunge][data-mailbox=Trash][data-uidset=%q]`, gone))
	b.Gone(b.row(gone, ""))
	b.See(b.folder("Trash", fmt.Sprintf(`[data-messages="%d"]`, trash)))

	// Folders.
	a.press("folder-create")
	a.answer(t, "Plans")
	b.See(b.folder("Plans", ""))
	b.open("Plans")
	a.open("Plans")
	a.press("folder-rename")
	a.answer(t, "Journeys")
	b.See(b.folder("Journeys", ""))
	b.Gone(b.folder("Plans", ""))
	b.Until(`document.querySelector("[data-testid=folder-name]").textContent === "Journeys"`)

	cutAndBack(t, a, b)
	bill(t, a)

	a.Click(`[data-testid=message-row] .row-open`)
	a.See(`[data-testid=message-row][data-selected=true][data-seen=true]`)
	a.Screenshot("wide")
	a.press("action-flag")
	a.Resize(390, 844)
	a.Screenshot("narrow-message")
	a.press("action-back")
	a.Screenshot("narrow-mail")
	for _, view := range []string{"folders", "live"} {
		a.press("tab-" + view)
		a.Screenshot("narrow-" + view)
	}
}

// cutAndBack takes the socket from a window, which polls until it has one again.
func cutAndBack(t *testing.T, a, b demoTab) {
	t.Helper()
	a.open("INBOX")
	b.open("INBOX")
	messages := a.number(t, a.folder("INBOX", ""), "data-messages")
	a.press("cut")
	a.See(`[data-testid=connection][data-state=polling]`)
	b.press("deliver")
	a.See(a.folder("INBOX", fmt.Sprintf(`[data-messages="%d"]`, messages+1)))
	a.See(`[data-testid=connection][data-state=polling]`)
	a.press("cut")
	a.See(`[data-testid=connection][data-state=connected]`)
	b.press("deliver")
	a.See(a.folder("INBOX", fmt.Sprintf(`[data-messages="%d"]`, messages+2)))
}

// bill looks at the panel beside the mailbox: what polling would have cost, and what the socket did.
func bill(t *testing.T, a demoTab) {
	t.Helper()
	number := func(id string) string {
		return fmt.Sprintf(`Number(document.querySelector("[data-testid=%s]").textContent.replaceAll(",", ""))`, id)
	}
	slide := `document.querySelector("[data-testid=interval]").value = 0, document.querySelector("[data-testid=interval]").dispatchEvent(new Event("input"))`
	if _, err := chromiumproc.Evaluate[bool](a.Tab, slide); err != nil {
		t.Fatal(err)
	}
	a.Until(`document.querySelector("[data-testid=interval-text]").textContent === "1 s"`)
	a.Until(number("poll-requests") + " >= 5 && " + number("poll-304") + " >= 1 && " + number("push-frames") + " >= 5")
	a.Until(`/times mailbell's bytes|as many|fewer/.test(document.querySelector("[data-testid=verdict]").textContent)`)
	a.Until(`/\d/.test(document.querySelector("[data-testid=latency]").textContent)`)
}
