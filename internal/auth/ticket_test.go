package auth

import (
	"crypto/ed25519"
	"encoding/base64"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"github.com/mailbell/mailbell/schema"
)

var ticketAccess = Access{
	Subject: "alice@example.com",
	Grants: []Grant{
		{Account: "alice@example.com"},
		{Account: "bob@example.com"},
		{Account: "sales \"EU\"", Mailboxes: []schema.Mailbox{"INBOX", "Angebote/ä"}},
	},
	Client: "roundcube",
}

func newTickets(t testing.TB) (*TicketSigner, *TicketKeys) {
	t.Helper()
	s, err := NewTicketSigner("bus1")
	if err != nil {
		t.Fatal(err)
	}
	keys := &TicketKeys{}
	if err := keys.Add(s.Key()); err != nil {
		t.Fatal(err)
	}
	return s, keys
}

func sign(t testing.TB, s *TicketSigner, a Access, now time.Time) string {
	t.Helper()
	ticket, err := s.sign(a, "n1", MaxTicketTTL, now)
	if err != nil {
		t.Fatal(err)
	}
	return ticket
}

func TestTicketCarriesTheAccess(t *testing.T) {
	s, keys := newTickets(t)
	now := time.Now()
	until := time.Unix(now.Add(time.Hour).Unix(), 0)
	own := Access{Subject: "alice", Grants: []Grant{{Account: "alice"}}}
	restricted := Access{Subject: "alice", Grants: []Grant{{Account: "alice", Mailboxes: []schema.Mailbox{"INBOX"}}}, Expires: until}
	all := ticketAccess
	all.Expires = until
	for _, a := range []Access{ticketAccess, own, restricted, all} {
		got, err := keys.Verify(sign(t, s, a, now), "n1", now)
		if err != nil {
			t.Fatal(err)
		}
		a.Notifier, a.TokenID = "n1", got.TokenID
		if got.TokenID == "" || !reflect.DeepEqual(got, a) {
			t.Errorf("got  %+v\nwant %+v", got, a)
		}
	}
}

// TestTicketIsAJWT reads a ticket with a library that knows nothing of ours.
func TestTicketIsAJWT(t *testing.T) {
	s, keys := newTickets(t)
	id, public := s.Key()
	parse := func(ticket string) (*jwt.Token, error) {
		return jwt.Parse(ticket, func(*jwt.Token) (any, error) { return public, nil },
			jwt.WithValidMethods([]string{"EdDSA"}), jwt.WithAudience("n1"), jwt.WithExpirationRequired())
	}
	token, err := parse(sign(t, s, ticketAccess, time.Now()))
	if err != nil {
		t.Fatal(err)
	}
	if token.Header["kid"] != id || token.Header["typ"] != ticketType {
		t.Errorf("header %v", token.Header)
	}
	m := token.Claims.(jwt.MapClaims)
	if m["sub"] != "alice@example.com" || m["client"] != "roundcube" || len(m["accounts"].([]any)) != 3 {
		t.Errorf("claims %v", m)
	}
	// And the other way round: one signed by the library.
	b := jwt.NewWithClaims(jwt.SigningMethodEdDSA, jwt.MapClaims{
		"sub": "alice", "aud": "n1", "jti": "5", "exp": time.Now().Add(10 * time.Second).Unix(),
	})
	text, err := b.SigningString()
	if err != nil {
		t.Fatal(err)
	}
	_, payload, _ := strings.Cut(text, ".")
	signed := s.header + payload
	a, err := keys.Verify(signed+"."+base64.RawURLEncoding.EncodeToString(ed25519.Sign(s.private, []byte(signed))), "n1", time.Now())
	if err != nil || a.Subject != "alice" {
		t.Errorf("%v, %v", a, err)
	}
}

// forge signs any payload with the signer's key.
func forge(s *TicketSigner, payload string) string {
	signed := s.header + base64.RawURLEncoding.EncodeToString([]byte(payload))
	return signed + "." + base64.RawURLEncoding.EncodeToString(ed25519.Sign(s.private, []byte(signed)))
}

