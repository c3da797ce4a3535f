package auth

import (
	"crypto/ed25519"
	"testing"
	"time"
)

func BenchmarkTicketSign(b *testing.B) {
	s, _ := newTickets(b)
	a := Access{Subject: "alice@example.com", Grants: []Grant{{Account: "alice@example.com"}}, Expires: time.Now().Add(time.Hour)}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := s.Sign(a, "n1", MaxTicketTTL); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkTicketVerify(b *testing.B) {
	s, keys := newTickets(b)
	now := time.Now()
	a := Access{Subject: "alice@example.com", Grants: []Grant{{Account: "alice@example.com"}}, Expires: now.Add(time.Hour)}
	b.ReportAllocs()
	for b.Loop() {
		b.StopTimer()
		ticket := sign(b, s, a, now)
		b.StartTimer()
		if _, err := keys.Verify(ticket, "n1", now); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkTicketUsed is the price of a ticket that is refused before its signature is looked at.
func BenchmarkTicketUsed(b *testing.B) {
	s, keys := newTickets(b)
	now := time.Now()
	ticket := sign(b, s, ticketAccess, now)
	_, _ = keys.Verify(ticket, "n1", now)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := keys.Verify(ticket, "n1", now); err != ErrUsed {
			b.Fatal(err)
		}
	}
}

// BenchmarkEd25519Verify is the floor below BenchmarkTicketVerify.
func BenchmarkEd25519Verify(b *testing.B) {
	private, public := ed25519Pair(b)
	message := make([]byte, 250)
	sig := ed25519.Sign(private, message)
	for b.Loop() {
		if !ed25519.Verify(public, message, sig) {
			b.Fatal("no")
		}
	}
}

func BenchmarkJWTVerify(b *testing.B) {
	k := testKeys()
	for _, tc := range []struct {
		name         string
		sign, verify []byte
	}{
		{"HS256", []byte(testSecret), []byte(testSecret)},
		{"RS256", privatePEM(b, k.rsa), publicPEM(b, k.rsa)},
		{"ES256", privatePEM(b, k.ec), publicPEM(b, k.ec)},
		{"EdDSA", privatePEM(b, k.ed), publicPEM(b, k.ed)},
	} {
		b.Run(tc.name, func(b *testing.B) {
			keys := openKeys(b, tc.verify, nil)
			token := mintWith(b, tc.sign, Claims{})
			b.ReportAllocs()
			for b.Loop() {
				if _, err := keys.VerifyNow(token); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkOriginsAllow(b *testing.B) {
	o, err := ParseOrigins("https://mail.example.com, https://*.example.org")
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if !o.Allow("https://a.example.org", "n1.example.org:7480") {
			b.Fatal("refused")
		}
	}
}
