package pollswarm

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/mailbell/mailbell/bench/mailstore"
	"github.com/mailbell/mailbell/bench/pollserver"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func run(t *testing.T, cfg Config) *Swarm {
	t.Helper()
	s, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	t.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return s
}

func wait(t *testing.T, s *Swarm, met func(Counts, []Known) bool) {
	t.Helper()
	var news []Known
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(5 * time.Millisecond) { // between two looks
		counts, more := s.Snapshot()
		news = append(news, more...)
		if met(counts, news) {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("it does not come to that: %+v, %v", counts, news)
		}
	}
}

// server answers with a number of changes, and 304 to who has it.
func server(t *testing.T, changes *atomic.Uint32) *httptest.Server {
	t.Helper()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		n := changes.Load()
		etag := fmt.Sprintf(`"%x"`, n+1)
		w.Header().Set("ETag", etag)
		if r.Header.Get("If-None-Match") == etag {
			w.WriteHeader(http.StatusNotModified)
			return
		}
		fmt.Fprintf(w, `{"mailboxes":[{"mailbox":"INBOX","uidValidity":1,"uidnext":%d}]}`, n+1)
	}))
	t.Cleanup(s.Close)
	return s
}

func TestPolls(t *testing.T) {
	var changes atomic.Uint32
	srv := server(t, &changes)
	s := run(t, Config{Target: strings.TrimPrefix(srv.URL, "http://"), Connections: 20, First: 100, Interval: 20 * time.Millisecond, Jitter: 0.2})
	wait(t, s, func(c Counts, _ []Known) bool { return c.Users == 20 && c.NotModified > 40 })
	changes.Store(3)
	seen := make(map[uint32]bool)
	wait(t, s, func(_ Counts, news []Known) bool {
		for _, k := range news {
			if k.Seq == 3 && k.Account >= 100 && k.Account < 120 {
				seen[k.Account] = true
			}
		}
		return len(seen) == 20
	})
	srv.CloseClientConnections()
	before, _ := s.Snapshot()
	wait(t, s, func(c Counts, _ []Known) bool { return c.Requests > before.Requests+40 && c.Connects >= 40 })
}

// A fetch that comes before the store has the change is repeated; fetches at once are one.
func TestFetch(t *testing.T) {
	var changes atomic.Uint32
	srv := server(t, &changes)
	s := run(t, Config{Target: strings.TrimPrefix(srv.URL, "http://"), Connections: 2})
	s.Fetch(0, 0)
	s.Fetch(1, 2)
	wait(t, s, func(c Counts, _ []Known) bool { return c.Users == 2 && c.Stale > 1 })
	changes.Store(2)
	wait(t, s, func(_ Counts, news []Known) bool {
		return len(news) == 1 && news[0].Account == 1 && news[0].Seq == 2
	})
	before, _ := s.Snapshot()
	s.Fetch(1, 1) // known
	s.Fetch(0, 2)
	wait(t, s, func(c Counts, _ []Known) bool { return c.Requests == before.Requests+1 })
}

// Bodies that are larger than net/http's buffer come whole from the poll server: with 100 mailboxes users still learn.
func TestManyMailboxes(t *testing.T) {
	words, parent := io.Pipe()
	answers, child := io.Pipe()
	done := make(chan error, 1)
	go func() { done <- pollserver.Serve(context.Background(), words, child) }()
	t.Cleanup(func() {
		parent.Close()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	enc := json.NewEncoder(parent)
	if err := enc.Encode(pollserver.Config{Addr: "127.0.0.1:0", Store: mailstore.Config{Kind: mailstore.Memory, Accounts: 3, Mailboxes: 100}}); err != nil {
		t.Fatal(err)
	}
	var reply pollserver.Reply
	if err := json.NewDecoder(answers).Decode(&reply); err != nil {
		t.Fatal(err)
	}
	s := run(t, Config{Target: reply.Addr, Connections: 3, Interval: 20 * time.Millisecond})
	wait(t, s, func(c Counts, _ []Known) bool { return c.Users == 3 && c.NotModified > 3 })
	if err := enc.Encode(1); err != nil {
		t.Fatal(err)
	}
	wait(t, s, func(_ Counts, news []Known) bool { return len(news) == 1 && news[0].Account == 1 && news[0].Seq == 1 })
	if c, _ := s.Snapshot(); c.Failed > 0 || c.Connects > 3 {
		t.Errorf("%+v", c)
	}
}

// An answer whose end nobody can tell is a failure, and never an answer without news.
func TestChunked(t *testing.T) {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, strings.Repeat(" ", 3000))
	}))
	t.Cleanup(srv.Close)
	s := run(t, Config{Target: strings.TrimPrefix(srv.URL, "http://"), Connections: 1, Interval: 20 * time.Millisecond})
	wait(t, s, func(c Counts, _ []Known) bool { return c.Failed > 3 && c.Requests == 0 && c.Users == 0 })
}

// Users that are counted anew are those with an answer since.
func TestRecount(t *testing.T) {
	var changes atomic.Uint32
	srv := server(t, &changes)
	s := run(t, Config{Target: strings.TrimPrefix(srv.URL, "http://"), Connections: 5})
	for i := range 5 {
		s.Fetch(i, 0)
	}
	wait(t, s, func(c Counts, _ []Known) bool { return c.Users == 5 })
	s.recount()
	s.Fetch(3, 0)
	s.Fetch(3, 0)
	wait(t, s, func(c Counts, _ []Known) bool { return c.Requests >= 6 })
	s.Fetch(4, 0)
	wait(t, s, func(c Counts, _ []Known) bool { return c.Users == 2 })
}

func TestTimers(t *testing.T) {
	var h timers
	for i := range 1000 {
		h.push(timer{at: rand.Int64N(500), user: int32(i)})
	}
	for last := int64(-1); len(h) > 0; {
		got := h.pop()
		if got.at < last {
			t.Fatalf("%d after %d", got.at, last)
		}
		last = got.at
	}
}

func FuzzParseAnswer(f *testing.F) {
	f.Add([]byte("HTTP/1.1 304 Not Modified\r\nEtag: \"1\"\r\n\r\n"))
	f.Add([]byte("HTTP/1.1 200 OK\r\nContent-Length: 5\r\nEtag: \"1\"\r\n\r\n{\"mai"))
	f.Add([]byte("HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		_, tag, body, whole := parseAnswer(b)
		if whole && len(body)+len(tag) > 2*len(b) {
			t.Error("more than was given")
		}
		changesOf(body)
		var e etag
		e.set(tag)
	})
}

func TestValidate(t *testing.T) {
	for _, bad := range []Config{{}, {Target: "127.0.0.1:1"}, {Target: "somewhere:1", Connections: 1}, {Target: "127.0.0.1:1", Connections: 1, Jitter: 2}} {
		if bad.Validate() == nil {
			t.Errorf("%+v is accepted", bad)
		}
	}
}