// TestTicketRefusals is what a client reads when its ticket is refused.
func TestTicketRefusals(t *testing.T) {
	s, keys := newTickets(t)
	stranger, _ := newTickets(t)
	now := time.Unix(1795000000, 0)
	good := sign(t, s, ticketAccess, now)
	parts := strings.Split(good, ".")
	enc := base64.RawURLEncoding
	const again = "; ask the gateway for a new one"
	for _, tc := range []struct {
		name, ticket, notifier string
		now                    time.Time
		reason                 Reason
		message                string
	}{
		{"empty", "", "n1", now, ReasonMissing, ErrMissing.Message},
		{"one part", "x", "n1", now, ReasonMalformed, "ticket: is not one (three parts in base64url, joined by dots)"},
		{"too long", strings.Repeat("x", MaxTicketBytes+1), "n1", now, ReasonMalformed, "ticket: has 4097 bytes, the limit is 4096"},
		{"of a stranger", sign(t, stranger, ticketAccess, now), "n1", now, ReasonUnknownKey, "ticket: is signed by a key that this node does not know" + again},
		{"alg none", enc.EncodeToString([]byte(`{"alg":"none"}`)) + "." + parts[1] + ".", "n1", now, ReasonUnknownKey, "ticket: is signed by a key that this node does not know" + again},
		{"alg none with the kid", enc.EncodeToString([]byte(`{"alg":"none","typ":"`+ticketType+`","kid":"`+s.id+`"}`)) + "." + parts[1] + ".", "n1", now, ReasonUnknownKey, "ticket: is signed by a key that this node does not know" + again},
		{"payload not base64url", parts[0] + ".%%%." + parts[2], "n1", now, ReasonMalformed, "ticket: the payload is not base64url"},
		{"payload not JSON", forge(s, `{`), "n1", now, ReasonMalformed, "token: the payload is not JSON"},
		{"no number", forge(s, `{"sub":"a","aud":"n1","exp":1795000010,"jti":"x"}`), "n1", now, ReasonClaims, "ticket: must have sub, aud, exp and a number as jti"},
		{"no exp", forge(s, `{"sub":"a","aud":"n1","jti":"1"}`), "n1", now, ReasonClaims, "ticket: must have sub, aud, exp and a number as jti"},
		{"no sub", forge(s, `{"exp":1795000010,"aud":"n1","jti":"1"}`), "n1", now, ReasonClaims, "ticket: must have sub, aud, exp and a number as jti"},
		{"bad sub", forge(s, `{"sub":" ","exp":1795000010,"aud":"n1","jti":"1"}`), "n1", now, ReasonClaims, "ticket: sub is not an account's name"},
		{"lives too long", forge(s, `{"sub":"a","exp":1795000041,"aud":"n1","jti":"1"}`), "n1", now, ReasonClaims, "ticket: lives longer than 30s; compare the clocks of the bus and of this node"},
		{"for another node", good, "n2", now, ReasonWrongNotifier, ErrWrongNotifier.Message},
		{"expired", good, "n1", now.Add(MaxTicketTTL + ticketLeeway), ReasonExpired, "ticket: has expired" + again},
		{"the access expired", forge(s, `{"sub":"a","aud":"n1","exp":1795000010,"until":1795000000,"jti":"1"}`), "n1", now, ReasonExpired, "ticket: has expired" + again},
		{"another signature", parts[0] + "." + parts[1] + "." + strings.Split(sign(t, s, ticketAccess, now), ".")[2], "n1", now, ReasonSignature, "ticket: the signature does not fit"},
		{"no signature", parts[0] + "." + parts[1] + ".", "n1", now, ReasonSignature, "ticket: the signature does not fit"},
		{"signature with a fourth part", good + ".x", "n1", now, ReasonSignature, "ticket: the signature does not fit"},
		{"signature not base64url", parts[0] + "." + parts[1] + "." + strings.Repeat("=", 86), "n1", now, ReasonSignature, "ticket: the signature does not fit"},
		{"good after all that", good, "n1", now, "", ""},
		{"used", good, "n1", now, ReasonUsed, ErrUsed.Message},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, err := keys.Verify(tc.ticket, tc.notifier, tc.now)
			checkRefusal(t, err, tc.reason, tc.message)
		})
	}
}

// TestTicketSpellings changes each character of a ticket: there is one spelling of it.
func TestTicketSpellings(t *testing.T) {
	s, keys := newTickets(t)
	now := time.Now()
	good := sign(t, s, ticketAccess, now)
	for i := range good {
		for _, c := range []byte("A_x.= ") {
			if good[i] == c {
				continue
			}
			if _, err := keys.Verify(good[:i]+string(c)+good[i+1:], "n1", now); err == nil {
				t.Fatalf("accepted with byte %d changed to %q", i, c)
			}
		}
	}
	if _, err := keys.Verify(good, "n1", now); err != nil {
		t.Error(err)
	}
}

