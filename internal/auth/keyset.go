package auth

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"

	"github.com/MicahParks/jwkset"
)

const (
	// MinSecretBytes is the shortest HS256 secret (RFC 7518, section 3.2).
	MinSecretBytes = 32
	minRSABits     = 2048
	maxKeys        = 64 // of one set; a token without a kid may be tried with each
)

// The algorithms accepted (RFC 7518, section 3.1; RFC 8037, section 3.1).
const (
	algHS256 = "HS256"
	algRS256 = "RS256"
	algES256 = "ES256"
	algEdDSA = "EdDSA"
)

// verifyKey is a key with the one algorithm that it is for.
type verifyKey struct {
	id  string // empty: fits any kid
	alg string
	key any // as golang-jwt wants it
}

// keySet never changes once made.
type keySet struct {
	keys []verifyKey
	// published says that the set is of a URL, where a key for any public-key algorithm may
	// appear later.
	published bool
}

// candidates are the keys that a token with this header may be signed with.
func (s *keySet) candidates(alg, kid string) []verifyKey {
	var out []verifyKey
	for _, k := range s.keys {
		if k.alg == alg && (k.id == "" || kid == "" || k.id == kid) {
			out = append(out, k)
		}
	}
	return out
}

// accepts reports whether a key for alg is there, or might be when fetched again.
func (s *keySet) accepts(alg string) bool {
	if s.published {
		return alg != algHS256
	}
	for _, k := range s.keys {
		if k.alg == alg {
			return true
		}
	}
	return false
}

// parseKeys reads PEM public keys, a JWKS or a single JWK, or, where secrets are
// allowed, an HS256 secret. Anything that looks like a key in a form that is not
// read here is refused rather than taken for a secret: whoever has the public
// key could sign with it.
func parseKeys(b []byte, secretAllowed bool) (*keySet, error) {
	trimmed := bytes.TrimSpace(b)
	var keys []verifyKey
	var err error
	switch {
	case len(trimmed) == 0:
		return nil, errors.New("is empty")
	case bytes.Contains(trimmed, []byte("-----BEGIN ")):
		keys, err = parsePEM(trimmed)
	case trimmed[0] == '{':
		keys, err = parseJWKS(trimmed, secretAllowed)
	case !secretAllowed:
		return nil, errors.New("is not a JWKS")
	default:
		keys, err = parseSecret(trimmed)
	}
	if err != nil {
		return nil, err
	}
	if len(keys) > maxKeys {
		return nil, fmt.Errorf("has %d keys, the limit is %d", len(keys), maxKeys)
	}
	return &keySet{keys: keys, published: !secretAllowed}, nil
}

func parseSecret(b []byte) ([]verifyKey, error) {
	for _, prefix := range []string{"ssh-", "ecdsa-sha2-", "<", "[", "http://", "https://"} {
		if bytes.HasPrefix(b, []byte(prefix)) {
			return nil, fmt.Errorf("begins with %q: want PEM public keys, a JWKS, or a secret", prefix)
		}
	}
	if looksLikeDER(b) {
		return nil, errors.New("is a key in DER: want PEM (openssl pkey -pubin -inform DER -in FILE)")
	}
	if len(b) < MinSecretBytes {
		return nil, fmt.Errorf("is a secret of %d bytes: want at least %d (openssl rand -base64 48)", len(b), MinSecretBytes)
	}
	return []verifyKey{{alg: algHS256, key: b}}, nil
}

func looksLikeDER(b []byte) bool {
	forms := [][]byte{b}
	compact := bytes.Join(bytes.Fields(b), nil)
	for _, enc := range []*base64.Encoding{base64.StdEncoding, base64.RawStdEncoding, base64.URLEncoding, base64.RawURLEncoding} {
		if d, err := enc.DecodeString(string(compact)); err == nil {
			forms = append(forms, d)
		}
	}
	for _, f := range forms {
		_, pkix := x509.ParsePKIXPublicKey(f)
		_, pkcs1 := x509.ParsePKCS1PublicKey(f)
		_, cert := x509.ParseCertificate(f)
		_, pkcs8 := x509.ParsePKCS8PrivateKey(f)
		if pkix == nil || pkcs1 == nil || cert == nil || pkcs8 == nil {
			return true
		}
	}
	return false
}

func parsePEM(b []byte) ([]verifyKey, error) {
	var keys []verifyKey
	for {
		block, rest := pem.Decode(b)
		if block == nil {
			break
		}
		b = rest
		public, err := pemPublicKey(block)
		if err != nil {
			return nil, fmt.Errorf("PEM block %d (%s): %w", len(keys)+1, block.Type, err)
		}
		k, err := verifyKeyOf(public)
		if err != nil {
			return nil, fmt.Errorf("PEM block %d (%s): %w", len(keys)+1, block.Type, err)
		}
		keys = append(keys, k)
	}
	if len(keys) == 0 || len(bytes.TrimSpace(b)) > 0 {
		return nil, errors.New("is not well-formed PEM")
	}
	return keys, nil
}

