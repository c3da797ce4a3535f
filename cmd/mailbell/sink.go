package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/mailbell/mailbell/internal/auth"
	"github.com/mailbell/mailbell/schema"
	"github.com/mailbell/mailbell/storageadapter"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// eventSink takes events and returns their positions once they are on the log.
type eventSink interface {
	publish(ctx context.Context, events [][]byte) ([]string, error)
}

// badEventError names the one event because of which none was published.
type badEventError struct {
	index int
	err   error
}

func (e *badEventError) Error() string { return e.err.Error() }
func (e *badEventError) Unwrap() error { return e.err }

// serverFlags are where the HTTP port of a running mailbell is, and as whom to go there.
type serverFlags struct {
	server string
	token  string
	data   string
}

func (s *serverFlags) register(fs *pflag.FlagSet) {
	fs.StringVar(&s.server, "server", "http://127.0.0.1:"+portHTTP, "base `URL` of mailbell's HTTP port")
	fs.StringVar(&s.token, "token", "", "`token` to show there: a service token to publish, a JWT to watch (default: from the keys of run in --data)")
	dataFlag(fs, &s.data)
}

func (s *serverFlags) base(cmd *cobra.Command) (string, error) {
	u, err := url.Parse(s.server)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
		return "", wrong(cmd, "--server %q: must be a URL, such as http://127.0.0.1:%s", s.server, portHTTP)
	}
	return strings.TrimSuffix(s.server, "/"), nil
}

// ingestTimeout bounds one request; the ingest itself gives up earlier.
const ingestTimeout = 30 * time.Second

func (s *serverFlags) ingest(cmd *cobra.Command) (eventSink, error) {
	base, err := s.base(cmd)
	if err != nil {
		return nil, err
	}
	token := s.token
	if token == "" {
		if token, err = madeByRun(s.data, "--token", func(d auth.Dev) string { return d.ServiceToken }); err != nil {
			return nil, err
		}
	}
	return &httpSink{url: base + storageadapter.EventsPath, token: token, client: &http.Client{Timeout: ingestTimeout}}, nil
}

// httpSink publishes through POST /v1/events.
type httpSink struct {
	url, token string
	client     *http.Client
}

// ingestAnswer is what the ingest answers, good or bad.
type ingestAnswer struct {
	Positions []string `json:"positions"`
	Error     struct {
		Message string `json:"message"`
		Index   *int   `json:"index"`
	} `json:"error"`
}

func (s *httpSink) publish(ctx context.Context, events [][]byte) ([]string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, s.url, bytes.NewReader(append(bytes.Join(events, []byte{'\n'}), '\n')))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Authorization", "Bearer "+s.token)
	req.Header.Set("Content-Type", "application/x-ndjson")
	resp, err := s.client.Do(req)
	if err != nil {
		return nil, unreachable(s.url, err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 16<<20))
	if err != nil {
		return nil, fmt.Errorf("publish: read the answer of %s: %w", s.url, err)
	}
	var answer ingestAnswer
	if err := json.Unmarshal(body, &answer); err != nil {
		return nil, fmt.Errorf("publish: %s answered %s, which is not mailbell's ingest: check --server", s.url, resp.Status)
	}
	switch {
	case resp.StatusCode == http.StatusOK && len(answer.Positions) == len(events):
		return answer.Positions, nil
	case resp.StatusCode == http.StatusOK:
		return nil, fmt.Errorf("publish: %s answered %d positions for %d events", s.url, len(answer.Positions), len(events))
	case answer.Error.Index != nil:
		return nil, &badEventError{index: *answer.Error.Index, err: errors.New(answer.Error.Message)}
	}
	return nil, fmt.Errorf("publish: %s (%s)", answer.Error.Message, resp.Status)
}

// unreachable says what to do about a server that did not answer.
func unreachable(url string, err error) error {
	return fmt.Errorf("%s does not answer: %w: is `mailbell run` or `mailbell adapter` running there? Another address goes into --server", url, rootCause(err))
}

// rootCause cuts what net/http puts before the reason.
func rootCause(err error) error {
	var urlErr *url.Error
	if errors.As(err, &urlErr) {
		return urlErr.Err
	}
	return err
}

// logSink publishes straight to Kafka.
type logSink struct {
	publisher *storageadapter.Publisher
}

// openTimeout is how long a command that a person waits for tries to reach Kafka.
const openTimeout = 15 * time.Second

func openLogSink(ctx context.Context, kafka *kafkaFlags, logger *slog.Logger) (eventSink, func(), error) {
	ctx, cancel := context.WithTimeout(ctx, openTimeout)
	defer cancel()
	log, err := kafka.openLog(ctx, logger, nil)
	if err != nil {
		return nil, nil, err
	}
	publisher, err := storageadapter.New(storageadapter.Config{Log: log})
	if err != nil {
		_ = log.Close()
		return nil, nil, err
	}
	return &logSink{publisher: publisher}, func() { _ = log.Close() }, nil
}

func (s *logSink) publish(ctx context.Context, events [][]byte) ([]string, error) {
	decoded := make([]schema.Event, len(events))
	for i, raw := range events {
		var err error
		if decoded[i], err = schema.DecodeEvent(raw); err != nil {
			return nil, &badEventError{index: i, err: err}
		}
	}
	positions, err := s.publisher.Publish(ctx, decoded...)
	if err != nil {
		return nil, err
	}
	text := make([]string, len(positions))
	for i, p := range positions {
		text[i] = p.String()
	}
	return text, nil
}
