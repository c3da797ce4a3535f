package dovecot

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/mailbell/mailbell/schema"
	"github.com/mailbell/mailbell/storageadapter"
	"github.com/mailbell/mailbell/storageadapter/spool"
)

var (
	update = flag.Bool("update", false, "write the expected files anew")
	quiet  = slog.New(slog.DiscardHandler)
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m)
}

// memoryLog is a Publisher that keeps what it is given, and fails as told.
type memoryLog struct {
	mu      sync.Mutex
	events  []schema.Event
	calls   int
	fail    func(call int, events []storageadapter.Encoded) error // nil: never
	changed chan struct{}                                         // closed and replaced at each change
}

func newMemoryLog() *memoryLog { return &memoryLog{changed: make(chan struct{})} }

func (l *memoryLog) PublishEncoded(ctx context.Context, events ...storageadapter.Encoded) ([]schema.Position, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.calls++
	close(l.changed)
	l.changed = make(chan struct{})
	var err error
	if l.fail != nil {
		err = l.fail(l.calls, events)
	}
	partial, _ := errors.AsType[*storageadapter.PartialError](err)
	if err != nil && partial == nil {
		return nil, err
	}
	for i, e := range events {
		if partial != nil && partial.Failed[i] != nil {
			continue
		}
		event, err := schema.DecodeEvent(e.JSON)
		if err != nil {
			return nil, fmt.Errorf("what reached the log is no event: %w", err)
		}
		if event.Account != e.Account {
			return nil, fmt.Errorf("event of %s under the key %s", event.Account, e.Account)
		}
		l.events = append(l.events, event)
	}
	return make([]schema.Position, len(events)), err
}

func (l *memoryLog) setFail(fail func(int, []storageadapter.Encoded) error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.fail = fail
}

// wait returns the events once done says that they are all, or fails the test.
func (l *memoryLog) wait(t testing.TB, what string, done func(calls int, events []schema.Event) bool) []schema.Event {
	t.Helper()
	timeout := time.NewTimer(15 * time.Second)
	defer timeout.Stop()
	for {
		l.mu.Lock()
		calls, events, changed := l.calls, append([]schema.Event(nil), l.events...), l.changed
		l.mu.Unlock()
		if done(calls, events) {
			return events
		}
		select {
		case <-changed:
		case <-timeout.C:
			t.Fatalf("waited for %s in vain; the log has %s", what, describe(events))
		}
	}
}

func describe(events []schema.Event) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%d events", len(events))
	for i := range events {
		b.WriteString("\n\t")
		b.Write(events[i].AppendJSON(nil))
	}
	return b.String()
}

// startAgent makes an agent and runs it behind a server until the test ends.
func startAgent(t testing.TB, cfg Config) (*Agent, *httptest.Server) {
	t.Helper()
	a := newAgent(t, cfg)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- a.Run(ctx) }()
	server := httptest.NewServer(a)
	t.Cleanup(func() {
		server.Close()
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("Run: %v", err)
		}
		http.DefaultTransport.(*http.Transport).CloseIdleConnections()
	})
	return a, server
}

// newAgent makes an agent that nobody runs.
func newAgent(t testing.TB, cfg Config) *Agent {
	t.Helper()
	if cfg.Spool.Dir == "" {
		cfg.Spool = spool.Config{Dir: t.TempDir()}
	}
	if cfg.Tokens == nil {
		cfg.TrustLoopback = true
	}
	if cfg.Logger == nil {
		cfg.Logger = quiet
	}
	if cfg.Publisher == nil {
		cfg.Publisher = newMemoryLog()
	}
	a, err := NewAgent(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.Close() })
	return a
}
