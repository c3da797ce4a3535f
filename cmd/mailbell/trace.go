package main

import (
	"context"

	"github.com/mailbell/mailbell/internal/trace"
	"github.com/spf13/pflag"
)

// traceFlags say whether and where sampled events are followed.
type traceFlags struct {
	endpoint string
	ratio    float64
}

func (f *traceFlags) register(fs *pflag.FlagSet) {
	fs.StringVar(&f.endpoint, "trace-endpoint", "", "follow sampled events by OpenTelemetry: `URL` of a collector for OTLP over HTTP, such as http://127.0.0.1:4318 (default: off)")
	fs.Float64Var(&f.ratio, "trace-ratio", 0.001, "part of the events that are followed, the same for every process")
}

// open returns nil when tracing is off.
func (f *traceFlags) open(ctx context.Context, part, node string) (*trace.Tracer, error) {
	return trace.Open(ctx, trace.Config{Endpoint: f.endpoint, Ratio: f.ratio, Part: part, Node: node, Version: version})
}
