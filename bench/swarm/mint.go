package swarm

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"hash"
	"os"
	"strconv"
	"time"

	"github.com/mailbell/mailbell/internal/auth"
	"github.com/mailbell/mailbell/schema"
)

// Minter makes users' tokens by the million. Those of an HS256 secret are signed here, at a tenth of the price:
// what tokens cost their issuer is not what a bench is about. It belongs to one goroutine.
type Minter struct {
	file   string
	mac    hash.Hash // nil: the key is no secret, and auth signs
	expire int64
	claims []byte
	token  []byte
	sum    []byte
}

const tokenTTL = 24 * time.Hour

// NewMinter reads the key to sign with.
func NewMinter(file string) (*Minter, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("mint tokens: %w", err)
	}
	m := &Minter{file: file, expire: time.Now().Add(tokenTTL).Unix()}
	if secret := bytes.TrimSpace(b); !bytes.Contains(secret, []byte("-----BEGIN ")) {
		m.mac = hmac.New(sha256.New, secret)
	}
	return m, nil
}

// Mint returns the account's token, always the same one. account needs no escaping in JSON.
func (m *Minter) Mint(account string) (string, error) {
	if m.mac == nil {
		return auth.MintToken(m.file, auth.Claims{Account: schema.Account(account), TTL: tokenTTL})
	}
	m.claims = append(m.claims[:0], `{"exp":`...)
	m.claims = strconv.AppendInt(m.claims, m.expire, 10)
	m.claims = append(m.claims, `,"sub":"`...)
	m.claims = append(append(m.claims, account...), `"}`...)
	m.token = append(m.token[:0], "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9."...) // {"alg":"HS256","typ":"JWT"}
	m.token = base64.RawURLEncoding.AppendEncode(m.token, m.claims)
	m.mac.Reset()
	m.mac.Write(m.token)
	m.sum = m.mac.Sum(m.sum[:0])
	m.token = append(m.token, '.')
	m.token = base64.RawURLEncoding.AppendEncode(m.token, m.sum)
	return string(m.token), nil
}
