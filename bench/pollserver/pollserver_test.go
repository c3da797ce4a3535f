package pollserver

import (
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"testing"

	"github.com/mailbell/mailbell/bench/mailstore"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func get(h http.Handler, path, etag string) *httptest.ResponseRecorder {
	r := httptest.NewRequest(http.MethodGet, path, nil)
	if etag != "" {
		r.Header.Set("If-None-Match", etag)
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w
}

// Both stores answer alike: 200 with a body, 304 while nothing changes, 200 again after a change.
func TestAnswers(t *testing.T) {
	cfg := mailstore.Config{Accounts: 3, Mailboxes: 4}
	stores := map[string]func(t *testing.T) (mailstore.Store, func(uint32)){
		mailstore.Memory: func(t *testing.T) (mailstore.Store, func(uint32)) {
			cfg := cfg
			cfg.Kind = mailstore.Memory
			s, err := mailstore.Open(cfg)
			if err != nil {
				t.Fatal(err)
			}
			return s, s.(*mailstore.MemoryStore).Change
		},
		mailstore.SQLite: func(t *testing.T) (mailstore.Store, func(uint32)) {
			cfg := cfg
			cfg.Kind, cfg.Path = mailstore.SQLite, filepath.Join(t.TempDir(), "mail.db")
			w, err := mailstore.CreateSQLite(context.Background(), cfg)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = w.Close() })
			s, err := mailstore.Open(cfg)
			if err != nil {
				t.Fatal(err)
			}
			return s, func(n uint32) {
				if err := w.Change(context.Background(), n); err != nil {
					t.Error(err)
				}
			}
		},
	}
	for name, open := range stores {
		t.Run(name, func(t *testing.T) {
			s, change := open(t)
			defer s.Close()
			h := newHandler(s)
			const path = Prefix + "u0000001@bench.example"
			first := get(h, path, "")
			var body struct {
				Account   string
				Mailboxes []struct {
					Mailbox           string
					UIDNext, Messages int
				}
			}
			if err := json.Unmarshal(first.Body.Bytes(), &body); err != nil || first.Code != 200 || body.Account != "u0000001@bench.example" || len(body.Mailboxes) != 4 || body.Mailboxes[0].UIDNext != 1 {
				t.Fatalf("%d %s: %v", first.Code, first.Body, err)
			}
			etag := first.Header().Get("ETag")
			if same := get(h, path, etag); same.Code != 304 || same.Body.Len() > 0 || same.Header().Get("ETag") != etag {
				t.Errorf("unchanged: %d %q", same.Code, same.Body)
			}
			change(1)
			change(2)
			after := get(h, path, etag)
			if err := json.Unmarshal(after.Body.Bytes(), &body); err != nil || after.Code != 200 || body.Mailboxes[0].Mailbox != "INBOX" || body.Mailboxes[0].UIDNext != 2 || body.Mailboxes[0].Messages != 1 {
				t.Errorf("changed: %d %s: %v", after.Code, after.Body, err)
			}
			if w := get(h, Prefix+"nobody", ""); w.Code != 404 {
				t.Errorf("an unknown account: %d", w.Code)
			}
			if s.Reads() < 3 {
				t.Errorf("%d reads", s.Reads())
			}
		})
	}
}

func TestETag(t *testing.T) {
	for _, bad := range []string{"", `"`, `""`, `W/"1"`, `"g"`, `"11111111111111111"`} {
		if v, err := parseETag([]string{bad}); err == nil {
			t.Errorf("%q is %d", bad, v)
		}
	}
}

func BenchmarkNotModified(b *testing.B) {
	s, err := mailstore.Open(mailstore.Config{Kind: mailstore.Memory, Accounts: 1000, Mailboxes: 5})
	if err != nil {
		b.Fatal(err)
	}
	h := newHandler(s)
	r := httptest.NewRequest(http.MethodGet, Prefix+"u0000001@bench.example", nil)
	r.Header.Set("If-None-Match", `"1"`)
	w := httptest.NewRecorder()
	b.ReportAllocs()
	for b.Loop() {
		h.ServeHTTP(w, r)
	}
}
