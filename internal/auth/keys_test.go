package auth

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/MicahParks/jwkset"
	"github.com/golang-jwt/jwt/v5"
	"github.com/mailbell/mailbell/schema"
)

func mintWith(t testing.TB, keyFile []byte, c Claims) string {
	t.Helper()
	if c.Account == "" {
		c.Account = "alice@example.com"
	}
	token, err := mint(keyFile, c, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return token
}

func TestEachAlgorithm(t *testing.T) {
	k := testKeys()
	for _, tc := range []struct {
		name         string
		sign, verify []byte
	}{
		{"HS256", []byte(testSecret + "\n"), []byte(testSecret)},
		{"RS256", privatePEM(t, k.rsa), publicPEM(t, k.rsa)},
		{"ES256", privatePEM(t, k.ec), publicPEM(t, k.ec)},
		{"EdDSA", privatePEM(t, k.ed), publicPEM(t, k.ed)},
		{"several keys in a file", privatePEM(t, k.ed), slicesJoin(publicPEM(t, k.rsa), publicPEM(t, k.ec), publicPEM(t, k.ed))},
		{"JWKS", privatePEM(t, k.ec), jwks(t, "", k.rsa, k.ec, k.ed)},
	} {
		t.Run(tc.name, func(t *testing.T) {
			keys := openKeys(t, tc.verify, nil)
			a, err := keys.Verify(t.Context(), mintWith(t, tc.sign, Claims{ID: "7", Accounts: []Grant{
				{Account: "bob@example.com"},
				{Account: "sales@example.com", Mailboxes: []schema.Mailbox{"INBOX", "Offers"}},
			}}))
			if err != nil {
				t.Fatal(err)
			}
			want := "{alice@example.com [{alice@example.com []} {bob@example.com []} {sales@example.com [INBOX Offers]}] 7}"
			if got := fmt.Sprint(struct {
				s schema.Account
				g []Grant
				i string
			}{a.Subject, a.Grants, a.TokenID}); got != want {
				t.Errorf("got  %s\nwant %s", got, want)
			}
			if left := time.Until(a.Expires); left < 59*time.Minute || left > time.Hour {
				t.Errorf("expires in %v", left)
			}
		})
	}
}

func slicesJoin(parts ...[]byte) []byte { return bytes.Join(parts, nil) }

// jwks makes a set of public keys; with a kid, they are kid-0 and so on.
func jwks(t testing.TB, kid string, keys ...any) []byte {
	t.Helper()
	set := jwkset.JWKSMarshal{}
	for i, k := range keys {
		var o jwkset.JWKOptions
		if kid != "" {
			o.Metadata.KID = fmt.Sprintf("%s-%d", kid, i)
		}
		jwk, err := jwkset.NewJWKFromKey(k, o)
		if err != nil {
			t.Fatal(err)
		}
		set.Keys = append(set.Keys, jwk.Marshal())
	}
	b, err := json.Marshal(set)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// rawToken signs any header and payload with HMAC-SHA256 of the key.
func rawToken(t testing.TB, key []byte, header, payload string) string {
	t.Helper()
	enc := base64.RawURLEncoding
	signed := enc.EncodeToString([]byte(header)) + "." + enc.EncodeToString([]byte(payload))
	sig, err := jwt.SigningMethodHS256.Sign(signed, key)
	if err != nil {
		t.Fatal(err)
	}
	return signed + "." + enc.EncodeToString(sig)
}

// TestAlgorithmConfusion tries what forgers try: a token must never be verified with a
// key of another kind, whatever its header says (RFC 8725, section 2.1).
func TestAlgorithmConfusion(t *testing.T) {
	k := testKeys()
	rsaPEM := publicPEM(t, k.rsa)
	rsaDER, _ := x509.MarshalPKIXPublicKey(k.rsa.Public())
	payload := fmt.Sprintf(`{"sub":"alice@example.com","exp":%d}`, time.Now().Add(time.Hour).Unix())
	unsigned := func(header string) string {
		enc := base64.RawURLEncoding
		return enc.EncodeToString([]byte(header)) + "." + enc.EncodeToString([]byte(payload)) + "."
	}
	es384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	signed := func(m jwt.SigningMethod, key any) string {
		s, err := jwt.NewWithClaims(m, jwt.MapClaims{"sub": "alice@example.com", "exp": time.Now().Add(time.Hour).Unix()}).SignedString(key)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	edJWK := jwks(t, "k", k.rsa, k.ed)
	for _, tc := range []struct {
		name   string
		keys   []byte
		token  string
		reason Reason
	}{
		{"none", rsaPEM, unsigned(`{"alg":"none"}`), ReasonAlgorithm},
		{"None", rsaPEM, unsigned(`{"alg":"None"}`), ReasonAlgorithm},
		{"none with a secret", []byte(testSecret), unsigned(`{"alg":"none"}`), ReasonAlgorithm},
		{"no alg", rsaPEM, unsigned(`{}`), ReasonAlgorithm},
		{"alg is no string", rsaPEM, unsigned(`{"alg":["RS256"]}`), ReasonAlgorithm},
		{"HS256 without a signature", []byte(testSecret), unsigned(`{"alg":"HS256"}`), ReasonSignature},
		{"RSA public PEM as HMAC secret", rsaPEM, rawToken(t, rsaPEM, `{"alg":"HS256"}`, payload), ReasonAlgorithm},
		{"the same, trimmed", rsaPEM, rawToken(t, bytes.TrimSpace(rsaPEM), `{"alg":"HS256"}`, payload), ReasonAlgorithm},
		{"RSA public DER as HMAC secret", rsaPEM, rawToken(t, rsaDER, `{"alg":"HS256"}`, payload), ReasonAlgorithm},
		{"Ed25519 public key as HMAC secret", publicPEM(t, k.ed), rawToken(t, k.ed.Public().(ed25519.PublicKey), `{"alg":"HS256"}`, payload), ReasonAlgorithm},
		{"kid of an RSA key with HS256", edJWK, rawToken(t, rsaPEM, `{"alg":"HS256","kid":"k-0"}`, payload), ReasonAlgorithm},
		{"kid of an RSA key with EdDSA", edJWK, strings.Replace(signed(jwt.SigningMethodEdDSA, k.ed), base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"EdDSA","typ":"JWT"}`)), base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"EdDSA","kid":"k-0"}`)), 1), ReasonUnknownKey},
		{"RS384 of the right key", rsaPEM, signed(jwt.SigningMethodRS384, k.rsa), ReasonAlgorithm},
		{"PS256 of the right key", rsaPEM, signed(jwt.SigningMethodPS256, k.rsa), ReasonAlgorithm},
		{"HS512 of the right secret", []byte(testSecret), signed(jwt.SigningMethodHS512, []byte(testSecret)), ReasonAlgorithm},
		{"ES384", publicPEM(t, k.ec), signed(jwt.SigningMethodES384, es384), ReasonAlgorithm},
		{"key in the header", rsaPEM, rawToken(t, []byte(testSecret), `{"alg":"HS256","jwk":{"kty":"oct","k":"`+base64.RawURLEncoding.EncodeToString([]byte(testSecret))+`"}}`, payload), ReasonAlgorithm},
		{"crit", []byte(testSecret), rawToken(t, []byte(testSecret), `{"alg":"HS256","crit":["b64"],"b64":false}`, payload), ReasonMalformed},
		{"kid is no string", []byte(testSecret), rawToken(t, []byte(testSecret), `{"alg":"HS256","kid":7}`, payload), ReasonMalformed},
		{"another secret", []byte(testSecret), rawToken(t, []byte(testSecret+"."), `{"alg":"HS256"}`, payload), ReasonSignature},
		{"a ticket", rsaPEM, aTicket(t), ReasonAlgorithm},
	} {
		t.Run(tc.name, func(t *testing.T) {
			a, err := openKeys(t, tc.keys, nil).Verify(t.Context(), tc.token)
			if err == nil {
				t.Fatalf("accepted as %v", a)
			}
			if ReasonOf(err) != tc.reason || StatusOf(err) != http.StatusUnauthorized {
				t.Errorf("refused with %s (%v), want %s", ReasonOf(err), err, tc.reason)
			}
		})
	}
}

