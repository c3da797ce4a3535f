// Package deploy holds what runs mailbell elsewhere; its tests ask the programs concerned whether they take it.
package deploy

import (
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// nginxConfig writes a main file around deploy's, in which some texts are replaced by others.
func nginxConfig(t *testing.T, replace ...string) (nginx, config string) {
	t.Helper()
	b, err := os.ReadFile("nginx/mailbell.conf")
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(replace); i += 2 {
		if !strings.Contains(string(b), replace[i]) {
			t.Fatalf("nginx/mailbell.conf has no %q", replace[i])
		}
	}
	dir := t.TempDir()
	main := "pid " + dir + "/pid;\nerror_log stderr;\nevents { }\nhttp { access_log off; client_body_temp_path " + dir + "/b; proxy_temp_path " + dir +
		"/p; fastcgi_temp_path " + dir + "/f; uwsgi_temp_path " + dir + "/u; scgi_temp_path " + dir + "/s;\n" + strings.NewReplacer(replace...).Replace(string(b)) + "}\n"
	config = filepath.Join(dir, "nginx.conf")
	if err := os.WriteFile(config, []byte(main), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := exec.LookPath("nginx"); err != nil {
		return "/usr/sbin/nginx", config
	}
	return "nginx", config
}

func TestNginxTakesIt(t *testing.T) {
	nginx, config := nginxConfig(t)
	if out, err := exec.Command(nginx, "-t", "-e", "stderr", "-c", config).CombinedOutput(); err != nil {
		t.Errorf("nginx -t: %v\n%s", err, out)
	}
}

// TestNginxTriesTheNextGateway asks with POST where one of two gateways has nobody to hand out. The other one answers, and both are told
// who asks.
func TestNginxTriesTheNextGateway(t *testing.T) {
	heard := make(chan string, 16)
	gateway := func(status int) string {
		s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			heard <- r.Header.Get("X-Forwarded-For")
			w.WriteHeader(status)
		}))
		t.Cleanup(s.Close)
		return s.Listener.Addr().String()
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	front := l.Addr().String()
	l.Close()
	nginx, config := nginxConfig(t, "listen 127.0.0.1:8443", "listen "+front,
		"server 127.0.0.1:8480", "server "+gateway(http.StatusServiceUnavailable), "server 127.0.0.1:8580", "server "+gateway(http.StatusOK))
	proxy := exec.Command(nginx, "-e", "stderr", "-c", config, "-g", "daemon off; master_process off;")
	var said strings.Builder
	proxy.Stderr = &said
	if err := proxy.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = proxy.Process.Kill()
		_ = proxy.Wait()
		if t.Failed() {
			t.Log(said.String())
		}
	})
	listens(t, front)
	for range 4 {
		resp, err := http.Post("http://"+front+"/v1/connect", "application/json", strings.NewReader(`{"account":"alice@example.com"}`))
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			t.Errorf("status %d", resp.StatusCode)
		}
	}
	if n := len(heard); n < 5 {
		t.Errorf("the gateways were asked %d times: the one that refuses was not among them", n)
	}
	for range len(heard) {
		if got := <-heard; got != "127.0.0.1" {
			t.Errorf("a gateway heard of %q", got)
		}
	}
}

// listens waits until somebody does.
func listens(t *testing.T, address string) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) { // between two looks
		conn, err := net.Dial("tcp", address)
		if err == nil {
			conn.Close()
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("nobody listens on %s", address)
		}
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
