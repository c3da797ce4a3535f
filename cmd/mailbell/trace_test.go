package main

import (
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/mailbell/mailbell/internal/trace"
	"github.com/mailbell/mailbell/internal/trace/tracetest"
)

// TestTrace follows an event from the ingest to a watcher's socket: one trace at the collector, with every stage once and in order.
func TestTrace(t *testing.T) {
	collector := tracetest.New()
	server := httptest.NewServer(collector)
	defer server.Close()
	s := startSite(t, "--trace-endpoint", server.URL, "--trace-ratio", "1")
	const account = "alice@example.com"
	watch := start(t, strings.NewReader(""), "watch", "--account", account, "--server", s.server, "--data", s.data)
	watch.wait(t, watch.err, "watching")
	publish := start(t, strings.NewReader(""), "publish", "--account", account, "--mailbox", "INBOX", "--uidvalidity", "1", "--uid", "5", "--server", s.server, "--data", s.data)
	if code := publish.end(t); code != 0 {
		t.Fatalf("publish: exit %d", code)
	}
	watch.wait(t, watch.out, "INBOX")
	s.stop() // sends what is left
	s.end(t)
	spans := collector.Spans()
	stages := make(map[string]tracetest.Span)
	for _, span := range spans {
		if _, twice := stages[span.Name]; twice || span.Trace != spans[0].Trace || span.EventID == "" || span.EventID != spans[0].EventID {
			t.Errorf("want one trace of one event, each stage once: %+v", spans)
		}
		stages[span.Name] = span
	}
	root := stages[string(trace.Accepted)]
	var last time.Time
	for _, stage := range []trace.Stage{trace.Accepted, trace.OnTheLog, trace.Read, trace.Routed, trace.Written} {
		span, ok := stages[string(stage)]
		if isRoot := stage == trace.Accepted; !ok || isRoot != (span.Parent == "") || !isRoot && span.Parent != root.ID {
			t.Errorf("%s: %+v, with the root %s", stage, span, root.ID)
		}
		if span.End.Before(span.Start) || stage == trace.Written && span.End.Before(last) {
			t.Errorf("%s ends at %v, after %v and %v", stage, span.End, span.Start, last)
		}
		last = span.End
	}
	if len(stages) != 5 {
		t.Errorf("%d stages: %+v", len(stages), spans)
	}
}
