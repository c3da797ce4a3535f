// Package auth decides who may listen and who may publish: the users' JWTs, the
// gateway's tickets, the service tokens of mail stores and webmail servers, and
// the origins that a browser may come from.
//
// Invariants:
//   - A key verifies one algorithm only, the one that its type and its source give
//     it. What the token's header says merely has to agree.
//   - A ticket is accepted once, by the notifier that it names, at most 30 s after it
//     was signed (and some leeway for clocks that differ).
//   - What Verify and Check refuse is an *Error, whose Reason is a metric's label and
//     whose message may be shown to the client: it holds no secret and no path.
//   - Secrets are compared in constant time; service tokens are kept hashed.
//
// Goroutines: only Keys of a URL have one, which fetches; Close waits for it.
// Everything is safe for use by many goroutines at once.
package auth

import (
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/mailbell/mailbell/schema"
)

// Limits of what a token may carry.
const (
	MaxTokenBytes     = 8 << 10
	MaxGrants         = 256 // accounts of one token
	MaxGrantMailboxes = schema.MaxSubscribeMailboxes
)

// Grant is the right to hear an account.
type Grant struct {
	Account   schema.Account
	Mailboxes []schema.Mailbox // nil: all of them
}

// Access is what a valid token or ticket allows.
type Access struct {
	// Subject is the user: the token's `sub`.
	Subject schema.Account
	// Grants are the accounts that may be heard, the subject's own among them, each once.
	Grants []Grant
	// Expires ends the connection; zero means that nothing does.
	Expires time.Time
	// TokenID is the token's `jti`, which may be empty.
	TokenID string
	// Notifier is the node that a ticket is for; empty for a JWT.
	Notifier string
	// Client names the service that asked for a ticket on the user's behalf; empty
	// when the user asked.
	Client string
}

// Allow says what a subscription to an account gets. Asking for all mailboxes (none
// named) of an account of which only some may be heard gets those; naming one
// that may not be heard is refused as a whole, so that no client waits for
// what will never come.
func (a Access) Allow(account schema.Account, mailboxes []schema.Mailbox) (granted []schema.Mailbox, ok bool) {
	i := slices.IndexFunc(a.Grants, func(g Grant) bool { return g.Account == account })
	if i < 0 {
		return nil, false
	}
	g := a.Grants[i]
	if g.Mailboxes == nil {
		if len(mailboxes) == 0 {
			return nil, true
		}
		return mailboxes, true
	}
	if len(mailboxes) == 0 {
		return g.Mailboxes, true
	}
	for _, m := range mailboxes {
		if !slices.Contains(g.Mailboxes, m) {
			return nil, false
		}
	}
	return mailboxes, true
}

// BearerToken takes the token out of an Authorization header (RFC 6750, section
// 2.1). Another scheme, or nothing, is ErrMissing.
func BearerToken(authorization string) (string, error) {
	scheme, token, _ := strings.Cut(strings.TrimSpace(authorization), " ")
	token = strings.TrimSpace(token)
	if !strings.EqualFold(scheme, "Bearer") || token == "" {
		return "", ErrMissing
	}
	return token, nil
}

// RequestToken finds the token of a request: the Authorization header, or else
// the cookie of that name, where one is named. Neither is ErrMissing.
func RequestToken(r *http.Request, cookie string) (string, error) {
	if h := r.Header.Get("Authorization"); h != "" {
		return BearerToken(h)
	}
	if cookie != "" {
		if c, err := r.Cookie(cookie); err == nil && c.Value != "" {
			return c.Value, nil
		}
	}
	return "", ErrMissing
}
