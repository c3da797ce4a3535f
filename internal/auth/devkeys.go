package auth

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// The files of DevKeys in its folder, each readable by its owner only.
const (
	devPrivateKey    = "jwt-private.pem"
	devPublicKey     = "jwt-public.pem"
	devServiceTokens = "service-tokens"
	devServiceToken  = "service-token"

	devServiceName = "dev"
)

// Dev are the keys that `mailbell run` makes for itself.
type Dev struct {
	PrivateKeyFile    string // signs users' tokens: MintToken
	PublicKeyFile     string // verifies them: KeysConfig.Source
	ServiceTokensFile string // LoadServiceTokens
	ServiceToken      string // the plain token, with every scope
	ServiceTokenFile  string // where that stands
}

// DevKeys returns the keys in a folder, having made those that are missing, with mode
// 0600. Several processes may call it at the same time.
func DevKeys(dir string) (Dev, error) {
	d := Dev{
		PrivateKeyFile:    filepath.Join(dir, devPrivateKey),
		PublicKeyFile:     filepath.Join(dir, devPublicKey),
		ServiceTokensFile: filepath.Join(dir, devServiceTokens),
		ServiceTokenFile:  filepath.Join(dir, devServiceToken),
	}
	err := os.MkdirAll(dir, 0o700)
	if err == nil {
		err = d.makeKeys()
	}
	if err == nil {
		err = d.makeServiceToken()
	}
	if err != nil {
		return Dev{}, fmt.Errorf("dev keys: %w", err)
	}
	return d, nil
}

func (d *Dev) makeKeys() error {
	private, err := keepOrMake(d.PrivateKeyFile, func() ([]byte, error) {
		_, key, err := ed25519.GenerateKey(rand.Reader)
		if err != nil {
			return nil, err
		}
		der, err := x509.MarshalPKCS8PrivateKey(key)
		return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), err
	})
	if err != nil {
		return err
	}
	_, key, err := signingKey(private)
	if err != nil {
		return fmt.Errorf("%s: %w", d.PrivateKeyFile, err)
	}
	signer, ok := key.(ed25519.PrivateKey)
	if !ok {
		return fmt.Errorf("%s: is not an Ed25519 key; remove it to have a new one made", d.PrivateKeyFile)
	}
	_, err = keepOrMake(d.PublicKeyFile, func() ([]byte, error) {
		der, err := x509.MarshalPKIXPublicKey(signer.Public())
		return pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}), err
	})
	return err
}

func (d *Dev) makeServiceToken() error {
	scopes := []Scope{ScopePublish, ScopeConnect}
	plain, err := keepOrMake(d.ServiceTokenFile, func() ([]byte, error) {
		plain, _, err := NewServiceToken(devServiceName, scopes...)
		return []byte(plain + "\n"), err
	})
	if err != nil {
		return err
	}
	d.ServiceToken = strings.TrimSpace(string(plain))
	_, err = keepOrMake(d.ServiceTokensFile, func() ([]byte, error) {
		return []byte("# name scope[,scope] sha256:<hex of the token's hash>\n" +
			serviceLine(devServiceName, scopes, d.ServiceToken) + "\n"), nil
	})
	return err
}

// keepOrMake returns a file's content, made by fn if there is no such file. The file
// appears whole, and only once.
func keepOrMake(path string, fn func() ([]byte, error)) ([]byte, error) {
	b, err := os.ReadFile(path)
	if err == nil {
		return b, keepPrivate(path)
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	if b, err = fn(); err != nil {
		return nil, err
	}
	tmp, err := os.CreateTemp(filepath.Dir(path), ".new-*") // mode 0600
	if err != nil {
		return nil, err
	}
	defer os.Remove(tmp.Name())
	_, err = tmp.Write(b)
	err = errors.Join(err, tmp.Sync(), tmp.Close())
	if err != nil {
		return nil, err
	}
	err = os.Link(tmp.Name(), path)
	if errors.Is(err, fs.ErrExist) { // another process was faster
		return os.ReadFile(path)
	}
	return b, err
}

// keepPrivate takes everybody else's rights to a file that was made by hand, or unpacked
// from somewhere.
func keepPrivate(path string) error {
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm()&0o077 == 0 {
		return err
	}
	return os.Chmod(path, 0o600)
}
