package storageadapter

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"mime"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/mailbell/mailbell/internal/auth"
	"github.com/mailbell/mailbell/schema"
)

// EventsPath is where the ingest listens.
const EventsPath = "/v1/events"

// Defaults of IngestConfig.
const (
	DefaultMaxBodyBytes   = 4 << 20
	DefaultMaxEvents      = 10_000
	DefaultMaxRequests    = 64
	DefaultIngestTimeout  = 5 * time.Second
	DefaultReadTimeout    = 10 * time.Second
	retryAfterUnavailable = 5 // seconds
	retryAfterBusy        = 1 // seconds
)

// IngestConfig of an Ingest. Only Publisher is needed.
type IngestConfig struct {
	Publisher *Publisher
	// Tokens says who may publish (scope publish). Nil lets everyone who reaches the port.
	Tokens *auth.ServiceTokens

	MaxBodyBytes int64         // of a request; 0 means DefaultMaxBodyBytes
	MaxEvents    int           // of a request; 0 means DefaultMaxEvents
	MaxRequests  int           // at a time, further ones get 503; 0 means DefaultMaxRequests
	Timeout      time.Duration // until the log has the events; 0 means DefaultIngestTimeout
	ReadTimeout  time.Duration // until the body has come; 0 means DefaultReadTimeout

	Logger     *slog.Logger          // nil means slog.Default()
	Registerer prometheus.Registerer // nil means that no metrics are registered
}

// Validate says what is wrong with the configuration.
func (c *IngestConfig) Validate() error {
	switch {
	case c.Publisher == nil:
		return errors.New("ingest: no publisher given")
	case c.MaxBodyBytes < 0, c.MaxEvents < 0, c.MaxRequests < 0, c.Timeout < 0, c.ReadTimeout < 0:
		return errors.New("ingest: a limit is negative: leave it 0 for its default")
	}
	return nil
}

func (c *IngestConfig) setDefaults() {
	if c.MaxBodyBytes == 0 {
		c.MaxBodyBytes = DefaultMaxBodyBytes
	}
	if c.MaxEvents == 0 {
		c.MaxEvents = DefaultMaxEvents
	}
	if c.MaxRequests == 0 {
		c.MaxRequests = DefaultMaxRequests
	}
	if c.Timeout == 0 {
		c.Timeout = DefaultIngestTimeout
	}
	if c.ReadTimeout == 0 {
		c.ReadTimeout = DefaultReadTimeout
	}
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
}

// Ingest answers POST /v1/events: one event or an array as application/json, or one event
// a line as application/x-ndjson. The answer 200 {"positions":[…]} comes after the log has
// all of them. It holds at most MaxRequests bodies of MaxBodyBytes at a time.
type Ingest struct {
	cfg      IngestConfig
	metrics  *ingestMetrics
	requests chan struct{} // a token for each request that is worked on
}

// NewIngest makes the handler for EventsPath.
func NewIngest(cfg IngestConfig) (*Ingest, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	cfg.setDefaults()
	return &Ingest{
		cfg:      cfg,
		metrics:  newIngestMetrics(cfg.Registerer),
		requests: make(chan struct{}, cfg.MaxRequests),
	}, nil
}

// refusal is an answer other than 200.
type refusal struct {
	Code    string `json:"code"`
	Message string `json:"message"`
	Index   *int   `json:"index,omitempty"`   // of the first bad event
	Field   string `json:"field,omitempty"`   // of that event
	Example string `json:"example,omitempty"` // JSON of a right value

	status int
	header [2]string
}

func refuse(status int, code, format string, args ...any) *refusal {
	return &refusal{Code: code, Message: fmt.Sprintf(format, args...), status: status}
}

func (r *refusal) with(header, value string) *refusal {
	r.header = [2]string{header, value}
	return r
}

func (r *refusal) at(index int) *refusal {
	r.Index = &index
	return r
}

// ServeHTTP implements http.Handler.
func (in *Ingest) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	positions, refused := in.serve(w, r)
	if refused != nil {
		in.metrics.answered(refused.status)
		refused.write(w)
		return
	}
	in.metrics.answered(http.StatusOK)
	in.metrics.events.Observe(float64(len(positions)))
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(appendPositions(nil, positions)) // the publisher is gone: it will publish again
}

