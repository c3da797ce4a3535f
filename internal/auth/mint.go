package auth

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"github.com/mailbell/mailbell/schema"
)

// DefaultTokenTTL is how long a minted token lives unless told otherwise.
const DefaultTokenTTL = time.Hour

// Claims are what MintToken puts into a token. Only Account is required.
type Claims struct {
	Account  schema.Account
	Accounts []Grant       // further accounts
	TTL      time.Duration // 0 means DefaultTokenTTL
	Issuer   string
	Audience string
	ID       string // jti
	KeyID    string // the header's kid
}

// MintToken makes a JWT for trying things out, signed with the key in a file: an HS256
// secret, or a PEM private key (RSA, EC P-256 or Ed25519).
func MintToken(keyFile string, c Claims) (string, error) {
	b, err := os.ReadFile(keyFile)
	if err != nil {
		return "", fmt.Errorf("mint token: %w", err)
	}
	token, err := mint(b, c, time.Now())
	if err != nil {
		return "", fmt.Errorf("mint token: %s: %w", keyFile, err)
	}
	return token, nil
}

func mint(keyFile []byte, c Claims, now time.Time) (string, error) {
	method, key, err := signingKey(keyFile)
	if err != nil {
		return "", err
	}
	if c.TTL < 0 {
		return "", fmt.Errorf("lifetime %v: must not be negative", c.TTL)
	}
	payload, err := c.payload(now)
	if err != nil {
		return "", err
	}
	t := jwt.NewWithClaims(method, payload)
	if c.KeyID != "" {
		t.Header["kid"] = c.KeyID
	}
	return t.SignedString(key)
}

func (c Claims) payload(now time.Time) (jwt.MapClaims, error) {
	if err := c.Account.Validate(); err != nil {
		return nil, fmt.Errorf("the account %w", err)
	}
	ttl := c.TTL
	if ttl == 0 {
		ttl = DefaultTokenTTL
	}
	m := jwt.MapClaims{
		"sub": string(c.Account),
		"iat": now.Unix(),
		"exp": now.Add(ttl).Unix(),
	}
	for name, v := range map[string]string{"iss": c.Issuer, "aud": c.Audience, "jti": c.ID} {
		if v != "" {
			m[name] = v
		}
	}
	if len(c.Accounts) > 0 {
		accounts := appendAccounts(nil, c.Accounts)
		m["accounts"] = json.RawMessage(accounts)
		check := append(append([]byte(`{"accounts":`), accounts...), '}')
		if err := parseClaims(string(check), &claims{}); err != nil {
			return nil, err
		}
	}
	return m, nil
}

// signingKey reads a key to sign with, and says how.
func signingKey(b []byte) (jwt.SigningMethod, any, error) {
	trimmed := bytes.TrimSpace(b)
	if !bytes.Contains(trimmed, []byte("-----BEGIN ")) {
		keys, err := parseKeys(trimmed, true)
		if err != nil {
			return nil, nil, err
		}
		if len(keys.keys) != 1 || keys.keys[0].alg != algHS256 {
			return nil, nil, errors.New("want a PEM private key or an HS256 secret to sign with")
		}
		return jwt.SigningMethodHS256, keys.keys[0].key, nil
	}
	block, _ := pem.Decode(trimmed)
	if block == nil {
		return nil, nil, errors.New("is not well-formed PEM")
	}
	key, err := pemPrivateKey(block)
	if err != nil {
		return nil, nil, err
	}
	switch k := key.(type) {
	case *rsa.PrivateKey:
		return jwt.SigningMethodRS256, k, nil
	case *ecdsa.PrivateKey:
		if k.Curve == elliptic.P256() {
			return jwt.SigningMethodES256, k, nil
		}
	case ed25519.PrivateKey:
		return jwt.SigningMethodEdDSA, k, nil
	}
	return nil, nil, errOtherAlgorithm
}

func pemPrivateKey(block *pem.Block) (any, error) {
	switch block.Type {
	case "PRIVATE KEY":
		return x509.ParsePKCS8PrivateKey(block.Bytes)
	case "RSA PRIVATE KEY":
		return x509.ParsePKCS1PrivateKey(block.Bytes)
	case "EC PRIVATE KEY":
		return x509.ParseECPrivateKey(block.Bytes)
	case "PUBLIC KEY", "RSA PUBLIC KEY", "CERTIFICATE":
		return nil, errors.New("is a public key; signing takes the private one")
	}
	return nil, fmt.Errorf("is a %s: want PRIVATE KEY", block.Type)
}
