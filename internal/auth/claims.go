package auth

import (
	"math"
	"slices"
	"strconv"

	"github.com/mailbell/mailbell/schema"
	"github.com/tidwall/gjson"
)

// maxNumericDate is the end of the year 9999, in seconds since 1970.
const maxNumericDate = 253402300799

// maxClaimBytes bounds jti, iss, aud and client.
const maxClaimBytes = 512

// claims are the claims that mean something here, of a JWT (RFC 7519, section 4.1)
// or of a ticket. Names are matched exactly and each may stand once. Strings
// are parts of the payload.
type claims struct {
	issuer    string
	subject   string
	audiences []string // of an array
	audience  string   // of a single string
	id        string
	client    string // ticket: the service that asked
	expires   int64  // seconds since 1970
	notBefore int64
	issued    int64
	until     int64 // ticket: when the connection ends; 0 is never
	grants    []Grant
	seen      claimSet
}

type claimSet uint16

const (
	claimIss claimSet = 1 << iota
	claimSub
	claimAud
	claimExp
	claimNbf
	claimIat
	claimJti
	claimAccounts
	claimUntil
	claimClient
)

func (c *claims) has(s claimSet) bool { return c.seen&s != 0 }

// parseClaims reads a payload. Claims that are not known are skipped.
func parseClaims(payload string, c *claims) error {
	if !gjson.Valid(payload) {
		return refuse(ReasonMalformed, "token: the payload is not JSON")
	}
	root := gjson.Parse(payload)
	if !root.IsObject() {
		return refuse(ReasonMalformed, "token: the payload is not a JSON object")
	}
	var err error
	root.ForEach(func(k, v gjson.Result) bool {
		err = c.set(k.Str, v)
		return err == nil
	})
	return err
}

func (c *claims) set(name string, v gjson.Result) error {
	which := claimNamed(name)
	if which == 0 {
		return nil
	}
	if c.has(which) {
		return refuse(ReasonClaims, "token: claim %q stands twice", name)
	}
	c.seen |= which
	switch which {
	case claimIss:
		return text(name, v, &c.issuer)
	case claimSub:
		return text(name, v, &c.subject)
	case claimJti:
		return text(name, v, &c.id)
	case claimClient:
		return text(name, v, &c.client)
	case claimAud:
		return c.setAudience(v)
	case claimExp:
		return date(name, v, &c.expires)
	case claimNbf:
		return date(name, v, &c.notBefore)
	case claimIat:
		return date(name, v, &c.issued)
	case claimUntil:
		return date(name, v, &c.until)
	}
	return c.setAccounts(v)
}

func claimNamed(name string) claimSet {
	switch name {
	case "iss":
		return claimIss
	case "sub":
		return claimSub
	case "aud":
		return claimAud
	case "exp":
		return claimExp
	case "nbf":
		return claimNbf
	case "iat":
		return claimIat
	case "jti":
		return claimJti
	case "accounts":
		return claimAccounts
	case "until":
		return claimUntil
	case "client":
		return claimClient
	}
	return 0
}

func text(name string, v gjson.Result, to *string) error {
	if v.Type != gjson.String {
		return refuse(ReasonClaims, "token: claim %q must be a string", name)
	}
	if len(v.Str) > maxClaimBytes {
		return refuse(ReasonClaims, "token: claim %q has %d bytes, the limit is %d", name, len(v.Str), maxClaimBytes)
	}
	*to = v.Str
	return nil
}

// date reads a NumericDate (RFC 7519, section 2), which may have a fraction.
func date(name string, v gjson.Result, to *int64) error {
	if v.Type != gjson.Number || !(v.Num >= 0 && v.Num <= maxNumericDate) {
		return refuse(ReasonClaims, "token: claim %q must be seconds since 1970, such as 1795000000", name)
	}
	*to = int64(math.Floor(v.Num))
	return nil
}

func (c *claims) setAudience(v gjson.Result) error {
	if v.Type == gjson.String {
		return text("aud", v, &c.audience)
	}
	if !v.IsArray() {
		return refuse(ReasonClaims, "token: claim \"aud\" must be a string or an array of strings")
	}
	var err error
	v.ForEach(func(_, e gjson.Result) bool {
		var s string
		if err = text("aud", e, &s); err == nil {
			c.audiences = append(c.audiences, s)
		}
		return err == nil
	})
	return err
}

func (c *claims) isFor(audience string) bool {
	if c.audiences == nil {
		return c.has(claimAud) && c.audience == audience
	}
	return slices.Contains(c.audiences, audience)
}

func (c *claims) setAccounts(v gjson.Result) error {
	if !v.IsArray() {
		return refuse(ReasonClaims, `token: claim "accounts" must be an array, such as ["bob@example.com"]`)
	}
	var err error
	i := 0
	v.ForEach(func(_, e gjson.Result) bool {
		var g Grant
		if g, err = parseGrant(i, e); err == nil {
			err = c.grant(g)
		}
		i++
		return err == nil
	})
	return err
}

