package auth

import (
	"crypto/ed25519"
	"encoding/base64"
	"fmt"
	"maps"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"github.com/mailbell/mailbell/schema"
)

// maxTicketKeys bounds how many signers a notifier knows: one a bus node, and the
// ones that restarted within a minute.
const maxTicketKeys = 1024

// ticketEncoding admits one spelling of each value.
var ticketEncoding = base64.RawURLEncoding.Strict()

// TicketKeys are the public keys of the bus nodes, and the memory of the tickets
// used. The zero value knows no key. Verify takes no lock that Add or Remove hold.
type TicketKeys struct {
	// Replaced as a whole by changes, which hold mu; by ticketHeader.
	keys atomic.Pointer[map[string]*ticketKey]

	mu sync.Mutex // serializes changes
}

type ticketKey struct {
	// Static after construction.
	id     string
	public ed25519.PublicKey

	// Guarded by mu.
	mu      sync.Mutex
	window  replayWindow
	spent   uint64    // tickets that were used
	removed time.Time // zero: in use
}

// Add makes a key known. A key that comes back (after a lost link, say) still knows
// which of its tickets were used. Over 1,024 keys is an error.
func (t *TicketKeys) Add(id string, public ed25519.PublicKey) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	next := t.clone(time.Now())
	if err := add(next, id, public); err != nil {
		return err
	}
	t.keys.Store(&next)
	return nil
}

// Spent returns how many of a key's tickets were used here.
func (t *TicketKeys) Spent(id string) uint64 {
	k := t.key(ticketHeader(id))
	if k == nil {
		return 0
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.spent
}

// Remove forgets a key: its tickets are refused from now on.
func (t *TicketKeys) Remove(id string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := time.Now()
	next := t.clone(now)
	if k := next[ticketHeader(id)]; k != nil {
		k.remove(now)
	}
	t.keys.Store(&next)
}

// Replace makes exactly these keys known, by id.
func (t *TicketKeys) Replace(keys map[string]ed25519.PublicKey) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := time.Now()
	next := t.clone(now)
	for id, public := range keys {
		if err := add(next, id, public); err != nil {
			return err
		}
	}
	for _, k := range next {
		if _, wanted := keys[k.id]; !wanted {
			k.remove(now)
		}
	}
	t.keys.Store(&next)
	return nil
}

// clone copies the set but for the keys removed so long ago that all their
// tickets have expired. The caller holds mu.
func (t *TicketKeys) clone(now time.Time) map[string]*ticketKey {
	next := make(map[string]*ticketKey)
	if have := t.keys.Load(); have != nil {
		maps.Copy(next, *have)
	}
	maps.DeleteFunc(next, func(_ string, k *ticketKey) bool {
		k.mu.Lock()
		defer k.mu.Unlock()
		return !k.removed.IsZero() && now.Sub(k.removed) > replayMemory
	})
	return next
}

func add(keys map[string]*ticketKey, id string, public ed25519.PublicKey) error {
	if id == "" || len(public) != ed25519.PublicKeySize {
		return fmt.Errorf("add ticket key %q: an Ed25519 key has an id and %d bytes, this one has %d", id, ed25519.PublicKeySize, len(public))
	}
	header := ticketHeader(id)
	if k := keys[header]; k != nil && k.public.Equal(public) {
		k.mu.Lock()
		k.removed = time.Time{}
		k.mu.Unlock()
		return nil
	}
	if len(keys) >= maxTicketKeys {
		return fmt.Errorf("add ticket key %q: %d keys are known already", id, len(keys))
	}
	keys[header] = &ticketKey{id: id, public: append(ed25519.PublicKey(nil), public...)}
	return nil
}

func (k *ticketKey) remove(now time.Time) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.removed.IsZero() {
		k.removed = now
	}
}

