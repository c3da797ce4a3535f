package dovecot

import (
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"

	"github.com/tidwall/gjson"

	"github.com/mailbell/mailbell/schema"
)

// maxGroups bounds the kinds of change that one transaction is told apart into. What a
// client sends stays far below it; beyond it a change is reported as truncated.
const maxGroups = 64

// transaction is what one report of the Lua script says.
//
// The report is {"user":…,"events":[…],"status":{mailbox:…}} and may have account, actor,
// service, session and success. An event has name and mailbox, and where they apply uid or
// uidset, uid_validity, flags, keywords, mailbox_old, truncated. Dovecot calls its script once
// for each message and flag event, so a script that passes everything on reports a STORE on
// 5,000 messages as 15,000 events; they are gathered here without decoding each.
type transaction struct {
	account schema.Account
	actor   string
	service string
	session string
	failed  bool // nothing of it happened
	status  map[schema.Mailbox]status

	groups   map[groupKey]*group
	order    []*group // as first seen
	reported int
	dropped  map[string]int // by reason
}

// groupKey tells changes apart. Its strings are raw JSON in the report, so that gathering
// allocates nothing for a message; equal values written differently are merged later.
type groupKey struct {
	name, mailbox, old, validity, flags, keywords string
}

// group is one kind of change and the messages that it happened to.
type group struct {
	name        schema.EventName
	mailbox     schema.Mailbox
	oldMailbox  schema.Mailbox
	uidValidity uint32
	flags       []string // sorted; nil where the messages differ
	uids        schema.UIDSet
	truncated   bool
	skip        string // why it is no event of ours: a reason of the metrics
}

// status is what Dovecot says of a mailbox after the transaction.
type status struct {
	messages, unseen     *uint32
	uidNext, uidValidity uint32
	modSeq               string
}

// parseTransaction reads a report and gathers its events.
func parseTransaction(body string) (*transaction, error) {
	if !gjson.Valid(body) {
		return nil, errors.New("the report is not valid JSON")
	}
	root := gjson.Parse(body)
	if !root.IsObject() {
		return nil, errors.New("the report is not a JSON object")
	}
	t := &transaction{groups: make(map[groupKey]*group), dropped: make(map[string]int), status: make(map[schema.Mailbox]status)}
	var user string
	var events gjson.Result
	root.ForEach(func(key, v gjson.Result) bool {
		switch key.Str {
		case "user":
			user = v.Str
		case "account":
			t.account = schema.Account(v.Str)
		case "actor":
			t.actor = v.Str
		case "service":
			t.service = v.Str
		case "session":
			t.session = v.Str
		case "success":
			t.failed = v.Type == gjson.False
		case "events":
			events = v
		case "status":
			t.readStatus(v)
		}
		return true
	})
	if t.account == "" {
		t.account = schema.Account(user)
	}
	if t.actor == "" {
		t.actor = user
	}
	if err := t.account.Validate(); err != nil {
		return nil, fmt.Errorf("the report's account %w", err)
	}
	if !events.IsArray() {
		return nil, errors.New("the report has no array of events")
	}
	events.ForEach(func(_, v gjson.Result) bool {
		t.reported++
		t.gather(v)
		return true
	})
	return t, nil
}

func (t *transaction) readStatus(v gjson.Result) {
	v.ForEach(func(mailbox, v gjson.Result) bool {
		var s status
		v.ForEach(func(key, v gjson.Result) bool {
			n, ok := number32(v)
			switch {
			case key.Str == "highest_modseq":
				s.modSeq = modSeq(v)
			case !ok:
			case key.Str == "messages":
				s.messages = &n
			case key.Str == "unseen":
				s.unseen = &n
			case key.Str == "uidnext":
				s.uidNext = n
			case key.Str == "uidvalidity":
				s.uidValidity = n
			}
			return true
		})
		t.status[schema.Mailbox(mailbox.String())] = s
		return true
	})
}

// gather adds one event of the report to its group.
func (t *transaction) gather(v gjson.Result) {
	var key groupKey
	var uid, uidset gjson.Result
	truncated := false
	v.ForEach(func(k, v gjson.Result) bool {
		switch k.Str {
		case "name":
			key.name = v.Raw
		case "mailbox":
			key.mailbox = v.Raw
		case "mailbox_old":
			key.old = v.Raw
		case "uid_validity":
			key.validity = v.Raw
		case "flags":
			key.flags = v.Raw
		case "keywords":
			key.keywords = v.Raw
		case "uid":
			uid = v
		case "uidset":
			uidset = v
		case "truncated":
			truncated = v.Bool()
		}
		return true
	})
	g := t.group(key)
	if g.skip != "" {
		t.dropped[g.skip]++
		return
	}
	g.truncated = g.truncated || truncated
	if uid.Exists() {
		if n, ok := number32(uid); ok {
			g.uids.Add(n)
		}
		return
	}
	if uidset.Type == gjson.String && !g.addSet(uidset.Str) {
		t.dropped[dropInvalid]++
	}
}

// addSet adds an IMAP sequence set, or as much of it as is well-formed.
func (g *group) addSet(text string) bool {
	for part := range strings.SplitSeq(text, ",") {
		lo, hi, isRange := strings.Cut(part, ":")
		if !isRange {
			hi = lo
		}
		from, err1 := strconv.ParseUint(lo, 10, 32)
		to, err2 := strconv.ParseUint(hi, 10, 32)
		if err1 != nil || err2 != nil {
			return false
		}
		g.uids.AddRange(uint32(from), uint32(to))
	}
	return true
}

// modSeq returns a mod-sequence of up to 63 bits, or "" for what is none. Lua may have
// written it with a fraction of zero, which is exact only up to 53 bits.
func modSeq(v gjson.Result) string {
	if n, err := strconv.ParseUint(v.Raw, 10, 63); err == nil {
		return strconv.FormatUint(n, 10)
	}
	if v.Type == gjson.Number && v.Num >= 1 && v.Num <= 1<<53 && v.Num == math.Trunc(v.Num) {
		return strconv.FormatUint(uint64(v.Num), 10)
	}
	return ""
}
