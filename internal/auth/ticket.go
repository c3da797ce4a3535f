package auth

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/tidwall/gjson"
)

const (
	// MaxTicketTTL is how long a ticket may live.
	MaxTicketTTL = 30 * time.Second
	// MaxTicketBytes bounds a ticket, since it travels in a URL, in a request whose head has 8 KiB.
	MaxTicketBytes = 4 << 10
	// ticketLeeway is how far the clocks of a bus node and a notifier may differ.
	// A ticket works once, so it may be generous.
	ticketLeeway = 10 * time.Second

	ticketType = "mailbell-ticket+jwt"
)

// TicketSigner signs tickets with an Ed25519 key that lives as long as the process.
//
// A ticket is a JWT (EdDSA) with `aud`, the notifier; `exp`; `jti`, a number
// that the signer gives it; `until`, the end of the connection; `client`; and `accounts`, left
// out when the subject may hear just all of their own account.
type TicketSigner struct {
	// Static after construction.
	id      string
	private ed25519.PrivateKey
	public  ed25519.PublicKey
	header  string // encoded, with the dot

	next atomic.Uint64
}

// NewTicketSigner makes a key. The key's id is the node's name and a part of the key's hash.
func NewTicketSigner(nodeID string) (*TicketSigner, error) {
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make ticket key: %w", err)
	}
	sum := sha256.Sum256(public)
	s := &TicketSigner{id: nodeID + "." + hex.EncodeToString(sum[:6]), private: private, public: public}
	s.header = ticketHeader(s.id) + "."
	// Where the numbers start says nothing about how many tickets there were.
	s.next.Store(uint64(binary.BigEndian.Uint32(sum[8:])))
	return s, nil
}

// ticketHeader is the first part of every ticket signed with that key: there is one
// spelling of it, so a verifier looks it up rather than believing it.
func ticketHeader(id string) string {
	b := []byte(`{"alg":"EdDSA","typ":"` + ticketType + `","kid":`)
	b = append(gjson.AppendJSONString(b, id), '}')
	return base64.RawURLEncoding.EncodeToString(b)
}

// Key is what notifiers need in order to verify this signer's tickets.
func (s *TicketSigner) Key() (id string, public ed25519.PublicKey) { return s.id, s.public }

// Sign makes a ticket with which its holder may connect once to the notifier, within
// ttl (at most MaxTicketTTL, and not beyond the access itself). Name the notifier as the
// notifier names itself to Verify; a name that is new at each start of its
// process keeps tickets from being used again after a restart.
func (s *TicketSigner) Sign(a Access, notifier string, ttl time.Duration) (string, error) {
	return s.sign(a, notifier, ttl, time.Now())
}

func (s *TicketSigner) sign(a Access, notifier string, ttl time.Duration, now time.Time) (string, error) {
	if ttl <= 0 || ttl > MaxTicketTTL {
		return "", fmt.Errorf("sign ticket: lifetime %v: want more than 0 and at most %v", ttl, MaxTicketTTL)
	}
	if notifier == "" {
		return "", errors.New("sign ticket: no notifier is named")
	}
	if err := a.Subject.Validate(); err != nil {
		return "", fmt.Errorf("sign ticket: the account %w", err)
	}
	expires := now.Add(ttl)
	if !a.Expires.IsZero() {
		if !a.Expires.After(now) {
			return "", ErrExpired
		}
		if a.Expires.Before(expires) {
			expires = a.Expires
		}
	}
	seq := s.next.Add(1)
	payload := make([]byte, 0, 256)
	payload = append(payload, `{"sub":`...)
	payload = gjson.AppendJSONString(payload, string(a.Subject))
	payload = appendClaim(payload, "aud", notifier)
	payload = appendClaim(payload, "jti", strconv.FormatUint(seq, 10))
	payload = appendDate(payload, "iat", now.Unix())
	// A started second counts as whole, lest a ticket be born expired.
	payload = appendDate(payload, "exp", expires.Add(time.Second-1).Unix())
	if !a.Expires.IsZero() {
		payload = appendDate(payload, "until", a.Expires.Unix())
	}
	if a.Client != "" {
		payload = appendClaim(payload, "client", a.Client)
	}
	if !ownOnly(a) {
		payload = append(payload, `,"accounts":`...)
		payload = appendAccounts(payload, a.Grants)
	}
	payload = append(payload, '}')
	return s.seal(payload)
}

// ownOnly reports whether a is what `sub` alone means.
func ownOnly(a Access) bool {
	return len(a.Grants) == 1 && a.Grants[0].Account == a.Subject && a.Grants[0].Mailboxes == nil
}

func (s *TicketSigner) seal(payload []byte) (string, error) {
	enc := base64.RawURLEncoding
	size := len(s.header) + enc.EncodedLen(len(payload)) + 1 + enc.EncodedLen(ed25519.SignatureSize)
	if size > MaxTicketBytes {
		return "", refuse(ReasonTicketSize, "token: names too many accounts and mailboxes for a ticket: it would have %d bytes, the limit is %d", size, MaxTicketBytes)
	}
	out := append(make([]byte, 0, size), s.header...)
	out = enc.AppendEncode(out, payload)
	signature := ed25519.Sign(s.private, out)
	out = enc.AppendEncode(append(out, '.'), signature)
	return string(out), nil
}
