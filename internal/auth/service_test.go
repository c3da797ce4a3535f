package auth

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"testing"
	"time"
)

func TestServiceTokens(t *testing.T) {
	store, storeLine, err := NewServiceToken("dovecot", ScopePublish)
	if err != nil {
		t.Fatal(err)
	}
	webmail, webmailLine, _ := NewServiceToken("roundcube", ScopeConnect)
	both, bothLine, _ := NewServiceToken("roundcube", ScopePublish, ScopeConnect)
	path := writeFile(t, []byte("# ours\n\n"+storeLine+" # the store\n"+webmailLine+"\r\n"+bothLine))
	s, err := LoadServiceTokens(path)
	if err != nil {
		t.Fatal(err)
	}
	var none *ServiceTokens
	for _, tc := range []struct {
		name   string
		tokens *ServiceTokens
		token  string
		scope  Scope
		owner  string
		reason Reason
		text   string
		status int
	}{
		{"publish", s, store, ScopePublish, "dovecot", "", "", 0},
		{"connect", s, webmail, ScopeConnect, "roundcube", "", "", 0},
		{"both", s, both, ScopePublish, "roundcube", "", "", 0},
		{"without the scope", s, store, ScopeConnect, "", ReasonScope, `service token: "dovecot" has no scope "connect"`, http.StatusForbidden},
		{"unknown", s, store + "x", ScopePublish, "", ReasonUnknown, ErrUnknown.Message, http.StatusUnauthorized},
		{"the hash itself", s, strings.Fields(storeLine)[2], ScopePublish, "", ReasonUnknown, ErrUnknown.Message, http.StatusUnauthorized},
		{"empty", s, "", ScopePublish, "", ReasonMissing, ErrMissing.Message, http.StatusUnauthorized},
		{"huge", s, strings.Repeat("x", MaxTokenBytes+1), ScopePublish, "", ReasonUnknown, ErrUnknown.Message, http.StatusUnauthorized},
		{"none are configured", none, store, ScopePublish, "", ReasonUnknown, ErrUnknown.Message, http.StatusUnauthorized},
	} {
		t.Run(tc.name, func(t *testing.T) {
			owner, err := tc.tokens.Check(tc.token, tc.scope)
			checkRefusal(t, err, tc.reason, tc.text)
			if owner != tc.owner || err != nil && StatusOf(err) != tc.status {
				t.Errorf("owner %q, status %d", owner, StatusOf(err))
			}
		})
	}
}

func TestServiceTokenFiles(t *testing.T) {
	hash := "sha256:" + strings.Repeat("0", 64)
	for _, tc := range []struct{ content, problem string }{
		{"dovecot publish", ":1: has 2 fields: want name scope[,scope] sha256:<hex>"},
		{"\n# x\ndovecot publish " + hash + " more", ":3: has 4 fields"},
		{"dove/cot publish " + hash, `:1: name "dove/cot": want 1 to 64 letters, digits, dots, dashes or underscores`},
		{"dovecot write " + hash, `:1: scope "write": want publish or connect`},
		{"dovecot publish, " + hash, `:1: scope "": want publish or connect`},
		{"dovecot publish " + hash[:70], ":1: the third field must be sha256: and 64 hexadecimal digits"},
		{"dovecot publish md5:" + hash, ":1: the third field must be sha256: and 64 hexadecimal digits"},
		{"dovecot publish mbs_plain", ":1: the third field must be sha256: and 64 hexadecimal digits"},
		{strings.Repeat("dovecot publish "+hash+"\n", 1001), ":1001: more than 1000 tokens"},
	} {
		if _, err := LoadServiceTokens(writeFile(t, []byte(tc.content))); err == nil || !strings.Contains(err.Error(), tc.problem) {
			t.Errorf("%.40q: got %v, want %s", tc.content, err, tc.problem)
		}
	}
	if _, err := LoadServiceTokens("no-such-file"); err == nil || !strings.Contains(err.Error(), "--service-tokens") {
		t.Errorf("a missing file: %v", err)
	}
	if _, _, err := NewServiceToken("dovecot"); err == nil {
		t.Error("a token without a scope is made")
	}
	if _, _, err := NewServiceToken("a b", ScopePublish); err == nil {
		t.Error("a token with a name that no file can hold is made")
	}
}

