package storageadapter

import (
	"context"
	"errors"
	"net/http/httptest"
	"testing"

	"github.com/mailbell/mailbell/internal/eventlog"
	"github.com/mailbell/mailbell/internal/trace"
	"github.com/mailbell/mailbell/internal/trace/tracetest"
)

// An event has the spans of its publishing once, and when it is on the log: not for tries that failed, alone or with others of a call.
func TestTraced(t *testing.T) {
	collector := tracetest.New()
	server := httptest.NewServer(collector)
	t.Cleanup(server.Close)
	tracer, err := trace.Open(t.Context(), trace.Config{Endpoint: server.URL, Ratio: 1, Part: "adapter"})
	if err != nil {
		t.Fatal(err)
	}
	log := newMemoryLog(1)
	p, err := New(Config{Log: log, Tracer: tracer})
	if err != nil {
		t.Fatal(err)
	}
	events := func(ids ...string) (all []Encoded) {
		for _, id := range ids {
			e := event(id)
			b, err := e.Encode()
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, Encoded{Account: e.Account, JSON: b})
		}
		return all
	}
	publish := func(fail func([]eventlog.Record) error, ids ...string) error {
		log.fail = fail
		_, err := p.PublishEncoded(context.Background(), events(ids...)...)
		return err
	}
	away := func([]eventlog.Record) error { return ErrUnavailable }
	second := func([]eventlog.Record) error {
		return &PartialError{Failed: map[int]error{1: ErrTooLarge}}
	}
	if err := publish(away, "a", "b"); !errors.Is(err, ErrUnavailable) {
		t.Fatal(err)
	}
	if err := publish(second, "a", "b"); !errors.Is(err, ErrTooLarge) {
		t.Fatal(err)
	}
	if err := publish(nil, "b"); err != nil { // as the spool tries again
		t.Fatal(err)
	}
	if err := tracer.Close(); err != nil {
		t.Fatal(err)
	}
	spans := collector.Spans()
	for _, id := range []string{"a", "b"} {
		count := make(map[string]int)
		for _, s := range spans {
			if s.EventID == id {
				count[s.Name]++
			}
		}
		if count[string(trace.Accepted)] != 1 || count[string(trace.OnTheLog)] != 1 || len(count) != 2 {
			t.Errorf("%s has the spans %v, want each once", id, count)
		}
	}
}