func aTicket(t testing.TB) string {
	s, err := NewTicketSigner("bus1")
	if err != nil {
		t.Fatal(err)
	}
	ticket, err := s.Sign(Access{Subject: "alice", Grants: []Grant{{Account: "alice"}}}, "n1", time.Second)
	if err != nil {
		t.Fatal(err)
	}
	return ticket
}

// TestRefusals is what a client reads when its token is refused.
func TestRefusals(t *testing.T) {
	now := time.Unix(1795000000, 0)
	keys := openKeys(t, []byte(testSecret), func(c *KeysConfig) {
		c.Issuer, c.Audience = "https://id.example.com", "mailbell"
	})
	keys.now = func() time.Time { return now }
	good := `"iss":"https://id.example.com","aud":["other","mailbell"],"exp":1795000060`
	bare := strings.Replace(good, `["other","mailbell"]`, `"mailbell"`, 1)
	many := strings.TrimSuffix(strings.Repeat(`"x",`, MaxGrantMailboxes), ",")
	for i := range MaxGrantMailboxes {
		many = strings.Replace(many, `"x"`, fmt.Sprintf(`"m%d"`, i), 1)
	}
	accounts := make([]string, MaxGrants+1)
	for i := range accounts {
		accounts[i] = fmt.Sprintf(`"a%d"`, i)
	}
	for _, tc := range []struct {
		name, payload string
		reason        Reason // empty: accepted
		message       string
	}{
		{"good", `{"sub":"alice",` + good + `}`, "", ""},
		{"aud as a string", `{"sub":"alice",` + bare + `}`, "", ""},
		{"fractions of a second", `{"sub":"alice","nbf":1795000000.5,` + good + `}`, "", ""},
		{"nbf within the leeway", `{"sub":"alice","nbf":1795000030,` + good + `}`, "", ""},
		{"iat within the leeway", `{"sub":"alice","iat":1795000030,` + good + `}`, "", ""},
		{"names are matched exactly", `{"sub":"alice","SUB":"bob","Accounts":["bob"],` + good + `}`, "", ""},
		{"nbf later", `{"sub":"alice","nbf":1795000031,` + good + `}`, ReasonEarly, "token: is not valid before 2026-11-18T11:07:11Z; compare the clocks"},
		{"iat later", `{"sub":"alice","iat":1795000031,` + good + `}`, ReasonEarly, "token: was issued in the future, at 2026-11-18T11:07:11Z; compare the clocks"},
		{"expired", `{"sub":"alice",` + strings.Replace(good, "0060", "0000", 1) + `}`, ReasonExpired, "token: expired 0s ago; get a new one"},
		{"expired long ago", `{"sub":"alice",` + strings.Replace(good, "1795000060", "1794999000", 1) + `}`, ReasonExpired, "token: expired 16m40s ago; get a new one"},
		{"no exp", `{"sub":"alice","iss":"https://id.example.com","aud":"mailbell"}`, ReasonClaims, "token: has no exp; tokens must expire"},
		{"exp as text", `{"sub":"alice","exp":"1795000060"}`, ReasonClaims, `token: claim "exp" must be seconds since 1970, such as 1795000000`},
		{"exp null", `{"sub":"alice","exp":null}`, ReasonClaims, `token: claim "exp" must be seconds since 1970, such as 1795000000`},
		{"exp too large", `{"sub":"alice","exp":1e300}`, ReasonClaims, `token: claim "exp" must be seconds since 1970, such as 1795000000`},
		{"exp in milliseconds", `{"sub":"alice","exp":1795000000000}`, ReasonClaims, `token: claim "exp" must be seconds since 1970, such as 1795000000`},
		{"exp negative", `{"sub":"alice","exp":-1}`, ReasonClaims, `token: claim "exp" must be seconds since 1970, such as 1795000000`},
		{"no sub", `{` + good + `}`, ReasonClaims, "token: has no sub; it must name the user's account"},
		{"empty sub", `{"sub":"",` + good + `}`, ReasonClaims, "token: sub is empty; it must be the user's account"},
		{"sub of another type", `{"sub":7,` + good + `}`, ReasonClaims, `token: claim "sub" must be a string`},
		{"sub twice", `{"sub":"alice","sub":"bob",` + good + `}`, ReasonClaims, `token: claim "sub" stands twice`},
		{"another issuer", `{"sub":"alice",` + strings.Replace(good, "id.", "evil.", 1) + `}`, ReasonIssuer, `token: iss is "https://evil.example.com", want "https://id.example.com"`},
		{"no issuer", `{"sub":"alice","aud":"mailbell","exp":1795000060}`, ReasonIssuer, `token: iss is "", want "https://id.example.com"`},
		{"another audience", `{"sub":"alice",` + strings.Replace(good, `,"mailbell"`, "", 1) + `}`, ReasonAudience, `token: aud does not have "mailbell"`},
		{"no audience", `{"sub":"alice","iss":"https://id.example.com","exp":1795000060}`, ReasonAudience, `token: aud does not have "mailbell"`},
		{"aud of another type", `{"sub":"alice","aud":{}}`, ReasonClaims, `token: claim "aud" must be a string or an array of strings`},
		{"accounts of another type", `{"accounts":"bob",` + good + `}`, ReasonClaims, `token: claim "accounts" must be an array, such as ["bob@example.com"]`},
		{"an account of another type", `{"accounts":["bob",1],` + good + `}`, ReasonClaims, `token: claim "accounts", entry 1: must be a name, or {"account":"…","mailboxes":["INBOX"]}`},
		{"an empty account", `{"accounts":[""],` + good + `}`, ReasonClaims, `token: claim "accounts", entry 0: the account is empty`},
		{"mailboxes without account", `{"accounts":[{"mailboxes":["INBOX"]}],` + good + `}`, ReasonClaims, `token: claim "accounts", entry 0: the account is empty`},
		{"a restriction misspelt", `{"accounts":[{"account":"bob","mailbox":["INBOX"]}],` + good + `}`, ReasonClaims, `token: claim "accounts", entry 0: key "mailbox" is unknown, twice, or of the wrong type`},
		{"mailboxes null", `{"accounts":[{"account":"bob","mailboxes":null}],` + good + `}`, ReasonClaims, `token: claim "accounts", entry 0: key "mailboxes" is unknown, twice, or of the wrong type`},
		{"no mailboxes", `{"accounts":[{"account":"bob","mailboxes":[]}],` + good + `}`, ReasonClaims, `token: claim "accounts", entry 0: mailboxes is empty; leave it out for all of them`},
		{"a mailbox of another type", `{"accounts":[{"account":"bob","mailboxes":[1]}],` + good + `}`, ReasonClaims, `token: claim "accounts", entry 0: mailboxes must be strings`},
		{"a mailbox with a control character", `{"accounts":[{"account":"bob","mailboxes":["a\n"]}],` + good + `}`, ReasonClaims, `token: claim "accounts", entry 0: a mailbox has a control character at byte 1`},
		{"too many mailboxes", `{"accounts":[{"account":"bob","mailboxes":[` + many + `,"more"]}],` + good + `}`, ReasonClaims, `token: claim "accounts", entry 0: more than 100 mailboxes; grant the whole account`},
		{"too many mailboxes, in two entries", `{"accounts":[{"account":"bob","mailboxes":[` + many + `]},{"account":"bob","mailboxes":["more"]}],` + good + `}`, ReasonClaims, `token: claim "accounts", entry 0: more than 100 mailboxes; grant the whole account`},
		{"too many accounts", `{"accounts":[` + strings.Join(accounts, ",") + `],` + good + `}`, ReasonClaims, `token: claim "accounts" names more than 256 accounts`},
		{"not an object", `[]`, ReasonMalformed, "token: the payload is not a JSON object"},
		{"not JSON", `{"sub":`, ReasonMalformed, "token: is not a JWT (three parts in base64url, joined by dots)"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, err := keys.Verify(t.Context(), rawToken(t, []byte(testSecret), `{"alg":"HS256"}`, tc.payload))
			checkRefusal(t, err, tc.reason, tc.message)
		})
	}
}

