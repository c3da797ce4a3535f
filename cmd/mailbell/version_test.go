package main

import (
	"encoding/json"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestLinkedCommit: where the go command stamps no commit, the one that the Makefile links is in all places that name it.
func TestLinkedCommit(t *testing.T) {
	if testing.Short() {
		t.Skip("builds mailbell")
	}
	t.Parallel()
	const commit = "0123456789abcdef0123456789abcdef01234567"
	binary := filepath.Join(t.TempDir(), "mailbell")
	build := exec.Command("make", "-C", "../..", "build", "BIN="+binary, "COMMIT="+commit)
	build.Env = append(os.Environ(), "GOFLAGS=-buildvcs=false")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("make build: %v\n%s", err, out)
	}
	for _, args := range [][]string{{"version", "--json"}, {"bench", "placement", "--nodes", "20", "--connections", "20000", "--policies", "room", "--json"}} {
		out, err := exec.Command(binary, args...).Output()
		var report struct{ Commit string }
		if err != nil || json.Unmarshal(out, &report) != nil || report.Commit != commit {
			t.Errorf("mailbell %s: %v, %s", args, err, out)
		}
	}
	run := startBinary(t, binary, "run", "--data", t.TempDir(), "--http", "127.0.0.1:0", "--sockets", "127.0.0.1:0", "--link", "127.0.0.1:0")
	resp, err := http.Get("http://" + run.logged(t, "ready", "ops") + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if text, err := io.ReadAll(resp.Body); err != nil || !strings.Contains(string(text), `mailbell_build_info{commit="`+commit+`"`) {
		t.Errorf("%v, and the metrics don't name %s", err, commit)
	}
}
