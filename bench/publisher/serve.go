package publisher

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"

	"github.com/mailbell/mailbell/bench/ledger"
	"github.com/mailbell/mailbell/internal/eventlog"
	"github.com/mailbell/mailbell/storageadapter"
)

// Request is one line of Serve's input after the configuration: a trial, or with Finish the request
// for the ledger.
type Request struct {
	Trial  *Trial `json:"trial,omitempty"`
	Finish bool   `json:"finish,omitempty"`
}

// Reply is one line of Serve's output: Ready once the log is reached, then one for each request.
type Reply struct {
	Ready   bool           `json:"ready,omitempty"`
	Outcome *Outcome       `json:"outcome,omitempty"`
	Ledger  *ledger.Ledger `json:"ledger,omitempty"`
	Slow    []SlowAck      `json:"slow,omitempty"` // with the ledger
}

// Serve publishes for a parent process: the configuration is the first line of in, requests
// follow, replies go to out. The end of in ends it.
func Serve(ctx context.Context, in io.Reader, out io.Writer) error {
	dec, enc := json.NewDecoder(bufio.NewReader(in)), json.NewEncoder(out)
	var cfg Config
	if err := dec.Decode(&cfg); err != nil {
		return fmt.Errorf("publisher: read configuration: %w", err)
	}
	api, closeAPI, err := connect(ctx, cfg)
	if err != nil {
		return fmt.Errorf("publisher: %w", err)
	}
	defer closeAPI()
	p, err := newPublisher(cfg, api)
	if err != nil {
		return err
	}
	if err := enc.Encode(Reply{Ready: true}); err != nil {
		return err
	}
	for {
		var r Request
		switch err := dec.Decode(&r); {
		case err == io.EOF:
			return nil
		case err != nil:
			return fmt.Errorf("publisher: read request: %w", err)
		case r.Finish:
			return enc.Encode(Reply{Ledger: p.ledger, Slow: p.slow})
		case r.Trial != nil:
			o := p.run(ctx, *r.Trial)
			if err := enc.Encode(Reply{Outcome: &o}); err != nil {
				return err
			}
		}
	}
}

// connect chooses the way that the events take.
func connect(ctx context.Context, cfg Config) (api, func(), error) {
	if len(cfg.Adapters) > 0 {
		client := newHTTPClient()
		if cfg.Reports {
			return &reports{urls: cfg.Adapters, token: cfg.ServiceToken, client: client}, client.CloseIdleConnections, nil
		}
		return &ingest{urls: cfg.Adapters, token: cfg.ServiceToken, client: client}, client.CloseIdleConnections, nil
	}
	log, err := eventlog.Open(ctx, eventlog.Config{Brokers: cfg.Brokers, Topic: cfg.Topic})
	if err != nil {
		return nil, nil, err
	}
	p, err := storageadapter.New(storageadapter.Config{Log: log})
	return p, func() { log.Close() }, err
}
