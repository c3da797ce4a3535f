package auth

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// idp is an identity provider's key set.
type idp struct {
	*httptest.Server
	body    atomic.Pointer[[]byte] // nil: 503
	fetches atomic.Int32
}

func newIDP(t *testing.T) *idp {
	p := &idp{}
	p.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		p.fetches.Add(1)
		b := p.body.Load()
		if b == nil {
			http.Error(w, "down", http.StatusServiceUnavailable)
			return
		}
		_, _ = w.Write(*b)
	}))
	t.Cleanup(p.Close)
	return p
}

func (p *idp) serve(b []byte) { p.body.Store(&b) }

func (p *idp) open(t *testing.T) (*Keys, error) {
	client := p.Client()
	t.Cleanup(client.CloseIdleConnections)
	k, err := OpenKeys(t.Context(), KeysConfig{Source: p.URL, HTTPClient: client, Logger: quiet()})
	if k != nil {
		t.Cleanup(k.Close)
	}
	return k, err
}

// rest lets the next unknown kid cause a fetch.
func (k *Keys) rest() {
	k.fetcher.mu.Lock()
	k.fetcher.started = time.Time{}
	k.fetcher.mu.Unlock()
}

func TestJWKSURL(t *testing.T) {
	p := newIDP(t)
	k := testKeys()
	if _, err := p.open(t); err == nil || !strings.Contains(err.Error(), "503") || !strings.Contains(err.Error(), p.URL) {
		t.Errorf("start without keys: %v", err)
	}
	p.serve([]byte(`{"keys":[{"kty":"oct","k":"` + base64.RawURLEncoding.EncodeToString([]byte(testSecret)) + `"}]}`))
	if _, err := p.open(t); err == nil || !strings.Contains(err.Error(), "must not be published") {
		t.Errorf("a published secret: %v", err)
	}
	p.serve([]byte(testSecret))
	if _, err := p.open(t); err == nil || !strings.Contains(err.Error(), "is not a JWKS") {
		t.Errorf("a secret at a URL: %v", err)
	}
	p.serve(bytes.Repeat([]byte(" "), maxSourceBytes+1))
	if _, err := p.open(t); err == nil || !strings.Contains(err.Error(), "more than") {
		t.Errorf("an endless answer: %v", err)
	}

	p.serve(jwks(t, "old", k.ed))
	keys, err := p.open(t)
	if err != nil {
		t.Fatal(err)
	}
	old := mintWith(t, privatePEM(t, k.ed), Claims{KeyID: "old-0"})
	rotated := mintWith(t, privatePEM(t, k.ec), Claims{KeyID: "new-0"})
	if _, err := keys.Verify(t.Context(), old); err != nil {
		t.Fatal(err)
	}
	before := p.fetches.Load()
	for _, token := range []string{rotated, mintWith(t, []byte(testSecret), Claims{})} {
		if _, err := keys.Verify(t.Context(), token); err == nil || p.fetches.Load() != before {
			t.Errorf("a token with another algorithm: %v", err)
		}
	}
	unknown := mintWith(t, privatePEM(t, k.ed), Claims{KeyID: "new-0"})
	if _, err := keys.Verify(t.Context(), unknown); !errors.Is(err, ErrUnknownKey) || p.fetches.Load() != before {
		t.Errorf("an unknown kid just after a fetch: %v, %d fetches", err, p.fetches.Load()-before)
	}
	p.serve(jwks(t, "new", k.ec))
	keys.rest()
	if _, err := keys.Verify(t.Context(), rotated); err != nil {
		t.Errorf("a rotated key with another algorithm: %v", err)
	}
	p.serve(jwks(t, "new", k.ed))
	keys.rest()
	if _, err := keys.Verify(t.Context(), unknown); err != nil {
		t.Errorf("a rotated key: %v", err)
	}
	if _, err := keys.VerifyNow(old); !errors.Is(err, ErrUnknownKey) {
		t.Errorf("a revoked key: %v", err)
	}
	p.body.Store(nil)
	keys.rest()
	if _, err := keys.Verify(t.Context(), old); !errors.Is(err, ErrUnavailable) || StatusOf(err) != http.StatusServiceUnavailable {
		t.Errorf("an unknown kid while the URL is down: %v", err)
	}
	if _, err := keys.Verify(t.Context(), unknown); err != nil {
		t.Errorf("the last known keys are gone: %v", err)
	}
}

func TestJWKSURLUnreachable(t *testing.T) {
	p := newIDP(t)
	p.Close()
	if _, err := p.open(t); err == nil || !strings.Contains(err.Error(), "connection refused") || !strings.Contains(err.Error(), "--jwt-keys") {
		t.Errorf("got %v", err)
	}
}

// TestUnknownKidsDoNotFillTheWorkers has many tokens with invented kids at once, at a URL that hangs.
func TestUnknownKidsDoNotFillTheWorkers(t *testing.T) {
	k := testKeys()
	var hang atomic.Bool
	release := make(chan struct{})
	var fetches atomic.Int32
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		fetches.Add(1)
		if hang.Load() {
			<-release
		}
		_, _ = w.Write(jwks(t, "k", k.ed))
	}))
	defer srv.Close()
	client := srv.Client()
	defer client.CloseIdleConnections()
	keys, err := OpenKeys(t.Context(), KeysConfig{Source: srv.URL, HTTPClient: client, Logger: quiet()})
	if err != nil {
		t.Fatal(err)
	}
	defer keys.Close()
	hang.Store(true)
	keys.rest()
	token := mintWith(t, privatePEM(t, k.ed), Claims{KeyID: "invented"})
	const attempts = 200
	var returned atomic.Int32
	var all sync.WaitGroup
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	for range attempts {
		all.Go(func() {
			if _, err := keys.Verify(ctx, token); err == nil {
				t.Error("accepted")
			}
			returned.Add(1)
		})
	}
	for returned.Load() < attempts-maxFetchWaiters {
		time.Sleep(time.Millisecond) // between two looks
	}
	close(release)
	all.Wait()
	if n := fetches.Load(); n != 2 {
		t.Errorf("%d fetches, want 2", n)
	}
}