func checkRefusal(t *testing.T, err error, reason Reason, message string) {
	t.Helper()
	if reason == "" {
		if err != nil {
			t.Errorf("refused: %v", err)
		}
		return
	}
	if err == nil {
		t.Fatal("accepted")
	}
	if ReasonOf(err) != reason || err.Error() != message {
		t.Errorf("got  %s %s\nwant %s %s", ReasonOf(err), err, reason, message)
	}
	if !errors.Is(err, &Error{Reason: reason}) {
		t.Error("errors.Is does not find the reason")
	}
}

func TestMalformedTokens(t *testing.T) {
	keys := openKeys(t, []byte(testSecret), nil)
	for _, tc := range []struct {
		token   string
		reason  Reason
		message string
	}{
		{"", ReasonMissing, ErrMissing.Message},
		{"x", ReasonMalformed, ErrMalformed.Message},
		{"..", ReasonMalformed, ErrMalformed.Message},
		{"a.b.c.d", ReasonMalformed, ErrMalformed.Message},
		{"e30.e30.!", ReasonAlgorithm, `token: algorithm "" is not accepted; use HS256, RS256, ES256 or EdDSA`},
		{strings.Repeat("x", MaxTokenBytes+1), ReasonMalformed, "token: has 8193 bytes, the limit is 8192"},
	} {
		_, err := keys.Verify(t.Context(), tc.token)
		checkRefusal(t, err, tc.reason, tc.message)
	}
}

