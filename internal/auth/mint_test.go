package auth

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mailbell/mailbell/schema"
)

func TestMintTokenRefuses(t *testing.T) {
	k := testKeys()
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	alice := Claims{Account: "alice"}
	for _, tc := range []struct {
		name    string
		key     []byte
		claims  Claims
		problem string
	}{
		{"no account", []byte(testSecret), Claims{}, "the account is empty"},
		{"a bad further account", []byte(testSecret), Claims{Account: "a", Accounts: []Grant{{}}}, "entry 0: the account is empty"},
		{"a grant of nothing", []byte(testSecret), Claims{Account: "a", Accounts: []Grant{{Account: "b", Mailboxes: []schema.Mailbox{}}}}, "mailboxes is empty"},
		{"a negative lifetime", []byte(testSecret), Claims{Account: "a", TTL: -1}, "must not be negative"},
		{"a public key", publicPEM(t, k.rsa), alice, "is a public key; signing takes the private one"},
		{"a public JWKS", jwks(t, "", k.rsa), alice, "want a PEM private key or an HS256 secret to sign with"},
		{"a short secret", []byte("x"), alice, "is a secret of 1 bytes"},
		{"another curve", privatePEM(t, p384), alice, "want RSA (RS256)"},
		{"another PEM", pem.EncodeToMemory(&pem.Block{Type: "DH PARAMETERS"}), alice, "is a DH PARAMETERS: want PRIVATE KEY"},
	} {
		path := writeFile(t, tc.key)
		if _, err := MintToken(path, tc.claims); err == nil || !strings.Contains(err.Error(), tc.problem) || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: got %v, want %s", tc.name, err, tc.problem)
		}
	}
	if _, err := MintToken("no-such-file", alice); err == nil {
		t.Error("a missing file")
	}
}

func TestMintFormats(t *testing.T) {
	k := testKeys()
	ec, err := x509.MarshalECPrivateKey(k.ec)
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct{ sign, verify []byte }{
		{pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(k.rsa)}), publicPEM(t, k.rsa)},
		{pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: ec}), publicPEM(t, k.ec)},
	} {
		if _, err := openKeys(t, tc.verify, nil).VerifyNow(mintWith(t, tc.sign, Claims{TTL: time.Minute})); err != nil {
			t.Error(err)
		}
	}
}

// TestDevKeys makes keys in a folder, many at once, and finds them again.
func TestDevKeys(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data", "keys")
	devs := make([]Dev, 8)
	var all sync.WaitGroup
	for i := range devs {
		all.Go(func() {
			d, err := DevKeys(dir)
			if err != nil {
				t.Error(err)
			}
			devs[i] = d
		})
	}
	all.Wait()
	for _, d := range devs {
		if d != devs[0] {
			t.Errorf("two processes have %v and %v", d, devs[0])
		}
	}
	if err := os.Chmod(devs[0].PrivateKeyFile, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(devs[0].PublicKeyFile); err != nil {
		t.Fatal(err)
	}
	d, err := DevKeys(dir)
	if err != nil || d != devs[0] {
		t.Fatalf("%v, %v", d, err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 4 {
		t.Errorf("%v, %v", entries, err)
	}
	for _, e := range entries {
		if info, err := e.Info(); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s has mode %v, %v", e.Name(), info.Mode(), err)
		}
	}
	checkDev(t, d)
	if err := os.WriteFile(d.PrivateKeyFile, privatePEM(t, testKeys().rsa), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := DevKeys(dir); err == nil || !strings.Contains(err.Error(), "is not an Ed25519 key") {
		t.Errorf("another key: %v", err)
	}
	if _, err := DevKeys("/dev/null/x"); err == nil {
		t.Error("a folder that can't be made")
	}
}

// checkDev uses every file.
func checkDev(t *testing.T, d Dev) {
	t.Helper()
	keys, err := OpenKeys(t.Context(), KeysConfig{Source: d.PublicKeyFile})
	if err != nil {
		t.Fatal(err)
	}
	defer keys.Close()
	token, err := MintToken(d.PrivateKeyFile, Claims{Account: "alice"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := keys.VerifyNow(token); err != nil {
		t.Error(err)
	}
	services, err := LoadServiceTokens(d.ServiceTokensFile)
	if err != nil {
		t.Fatal(err)
	}
	for _, scope := range []Scope{ScopePublish, ScopeConnect} {
		if name, err := services.Check(d.ServiceToken, scope); name != "dev" || err != nil {
			t.Errorf("%s: %q, %v", scope, name, err)
		}
	}
}