// grant adds one, merged with what there is for the account.
func (c *claims) grant(g Grant) error {
	i := slices.IndexFunc(c.grants, func(have Grant) bool { return have.Account == g.Account })
	if i < 0 {
		if len(c.grants) == MaxGrants {
			return refuse(ReasonClaims, `token: claim "accounts" names more than %d accounts`, MaxGrants)
		}
		c.grants = append(c.grants, g)
		return nil
	}
	have := &c.grants[i]
	if have.Mailboxes == nil || g.Mailboxes == nil {
		have.Mailboxes = nil
		return nil
	}
	for _, m := range g.Mailboxes {
		if !slices.Contains(have.Mailboxes, m) {
			have.Mailboxes = append(have.Mailboxes, m)
		}
	}
	if len(have.Mailboxes) > MaxGrantMailboxes {
		return tooManyMailboxes(i)
	}
	return nil
}

// parseGrant reads one entry of "accounts". It refuses keys that it does not know:
// one of them may be a restriction misspelt.
func parseGrant(i int, v gjson.Result) (Grant, error) {
	if v.Type == gjson.String {
		return accountGrant(i, v.Str)
	}
	if !v.IsObject() {
		return Grant{}, refuse(ReasonClaims, `token: claim "accounts", entry %d: must be a name, or {"account":"…","mailboxes":["INBOX"]}`, i)
	}
	var account string
	var mailboxes []schema.Mailbox
	var err error
	v.ForEach(func(k, v gjson.Result) bool {
		switch {
		case k.Str == "account" && account == "" && v.Type == gjson.String:
			account = v.Str
		case k.Str == "mailboxes" && mailboxes == nil && v.IsArray():
			mailboxes, err = parseMailboxes(i, v)
		default:
			err = refuse(ReasonClaims, `token: claim "accounts", entry %d: key %q is unknown, twice, or of the wrong type`, i, k.Str)
		}
		return err == nil
	})
	if err != nil {
		return Grant{}, err
	}
	g, err := accountGrant(i, account)
	g.Mailboxes = mailboxes
	return g, err
}

func accountGrant(i int, name string) (Grant, error) {
	a := schema.Account(name)
	if err := a.Validate(); err != nil {
		return Grant{}, refuse(ReasonClaims, `token: claim "accounts", entry %d: the account %v`, i, err)
	}
	return Grant{Account: a}, nil
}

func parseMailboxes(i int, v gjson.Result) ([]schema.Mailbox, error) {
	out := []schema.Mailbox{}
	var err error
	v.ForEach(func(_, e gjson.Result) bool {
		m := schema.Mailbox(e.Str)
		switch {
		case e.Type != gjson.String:
			err = refuse(ReasonClaims, `token: claim "accounts", entry %d: mailboxes must be strings`, i)
		case m.Validate() != nil:
			err = refuse(ReasonClaims, `token: claim "accounts", entry %d: a mailbox %v`, i, m.Validate())
		case len(out) == MaxGrantMailboxes:
			err = tooManyMailboxes(i)
		case !slices.Contains(out, m):
			out = append(out, m)
		}
		return err == nil
	})
	if err == nil && len(out) == 0 {
		err = refuse(ReasonClaims, `token: claim "accounts", entry %d: mailboxes is empty; leave it out for all of them`, i)
	}
	return out, err
}

func tooManyMailboxes(i int) error {
	return refuse(ReasonClaims, `token: claim "accounts", entry %d: more than %d mailboxes; grant the whole account`, i, MaxGrantMailboxes)
}

// appendAccounts writes the claim "accounts" as parseGrant reads it.
func appendAccounts(dst []byte, grants []Grant) []byte {
	dst = append(dst, '[')
	for i, g := range grants {
		if i > 0 {
			dst = append(dst, ',')
		}
		if g.Mailboxes == nil {
			dst = gjson.AppendJSONString(dst, string(g.Account))
			continue
		}
		dst = append(dst, `{"account":`...)
		dst = gjson.AppendJSONString(dst, string(g.Account))
		dst = append(dst, `,"mailboxes":[`...)
		for j, m := range g.Mailboxes {
			if j > 0 {
				dst = append(dst, ',')
			}
			dst = gjson.AppendJSONString(dst, string(m))
		}
		dst = append(dst, "]}"...)
	}
	return append(dst, ']')
}

func appendClaim(dst []byte, name, value string) []byte {
	dst = append(dst, ',', '"')
	dst = append(dst, name...)
	dst = append(dst, `":`...)
	return gjson.AppendJSONString(dst, value)
}

func appendDate(dst []byte, name string, seconds int64) []byte {
	dst = append(dst, ',', '"')
	dst = append(dst, name...)
	dst = append(dst, `":`...)
	return strconv.AppendInt(dst, seconds, 10)
}
