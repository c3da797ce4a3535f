// Package tracetest receives spans in tests, as a collector for OTLP over HTTP does. It reads what tests look at and skips the rest.
//
// The package starts no goroutines.
package tracetest

import (
	"encoding/hex"
	"io"
	"net/http"
	"slices"
	"sync"
	"time"

	"google.golang.org/protobuf/encoding/protowire"
)

// Span is one that was received.
type Span struct {
	Trace, ID, Parent string // hexadecimal; Parent is empty for a root
	Name              string
	EventID           string
	Start, End        time.Time
}

// Collector is an http.Handler that keeps what it is sent.
type Collector struct {
	mu    sync.Mutex
	spans []Span // guarded by mu
}

// New returns an empty Collector.
func New() *Collector { return &Collector{} }

// Spans returns what has been received so far.
func (c *Collector) Spans() []Span {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.spans)
}

func (c *Collector) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	b, err := io.ReadAll(io.LimitReader(r.Body, 16<<20))
	if err != nil || r.URL.Path != "/v1/traces" || r.Header.Get("Content-Type") != "application/x-protobuf" {
		http.Error(w, "want OTLP's protobuf at /v1/traces", http.StatusBadRequest)
		return
	}
	var spans []Span
	// opentelemetry.proto.collector.trace.v1: a request has resource spans (1), which have scope spans (2), which have spans (2).
	fields(b, func(n protowire.Number, resource []byte, _ uint64) {
		fields(resource, func(n protowire.Number, scope []byte, _ uint64) {
			if n != 2 {
				return
			}
			fields(scope, func(n protowire.Number, span []byte, _ uint64) {
				if n == 2 {
					spans = append(spans, spanOf(span))
				}
			})
		})
	})
	c.mu.Lock()
	defer c.mu.Unlock()
	c.spans = append(c.spans, spans...)
	w.Header().Set("Content-Type", "application/x-protobuf") // an empty answer: all is taken
}

func spanOf(b []byte) (s Span) {
	fields(b, func(n protowire.Number, v []byte, number uint64) {
		switch n {
		case 1:
			s.Trace = hex.EncodeToString(v)
		case 2:
			s.ID = hex.EncodeToString(v)
		case 4:
			s.Parent = hex.EncodeToString(v)
		case 5:
			s.Name = string(v)
		case 7:
			s.Start = time.Unix(0, int64(number))
		case 8:
			s.End = time.Unix(0, int64(number))
		case 9:
			if key, value := attribute(v); key == "mailbell.event.id" {
				s.EventID = value
			}
		}
	})
	return s
}

// attribute reads a pair of a key (1) and a value (2) that is a string (1).
func attribute(b []byte) (key, value string) {
	fields(b, func(n protowire.Number, v []byte, _ uint64) {
		if n == 1 {
			key = string(v)
			return
		}
		fields(v, func(n protowire.Number, text []byte, _ uint64) {
			if n == 1 {
				value = string(text)
			}
		})
	})
	return key, value
}

// fields calls fn with each field of a message: its bytes, or its number. It stops at what it cannot read.
func fields(b []byte, fn func(n protowire.Number, v []byte, number uint64)) {
	for len(b) > 0 {
		n, kind, size := protowire.ConsumeTag(b)
		if size < 0 {
			return
		}
		b = b[size:]
		var v []byte
		var number uint64
		switch kind {
		case protowire.BytesType:
			v, size = protowire.ConsumeBytes(b)
		case protowire.Fixed64Type:
			number, size = protowire.ConsumeFixed64(b)
		default:
			size = protowire.ConsumeFieldValue(n, kind, b)
		}
		if size < 0 {
			return
		}
		b = b[size:]
		fn(n, v, number)
	}
}