// Verify accepts a ticket for the notifier, once. What costs nothing is checked before
// the signature, so that most of what is wrong never costs a verification. The
// error is an *Error.
func (t *TicketKeys) Verify(ticket, notifier string, now time.Time) (Access, error) {
	if ticket == "" {
		return Access{}, ErrMissing
	}
	if len(ticket) > MaxTicketBytes {
		return Access{}, refuse(ReasonMalformed, "ticket: has %d bytes, the limit is %d", len(ticket), MaxTicketBytes)
	}
	header, rest, ok1 := strings.Cut(ticket, ".")
	payload, signature, ok2 := strings.Cut(rest, ".")
	if !ok1 || !ok2 {
		return Access{}, refuse(ReasonMalformed, "ticket: is not one (three parts in base64url, joined by dots)")
	}
	k := t.key(header)
	if k == nil {
		return Access{}, refuse(ReasonUnknownKey, "ticket: is signed by a key that this node does not know; ask the gateway for a new one")
	}
	raw, err := ticketEncoding.DecodeString(payload)
	if err != nil {
		return Access{}, refuse(ReasonMalformed, "ticket: the payload is not base64url")
	}
	var c claims
	// Nothing writes to raw any more.
	if err := parseClaims(unsafe.String(unsafe.SliceData(raw), len(raw)), &c); err != nil {
		return Access{}, err
	}
	seq, err := c.checkTicket(notifier, now)
	if err != nil {
		return Access{}, err
	}
	if err := k.spend(ticket[:len(header)+1+len(payload)], signature, seq, now); err != nil {
		return Access{}, err
	}
	return c.ticketAccess(notifier), nil
}

func (t *TicketKeys) key(header string) *ticketKey {
	keys := t.keys.Load()
	if keys == nil {
		return nil
	}
	return (*keys)[header]
}

var errForgedTicket = &Error{ReasonSignature, "ticket: the signature does not fit"}

// spend verifies the signature and remembers the ticket as used, whichever comes
// first among several callers with the same one.
func (k *ticketKey) spend(signed, signature string, seq uint64, now time.Time) error {
	if err := k.unspent(seq); err != nil {
		return err
	}
	var sig [ed25519.SignatureSize]byte
	if len(signature) != ticketEncoding.EncodedLen(len(sig)) {
		return errForgedTicket
	}
	if _, err := ticketEncoding.Decode(sig[:], bytesOf(signature)); err != nil {
		return errForgedTicket
	}
	if !ed25519.Verify(k.public, bytesOf(signed), sig[:]) {
		return errForgedTicket
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.window.used(seq) {
		return ErrUsed
	}
	k.window.mark(seq, now)
	k.spent++
	return nil
}

func (k *ticketKey) unspent(seq uint64) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if !k.removed.IsZero() {
		return refuse(ReasonUnknownKey, "ticket: the node that signed it is gone; ask the gateway for a new one")
	}
	if k.window.used(seq) {
		return ErrUsed
	}
	return nil
}

// bytesOf views a string as bytes, to be read only.
func bytesOf(s string) []byte { return unsafe.Slice(unsafe.StringData(s), len(s)) }

func (c *claims) checkTicket(notifier string, now time.Time) (seq uint64, err error) {
	const need = claimSub | claimAud | claimExp | claimJti
	seq, err = strconv.ParseUint(c.id, 10, 64)
	if err != nil || c.seen&need != need {
		return 0, refuse(ReasonClaims, "ticket: must have sub, aud, exp and a number as jti")
	}
	if schema.Account(c.subject).Validate() != nil {
		return 0, refuse(ReasonClaims, "ticket: sub is not an account's name")
	}
	if !c.isFor(notifier) {
		return 0, ErrWrongNotifier
	}
	left := time.Unix(c.expires, 0).Sub(now)
	if left <= -ticketLeeway || c.has(claimUntil) && c.until <= now.Unix() {
		return 0, refuse(ReasonExpired, "ticket: has expired; ask the gateway for a new one")
	}
	if left > MaxTicketTTL+ticketLeeway {
		return 0, refuse(ReasonClaims, "ticket: lives longer than %v; compare the clocks of the bus and of this node", MaxTicketTTL)
	}
	return seq, nil
}

func (c *claims) ticketAccess(notifier string) Access {
	a := Access{
		Subject:  schema.Account(c.subject),
		Grants:   c.grants,
		TokenID:  c.id,
		Notifier: notifier,
		Client:   c.client,
	}
	if !c.has(claimAccounts) {
		a.Grants = []Grant{{Account: a.Subject}}
	}
	if c.has(claimUntil) {
		a.Expires = time.Unix(c.until, 0)
	}
	return a
}
