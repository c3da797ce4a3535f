package auth

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"github.com/mailbell/mailbell/schema"
	"github.com/prometheus/client_golang/prometheus"
)

// KeysConfig says which keys users' tokens are verified with. Source is all that it needs.
type KeysConfig struct {
	// Source is a file or an http(s) URL. A file holds PEM public keys, a JWKS, or an
	// HS256 secret of 32 bytes or more; a URL answers a JWKS.
	Source string
	// Refresh is how often a URL is fetched again; 0 means 10 minutes. A token with a
	// kid that is not known makes it be fetched at once, but not more often than
	// every 10 s. A file is looked at every second while it is used.
	Refresh time.Duration
	// Issuer, unless empty, is what a token's `iss` must be.
	Issuer string
	// Audience, unless empty, must be in a token's `aud`.
	Audience string
	// Leeway for `nbf` and `iat`; 0 means 30 s. There is none for `exp`.
	Leeway time.Duration
	// HTTPClient fetches a URL; nil means one with a timeout of 10 s.
	HTTPClient *http.Client
	// Logger hears of keys that could not be read again; nil means slog.Default().
	Logger *slog.Logger
	// Registerer for the metrics; nil means none.
	Registerer prometheus.Registerer
}

// Validate tells what is wrong with c, if anything.
func (c KeysConfig) Validate() error {
	if c.Source == "" {
		return errors.New("jwt keys: none are configured: name a file of PEM public keys, a JWKS or a secret, or a JWKS URL, with --jwt-keys (make a secret: openssl rand -base64 48 > jwt.secret)")
	}
	if c.Refresh < 0 || c.Leeway < 0 {
		return errors.New("jwt keys: refresh and leeway must not be negative")
	}
	if isURL(c.Source) {
		if u, err := url.Parse(c.Source); err != nil || u.Host == "" {
			return fmt.Errorf("jwt keys: %q is not a URL, such as https://id.example.com/jwks.json", c.Source)
		}
	}
	return nil
}

func isURL(s string) bool {
	return strings.HasPrefix(s, "https://") || strings.HasPrefix(s, "http://")
}

func (c KeysConfig) withDefaults() KeysConfig {
	if c.Refresh == 0 {
		c.Refresh = 10 * time.Minute
	}
	if c.Leeway == 0 {
		c.Leeway = 30 * time.Second
	}
	if c.HTTPClient == nil {
		c.HTTPClient = &http.Client{Timeout: 10 * time.Second}
	}
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
	return c
}

// Keys verify users' tokens.
type Keys struct {
	// Static after construction.
	cfg     KeysConfig
	parser  *jwt.Parser
	metrics *metrics
	now     func() time.Time
	file    *watchedFile // nil for a URL
	fetcher *fetcher     // nil for a file

	set       atomic.Pointer[keySet]
	refreshed atomic.Int64 // Unix seconds

	closeOnce sync.Once
}

// OpenKeys reads the keys; it is an error when they can't be had. Later, keys that can't
// be read again leave the last ones in force. Close it.
func OpenKeys(ctx context.Context, cfg KeysConfig) (*Keys, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	k := newKeys(cfg.withDefaults())
	if isURL(k.cfg.Source) {
		k.fetcher = newFetcher(k)
		if err := k.fetcher.fetch(ctx); err != nil {
			return nil, fmt.Errorf("jwt keys: %w; check --jwt-keys", err)
		}
		k.fetcher.start()
		registerRefreshed(k)
		return k, nil
	}
	k.file = &watchedFile{path: k.cfg.Source}
	if err := k.readFile(); err != nil {
		return nil, fmt.Errorf("jwt keys: %w; check --jwt-keys", err)
	}
	registerRefreshed(k)
	return k, nil
}

func newKeys(cfg KeysConfig) *Keys {
	return &Keys{
		cfg:     cfg,
		metrics: newMetrics(cfg.Registerer),
		now:     time.Now,
		parser: jwt.NewParser(
			jwt.WithValidMethods([]string{algHS256, algRS256, algES256, algEdDSA}),
			jwt.WithStrictDecoding(),
			jwt.WithoutClaimsValidation(), // checkClaims does, with words for each case
		),
	}
}