func pemPublicKey(block *pem.Block) (any, error) {
	switch block.Type {
	case "PUBLIC KEY":
		return x509.ParsePKIXPublicKey(block.Bytes)
	case "RSA PUBLIC KEY":
		return x509.ParsePKCS1PublicKey(block.Bytes)
	case "CERTIFICATE":
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, err
		}
		return cert.PublicKey, nil
	case "PRIVATE KEY", "RSA PRIVATE KEY", "EC PRIVATE KEY", "ENCRYPTED PRIVATE KEY":
		return nil, errors.New("is a private key; only the public half belongs here (openssl pkey -in FILE -pubout)")
	}
	return nil, errors.New("want PUBLIC KEY, RSA PUBLIC KEY or CERTIFICATE")
}

// errOtherAlgorithm says that a key is fine, but for something not done here.
var errOtherAlgorithm = errors.New("want RSA (RS256), EC P-256 (ES256) or Ed25519 (EdDSA)")

// verifyKeyOf binds a public key to its algorithm.
func verifyKeyOf(key any) (verifyKey, error) {
	switch k := key.(type) {
	case *rsa.PublicKey:
		if k.N.BitLen() < minRSABits {
			return verifyKey{}, fmt.Errorf("RSA key of %d bits: want at least %d", k.N.BitLen(), minRSABits)
		}
		return verifyKey{alg: algRS256, key: k}, nil
	case *ecdsa.PublicKey:
		if k.Curve != elliptic.P256() {
			return verifyKey{}, fmt.Errorf("EC key on %s: %w", k.Curve.Params().Name, errOtherAlgorithm)
		}
		return verifyKey{alg: algES256, key: k}, nil
	case ed25519.PublicKey:
		return verifyKey{alg: algEdDSA, key: k}, nil
	}
	return verifyKey{}, fmt.Errorf("key of type %T: %w", key, errOtherAlgorithm)
}

// parseJWKS reads a JWK Set (RFC 7517, section 5), or a single key. Keys for other
// algorithms or for encryption are left out, since a set serves others too.
func parseJWKS(b []byte, secretAllowed bool) ([]verifyKey, error) {
	var set struct {
		jwkset.JWKMarshal
		Keys []jwkset.JWKMarshal `json:"keys"`
	}
	if err := json.Unmarshal(b, &set); err != nil {
		return nil, fmt.Errorf("is not a JWKS: %w", err)
	}
	if set.Keys == nil && set.KTY != "" {
		set.Keys = []jwkset.JWKMarshal{set.JWKMarshal}
	}
	var keys []verifyKey
	var skipped error
	for i, m := range set.Keys {
		k, err := jwkKey(m, secretAllowed)
		switch {
		case errors.Is(err, errOtherAlgorithm) || errors.Is(err, jwkset.ErrUnsupportedKey):
			skipped = fmt.Errorf("key %d (kid %q): %w", i, m.KID, err)
		case err != nil:
			return nil, fmt.Errorf("key %d (kid %q): %w", i, m.KID, err)
		default:
			keys = append(keys, k)
		}
	}
	if len(keys) == 0 && skipped != nil {
		return nil, fmt.Errorf("has no key that can be used: %w", skipped)
	}
	if len(keys) == 0 {
		return nil, errors.New(`has no keys: want a JWKS, such as {"keys":[…]}`)
	}
	return keys, nil
}

func jwkKey(m jwkset.JWKMarshal, secretAllowed bool) (verifyKey, error) {
	if m.USE != "" && m.USE != jwkset.UseSig {
		return verifyKey{}, fmt.Errorf("use %q: %w", m.USE, errOtherAlgorithm)
	}
	jwk, err := jwkset.NewJWKFromMarshal(m, jwkset.JWKMarshalOptions{Private: true}, jwkset.JWKValidateOptions{})
	if err != nil {
		return verifyKey{}, err
	}
	key := jwk.Key()
	var k verifyKey
	if secret, ok := key.([]byte); ok {
		k, err = jwkSecret(secret, secretAllowed)
	} else {
		if private, ok := key.(interface{ Public() crypto.PublicKey }); ok {
			key = private.Public()
		}
		k, err = verifyKeyOf(key)
	}
	if err != nil {
		return verifyKey{}, err
	}
	if m.ALG != "" && m.ALG.String() != k.alg {
		return verifyKey{}, fmt.Errorf("alg %q: %w", m.ALG, errOtherAlgorithm)
	}
	k.id = m.KID
	return k, nil
}

func jwkSecret(secret []byte, allowed bool) (verifyKey, error) {
	if !allowed {
		return verifyKey{}, errors.New("is a secret (kty oct), which must not be published at a URL; use a file")
	}
	if len(secret) < MinSecretBytes {
		return verifyKey{}, fmt.Errorf("is a secret of %d bytes: want at least %d", len(secret), MinSecretBytes)
	}
	return verifyKey{alg: algHS256, key: secret}, nil
}
