package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestRoundcubeUnit asks systemd whether it takes the unit that docs/roundcube.md installs.
func TestRoundcubeUnit(t *testing.T) {
	unit, err := os.ReadFile("../../deploy/roundcube/mailbell-run.service")
	must(t, err)
	file := filepath.Join(t.TempDir(), "mailbell-run.service")
	// The program need not be installed here.
	must(t, os.WriteFile(file, []byte(strings.ReplaceAll(string(unit), "/usr/bin/mailbell", "/bin/true")), 0o600))
	out, err := exec.Command("systemd-analyze", "verify", "--man=no", "--recursive-errors=no", file).CombinedOutput()
	if err != nil || strings.Contains(string(out), file) {
		t.Errorf("systemd-analyze: %v\n%s", err, out)
	}
}
