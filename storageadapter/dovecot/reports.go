package dovecot

import (
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"strings"

	"github.com/tidwall/gjson"

	"github.com/mailbell/mailbell/schema"
	"github.com/mailbell/mailbell/storageadapter/spool"
)

// accountParam is the query parameter of NotifyPath that names the account. Dovecot expands
// variables in its driver's URL, so "?account=%u" says who it is whatever the metadata says.
const accountParam = "account"

func accountOf(r spool.Record) schema.Account { return schema.Account(r.Key) }

// readString reads all of r without the copy that a []byte would cost.
func readString(r io.Reader, sizeHint int64) (string, error) {
	var b strings.Builder
	if sizeHint > 0 {
		b.Grow(int(sizeHint))
	}
	_, err := io.Copy(&b, r)
	return b.String(), err
}

// notifyEvents reads a report of the OX driver: one new message.
func (a *Agent) notifyEvents(r *http.Request, body string) ([]schema.Event, error) {
	if !gjson.Valid(body) {
		return nil, errors.New("the report is not valid JSON")
	}
	report := gjson.Parse(body)
	if name := report.Get("event").String(); name != "messageNew" {
		a.metrics.dropped.WithLabelValues(dropUnknown).Inc()
		return nil, nil // an OX driver of another Dovecot may know more
	}
	a.metrics.reported.Inc()
	e := schema.Event{
		ID:        a.cfg.newID(),
		Event:     schema.MessageNew,
		Account:   schema.Account(r.URL.Query().Get(accountParam)),
		Mailbox:   schema.Mailbox(report.Get("folder").String()),
		Timestamp: a.cfg.now(),
	}
	if e.Account == "" {
		e.Account = schema.Account(report.Get("user").String())
	}
	e.User = string(e.Account)
	var uid uint32
	var ok [2]bool
	e.UIDValidity, ok[0] = number32(report.Get("imap-uidvalidity"))
	uid, ok[1] = number32(report.Get("imap-uid"))
	if !ok[0] || !ok[1] || uid == 0 {
		return nil, errors.New("the report has no good imap-uidvalidity and imap-uid")
	}
	e.UIDSet = fmt.Sprint(uid)
	if n, ok := number32(report.Get("unseen")); ok {
		e.Unseen = &n
	}
	a.toOwner(&e)
	if err := e.Validate(); err != nil {
		return nil, err
	}
	return a.fresh([]schema.Event{e}, sourceOX), nil
}

// luaEvents reads a report of mailbell.lua: one transaction.
func (a *Agent) luaEvents(_ *http.Request, body string) ([]schema.Event, error) {
	t, err := parseTransaction(body)
	if err != nil {
		return nil, err
	}
	a.metrics.reported.Add(float64(t.reported))
	for reason, n := range t.dropped {
		a.metrics.dropped.WithLabelValues(reason).Add(float64(n))
	}
	events := t.events(a.cfg.newID, a.cfg.now())
	for i := range events {
		a.toOwner(&events[i])
	}
	return a.fresh(events, sourceLua), nil
}

func (a *Agent) fresh(events []schema.Event, by source) []schema.Event {
	kept := a.seen.fresh(events, by, a.cfg.now())
	a.metrics.dropped.WithLabelValues(dropDuplicate).Add(float64(len(events) - len(kept)))
	return kept
}

// number32 reads a number that Dovecot may have written as an integer or, out of Lua, with
// a fraction of zero.
func number32(v gjson.Result) (uint32, bool) {
	if v.Type != gjson.Number || v.Num < 0 || v.Num > math.MaxUint32 || v.Num != math.Trunc(v.Num) {
		return 0, false
	}
	return uint32(v.Num), true
}
