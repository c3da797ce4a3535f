package storageadapter

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/mailbell/mailbell/internal/auth"
	"github.com/mailbell/mailbell/internal/eventlog"
	"github.com/mailbell/mailbell/schema"
)

const (
	jsonType   = "application/json"
	ndjsonType = "application/x-ndjson"
)

func ingest(t testing.TB, cfg IngestConfig) *Ingest {
	t.Helper()
	cfg.Logger = quiet
	in, err := NewIngest(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return in
}

func eventJSON(id string) string {
	e := event(id)
	return string(e.AppendJSON(nil))
}

func post(in http.Handler, contentType, body string) *httptest.ResponseRecorder {
	r := httptest.NewRequest(http.MethodPost, EventsPath, strings.NewReader(body))
	r.Header.Set("Content-Type", contentType)
	w := httptest.NewRecorder()
	in.ServeHTTP(w, r)
	return w
}

func TestIngestTakes(t *testing.T) {
	one, two := eventJSON("1"), eventJSON("2")
	unknown := `{"id":"3","event":"Login","account":"alice@example.com","timestamp":"2026-11-21T05:17:58Z","vnd.example.x":{"a":[1]}}`
	for _, c := range []struct {
		name, contentType, body string
		want                    []string
	}{
		{"one", jsonType, one, []string{one}},
		{"charset", "application/json; charset=UTF-8", one, []string{one}},
		{"array", jsonType, "[" + one + ",\n " + two + "]\n", []string{one, two}},
		{"array after white space", jsonType, " \r\n\t[" + one + "]", []string{one}},
		{"lines", ndjsonType, one + "\n" + two + "\n", []string{one, two}},
		{"lines with blanks, CRLF, no end", ndjsonType, "\n" + one + "\r\n\r\n" + two, []string{one, two}},
		{"unknown fields pass", jsonType, unknown, []string{unknown}},
	} {
		t.Run(c.name, func(t *testing.T) {
			log := newMemoryLog(1)
			w := post(ingest(t, IngestConfig{Publisher: publisher(t, log)}), c.contentType, c.body)
			var answer struct{ Positions []string }
			if err := json.Unmarshal(w.Body.Bytes(), &answer); err != nil || w.Code != http.StatusOK || w.Header().Get("Content-Type") != jsonType {
				t.Fatalf("%d %s (%v)", w.Code, w.Body, err)
			}
			if got := log.all(); !slices.Equal(got, c.want) {
				t.Fatalf("on the log: %s", got)
			}
			for i, text := range answer.Positions {
				p, err := schema.ParsePosition(text)
				if err != nil || p != (schema.Position{Epoch: testEpoch, Offset: int64(i)}) {
					t.Errorf("position %d: %s (%v)", i, text, err)
				}
			}
			if len(answer.Positions) != len(c.want) {
				t.Errorf("%d positions", len(answer.Positions))
			}
		})
	}
}

// answer is the body of a refusal.
type answer struct {
	Error struct {
		Code, Message, Field, Example string
		Index                         *int
	}
}

func TestIngestBadEvents(t *testing.T) {
	good := eventJSON("1")
	replace := func(old, with string) string { return strings.Replace(good, old, with, 1) }
	for _, c := range []struct {
		name, contentType, body string
		index                   int // -1: none
		field                   string
	}{
		{"nothing", jsonType, "", -1, ""},
		{"empty array", jsonType, "[]", -1, ""},
		{"blank lines", ndjsonType, "\n\n", -1, ""},
		{"not JSON", jsonType, "{", 0, ""},
		{"a string", jsonType, `"x"`, 0, ""},
		{"null", jsonType, `null`, 0, ""},
		{"two objects as JSON", jsonType, good + good, 0, ""},
		{"array not closed", jsonType, "[" + good, 1, ""},
		{"something behind the array", jsonType, "[" + good + "] x", -1, ""},
		{"second of an array not JSON", jsonType, "[" + good + ",{]", 1, ""},
		{"second of an array a number", jsonType, "[" + good + ",7]", 1, ""},
		{"array within an array", jsonType, "[[" + good + "]]", 0, ""},
		{"third line not JSON", ndjsonType, good + "\n" + good + "\nx\n", 2, ""},
		{"array as lines", ndjsonType, "[" + good + "]", 0, ""},
		{"no id", jsonType, replace(`"id":"1",`, ""), 0, "id"},
		{"no account, second", jsonType, "[" + good + "," + replace(`"account":"alice@example.com",`, "") + "]", 1, "account"},
		{"unknown event", jsonType, replace("MessageNew", "MessageFrob"), 0, "event"},
		{"wrong type", jsonType, replace(`"uidValidity":1424683682`, `"uidValidity":"x"`), 0, "uidValidity"},
		{"bad uidset", ndjsonType, good + "\n" + replace(`"uidset":"5"`, `"uidset":"5,3"`), 1, "uidset"},
		{"bad timestamp", jsonType, replace("2026-11-21T05:17:58Z", "yesterday"), 0, "timestamp"},
		{"modseq as a number", jsonType, replace(`"uidset"`, `"modseq":5,"uidset"`), 0, "modseq"},
		{"too large an event", jsonType, replace(`"uidset"`, `"vnd.x":"`+strings.Repeat("x", schema.MaxEventBytes)+`","uidset"`), 0, ""},
		{"not UTF-8", jsonType, replace("INBOX", "IN\xff"), 0, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			log := newMemoryLog(1)
			w := post(ingest(t, IngestConfig{Publisher: publisher(t, log)}), c.contentType, c.body)
			var got answer
			if err := json.Unmarshal(w.Body.Bytes(), &got); err != nil || w.Code != http.StatusBadRequest || got.Error.Code != "badRequest" {
				t.Fatalf("%d %s (%v)", w.Code, w.Body, err)
			}
			index := -1
			if got.Error.Index != nil {
				index = *got.Error.Index
			}
			if index != c.index || got.Error.Field != c.field || got.Error.Message == "" {
				t.Errorf("index %d, field %q: %s", index, got.Error.Field, got.Error.Message)
			}
			if c.field != "" && !json.Valid([]byte(got.Error.Example)) {
				t.Errorf("the example is %q", got.Error.Example)
			}
			if n := len(log.all()); n != 0 {
				t.Errorf("%d events written", n)
			}
		})
	}
}

