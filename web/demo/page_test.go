package demo

import (
	"bufio"
	"bytes"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"testing"

	"github.com/mailbell/mailbell/web"
)

// exchange sends one request over a bare connection and returns the response's bytes and the request's length.
func exchange(t *testing.T, server *httptest.Server, auth string, zipped bool) ([]byte, int) {
	t.Helper()
	address := server.Listener.Addr().String()
	conn, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	request := "GET /demo/api/state?mailbox=INBOX HTTP/1.1\r\nHost: " + address + "\r\nAuthorization: " + auth + "\r\n"
	if zipped {
		request += "Accept-Encoding: gzip\r\n"
	}
	request += "\r\n"
	if _, err := io.WriteString(conn, request); err != nil {
		t.Fatal(err)
	}
	var raw bytes.Buffer
	response, err := http.ReadResponse(bufio.NewReader(io.TeeReader(conn, &raw)), nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(io.Discard, response.Body); err != nil {
		t.Fatal(err)
	}
	return raw.Bytes(), len(request)
}

func TestPageIsServed(t *testing.T) {
	f := newFixture(t, func(c *Config) { c.SocketOrigins = []string{"wss://n1.example.com"} })
	tests := []struct{ target, kind, contains string }{
		{"/demo/", "text/html; charset=utf-8", "<!doctype html>"},
		{"/demo/app.js", "text/javascript; charset=utf-8", "import"},
		{"/demo/style.css", "text/css; charset=utf-8", "color-scheme"},
		{"/mailbell.js", "text/javascript; charset=utf-8", "export class Mailbell"},
	}
	for _, tt := range tests {
		w := f.call("GET", tt.target, "")
		if w.Code != http.StatusOK || w.Header().Get("Content-Type") != tt.kind || !strings.Contains(w.Body.String(), tt.contains) {
			t.Errorf("%s: %d %s", tt.target, w.Code, w.Header().Get("Content-Type"))
		}
		policy := w.Header().Get("Content-Security-Policy")
		for _, want := range []string{"default-src 'none'", "script-src 'self'", "connect-src 'self' wss://n1.example.com;", "frame-ancestors 'none'"} {
			if !strings.Contains(policy, want) {
				t.Errorf("%s: policy %q lacks %q", tt.target, policy, want)
			}
		}
		if w.Header().Get("X-Content-Type-Options") != "nosniff" {
			t.Errorf("%s: no nosniff", tt.target)
		}
		if again := f.call("GET", tt.target, "", "If-None-Match", w.Header().Get("ETag")); again.Code != http.StatusNotModified {
			t.Errorf("%s again: %d", tt.target, again.Code)
		}
	}
	if w := f.call("GET", "/", ""); w.Header().Get("Location") != "/demo/" {
		t.Errorf("the root leads to %q", w.Header().Get("Location"))
	}
	if w := f.call("GET", "/?account=a@example.com", ""); w.Header().Get("Location") != "/demo/?account=a@example.com" {
		t.Errorf("the root with an account leads to %q", w.Header().Get("Location"))
	}
	for _, target := range []string{"/demo/nothing.js", "/demo/demo.go", "/package.json", "/demo/page/index.html"} {
		if w := f.call("GET", target, ""); w.Code != http.StatusNotFound {
			t.Errorf("%s: %d", target, w.Code)
		}
	}
	if got := f.call("GET", "/mailbell.js", "").Header().Get("Access-Control-Allow-Origin"); got != "*" {
		t.Errorf("the client is for pages elsewhere too; Access-Control-Allow-Origin is %q", got)
	}
}

// The policy forbids inline scripts and styles and other hosts; a page that had them would be broken.
func TestPageObeysItsPolicy(t *testing.T) {
	forbidden := map[string]*regexp.Regexp{
		"inline style":   regexp.MustCompile(`(?i)<style|\sstyle\s*=`),
		"inline script":  regexp.MustCompile(`(?i)<script(>|\s+[^>]*>[^<])|\son[a-z]+\s*=\s*["']|javascript:`),
		"another host":   regexp.MustCompile(`(?i)(src|href)\s*=\s*["'](https?:)?//|@import|url\(\s*["']?(https?:)?//`),
		"HTML by string": regexp.MustCompile(`innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(`),
	}
	entries, err := web.Files.ReadDir("demo/page")
	if err != nil {
		t.Fatal(err)
	}
	for _, entry := range entries {
		body, err := web.Files.ReadFile("demo/page/" + entry.Name())
		if err != nil {
			t.Fatal(err)
		}
		for what, pattern := range forbidden {
			if found := pattern.Find(body); found != nil {
				t.Errorf("%s has %s: %q", entry.Name(), what, found)
			}
		}
	}
}

func TestHosts(t *testing.T) {
	f := newFixture(t, func(c *Config) { c.Hosts = []string{"demo.example.com"} })
	for host, status := range map[string]int{
		"127.0.0.1:8480": 200, "[::1]:8480": 200, "localhost:8480": 200, "localhost": 200, "devbox:8480": 200, "a.localhost:1": 200,
		"demo.example.com": 200, "rebound.example.net:8480": 403, "127.0.0.1.example.net": 403, "x.demo.example.com": 403,
	} {
		r := httptest.NewRequest("GET", "/demo/", nil)
		r.Host = host
		w := httptest.NewRecorder()
		f.h.ServeHTTP(w, r)
		if w.Code != status {
			t.Errorf("%s: %d", host, w.Code)
		}
	}
}
