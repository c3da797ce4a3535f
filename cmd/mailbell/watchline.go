package main

import (
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/mailbell/mailbell/schema"
)

// eventLine is an event for a person: one line, the most telling part first.
//
//	06:17:58  INBOX  MessageNew  uid 5, 3 of 12 unseen, by lmtp
func eventLine(raw []byte, local *time.Location) string {
	e, err := schema.DecodeEvent(raw)
	if err != nil { // a later version's: show it as it stands
		return string(raw)
	}
	where := string(e.Mailbox)
	if e.OldMailbox != "" {
		where = string(e.OldMailbox) + " → " + where
	}
	if where == "" {
		where = "-"
	}
	return fmt.Sprintf("%s  %s  %s  %s", e.Timestamp.In(local).Format("15:04:05"), printable(where), e.Event, printable(strings.Join(eventDetails(&e), ", ")))
}

func eventDetails(e *schema.Event) []string {
	var parts []string
	add := func(format string, args ...any) { parts = append(parts, fmt.Sprintf(format, args...)) }
	switch {
	case e.Truncated:
		add("many messages")
	case strings.ContainsAny(e.UIDSet, ",:"):
		add("uids %s", shorten(e.UIDSet, 40))
	case e.UIDSet != "":
		add("uid %s", e.UIDSet)
	}
	if len(e.FlagNames) > 0 {
		add("%s", shorten(strings.Join(e.FlagNames, " "), 60))
	}
	switch {
	case e.Unseen != nil && e.Messages != nil:
		add("%d of %d unseen", *e.Unseen, *e.Messages)
	case e.Unseen != nil:
		add("%d unseen", *e.Unseen)
	case e.Messages != nil:
		add("%d messages", *e.Messages)
	}
	by := e.Service
	if e.User != "" && e.User != string(e.Account) {
		by = strings.TrimSpace(e.User + " " + by)
	}
	if by != "" {
		add("by %s", by)
	}
	return parts
}

// printable keeps what came over the wire from moving the cursor.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r < 0x20 || r == 0x7f || r >= 0x80 && r < 0xa0 {
			return '·'
		}
		return r
	}, s)
}

func shorten(s string, n int) string {
	if len(s) <= n {
		return s
	}
	return strings.ToValidUTF8(s[:n], "") + "…"
}

// watchRecord is one line of `watch --json`.
type watchRecord struct {
	Type     string          `json:"type"` // subscribed, event, missed, disconnected
	Account  schema.Account  `json:"account"`
	Position string          `json:"position,omitempty"`
	CatchUp  schema.CatchUp  `json:"catchUp,omitempty"`
	Reason   string          `json:"reason,omitempty"`
	Event    json.RawMessage `json:"event,omitempty"`
}