// TestKeyFiles is what an operator reads when the keys are of no use.
func TestKeyFiles(t *testing.T) {
	k := testKeys()
	small, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Fatal(err)
	}
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, _ := x509.MarshalPKIXPublicKey(k.rsa.Public())
	for _, tc := range []struct {
		name    string
		content []byte
		problem string // empty: read
	}{
		{"secret", []byte(testSecret), ""},
		{"PKCS #1", pem.EncodeToMemory(&pem.Block{Type: "RSA PUBLIC KEY", Bytes: x509.MarshalPKCS1PublicKey(&k.rsa.PublicKey)}), ""},
		{"text before the PEM", append([]byte("Public-Key: (2048 bit)\n"), publicPEM(t, k.rsa)...), ""},
		{"one JWK", bytes.TrimSuffix(bytes.TrimPrefix(jwks(t, "", k.ed), []byte(`{"keys":[`)), []byte("]}")), ""},
		{"JWKS with a key for others", jwks(t, "", p384, k.ed), ""},
		{"JWKS with a secret", []byte(`{"keys":[{"kty":"oct","k":"` + base64.RawURLEncoding.EncodeToString([]byte(testSecret)) + `"}]}`), ""},
		{"empty", []byte("\n"), "is empty"},
		{"short secret", []byte("hunter2"), "is a secret of 7 bytes: want at least 32"},
		{"private key", privatePEM(t, k.ed), "is a private key; only the public half belongs here (openssl pkey -in FILE -pubout)"},
		{"small RSA key", publicPEM(t, small), "RSA key of 1024 bits: want at least 2048"},
		{"other curve", publicPEM(t, p384), "EC key on P-384: want RSA (RS256), EC P-256 (ES256) or Ed25519 (EdDSA)"},
		{"DER", der, "is a key in DER: want PEM"},
		{"DER in base64", []byte(base64.StdEncoding.EncodeToString(der)), "is a key in DER: want PEM"},
		{"ssh key", []byte("ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIE7 alice@example.com"), `begins with "ssh-": want PEM public keys, a JWKS, or a secret`},
		{"HTML", []byte("<html><body>Sign in to the company's network</body></html>"), `begins with "<": want PEM`},
		{"cut PEM", publicPEM(t, k.rsa)[:100], "is not well-formed PEM"},
		{"JSON", []byte(`{"issuer":"https://id.example.com"}`), `has no keys: want a JWKS, such as {"keys":[…]}`},
		{"broken JSON", []byte(`{"keys":[}`), "is not a JWKS: "},
		{"JWKS of keys for others only", jwks(t, "", p384), "has no key that can be used: key 0"},
		{"JWKS for encryption", bytes.Replace(jwks(t, "", k.rsa), []byte(`{"kty"`), []byte(`{"use":"enc","kty"`), 1), `use "enc"`},
		{"JWKS with a short secret", []byte(`{"keys":[{"kty":"oct","k":"AAAA"}]}`), "is a secret of 3 bytes: want at least 32"},
		{"too many keys", bytes.Repeat(publicPEM(t, k.ed), 65), "has 65 keys, the limit is 64"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			path := writeFile(t, tc.content)
			keys, err := OpenKeys(t.Context(), KeysConfig{Source: path})
			if tc.problem == "" {
				if err != nil {
					t.Fatal(err)
				}
				keys.Close()
				return
			}
			if err == nil {
				t.Fatal("accepted")
			}
			for _, part := range []string{tc.problem, path, "--jwt-keys"} {
				if !strings.Contains(err.Error(), part) {
					t.Errorf("%q does not say %q", err, part)
				}
			}
		})
	}
}