// Close ends the fetching of a URL.
func (k *Keys) Close() {
	k.closeOnce.Do(func() {
		if k.fetcher != nil {
			k.fetcher.stop()
		}
	})
}

func (k *Keys) install(s *keySet) {
	k.set.Store(s)
	k.metrics.keys.Set(float64(len(s.keys)))
	k.refreshed.Store(k.now().Unix())
}

func (k *Keys) readFile() error {
	k.file.good = false
	b, err := k.file.read()
	if err != nil {
		return fmt.Errorf("read %s: %w", k.file.path, err)
	}
	s, err := parseKeys(b, true)
	if err != nil {
		return fmt.Errorf("read %s: %w", k.file.path, err)
	}
	k.install(s)
	k.file.good = true
	return nil
}

// look reads the keys again if they are a file that has changed. A file that has not changed is as good as read.
func (k *Keys) look() {
	if k.file == nil || !k.file.due(k.now()) {
		return
	}
	switch changed, there := k.file.changed(); {
	case changed:
		k.countReload(k.readFile())
	case there && k.file.good:
		k.refreshed.Store(k.now().Unix())
	}
}

// current returns the keys in force, having looked whether their file changed.
func (k *Keys) current() *keySet {
	k.look()
	return k.set.Load()
}

func (k *Keys) countReload(err error) {
	if err != nil {
		k.metrics.reloads.WithLabelValues("failed").Inc()
		k.cfg.Logger.Warn("jwt keys could not be read again; the last ones stay in force", "error", err)
		return
	}
	k.metrics.reloads.WithLabelValues("ok").Inc()
}

// Verify accepts a user's token. The error is an *Error. When the token's kid is not
// known and the keys come from a URL, it waits until they have been fetched again, at
// most 5 s and not beyond ctx; see VerifyNow.
func (k *Keys) Verify(ctx context.Context, token string) (Access, error) {
	a, err := k.VerifyNow(token)
	if k.fetcher == nil || !errors.Is(err, ErrUnknownKey) {
		return a, err
	}
	switch k.fetcher.refresh(ctx) {
	case refreshDone:
		return k.VerifyNow(token)
	case refreshFailed:
		return Access{}, ErrUnavailable
	}
	return a, err
}

// VerifyNow is Verify without waiting: a token with an unknown kid is refused with
// ErrUnknownKey.
func (k *Keys) VerifyNow(token string) (Access, error) {
	if token == "" {
		return Access{}, ErrMissing
	}
	if len(token) > MaxTokenBytes {
		return Access{}, refuse(ReasonMalformed, "token: has %d bytes, the limit is %d", len(token), MaxTokenBytes)
	}
	set := k.current()
	c := &jwtClaims{}
	parsed, err := k.parser.ParseWithClaims(token, c, set.forToken)
	if err != nil {
		return Access{}, set.refusal(parsed, err)
	}
	return k.access(&c.claims)
}

// forToken chooses keys for golang-jwt, by the algorithm that each is bound to.
func (s *keySet) forToken(t *jwt.Token) (any, error) {
	if _, ok := t.Header["crit"]; ok {
		// RFC 7515, section 4.1.11.
		return nil, refuse(ReasonMalformed, "token: header \"crit\" names extensions that are not known here")
	}
	kid := ""
	if v, ok := t.Header["kid"]; ok {
		if kid, ok = v.(string); !ok {
			return nil, refuse(ReasonMalformed, "token: header \"kid\" must be a string")
		}
	}
	alg := t.Method.Alg()
	if !s.accepts(alg) {
		return nil, refuse(ReasonAlgorithm, "token: is signed with %s, and no key for that is configured", alg)
	}
	found := s.candidates(alg, kid)
	if len(found) == 0 {
		return nil, refuse(ReasonUnknownKey, "token: is signed by key %.64q, which is not known here", kid)
	}
	keys := make([]jwt.VerificationKey, len(found))
	for i, k := range found {
		keys[i] = k.key
	}
	return jwt.VerificationKeySet{Keys: keys}, nil
}

