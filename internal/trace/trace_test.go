package trace

import (
	"context"
	"fmt"
	"testing"
	"time"

	sdk "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// Two processes that never spoke make one trace of an event.
func TestStages(t *testing.T) {
	adapterSpans, notifierSpans := tracetest.NewInMemoryExporter(), tracetest.NewInMemoryExporter()
	adapter := open(Config{Ratio: 1, Part: "adapter"}, sdk.WithSyncer(adapterSpans))
	notifier := open(Config{Ratio: 1, Part: "notifier"}, sdk.WithSyncer(notifierSpans))
	id, start := []byte("01JABC"), time.Now()
	notifier.Stage(id, Written, start.Add(3*time.Millisecond), start.Add(2*time.Millisecond))
	adapter.Stage(id, Accepted, start, start.Add(time.Millisecond))
	written, accepted := notifierSpans.GetSpans()[0], adapterSpans.GetSpans()[0]
	if written.SpanContext.TraceID() != accepted.SpanContext.TraceID() || written.Parent.SpanID() != accepted.SpanContext.SpanID() || accepted.Parent.IsValid() {
		t.Errorf("accepted %v, written %v with parent %v", accepted.SpanContext, written.SpanContext, written.Parent)
	}
	if written.EndTime.Before(written.StartTime) || written.Name != "written" {
		t.Errorf("written: %s from %v to %v", written.Name, written.StartTime, written.EndTime)
	}
	other := []byte("01JABD")
	adapter.Stage(other, Accepted, start, start)
	if adapterSpans.GetSpans()[1].SpanContext.TraceID() == accepted.SpanContext.TraceID() {
		t.Error("two events share a trace")
	}
	for _, tr := range []*Tracer{adapter, notifier, nil} {
		if err := tr.Close(); err != nil {
			t.Error(err)
		}
	}
}

func TestSampled(t *testing.T) {
	tr := open(Config{Ratio: 0.01}, sdk.WithSyncer(tracetest.NewNoopExporter()))
	defer tr.Close()
	n := 0
	for i := range 100_000 {
		if tr.Sampled(fmt.Appendf(nil, "01J%07d", i)) {
			n++
		}
	}
	if n < 850 || n > 1150 {
		t.Errorf("%d of 100000 are sampled, want about 1000", n)
	}
	var off *Tracer
	if off.Sampled([]byte("1")) {
		t.Error("a nil tracer samples")
	}
	if allocs := testing.AllocsPerRun(100, func() { off.Stage([]byte("1"), Read, time.Time{}, time.Time{}); tr.Sampled([]byte("1")) }); allocs > 0 {
		t.Errorf("%v allocations when off or not sampled", allocs)
	}
}

func TestOpen(t *testing.T) {
	if tr, err := Open(context.Background(), Config{}); tr != nil || err != nil {
		t.Errorf("off: %v, %v", tr, err)
	}
	for _, bad := range []Config{{Endpoint: "collector:4318"}, {Endpoint: "http://c:4318", Ratio: 2}} {
		if _, err := Open(context.Background(), bad); err == nil {
			t.Errorf("%+v is accepted", bad)
		}
	}
}