func (r *refusal) write(w http.ResponseWriter) {
	body, err := json.Marshal(map[string]*refusal{"error": r})
	if err != nil {
		panic(err) // strings and numbers only
	}
	w.Header().Set("Content-Type", "application/json")
	if r.header[0] != "" {
		w.Header().Set(r.header[0], r.header[1])
	}
	w.WriteHeader(r.status)
	_, _ = w.Write(append(body, '\n'))
}

func appendPositions(dst []byte, positions []schema.Position) []byte {
	dst = append(dst, `{"positions":[`...)
	for i, p := range positions {
		if i > 0 {
			dst = append(dst, ',')
		}
		dst = append(dst, '"')
		dst = p.AppendText(dst)
		dst = append(dst, '"')
	}
	return append(dst, "]}\n"...)
}

func (in *Ingest) serve(w http.ResponseWriter, r *http.Request) ([]schema.Position, *refusal) {
	if r.Method != http.MethodPost {
		return nil, refuse(http.StatusMethodNotAllowed, "methodNotAllowed", "%s is not for events: use POST", r.Method).with("Allow", http.MethodPost)
	}
	if refused := in.authorize(r); refused != nil {
		return nil, refused
	}
	split, refused := in.splitter(r)
	if refused != nil {
		return nil, refused
	}
	select {
	case in.requests <- struct{}{}:
		defer func() { <-in.requests }()
	default:
		return nil, refuse(http.StatusServiceUnavailable, "unavailable", "%d requests are being worked on already: try again, or put more events into one", in.cfg.MaxRequests).
			with("Retry-After", strconv.Itoa(retryAfterBusy))
	}
	body, refused := in.readBody(w, r)
	if refused != nil {
		return nil, refused
	}
	events, refused := in.decode(split, body)
	if refused != nil {
		return nil, refused
	}
	return in.publish(r.Context(), events)
}

func (in *Ingest) authorize(r *http.Request) *refusal {
	if in.cfg.Tokens == nil {
		return nil
	}
	token, err := auth.BearerToken(r.Header.Get("Authorization"))
	if err == nil {
		_, err = in.cfg.Tokens.Check(token, auth.ScopePublish)
	}
	switch {
	case err == nil:
		return nil
	case errors.Is(err, auth.ErrScope):
		return refuse(http.StatusForbidden, "forbidden", "%v", err).
			with("WWW-Authenticate", `Bearer realm="mailbell", error="insufficient_scope", scope="publish"`)
	case errors.Is(err, auth.ErrMissing):
		return refuse(http.StatusUnauthorized, "unauthorized", "%v", err).with("WWW-Authenticate", `Bearer realm="mailbell"`)
	}
	return refuse(http.StatusUnauthorized, "unauthorized", "%v", err).with("WWW-Authenticate", `Bearer realm="mailbell", error="invalid_token"`)
}

// splitter chooses by content type how a body is cut into events.
func (in *Ingest) splitter(r *http.Request) (split func(body []byte, yield func([]byte) *refusal) *refusal, refused *refusal) {
	const want = "send application/json (an event or an array of them) or application/x-ndjson (an event a line)"
	if enc := r.Header.Get("Content-Encoding"); enc != "" && !strings.EqualFold(enc, "identity") {
		return nil, refuse(http.StatusUnsupportedMediaType, "unsupportedMediaType", "content encoding %q is not understood: send the body as it is", enc)
	}
	header := r.Header.Get("Content-Type")
	kind, params, err := mime.ParseMediaType(header)
	if err == nil {
		if charset, ok := params["charset"]; ok && !strings.EqualFold(charset, "utf-8") {
			return nil, refuse(http.StatusUnsupportedMediaType, "unsupportedMediaType", "charset %q is not understood: JSON is UTF-8", charset)
		}
		switch kind {
		case "application/json":
			return splitJSON, nil
		case "application/x-ndjson":
			return splitLines, nil
		}
	}
	return nil, refuse(http.StatusUnsupportedMediaType, "unsupportedMediaType", "content type %q is not for events: %s", header, want)
}