func serviceTokens(t *testing.T) (file *auth.ServiceTokens, publish, connect string) {
	t.Helper()
	publish, line1, err := auth.NewServiceToken("store", auth.ScopePublish)
	if err != nil {
		t.Fatal(err)
	}
	connect, line2, err := auth.NewServiceToken("webmail", auth.ScopeConnect)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "tokens")
	if err := os.WriteFile(path, []byte(line1+"\n"+line2+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	file, err = auth.LoadServiceTokens(path)
	if err != nil {
		t.Fatal(err)
	}
	return file, publish, connect
}

func TestIngestRefusals(t *testing.T) {
	file, publish, connect := serviceTokens(t)
	good := eventJSON("1")
	changed := func([]eventlog.Record) error { return fmt.Errorf("append: %w", ErrPartitionsChanged) }
	unavailable := func([]eventlog.Record) error { return fmt.Errorf("append: %w", ErrUnavailable) }
	partly := func([]eventlog.Record) error { return &PartialError{Failed: map[int]error{0: ErrUnavailable}} }
	tooLarge := func([]eventlog.Record) error { return fmt.Errorf("append: %w", ErrTooLarge) }
	for _, c := range []struct {
		name          string
		change        func(*http.Request)
		fail          func([]eventlog.Record) error
		want          int
		code          string
		header, value string
	}{
		{"as it should be", func(*http.Request) {}, nil, 200, "", "", ""},
		{"no token", func(r *http.Request) { r.Header.Del("Authorization") }, nil, 401, "unauthorized", "WWW-Authenticate", `Bearer realm="mailbell"`},
		{"another scheme", func(r *http.Request) { r.SetBasicAuth("a", publish) }, nil, 401, "unauthorized", "WWW-Authenticate", `Bearer realm="mailbell"`},
		{"unknown token", func(r *http.Request) { r.Header.Set("Authorization", "Bearer nonsense") }, nil, 401, "unauthorized", "WWW-Authenticate", `Bearer realm="mailbell", error="invalid_token"`},
		{"wrong scope", func(r *http.Request) { r.Header.Set("Authorization", "Bearer "+connect) }, nil, 403, "forbidden", "WWW-Authenticate", `Bearer realm="mailbell", error="insufficient_scope", scope="publish"`},
		{"GET", func(r *http.Request) { r.Method = "GET" }, nil, 405, "methodNotAllowed", "Allow", "POST"},
		{"PUT", func(r *http.Request) { r.Method = "PUT" }, nil, 405, "methodNotAllowed", "Allow", "POST"},
		{"no content type", func(r *http.Request) { r.Header.Del("Content-Type") }, nil, 415, "unsupportedMediaType", "", ""},
		{"a form", func(r *http.Request) { r.Header.Set("Content-Type", "application/x-www-form-urlencoded") }, nil, 415, "unsupportedMediaType", "", ""},
		{"bad content type", func(r *http.Request) { r.Header.Set("Content-Type", "a/b/c;;") }, nil, 415, "unsupportedMediaType", "", ""},
		{"Latin-1", func(r *http.Request) { r.Header.Set("Content-Type", "application/json; charset=iso-8859-1") }, nil, 415, "unsupportedMediaType", "", ""},
		{"gzip", func(r *http.Request) { r.Header.Set("Content-Encoding", "gzip") }, nil, 415, "unsupportedMediaType", "", ""},
		{"body over the limit", func(r *http.Request) {
			r.Body, r.ContentLength = io.NopCloser(strings.NewReader(strings.Repeat(" ", 2001))), 2001
		}, nil, 413, "tooLarge", "", ""},
		{"chunked body over the limit", func(r *http.Request) {
			r.Body, r.ContentLength = io.NopCloser(strings.NewReader(strings.Repeat(" ", 2001))), -1
		}, nil, 413, "tooLarge", "", ""},
		{"more events than the limit", func(r *http.Request) {
			body := strings.Repeat(eventJSON("1")+"\n", 4)
			r.Body, r.ContentLength = io.NopCloser(strings.NewReader(body)), int64(len(body))
			r.Header.Set("Content-Type", ndjsonType)
		}, nil, 413, "tooLarge", "", ""},
		{"cut body", func(r *http.Request) {
			r.Body = io.NopCloser(io.MultiReader(strings.NewReader("{"), brokenReader{}))
		}, nil, 400, "badRequest", "", ""},
		{"log away", func(*http.Request) {}, unavailable, 503, "unavailable", "Retry-After", "5"},
		{"log has other partitions", func(*http.Request) {}, changed, 503, "unavailable", "Retry-After", "5"},
		{"log took a part", func(*http.Request) {}, partly, 503, "unavailable", "Retry-After", "5"},
		{"topic takes less", func(*http.Request) {}, tooLarge, 413, "tooLarge", "", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			log := newMemoryLog(1)
			log.fail = c.fail
			in := ingest(t, IngestConfig{Publisher: publisher(t, log), Tokens: file, MaxBodyBytes: 2000, MaxEvents: 3})
			r := httptest.NewRequest(http.MethodPost, EventsPath, strings.NewReader(good))
			r.Header.Set("Content-Type", jsonType)
			r.Header.Set("Authorization", "Bearer "+publish)
			c.change(r)
			w := httptest.NewRecorder()
			in.ServeHTTP(w, r)
			var got answer
			if err := json.Unmarshal(w.Body.Bytes(), &got); err != nil || w.Code != c.want || got.Error.Code != c.code {
				t.Fatalf("%d %s (%v), want %d", w.Code, w.Body, err, c.want)
			}
			if told := strings.Contains(w.Body.String(), "number of its partitions"); told != (c.name == "log has other partitions") {
				t.Errorf("the answer is %s", w.Body)
			}
			if c.header != "" && w.Header().Get(c.header) != c.value {
				t.Errorf("%s: %s, want %s", c.header, w.Header().Get(c.header), c.value)
			}
			if c.want != 200 && len(log.all()) != 0 {
				t.Error("something was written")
			}
		})
	}
}