func TestKeysConfigSaysHowToMakeKeys(t *testing.T) {
	if _, err := OpenKeys(t.Context(), KeysConfig{}); err == nil || !strings.Contains(err.Error(), "openssl rand") {
		t.Errorf("got %v", err)
	}
	if _, err := OpenKeys(t.Context(), KeysConfig{Source: "https://"}); err == nil {
		t.Error("a URL without a host is accepted")
	}
}

// TestKeyFileReload changes the file under running keys.
func TestKeyFileReload(t *testing.T) {
	keys := openKeys(t, []byte(testSecret), nil)
	var clock atomic.Int64
	clock.Store(time.Now().UnixNano())
	keys.now = func() time.Time { return time.Unix(0, clock.Load()) }
	other := "another secret, which is also long enough"
	old := mintWith(t, []byte(testSecret), Claims{})
	replace := func(content string) {
		t.Helper()
		tmp := keys.file.path + ".new"
		if err := os.WriteFile(tmp, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(tmp, keys.file.path); err != nil {
			t.Fatal(err)
		}
		clock.Add(int64(fileCheckInterval))
	}
	// fresh tells whether the metric, without any token in between, has the keys as seen just now.
	fresh := func(want bool) {
		t.Helper()
		clock.Add(int64(2 * fileCheckInterval))
		keys.look()
		if got := time.Unix(0, clock.Load()).Unix() == keys.refreshed.Load(); got != want {
			t.Errorf("the keys are fresh: %v", got)
		}
	}
	if _, err := keys.VerifyNow(old); err != nil {
		t.Fatal(err)
	}
	fresh(true)
	replace(other)
	if _, err := keys.VerifyNow(old); !errors.Is(err, ErrBadSignature) {
		t.Errorf("the old key is still accepted: %v", err)
	}
	current := mintWith(t, []byte(other), Claims{})
	replace("oops")
	if _, err := keys.VerifyNow(current); err != nil {
		t.Errorf("a broken file put the last keys out of force: %v", err)
	}
	fresh(false)
	fresh(false)
	replace(other)
	fresh(true)
	if err := os.Remove(keys.file.path); err != nil {
		t.Fatal(err)
	}
	clock.Add(int64(fileCheckInterval))
	if _, err := keys.VerifyNow(current); err != nil {
		t.Errorf("a removed file put the last keys out of force: %v", err)
	}
	fresh(false)
}

// FuzzParseKeys: whatever a file or a URL holds, what is accepted are keys that a token can be checked with, and a
// published set has no secret.
func FuzzParseKeys(f *testing.F) {
	f.Add([]byte("a secret of more than thirty-two bytes"), true)
	f.Add([]byte(`{"keys":[{"kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo","kid":"1"}]}`), false)
	f.Add([]byte(`{"keys":[{"kty":"oct","k":"AyM1SysPpbyDfgZld3umj1qzKObwVMkoqQ-EstJQLr_T-1qS0gZH75aKtMN3Yj0iPS4hcgUuTwjAzZr1Z9CAow"}]}`), true)
	f.Add([]byte("-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEA11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo=\n-----END PUBLIC KEY-----\n"), true)
	f.Fuzz(func(t *testing.T, b []byte, secretAllowed bool) {
		set, err := parseKeys(b, secretAllowed)
		if err != nil {
			return
		}
		if len(set.keys) > maxKeys {
			t.Fatalf("%d keys", len(set.keys))
		}
		for _, k := range set.keys {
			secret, isSecret := k.key.([]byte)
			switch {
			case k.alg == "" || k.key == nil || jwt.GetSigningMethod(k.alg) == nil:
				t.Fatalf("accepted %+v", k)
			case isSecret && (!secretAllowed || len(secret) < 32):
				t.Fatalf("accepted a secret of %d bytes (allowed: %v)", len(secret), secretAllowed)
			}
		}
	})
}
