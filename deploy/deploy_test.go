// Package deploy holds what runs mailbell elsewhere; its tests ask the programs concerned whether they take it.
package deploy

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

func TestNginxTakesIt(t *testing.T) {
	file, err := filepath.Abs("nginx/mailbell.conf")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	// Port 0 can't be tested; what listens is not opened by -t beyond binding.
	main := "pid " + dir + "/pid;\nerror_log stderr;\nevents { }\nhttp { access_log off; client_body_temp_path " + dir + "/b; proxy_temp_path " + dir +
		"/p; fastcgi_temp_path " + dir + "/f; uwsgi_temp_path " + dir + "/u; scgi_temp_path " + dir + "/s; include " + file + "; }\n"
	config := filepath.Join(dir, "nginx.conf")
	if err := os.WriteFile(config, []byte(main), 0o600); err != nil {
		t.Fatal(err)
	}
	nginx := "nginx"
	if _, err := exec.LookPath(nginx); err != nil {
		nginx = "/usr/sbin/nginx"
	}
	if out, err := exec.Command(nginx, "-t", "-e", "stderr", "-c", config).CombinedOutput(); err != nil {
		t.Errorf("nginx -t: %v\n%s", err, out)
	}
}

// TestPromtoolTakesCompose has promtool check the file that compose mounts, with the rules where they are here.
func TestPromtoolTakesCompose(t *testing.T) {
	b, err := os.ReadFile("compose/prometheus.yml")
	if err != nil {
		t.Fatal(err)
	}
	rules, err := filepath.Abs("prometheus")
	if err != nil {
		t.Fatal(err)
	}
	const mounted = "/etc/prometheus/mailbell.rules.yml"
	if !strings.Contains(string(b), mounted) {
		t.Fatalf("no %s in %s", mounted, b)
	}
	file := filepath.Join(t.TempDir(), "prometheus.yml")
	if err := os.WriteFile(file, []byte(strings.ReplaceAll(string(b), "/etc/prometheus", rules)), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("promtool", "check", "config", file).CombinedOutput(); err != nil {
		t.Errorf("promtool: %v\n%s", err, out)
	}
}

// TestPolkitRules runs the rules as polkit does, which asks each whether a user may do something.
func TestPolkitRules(t *testing.T) {
	rules, err := os.ReadFile("systemd/50-mailbell.rules")
	if err != nil {
		t.Fatal(err)
	}
	const manage = "org.freedesktop.systemd1.manage-units"
	for _, tt := range []struct{ action, user, unit, verb, want string }{
		{manage, "mailbell-bus", "mailbell-notifier@notifier-12.service", "start", "yes"},
		{manage, "mailbell-bus", "mailbell-notifier@notifier-12.service", "stop", "yes"},
		{manage, "mailbell-bus", "mailbell-notifier@notifier-12.service", "restart", ""},
		{manage, "mailbell-bus", "ssh.service", "stop", ""},
		{manage, "mailbell-bus", "mailbell-notifier@notifier-1.service.evil.service", "start", ""},
		{manage, "www-data", "mailbell-notifier@notifier-1.service", "stop", ""},
		{"org.freedesktop.systemd1.manage-unit-files", "mailbell-bus", "mailbell-notifier@notifier-1.service", "start", ""},
	} {
		script := fmt.Sprintf("let rule; const polkit = {Result: {YES: 'yes'}, addRule: (f) => { rule = f; }};\n%s\nprocess.stdout.write(rule({id: %q, lookup: (k) => ({unit: %q, verb: %q})[k]}, {user: %q}) ?? '');",
			rules, tt.action, tt.unit, tt.verb, tt.user)
		out, err := exec.Command("node", "-e", script).CombinedOutput()
		if err != nil || string(out) != tt.want {
			t.Errorf("%+v: %q, %v", tt, out, err)
		}
	}
}

func TestSystemdTakesTheUnits(t *testing.T) {
	units, err := filepath.Glob("systemd/*.service")
	if err != nil || len(units) != 3 {
		t.Fatalf("%d units, %v", len(units), err)
	}
	dir := t.TempDir()
	args := []string{"verify", "--man=no", "--recursive-errors=no"}
	for _, u := range units {
		b, err := os.ReadFile(u)
		if err != nil {
			t.Fatal(err)
		}
		name := strings.Replace(filepath.Base(u), "@", "@notifier-1", 1)
		// The program need not be installed here.
		if err := os.WriteFile(filepath.Join(dir, name), []byte(strings.ReplaceAll(string(b), "/usr/bin/mailbell", "/bin/true")), 0o600); err != nil {
			t.Fatal(err)
		}
		args = append(args, filepath.Join(dir, name))
	}
	out, err := exec.Command("systemd-analyze", args...).CombinedOutput()
	if err != nil || strings.Contains(string(out), dir) {
		t.Errorf("systemd-analyze: %v\n%s", err, out)
	}
}