func TestTicketSignRefuses(t *testing.T) {
	s, _ := newTickets(t)
	now := time.Now()
	big := ticketAccess
	for i := range 200 {
		big.Grants = append(big.Grants, Grant{Account: schema.Account(fmt.Sprintf("account-%d@example.com", i))})
	}
	for _, tc := range []struct {
		name     string
		access   Access
		notifier string
		ttl      time.Duration
	}{
		{"no lifetime", ticketAccess, "n1", 0},
		{"a long lifetime", ticketAccess, "n1", MaxTicketTTL + 1},
		{"no notifier", ticketAccess, "", time.Second},
		{"no subject", Access{}, "n1", time.Second},
		{"expired", Access{Subject: "a", Expires: now.Add(-1)}, "n1", time.Second},
		{"too long", big, "n1", time.Second},
	} {
		if _, err := s.sign(tc.access, tc.notifier, tc.ttl, now); err == nil {
			t.Errorf("%s: signed", tc.name)
		}
	}
	// A ticket does not outlive the access that it passes on.
	soon := ticketAccess
	soon.Expires = now.Add(2 * time.Second)
	ticket := sign(t, s, soon, now)
	_, keys := s, &TicketKeys{}
	if err := keys.Add(s.Key()); err != nil {
		t.Fatal(err)
	}
	if _, err := keys.Verify(ticket, "n1", now.Add(3*time.Second)); !errors.Is(err, ErrExpired) {
		t.Errorf("got %v", err)
	}
}

func TestTicketKeysComeAndGo(t *testing.T) {
	s, keys := newTickets(t)
	id, public := s.Key()
	now := time.Now()
	used, fresh := sign(t, s, ticketAccess, now), sign(t, s, ticketAccess, now)
	if _, err := keys.Verify(used, "n1", now); err != nil {
		t.Fatal(err)
	}
	keys.Remove(id)
	if _, err := keys.Verify(fresh, "n1", now); !errors.Is(err, ErrUnknownKey) {
		t.Errorf("removed: %v", err)
	}
	if err := keys.Replace(map[string]ed25519.PublicKey{id: public}); err != nil {
		t.Fatal(err)
	}
	if _, err := keys.Verify(used, "n1", now); !errors.Is(err, ErrUsed) {
		t.Errorf("used before the key was removed and came back: %v", err)
	}
	if _, err := keys.Verify(fresh, "n1", now); err != nil {
		t.Errorf("fresh: %v", err)
	}
	if err := keys.Replace(nil); err != nil {
		t.Fatal(err)
	}
	if _, err := keys.Verify(sign(t, s, ticketAccess, now), "n1", now); !errors.Is(err, ErrUnknownKey) {
		t.Errorf("replaced by nothing: %v", err)
	}
	if n := len(keys.clone(time.Now().Add(replayMemory + time.Second))); n != 0 {
		t.Errorf("%d removed keys are remembered for good", n)
	}
	if keys.Add("x", public[:5]) == nil || keys.Add("", public) == nil {
		t.Error("a bad key is accepted")
	}
	full := &TicketKeys{}
	for i := range maxTicketKeys {
		if err := full.Add(fmt.Sprint(i), public); err != nil {
			t.Fatal(err)
		}
	}
	if full.Add("more", public) == nil {
		t.Error("more keys than the limit")
	}
}

// TestTicketChurn lets many goroutines spend the same tickets while keys come and go:
// each is accepted exactly once.
func TestTicketChurn(t *testing.T) {
	s, keys := newTickets(t)
	now := time.Now()
	const tickets, spenders = 300, 8
	all := make([]string, tickets)
	for i := range all {
		all[i] = sign(t, s, ticketAccess, now)
	}
	accepted := make([]atomic.Int32, tickets)
	var spend, churn sync.WaitGroup
	stop := make(chan struct{})
	churn.Go(func() {
		_, other := ed25519Pair(t)
		for {
			select {
			case <-stop:
				return
			default:
			}
			_ = keys.Add("other", other)
			keys.Remove("other")
		}
	})
	for range spenders {
		spend.Go(func() {
			for i, ticket := range all {
				_, err := keys.Verify(ticket, "n1", now)
				if err == nil {
					accepted[i].Add(1)
				} else if !errors.Is(err, ErrUsed) {
					t.Error(err)
				}
			}
		})
	}
	spend.Wait()
	close(stop)
	churn.Wait()
	for i := range accepted {
		if n := accepted[i].Load(); n != 1 {
			t.Errorf("ticket %d was accepted %d times", i, n)
		}
	}
}

func ed25519Pair(t testing.TB) (ed25519.PrivateKey, ed25519.PublicKey) {
	t.Helper()
	public, private, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Error(err)
	}
	return private, public
}

