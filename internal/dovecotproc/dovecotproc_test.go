package dovecotproc

import (
	"os"
	"strings"
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestStartDeliverStop(t *testing.T) {
	s, err := Start(t.Context(), Options{})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Deliver(t.Context(), "a@example.com", Message("b@example.com", "a@example.com", "hello", ".\ntext")); err != nil {
		t.Fatal(err)
	}
	if err := s.WaitForLog(t.Context(), "saved mail to INBOX", 1); err != nil {
		t.Fatal(err)
	}
	s.Stop()
	if _, err := os.Stat(s.Dir()); !os.IsNotExist(err) {
		t.Fatalf("the folder is left: %v", err)
	}
}

func TestFailsWithTheLog(t *testing.T) {
	_, err := Start(t.Context(), Options{AgentURL: "http://127.0.0.1:1", Script: "does/not/exist.lua"})
	if err == nil || !strings.Contains(err.Error(), "read script") {
		t.Fatalf("got %v", err)
	}
	_, err = Start(t.Context(), Options{Plugin: map[string]string{"broken": "\n}\nno_such_setting = 1\nplugin {"}})
	if err == nil || !strings.Contains(err.Error(), "it ended by itself") {
		t.Fatalf("got %v", err)
	}
}