func (in *Ingest) readBody(w http.ResponseWriter, r *http.Request) ([]byte, *refusal) {
	tooLarge := func() *refusal {
		return refuse(http.StatusRequestEntityTooLarge, "tooLarge", "the body has more than %d bytes: send fewer events at a time", in.cfg.MaxBodyBytes)
	}
	if r.ContentLength > in.cfg.MaxBodyBytes {
		return nil, tooLarge()
	}
	// Not every ResponseWriter has deadlines; those of a server do.
	_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(in.cfg.ReadTimeout))
	var buf bytes.Buffer
	if r.ContentLength > 0 {
		buf.Grow(int(r.ContentLength) + bytes.MinRead)
	}
	if _, err := io.Copy(&buf, http.MaxBytesReader(w, r.Body, in.cfg.MaxBodyBytes)); err != nil {
		if _, ok := errors.AsType[*http.MaxBytesError](err); ok {
			return nil, tooLarge()
		}
		return nil, refuse(http.StatusBadRequest, "badRequest", "the body did not arrive whole: %v", err)
	}
	return buf.Bytes(), nil
}

// decode checks all events before any is published.
func (in *Ingest) decode(split func([]byte, func([]byte) *refusal) *refusal, body []byte) ([]Encoded, *refusal) {
	var events []Encoded
	refused := split(body, func(raw []byte) *refusal {
		if len(events) == in.cfg.MaxEvents {
			return refuse(http.StatusRequestEntityTooLarge, "tooLarge", "there are more than %d events: send fewer at a time", in.cfg.MaxEvents)
		}
		event, err := schema.DecodeEvent(raw)
		var encoded []byte
		if err == nil {
			encoded, err = event.Encode()
		}
		if err != nil {
			return badEvent(len(events), err)
		}
		events = append(events, Encoded{Account: event.Account, JSON: encoded})
		return nil
	})
	if refused == nil && len(events) == 0 {
		refused = refuse(http.StatusBadRequest, "badRequest", "the body has no events")
	}
	return events, refused
}

func badEvent(index int, err error) *refusal {
	r := refuse(http.StatusBadRequest, "badRequest", "%v", err).at(index)
	if field, ok := errors.AsType[*schema.FieldError](err); ok {
		r.Field, r.Example = field.Field, field.Example
	}
	return r
}

// splitJSON yields the one event of a body, or each of an array.
func splitJSON(body []byte, yield func([]byte) *refusal) *refusal {
	trimmed := bytes.TrimLeft(body, " \t\r\n")
	if len(trimmed) == 0 || trimmed[0] != '[' {
		if len(trimmed) == 0 {
			return nil
		}
		return yield(body)
	}
	dec := json.NewDecoder(bytes.NewReader(trimmed))
	if _, err := dec.Token(); err != nil {
		return badEvent(0, err)
	}
	index := 0
	for ; dec.More(); index++ {
		var raw json.RawMessage
		if err := dec.Decode(&raw); err != nil {
			return badEvent(index, fmt.Errorf("event is not valid JSON: %w", err))
		}
		if refused := yield(raw); refused != nil {
			return refused
		}
	}
	if _, err := dec.Token(); err != nil {
		return badEvent(index, fmt.Errorf("the array is not valid JSON: %w", err))
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return refuse(http.StatusBadRequest, "badRequest", "something follows the array: send one array, or application/x-ndjson")
	}
	return nil
}

// splitLines yields each line that is not blank.
func splitLines(body []byte, yield func([]byte) *refusal) *refusal {
	for line := range bytes.Lines(body) {
		line = bytes.TrimSpace(line)
		if len(line) == 0 {
			continue
		}
		if refused := yield(line); refused != nil {
			return refused
		}
	}
	return nil
}

func (in *Ingest) publish(ctx context.Context, events []Encoded) ([]schema.Position, *refusal) {
	ctx, cancel := context.WithTimeout(ctx, in.cfg.Timeout)
	defer cancel()
	positions, err := in.cfg.Publisher.PublishEncoded(ctx, events...)
	if err == nil {
		return positions, nil
	}
	if errors.Is(err, ErrTooLarge) {
		return nil, refuse(http.StatusRequestEntityTooLarge, "tooLarge", "%v", err)
	}
	in.cfg.Logger.Warn("events of a publisher are not on the log", "events", len(events), "err", err)
	message := "the log can't be reached: publish again, with the same ids"
	if errors.Is(err, ErrPartitionsChanged) {
		message = "the log can't be used: the number of its partitions has changed. Stop every mailbell process and publisher, and recreate the topic or use another one"
	} else if _, partial := errors.AsType[*PartialError](err); partial {
		message = "not all of the events are on the log: publish all of them again, with the same ids"
	}
	return nil, refuse(http.StatusServiceUnavailable, "unavailable", "%s", message).
		with("Retry-After", strconv.Itoa(retryAfterUnavailable))
}