type brokenReader struct{}

func (brokenReader) Read([]byte) (int, error) { return 0, io.ErrUnexpectedEOF }

// TestIngestBusy: requests beyond the limit are told to come back, and those under way finish.
func TestIngestBusy(t *testing.T) {
	log := newMemoryLog(1)
	entered, leave := make(chan struct{}), make(chan struct{})
	log.fail = func([]eventlog.Record) error { close(entered); <-leave; return nil }
	in := ingest(t, IngestConfig{Publisher: publisher(t, log), MaxRequests: 1})
	first := make(chan int)
	go func() { first <- post(in, jsonType, eventJSON("1")).Code }()
	<-entered
	if w := post(in, jsonType, eventJSON("2")); w.Code != http.StatusServiceUnavailable || w.Header().Get("Retry-After") != "1" {
		t.Errorf("%d %s", w.Code, w.Body)
	}
	close(leave)
	if code := <-first; code != http.StatusOK {
		t.Errorf("the first request: %d", code)
	}
}

// TestIngestTimeout: a log that does not answer is a 503 within the limit.
func TestIngestTimeout(t *testing.T) {
	in := ingest(t, IngestConfig{Publisher: publisher(t, silentLog{newMemoryLog(1)}), Timeout: 1})
	if w := post(in, jsonType, eventJSON("1")); w.Code != http.StatusServiceUnavailable || w.Header().Get("Retry-After") == "" {
		t.Errorf("%d %s", w.Code, w.Body)
	}
}

