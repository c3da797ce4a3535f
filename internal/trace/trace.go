// Package trace follows sampled events through the processes by OpenTelemetry: accepted, on the log, read, routed, written.
//
// Nothing travels with an event for it. Whether an event is sampled, its trace's id and its root span's id are computed from
// the event's own id, so every process comes to the same answer by itself; all of them need the same ratio.
// A nil *Tracer is off, and its methods cost a comparison.
//
// Open starts the exporter's goroutine; Close sends what is left and ends it.
package trace

import (
	"context"
	crand "crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"net/url"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/sdk/resource"
	sdk "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
)

// Stage is a part of an event's way.
type Stage string

// The stages. Accepted is the root of the others.
const (
	Accepted Stage = "accepted"   // by the adapter: validated, handed to the log
	OnTheLog Stage = "on the log" // acknowledged by every in-sync replica
	Read     Stage = "read"       // by the owner of its partition; starts with the log's timestamp
	Routed   Stage = "routed"     // to the links of the notifiers that want it
	Written  Stage = "written"    // to the sockets
)

// Config says where spans go. The zero value is off.
type Config struct {
	Endpoint string  // URL of an OTLP/HTTP collector, such as http://127.0.0.1:4318; empty is off
	Ratio    float64 // of events; 0 means 0.001
	Part     string  // adapter, bus, notifier or run
	Node     string
	Version  string
}

// Validate says what is wrong with the configuration.
func (c Config) Validate() error {
	if c.Endpoint == "" {
		return nil
	}
	u, err := url.Parse(c.Endpoint)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
		return fmt.Errorf("trace: endpoint %q: want a URL, such as http://127.0.0.1:4318", c.Endpoint)
	}
	if !(c.Ratio >= 0 && c.Ratio <= 1) {
		return errors.New("trace: the ratio must be from 0 to 1")
	}
	return nil
}

// defaultRatio follows one event in a thousand.
const defaultRatio = 0.001

// closeTimeout bounds the sending of what is left.
const closeTimeout = 3 * time.Second

// Tracer makes spans. It is safe for use by many goroutines; nil is off.
type Tracer struct {
	// Static after construction.
	limit    uint64 // hashes up to here are sampled
	provider *sdk.TracerProvider
	tracer   trace.Tracer
}

// Open returns a Tracer, or nil when the configuration is off. The collector need not be there yet.
func Open(ctx context.Context, cfg Config) (*Tracer, error) {
	if err := cfg.Validate(); err != nil || cfg.Endpoint == "" {
		return nil, err
	}
	u, _ := url.Parse(cfg.Endpoint)
	if u.Path == "" || u.Path == "/" {
		u.Path = "/v1/traces"
	}
	exporter, err := otlptracehttp.New(ctx, otlptracehttp.WithEndpointURL(u.String()))
	if err != nil {
		return nil, fmt.Errorf("trace: %w", err)
	}
	return open(cfg, sdk.WithBatcher(exporter)), nil
}

func open(cfg Config, export sdk.TracerProviderOption) *Tracer {
	if cfg.Ratio == 0 {
		cfg.Ratio = defaultRatio
	}
	limit := uint64(math.MaxUint64)
	if cfg.Ratio < 1 {
		limit = uint64(cfg.Ratio * math.MaxUint64)
	}
	p := sdk.NewTracerProvider(export, sdk.WithSampler(sdk.AlwaysSample()), sdk.WithIDGenerator(ids{}), sdk.WithResource(resource.NewSchemaless(
		attribute.String("service.name", "mailbell-"+cfg.Part), attribute.String("service.instance.id", cfg.Node), attribute.String("service.version", cfg.Version))))
	return &Tracer{limit: limit, provider: p, tracer: p.Tracer("github.com/mailbell/mailbell")}
}

// Close sends what is left, for at most 3 s.
func (t *Tracer) Close() error {
	if t == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
	defer cancel()
	return t.provider.Shutdown(ctx)
}

// Sampled tells whether the event with this id is followed.
func (t *Tracer) Sampled(id []byte) bool { return t != nil && len(id) > 0 && hash(id, 0) <= t.limit }

// Stage makes the span of one stage of a sampled event.
func (t *Tracer) Stage(id []byte, stage Stage, from, to time.Time) {
	if !t.Sampled(id) {
		return
	}
	var e eventIDs
	binary.BigEndian.PutUint64(e.trace[:8], hash(id, 1))
	binary.BigEndian.PutUint64(e.trace[8:], hash(id, 2))
	binary.BigEndian.PutUint64(e.root[:], hash(id, 3))
	ctx := context.WithValue(context.Background(), eventKey{}, e)
	options := []trace.SpanStartOption{trace.WithTimestamp(from), trace.WithAttributes(attribute.String("mailbell.event.id", string(id)))}
	if stage == Accepted {
		options = append(options, trace.WithNewRoot())
	} else {
		ctx = trace.ContextWithRemoteSpanContext(ctx, trace.NewSpanContext(trace.SpanContextConfig{TraceID: e.trace, SpanID: e.root, TraceFlags: trace.FlagsSampled, Remote: true}))
	}
	_, span := t.tracer.Start(ctx, string(stage), options...)
	if to.Before(from) { // clocks of two machines
		to = from
	}
	span.End(trace.WithTimestamp(to))
}

// eventIDs are a trace's id and its root span's.
type eventIDs struct {
	trace trace.TraceID
	root  trace.SpanID
}

type eventKey struct{}

// ids gives root spans the ids that follow from the event, and others random ones.
type ids struct{}

func (ids) NewIDs(ctx context.Context) (trace.TraceID, trace.SpanID) {
	e, _ := ctx.Value(eventKey{}).(eventIDs)
	return e.trace, e.root
}

func (ids) NewSpanID(context.Context, trace.TraceID) (id trace.SpanID) {
	_, _ = crand.Read(id[:])
	return id
}

// hash is FNV-1a with a salt, its bits mixed as in SplitMix64: the ids of events count up.
func hash(id []byte, salt uint64) uint64 {
	h := uint64(14695981039346656037) ^ salt*0x9e3779b97f4a7c15
	for _, c := range id {
		h = (h ^ uint64(c)) * 1099511628211
	}
	h = (h ^ h>>30) * 0xbf58476d1ce4e5b9
	h = (h ^ h>>27) * 0x94d049bb133111eb
	return h ^ h>>31
}