// TestReplayWindow compares the window with a map, over more numbers than it holds.
func TestReplayWindow(t *testing.T) {
	var w replayWindow
	now := time.Unix(1795000000, 0)
	const size = replayChunks * replayChunkBits
	const start = 1 << 40
	for _, seq := range []uint64{start, start + 1, start + 5000, start + 4, start + size/2, start + 63, start + 64} {
		if w.used(seq) {
			t.Errorf("%d is used already", seq-start)
		}
		w.mark(seq, now)
		if !w.used(seq) {
			t.Errorf("%d is not remembered", seq-start)
		}
	}
	if w.used(start + 2) {
		t.Error("a neighbour is marked")
	}
	w.mark(start+2*size, now)
	for _, seq := range []uint64{start, start + 2, start + size} {
		if !w.used(seq) {
			t.Errorf("%d fell out of the window and counts as unused", seq-start)
		}
	}
	if w.used(start + size + 2*replayChunkBits) {
		t.Error("a number within the window counts as used")
	}
	later := now.Add(replayMemory + time.Second)
	w.mark(start+2*size+replayChunkBits, later)
	chunks := 0
	for _, c := range w.chunks {
		if c != nil {
			chunks++
		}
	}
	if chunks != 1 {
		t.Errorf("%d chunks are kept after their tickets expired, want 1", chunks)
	}
}

func TestAllow(t *testing.T) {
	inbox := []schema.Mailbox{"INBOX"}
	a := Access{Grants: []Grant{{Account: "alice"}, {Account: "sales", Mailboxes: []schema.Mailbox{"INBOX", "Offers"}}}}
	for _, tc := range []struct {
		account schema.Account
		asked   []schema.Mailbox
		granted []schema.Mailbox
		ok      bool
	}{
		{"alice", nil, nil, true},
		{"alice", inbox, inbox, true},
		{"alice", []schema.Mailbox{}, nil, true},
		{"sales", nil, []schema.Mailbox{"INBOX", "Offers"}, true},
		{"sales", inbox, inbox, true},
		{"sales", []schema.Mailbox{"INBOX", "Secret"}, nil, false},
		{"bob", nil, nil, false},
		{"Alice", nil, nil, false},
		{"", nil, nil, false},
	} {
		granted, ok := a.Allow(tc.account, tc.asked)
		if ok != tc.ok || !reflect.DeepEqual(granted, tc.granted) {
			t.Errorf("Allow(%q, %q) = %q, %v; want %q, %v", tc.account, tc.asked, granted, ok, tc.granted, tc.ok)
		}
	}
}

func FuzzTicket(f *testing.F) {
	s, keys := newTickets(f)
	now := time.Unix(1795000000, 0)
	f.Add(sign(f, s, ticketAccess, now), `{"sub":"a","aud":"n1","exp":1795000010,"jti":"1"}`)
	f.Add("a.b.c", `{"accounts":[{"account":"a","mailboxes":["b"]}],"aud":["x"],"until":1}`)
	f.Fuzz(func(t *testing.T, ticket, payload string) {
		// Another's text is never accepted; a payload of our own signer must only not
		// break anything, and be accepted at most once.
		if _, err := keys.Verify(ticket, "n1", now); err == nil && !strings.HasPrefix(ticket, s.header) {
			t.Fatalf("accepted %q", ticket)
		}
		own := forge(s, payload)
		if len(own) > MaxTicketBytes {
			return
		}
		a, err := keys.Verify(own, "n1", now)
		if err != nil {
			if ReasonOf(err) == ReasonInternal {
				t.Fatalf("%q: %v is not an *Error", payload, err)
			}
			return
		}
		if a.Subject.Validate() != nil || len(a.Grants) > MaxGrants {
			t.Fatalf("%q: accepted as %+v", payload, a)
		}
		if _, err := keys.Verify(own, "n1", now); !errors.Is(err, ErrUsed) {
			t.Fatalf("%q: accepted twice", payload)
		}
	})
}

func FuzzToken(f *testing.F) {
	keys := openKeys(f, []byte(testSecret), nil)
	f.Add(`{"alg":"HS256"}`, `{"sub":"a","exp":99999999999,"accounts":["b",{"account":"c","mailboxes":["d"]}]}`, "x.y.z")
	f.Add(`{"alg":"none","crit":[]}`, `{}`, "e30.e30.")
	f.Fuzz(func(t *testing.T, header, payload, raw string) {
		_, _ = keys.VerifyNow(raw)
		a, err := keys.VerifyNow(rawToken(t, []byte(testSecret), header, payload))
		if err != nil {
			if ReasonOf(err) == ReasonInternal {
				t.Fatalf("%q: %v is not an *Error", payload, err)
			}
			return
		}
		if a.Subject.Validate() != nil || len(a.Grants) == 0 || len(a.Grants) > MaxGrants+1 || a.Expires.IsZero() {
			t.Fatalf("%q: accepted as %+v", payload, a)
		}
		// What a token grants, a ticket passes on unchanged.
		grants := appendAccounts(nil, a.Grants)
		var c claims
		if err := parseClaims(`{"accounts":`+string(grants)+`}`, &c); len(a.Grants) <= MaxGrants && (err != nil || !reflect.DeepEqual(c.grants, a.Grants)) {
			t.Fatalf("%s: %v, read back as %+v", grants, err, c.grants)
		}
	})
}
