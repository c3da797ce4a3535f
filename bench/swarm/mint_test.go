package swarm

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/mailbell/mailbell/internal/auth"
)

// What is signed here is what auth accepts.
func TestMint(t *testing.T) {
	file := filepath.Join(t.TempDir(), "key")
	if err := os.WriteFile(file, []byte(strings.Repeat("secret", 8)+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	m, err := NewMinter(file)
	if err != nil {
		t.Fatal(err)
	}
	keys, err := auth.OpenKeys(context.Background(), auth.KeysConfig{Source: file})
	if err != nil {
		t.Fatal(err)
	}
	defer keys.Close()
	for _, account := range []string{"u0000001@bench.example", "u0000002@bench.example"} {
		token, err := m.Mint(account)
		if err != nil {
			t.Fatal(err)
		}
		access, err := keys.Verify(context.Background(), token)
		if err != nil || string(access.Subject) != account {
			t.Errorf("Verify = %+v, %v; want the subject %s", access, err, account)
		}
	}
}