// TestIngestSlowBody: a client that never ends its body does not hold a place for long.
func TestIngestSlowBody(t *testing.T) {
	in := ingest(t, IngestConfig{Publisher: publisher(t, newMemoryLog(1)), ReadTimeout: 20_000_000})
	server := httptest.NewServer(in)
	defer server.Close()
	body, writer := io.Pipe()
	defer writer.Close()
	resp, err := server.Client().Post(server.URL+EventsPath, jsonType, body)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusBadRequest {
		t.Fatalf("answered %d", resp.StatusCode)
	}
}

func TestIngestConfig(t *testing.T) {
	p := publisher(t, newMemoryLog(1))
	for want, cfg := range map[string]IngestConfig{"no publisher": {}, "negative": {Publisher: p, MaxEvents: -1}} {
		if _, err := NewIngest(cfg); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
}

func FuzzSplitJSON(f *testing.F) {
	f.Add([]byte(`[{"a":1},2]`))
	f.Add([]byte(` {"a":1}`))
	f.Add([]byte(`[`))
	f.Fuzz(func(t *testing.T, body []byte) {
		n := 0
		refused := splitJSON(body, func(raw []byte) *refusal {
			n++
			if bytes.HasPrefix(bytes.TrimLeft(body, " \t\r\n"), []byte("[")) && !json.Valid(raw) {
				t.Fatalf("yielded %q", raw)
			}
			return nil
		})
		if refused == nil && n > 0 && bytes.TrimLeft(body, " \t\r\n")[0] == '[' && !json.Valid(body) {
			t.Fatalf("took %q", body)
		}
	})
}

func BenchmarkIngest(b *testing.B) {
	for _, n := range []int{1, 100} {
		b.Run(fmt.Sprintf("events=%d", n), func(b *testing.B) {
			in := ingest(b, IngestConfig{Publisher: publisher(b, nullLog{})})
			body := strings.Repeat(eventJSON("01JD5Z8QF3VYB6M0XW7R9K2T4C")+"\n", n)
			b.SetBytes(int64(len(body)))
			b.ReportAllocs()
			for b.Loop() {
				if w := post(in, ndjsonType, body); w.Code != http.StatusOK {
					b.Fatal(w.Body)
				}
			}
		})
	}
}
