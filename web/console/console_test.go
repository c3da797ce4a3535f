package console

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/mailbell/mailbell/schema"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func handler(t *testing.T, cfg Config) *httptest.Server {
	t.Helper()
	h, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	return s
}

func read(t *testing.T, url string, into any) *http.Response {
	t.Helper()
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if into != nil {
		if err := json.NewDecoder(resp.Body).Decode(into); err != nil {
			t.Fatal(err)
		}
	}
	return resp
}

func TestPeers(t *testing.T) {
	notifier := handler(t, Config{Node: "n1", Part: "notifier",
		Metrics: func() []Metric { return []Metric{{Name: "mailbell_notifier_connections", Value: 7}} },
		Account: func(schema.Account) AccountAnswer {
			return AccountAnswer{Partition: -1, Subscriptions: []Subscription{{Address: "192.0.2.7"}}}
		}})
	broken := httptest.NewServer(http.NotFoundHandler())
	t.Cleanup(broken.Close)
	host := func(s *httptest.Server) string { return strings.TrimPrefix(s.URL, "http://") }
	bus := handler(t, Config{Node: "b1", Part: "bus", Peers: []string{host(notifier), host(broken)},
		Bus: func() *Bus {
			return &Bus{Total: 4, Partitions: []Partition{{Partition: 2, State: "owned"}}, Notifiers: []Notifier{{Node: "n1"}}}
		},
		Account: func(schema.Account) AccountAnswer {
			return AccountAnswer{Partition: 2, Owner: true, Notifiers: []string{"n1"}}
		}})

	var s Status
	resp := read(t, bus.URL+StatusPath, &s)
	if csp := resp.Header.Get("Content-Security-Policy"); !strings.Contains(csp, "default-src 'self'") {
		t.Errorf("Content-Security-Policy %q", csp)
	}
	if len(s.Nodes) != 2 || s.Nodes[0].Node != "b1" || s.Nodes[0].Bus.Total != 4 || s.Nodes[1].Node != "n1" || s.Nodes[1].Address != host(notifier) || s.Nodes[1].Metrics[0].Value != 7 {
		t.Errorf("nodes %+v", s.Nodes)
	}
	if len(s.Silent) != 1 || s.Silent[0].Address != host(broken) || !strings.Contains(s.Silent[0].Problem, "404") {
		t.Errorf("silent %+v", s.Silent)
	}
	s = Status{}
	if read(t, bus.URL+StatusPath+"?local=1", &s); len(s.Nodes) != 1 || len(s.Silent) != 0 {
		t.Errorf("local: %+v", s)
	}

	var a Account
	read(t, bus.URL+AccountPath+"?name=alice@example.com", &a)
	if len(a.Answers) != 2 || !a.Answers[0].Owner || a.Answers[0].Node != "b1" || a.Answers[1].Subscriptions[0].Address != "192.0.2.7" {
		t.Errorf("account %+v", a)
	}
	if resp := read(t, bus.URL+AccountPath+"?name=", nil); resp.StatusCode != http.StatusBadRequest {
		t.Errorf("no name: %d", resp.StatusCode)
	}
}

func TestPage(t *testing.T) {
	s := handler(t, Config{Node: "n1", Part: "notifier"})
	for path, kind := range map[string]string{"": "text/html", "console.js": "text/javascript", "style.css": "text/css", "icon.svg": "image/svg+xml"} {
		if resp := read(t, s.URL+Path+path, nil); resp.StatusCode != 200 || !strings.HasPrefix(resp.Header.Get("Content-Type"), kind) {
			t.Errorf("%q: %d %s", path, resp.StatusCode, resp.Header.Get("Content-Type"))
		}
	}
	if resp := read(t, s.URL+Path+"console.go", nil); resp.StatusCode != http.StatusNotFound {
		t.Errorf("a file that is none of the page's: %d", resp.StatusCode)
	}
}

func TestValidate(t *testing.T) {
	for _, cfg := range []Config{{Part: "bus"}, {Node: "b1"}, {Node: "b1", Part: "bus", Peers: []string{"nowhere"}}, {Node: "b1", Part: "bus", Peers: make([]string, 300)}} {
		if _, err := New(cfg); err == nil {
			t.Errorf("%+v is accepted", cfg)
		}
	}
}
