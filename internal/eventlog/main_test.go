package eventlog

import (
	"context"
	"io"
	"log/slog"
	"os"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// TestMain also is the process that the crash test kills: see crash_test.go.
func TestMain(m *testing.M) {
	if dir := os.Getenv("EVENTLOG_CRASH_DIR"); dir != "" {
		os.Exit(crashChild(dir, os.Stdout))
	}
	goleak.VerifyTestMain(m)
}

func quiet() *slog.Logger { return slog.New(slog.NewTextHandler(io.Discard, nil)) }

func testContext(t testing.TB, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), d)
	t.Cleanup(cancel)
	return ctx
}

// startEmbedded starts an embedded log and a Log on it, both closed at the end of the test.
func startEmbedded(t testing.TB, cfg EmbeddedConfig) (*Embedded, *Log) {
	t.Helper()
	if cfg.Dir == "" {
		cfg.Dir = t.TempDir()
	}
	cfg.Logger = quiet()
	e, err := StartEmbedded(testContext(t, 30*time.Second), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := e.Close(); err != nil {
			t.Error(err)
		}
	})
	return e, openLog(t, Config{Brokers: e.Brokers(), Topic: cfg.Topic})
}

func openLog(t testing.TB, cfg Config) *Log {
	t.Helper()
	if cfg.Logger == nil {
		cfg.Logger = quiet()
	}
	l, err := Open(testContext(t, time.Minute), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

// readUntil reads a partition up to the offset before to, and returns what is no beacon.
func readUntil(t testing.TB, l *Log, partition int32, from, to int64) []Message {
	t.Helper()
	var got []Message
	err := l.readRange(testContext(t, 30*time.Second), partition, from, to, func(m *Message) {
		if m.Beacon == nil {
			got = append(got, *m)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	return got
}

// waitFor waits until ok reports true.
func waitFor(t testing.TB, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(60 * time.Second)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatal("it did not happen within a minute")
		}
		time.Sleep(time.Millisecond) // between two looks
	}
}
