package bench

import (
	"context"
	"encoding/json"
	"fmt"
	"io"

	"github.com/mailbell/mailbell/internal/eventlog"
)

// logConfig is the first line that ServeLog reads, logReady what it answers.
type logConfig struct {
	Dir        string `json:"dir"`
	Topic      string `json:"topic"`
	Partitions int    `json:"partitions"`
}

type logReady struct {
	Brokers []string `json:"brokers"`
}

// ServeLog is the embedded log as a process of its own, so that a bench has bus and notifiers
// without Kafka, each in its process. It ends with its input.
func ServeLog(ctx context.Context, in io.Reader, out io.Writer) error {
	dec := json.NewDecoder(in)
	var cfg logConfig
	if err := dec.Decode(&cfg); err != nil {
		return fmt.Errorf("log: read configuration: %w", err)
	}
	log, err := eventlog.StartEmbedded(ctx, eventlog.EmbeddedConfig{Dir: cfg.Dir, Topic: cfg.Topic, Partitions: cfg.Partitions})
	if err != nil {
		return err
	}
	defer log.Close()
	if err := json.NewEncoder(out).Encode(logReady{Brokers: log.Brokers()}); err != nil {
		return err
	}
	ended := make(chan struct{})
	go func() { // ends with the input, as does the process
		defer close(ended)
		_, _ = io.Copy(io.Discard, in)
	}()
	select {
	case <-ctx.Done():
	case <-ended:
	}
	return nil
}