// TestServiceTokensReload changes the file under running checks.
func TestServiceTokensReload(t *testing.T) {
	old, oldLine, _ := NewServiceToken("old", ScopePublish)
	fresh, freshLine, _ := NewServiceToken("fresh", ScopePublish)
	path := writeFile(t, []byte(oldLine))
	s, err := LoadServiceTokens(path)
	if err != nil {
		t.Fatal(err)
	}
	var checks sync.WaitGroup
	stop := make(chan struct{})
	for range 4 {
		checks.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
					_, _ = s.Check(old, ScopePublish)
				}
			}
		})
	}
	write := func(content string) {
		t.Helper()
		if err := os.WriteFile(path+".new", []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(path+".new", path); err != nil {
			t.Fatal(err)
		}
		s.file.next.Store(0)
	}
	write(freshLine)
	for {
		if _, err := s.Check(fresh, ScopePublish); err == nil {
			break
		}
		time.Sleep(time.Millisecond) // between two looks
	}
	if _, err := s.Check(old, ScopePublish); !errors.Is(err, ErrUnknown) {
		t.Errorf("a token that was removed: %v", err)
	}
	write("oops")
	for s.Err() == nil {
		_, _ = s.Check(fresh, ScopePublish)
		time.Sleep(time.Millisecond) // between two looks
	}
	if _, err := s.Check(fresh, ScopePublish); err != nil {
		t.Errorf("a broken file put the last tokens out of force: %v", err)
	}
	close(stop)
	checks.Wait()
}

func FuzzServiceTokens(f *testing.F) {
	_, line, _ := NewServiceToken("dovecot", ScopePublish)
	f.Add([]byte(line + "\n# x\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		set, err := parseServiceTokens(b)
		for _, s := range set {
			if err == nil && (s.name == "" || len(s.scopes) == 0) {
				t.Fatalf("%+v", s)
			}
		}
	})
}

func TestBearerToken(t *testing.T) {
	for _, tc := range []struct{ header, want string }{
		{"Bearer abc", "abc"},
		{"bearer  abc ", "abc"},
		{"Basic abc", ""},
		{"Bearer", ""},
		{"Bearer ", ""},
		{"abc", ""},
		{"", ""},
	} {
		got, err := BearerToken(tc.header)
		if got != tc.want || (err == nil) != (tc.want != "") {
			t.Errorf("%q: %q, %v", tc.header, got, err)
		}
	}
	r := httptest.NewRequest(http.MethodGet, "/", nil)
	if _, err := RequestToken(r, "session"); !errors.Is(err, ErrMissing) {
		t.Errorf("no token: %v", err)
	}
	r.AddCookie(&http.Cookie{Name: "session", Value: "c"})
	if got, err := RequestToken(r, "session"); got != "c" || err != nil {
		t.Errorf("cookie: %q, %v", got, err)
	}
	if _, err := RequestToken(r, ""); !errors.Is(err, ErrMissing) {
		t.Errorf("a cookie where none is configured: %v", err)
	}
	r.Header.Set("Authorization", "Bearer h")
	if got, err := RequestToken(r, "session"); got != "h" || err != nil {
		t.Errorf("header: %q, %v", got, err)
	}
}

func TestStatus(t *testing.T) {
	for err, want := range map[error]int{
		ErrMissing: 401, ErrExpired: 401, ErrUnknown: 401, ErrScope: 403, ErrOrigin: 403, ErrUnavailable: 503,
		errors.New("x"): 500, &Error{Reason: ReasonInternal}: 500,
	} {
		if got := StatusOf(err); got != want {
			t.Errorf("%v: %d, want %d", err, got, want)
		}
	}
	if ReasonOf(errors.New("x")) != ReasonInternal {
		t.Error("another error has a reason")
	}
}
