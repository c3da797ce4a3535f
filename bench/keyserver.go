package bench

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"net"
	"net/http"
	"os"
	"sync/atomic"
	"time"
)

// keyServer publishes the public half of a bench's key as an identity provider does, on loopback.
type keyServer struct {
	url    string
	slow   atomic.Bool // takes almost as long as the notifier is willing to wait
	server http.Server
}

const keyDelay = 4 * time.Second

// newKeyServer makes a key, writes its private half to a file, and serves the public one until it is closed.
func newKeyServer(file string) (*keyServer, error) {
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make the bench's key: %w", err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		return nil, fmt.Errorf("make the bench's key: %w", err)
	}
	if err := os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), 0o600); err != nil {
		return nil, fmt.Errorf("write the bench's key: %w", err)
	}
	l, err := net.Listen("tcp4", anyPort)
	if err != nil {
		return nil, fmt.Errorf("serve the bench's key: %w", err)
	}
	k := &keyServer{url: "http://" + l.Addr().String() + "/jwks.json"}
	set := fmt.Appendf(nil, `{"keys":[{"kty":"OKP","crv":"Ed25519","use":"sig","alg":"EdDSA","kid":"bench","x":%q}]}`, base64.RawURLEncoding.EncodeToString(public))
	k.server.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if k.slow.Load() {
			select {
			case <-time.After(keyDelay):
			case <-r.Context().Done():
			}
		}
		w.Header().Set("Content-Type", "application/jwk-set+json")
		_, _ = w.Write(set)
	})
	go func() { _ = k.server.Serve(l) }() // until it is closed
	return k, nil
}

func (k *keyServer) close() { _ = k.server.Close() }
