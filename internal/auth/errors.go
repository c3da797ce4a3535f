package auth

import (
	"errors"
	"fmt"
	"net/http"
)

// Reason says why someone was refused; it is a metric's label.
type Reason string

// The reasons.
const (
	ReasonMissing       Reason = "missing"        // no token came
	ReasonMalformed     Reason = "malformed"      // not a token at all
	ReasonAlgorithm     Reason = "algorithm"      // `none`, or one that no key is for
	ReasonUnknownKey    Reason = "unknown_key"    // signed by someone else
	ReasonSignature     Reason = "signature"      // the signature does not fit
	ReasonExpired       Reason = "expired"        // too late
	ReasonEarly         Reason = "early"          // not valid yet
	ReasonClaims        Reason = "claims"         // a claim is missing or wrong
	ReasonIssuer        Reason = "issuer"         // not the issuer configured
	ReasonAudience      Reason = "audience"       // not for the audience configured
	ReasonUsed          Reason = "used"           // a ticket came twice
	ReasonWrongNotifier Reason = "wrong_notifier" // a ticket for another node
	ReasonTicketSize    Reason = "ticket_size"    // allows more than a ticket can hold
	ReasonUnknown       Reason = "unknown"        // no such service token
	ReasonScope         Reason = "scope"          // a service token that may not do this
	ReasonOrigin        Reason = "origin"         // a page that may not connect
	ReasonUnavailable   Reason = "unavailable"    // the keys can't be had just now
	ReasonInternal      Reason = "internal"       // not an *Error at all
)

// Error is a refusal. Its message is fit for the client's eyes.
type Error struct {
	Reason  Reason
	Message string
}

func (e *Error) Error() string { return e.Message }

// Is matches any refusal for the same reason, so that errors.Is(err, ErrExpired) holds
// whatever the message says.
func (e *Error) Is(target error) bool {
	t, ok := target.(*Error)
	return ok && t.Reason == e.Reason
}

// Status is the HTTP status that answers the refusal: 401 for who one is, 403 for
// what one may do, 503 where trying again helps.
func (e *Error) Status() int {
	switch e.Reason {
	case ReasonScope, ReasonOrigin, ReasonTicketSize:
		return http.StatusForbidden
	case ReasonUnavailable:
		return http.StatusServiceUnavailable
	case ReasonInternal:
		return http.StatusInternalServerError
	}
	return http.StatusUnauthorized
}

// One refusal per reason, for errors.Is and for where there is nothing to add.
var (
	ErrMissing       = &Error{ReasonMissing, "token: none was given; send it as Authorization: Bearer <token>"}
	ErrMalformed     = &Error{ReasonMalformed, "token: is not a JWT (three parts in base64url, joined by dots)"}
	ErrAlgorithm     = &Error{ReasonAlgorithm, "token: its algorithm is not accepted here"}
	ErrUnknownKey    = &Error{ReasonUnknownKey, "token: is signed by a key that is not known here"}
	ErrBadSignature  = &Error{ReasonSignature, "token: the signature does not fit"}
	ErrExpired       = &Error{ReasonExpired, "token: has expired; get a new one"}
	ErrEarly         = &Error{ReasonEarly, "token: is not valid yet; compare the clocks"}
	ErrClaims        = &Error{ReasonClaims, "token: a claim is missing or wrong"}
	ErrIssuer        = &Error{ReasonIssuer, "token: comes from another issuer"}
	ErrAudience      = &Error{ReasonAudience, "token: is meant for another audience"}
	ErrUsed          = &Error{ReasonUsed, "ticket: has been used; ask the gateway for a new one"}
	ErrWrongNotifier = &Error{ReasonWrongNotifier, "ticket: is for another node; ask the gateway for a new one"}
	ErrTicketSize    = &Error{ReasonTicketSize, "token: names too many accounts and mailboxes for a ticket"}
	ErrUnknown       = &Error{ReasonUnknown, "service token: is not known here"}
	ErrScope         = &Error{ReasonScope, "service token: may not do this"}
	ErrOrigin        = &Error{ReasonOrigin, "origin: pages from there may not connect; allow it with --origins"}
	ErrUnavailable   = &Error{ReasonUnavailable, "token: its key is not known and the key set can't be fetched just now; try again"}
)

func refuse(r Reason, format string, args ...any) *Error {
	return &Error{Reason: r, Message: fmt.Sprintf(format, args...)}
}

// ReasonOf returns the reason of a refusal, and ReasonInternal for any other error.
func ReasonOf(err error) Reason {
	if e, ok := errors.AsType[*Error](err); ok {
		return e.Reason
	}
	return ReasonInternal
}

// StatusOf returns the HTTP status for a refusal, and 500 for any other error.
func StatusOf(err error) int {
	if e, ok := errors.AsType[*Error](err); ok {
		return e.Status()
	}
	return http.StatusInternalServerError
}
