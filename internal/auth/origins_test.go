package auth

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

func TestOrigins(t *testing.T) {
	const host = "mail.example.com:7480"
	for _, tc := range []struct {
		list, origin, host string
		want               bool
	}{
		{"", "", host, true},
		{"", "https://mail.example.com", host, true},
		{"", "http://MAIL.example.com:8480", host, true},
		{"", "https://evil.example.com", host, false},
		{"", "https://mail.example.com.evil.com", host, false},
		{"", "null", host, false},
		{"", "file://", host, false},
		{"", "https://mail.example.com/path", host, false},
		{"", "https://mail.example.com@evil.com", host, false},
		{"", "http://localhost:8480", "127.0.0.1:7480", true},
		{"", "http://[::1]:8480", "localhost:7480", true},
		{"", "http://localhost.evil.com", "127.0.0.1:7480", false},
		{"", "http://127.0.0.1.evil.com", "127.0.0.1:7480", false},
		{"", "https://mail.example.com", "", false},
		{"*", "https://evil.example.com", host, true},
		{"https://mail.example.com", "https://mail.example.com", host, true},
		{"https://mail.example.com", "https://mail.example.com:443", host, true},
		{"https://mail.example.com:443", "https://mail.example.com", host, true},
		{"https://mail.example.com", "http://mail.example.com", host, false},
		{"https://mail.example.com", "https://mail.example.com:8443", host, false},
		{"https://other.example.com", "https://mail.example.com", host, false},
		{"https://mail.example.com", "", host, true},
		{" https://a.example , https://b.example:8443 ", "https://b.example:8443", host, true},
		{"https://*.example.com", "https://a.example.com", host, true},
		{"https://*.example.com", "https://a.b.EXAMPLE.com", host, true},
		{"https://*.example.com", "https://example.com", host, false},
		{"https://*.example.com", "https://evilexample.com", host, false},
		{"https://*.example.com", "https://.example.com", host, false},
		{"mail.example.com", "https://mail.example.com", host, true},
		{"mail.example.com", "http://mail.example.com:8080", host, true},
		{"mail.example.com:8080", "http://mail.example.com:8081", host, false},
		{"*.example.com", "http://a.example.com:8080", host, true},
		{"http://[::1]:8480", "http://[::1]:8480", host, true},
	} {
		o, err := ParseOrigins(tc.list)
		if err != nil {
			t.Fatal(err)
		}
		if got := o.Allow(tc.origin, tc.host); got != tc.want {
			t.Errorf("origins %q: Allow(%q, %q) = %v", tc.list, tc.origin, tc.host, got)
		}
	}
	if _, err := ParseOrigins("https://a.example,nonsense/path"); err == nil || !strings.Contains(err.Error(), `origins: "nonsense/path": want an origin, such as https://mail.example.com (no path)`) {
		t.Errorf("got %v", err)
	}
	for _, bad := range []string{"https://", "ftp://a.example", "https://a.example/", "https://a.*.example", "*.com", "https://*", "https://a.example:", "https://a.example:x"} {
		if _, err := ParseOrigins(bad); err == nil {
			t.Errorf("%q is accepted", bad)
		}
	}
}

func TestCORS(t *testing.T) {
	for _, tc := range []struct {
		name, list, method, origin, ask string
		status                          int
		allow, credentials, body        string
	}{
		{"no origin", "https://a.example", "GET", "", "", 200, "", "", "handled"},
		{"allowed", "https://a.example", "GET", "https://a.example", "", 200, "https://a.example", "true", "handled"},
		{"preflight", "https://a.example", "OPTIONS", "https://a.example", "POST", 204, "https://a.example", "true", ""},
		{"refused", "https://a.example", "GET", "https://b.example", "", 403, "", "", ErrOrigin.Message + "\n"},
		{"preflight refused", "https://a.example", "OPTIONS", "https://b.example", "GET", 403, "", "", ErrOrigin.Message + "\n"},
		{"any", "*", "GET", "https://b.example", "", 200, "*", "", "handled"},
		{"OPTIONS that is no preflight", "https://a.example", "OPTIONS", "https://a.example", "", 200, "https://a.example", "true", "handled"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			o, err := ParseOrigins(tc.list)
			if err != nil {
				t.Fatal(err)
			}
			h := o.CORS(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("handled")) }), "GET", "POST")
			r := httptest.NewRequest(tc.method, "/v1/connect", nil)
			if tc.origin != "" {
				r.Header.Set("Origin", tc.origin)
			}
			if tc.ask != "" {
				r.Header.Set("Access-Control-Request-Method", tc.ask)
			}
			w := httptest.NewRecorder()
			h.ServeHTTP(w, r)
			if w.Code != tc.status || w.Body.String() != tc.body || w.Header().Get("Vary") != "Origin" ||
				w.Header().Get("Access-Control-Allow-Origin") != tc.allow ||
				w.Header().Get("Access-Control-Allow-Credentials") != tc.credentials {
				t.Errorf("%d %q %v", w.Code, w.Body, w.Header())
			}
			if tc.status == 204 && (w.Header().Get("Access-Control-Allow-Methods") != "GET, POST" || w.Header().Get("Access-Control-Allow-Headers") == "") {
				t.Errorf("%v", w.Header())
			}
		})
	}
}

func FuzzOrigin(f *testing.F) {
	f.Add("https://*.example.com", "https://a.example.com", "example.com:80")
	f.Add("", "http://[::1]:80", "[::1]")
	f.Fuzz(func(t *testing.T, list, origin, host string) {
		o, err := ParseOrigins(list)
		if err != nil {
			return
		}
		o.Allow(origin, host)
	})
}
