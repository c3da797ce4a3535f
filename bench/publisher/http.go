package publisher

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/mailbell/mailbell/bench/ledger"
	"github.com/mailbell/mailbell/schema"
)

// requestTimeout is longer than an adapter takes to say no.
const requestTimeout = 8 * time.Second

// ingest publishes over HTTP, through the first of the adapters that says yes.
type ingest struct {
	urls   []string
	token  string
	client *http.Client
}

func newHTTPClient() *http.Client {
	return &http.Client{Timeout: requestTimeout, Transport: &http.Transport{MaxIdleConnsPerHost: 64, IdleConnTimeout: 30 * time.Second}}
}

// Publish implements api.
func (in *ingest) Publish(ctx context.Context, events ...schema.Event) ([]schema.Position, error) {
	var body []byte
	for i := range events {
		body = append(events[i].AppendJSON(body), '\n')
	}
	var err error
	for _, url := range in.urls {
		var answer []byte
		if answer, err = post(ctx, in.client, url+"/v1/events", "application/x-ndjson", in.token, body); err != nil {
			continue
		}
		return positions(answer)
	}
	return nil, err
}

func positions(answer []byte) ([]schema.Position, error) {
	var reply struct {
		Positions []string `json:"positions"`
	}
	if err := json.Unmarshal(answer, &reply); err != nil {
		return nil, fmt.Errorf("publisher: %w", err)
	}
	list := make([]schema.Position, len(reply.Positions))
	for i, text := range reply.Positions {
		var err error
		if list[i], err = schema.ParsePosition(text); err != nil {
			return nil, fmt.Errorf("publisher: %w", err)
		}
	}
	return list, nil
}

// reports tells adapters what a Dovecot server would: a report for each account, to the one adapter that is beside the
// account's store. What is answered is on that adapter's disk, so there are no positions yet: all are zero.
type reports struct {
	urls   []string
	token  string
	client *http.Client
}

// Publish implements api.
func (r *reports) Publish(ctx context.Context, events ...schema.Event) ([]schema.Position, error) {
	var order []schema.Account
	byAccount := make(map[schema.Account][]map[string]any)
	numbers := make(map[schema.Account]uint32)
	for i := range events {
		e := &events[i]
		id, ok := ledger.ParseID([]byte(e.ID))
		if !ok {
			return nil, fmt.Errorf("report: id %q is no bench's", e.ID)
		}
		if _, seen := byAccount[e.Account]; !seen {
			order = append(order, e.Account)
			numbers[e.Account] = id.Account
		}
		byAccount[e.Account] = append(byAccount[e.Account], map[string]any{
			"name": e.Event, "mailbox": e.Mailbox, "uid": id.Seq, "uid_validity": e.UIDValidity,
		})
	}
	for _, account := range order {
		body, err := json.Marshal(map[string]any{"user": account, "events": byAccount[account]})
		if err != nil {
			return nil, fmt.Errorf("report: %w", err)
		}
		url := r.urls[int(numbers[account])%len(r.urls)]
		if _, err := post(ctx, r.client, url+"/dovecot/v1/events", "application/json", r.token, body); err != nil {
			return nil, err
		}
	}
	return make([]schema.Position, len(events)), nil
}

func post(ctx context.Context, client *http.Client, url, contentType, token string, body []byte) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url, bytes.NewReader(body))
	if err != nil {
		return nil, fmt.Errorf("publisher: %w", err)
	}
	req.Header.Set("Authorization", "Bearer "+token)
	req.Header.Set("Content-Type", contentType)
	resp, err := client.Do(req)
	if err != nil {
		return nil, fmt.Errorf("publisher: %w", err)
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(resp.Body, 16<<20))
	if err != nil {
		return nil, fmt.Errorf("publisher: %w", err)
	}
	if resp.StatusCode != http.StatusOK && resp.StatusCode != http.StatusAccepted {
		return nil, fmt.Errorf("publisher: %s: %s: %.200s", url, resp.Status, answer)
	}
	return answer, nil
}
