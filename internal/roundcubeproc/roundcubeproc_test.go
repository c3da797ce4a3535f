package roundcubeproc

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// TestClientIsCopied: `cp -r` of the plugin's folder must be enough, so it holds the browser client itself.
func TestClientIsCopied(t *testing.T) {
	module, err := ModuleDir()
	if err != nil {
		t.Fatal(err)
	}
	copied := filepath.Join(module, "deploy", "roundcube", "mailbell", "mailbell.js")
	if info, err := os.Lstat(copied); err != nil || !info.Mode().IsRegular() {
		t.Fatalf("%s is no file: %v", copied, err)
	}
	client, err := os.ReadFile(filepath.Join(module, "web", "mailbell.js"))
	if err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(copied); err != nil || !bytes.Equal(got, client) {
		t.Errorf("%s differs from web/mailbell.js (%v): run make roundcube-client", copied, err)
	}
}

func TestStartStop(t *testing.T) {
	module, err := ModuleDir()
	if err != nil {
		t.Fatal(err)
	}
	for _, site := range []string{"same-origin.conf", "cross-origin.conf"} {
		s, err := Start(t.Context(), Options{
			IMAPAddr: "127.0.0.1:1", Site: filepath.Join(module, "deploy/roundcube/nginx", site), Notifier: "127.0.0.1:1", Plugins: []string{"newmail_notifier", filepath.Join(module, "deploy/roundcube/mailbell")},
		})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.WaitForRequest(t.Context(), time.Time{}, func(r Request) bool { return r.Dynamic() && r.Status == 200 }); err != nil {
			t.Error(err)
		}
		if log := s.Log(); log != "" {
			t.Errorf("complaints:\n%s", log)
		}
		s.Stop()
		if _, err := os.Stat(s.Dir()); !os.IsNotExist(err) {
			t.Errorf("the folder is left: %v", err)
		}
	}
}