// refusal turns what golang-jwt says into an *Error.
func (s *keySet) refusal(t *jwt.Token, err error) *Error {
	if e, ok := errors.AsType[*Error](err); ok {
		return e
	}
	if t != nil && t.Header != nil && !errors.Is(err, jwt.ErrTokenMalformed) {
		alg, _ := t.Header["alg"].(string)
		if !slices.Contains([]string{algHS256, algRS256, algES256, algEdDSA}, alg) {
			return refuse(ReasonAlgorithm, "token: algorithm %.32q is not accepted; use HS256, RS256, ES256 or EdDSA", alg)
		}
	}
	if errors.Is(err, jwt.ErrTokenMalformed) {
		return ErrMalformed
	}
	return ErrBadSignature
}

// access checks the claims of a token whose signature is good.
func (k *Keys) access(c *claims) (Access, error) {
	if err := k.checkTimes(c); err != nil {
		return Access{}, err
	}
	if k.cfg.Issuer != "" && c.issuer != k.cfg.Issuer {
		return Access{}, refuse(ReasonIssuer, "token: iss is %.64q, want %q", c.issuer, k.cfg.Issuer)
	}
	if k.cfg.Audience != "" && !c.isFor(k.cfg.Audience) {
		return Access{}, refuse(ReasonAudience, "token: aud does not have %q", k.cfg.Audience)
	}
	if !c.has(claimSub) {
		return Access{}, refuse(ReasonClaims, "token: has no sub; it must name the user's account")
	}
	subject := schema.Account(c.subject)
	if err := subject.Validate(); err != nil {
		return Access{}, refuse(ReasonClaims, "token: sub %v; it must be the user's account", err)
	}
	grants := []Grant{{Account: subject}}
	for _, g := range c.grants {
		if g.Account != subject { // of one's own account one may hear all
			grants = append(grants, g)
		}
	}
	return Access{
		Subject: subject,
		Grants:  grants,
		Expires: time.Unix(c.expires, 0),
		TokenID: c.id,
	}, nil
}

func (k *Keys) checkTimes(c *claims) error {
	now := k.now()
	if !c.has(claimExp) {
		return refuse(ReasonClaims, "token: has no exp; tokens must expire")
	}
	if late := now.Sub(time.Unix(c.expires, 0)); late >= 0 {
		return refuse(ReasonExpired, "token: expired %v ago; get a new one", late.Truncate(time.Second))
	}
	latest := now.Add(k.cfg.Leeway).Unix()
	if c.has(claimNbf) && c.notBefore > latest {
		return refuse(ReasonEarly, "token: is not valid before %s; compare the clocks", utc(c.notBefore))
	}
	if c.has(claimIat) && c.issued > latest {
		return refuse(ReasonEarly, "token: was issued in the future, at %s; compare the clocks", utc(c.issued))
	}
	return nil
}

func utc(seconds int64) string { return time.Unix(seconds, 0).UTC().Format(time.RFC3339) }

// jwtClaims lets golang-jwt read claims with parseClaims.
type jwtClaims struct{ claims }

func (c *jwtClaims) UnmarshalJSON(b []byte) error { return parseClaims(string(b), &c.claims) }

// golang-jwt wants these of any claims, and asks for none of them when it does not
// validate.
func (c *jwtClaims) GetExpirationTime() (*jwt.NumericDate, error) { return nil, nil }
func (c *jwtClaims) GetIssuedAt() (*jwt.NumericDate, error)       { return nil, nil }
func (c *jwtClaims) GetNotBefore() (*jwt.NumericDate, error)      { return nil, nil }
func (c *jwtClaims) GetIssuer() (string, error)                   { return c.issuer, nil }
func (c *jwtClaims) GetSubject() (string, error)                  { return c.subject, nil }
func (c *jwtClaims) GetAudience() (jwt.ClaimStrings, error)       { return nil, nil }
