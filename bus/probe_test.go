package bus

import (
	"context"
	"log/slog"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mailbell/mailbell/internal/auth"
	"github.com/prometheus/client_golang/prometheus"
)

// Only a notifier's own 503 says that its address works.
func TestWhose503(t *testing.T) {
	for body, want := range map[string]bool{
		`{"error":{"code":"full","message":"this node holds as many connections as it may"}}`: true,
		`{"error":{"code":"draining"}}`:                              true,
		`{"error":{"code":"busy"}}`:                                  true,
		`{"error":{"code":"unavailable"}}`:                           false, // a gateway behind the same name
		"<html><body><h1>503 Service Unavailable</h1></body></html>": false,
		"": false,
	} {
		if saysBusy(strings.NewReader(body)) != want {
			t.Errorf("%q: want %t", body, want)
		}
	}
}

// warnings counts what is logged.
type warnings struct{ n atomic.Int32 }

func (w *warnings) Write(p []byte) (int, error) {
	w.n.Add(1)
	return len(p), nil
}

// TestAddressThatNeverWorked: the operator hears of it, once, and not at the first failure, when a proxy in front may not be up yet.
func TestAddressThatNeverWorked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log warnings
		n := &Node{cfg: Config{NodeID: "b1", ProbeInterval: time.Second}, fleet: newFleet(nil, true), log: slog.New(slog.NewTextHandler(&log, nil))}
		n.metrics = newMetrics(prometheus.NewRegistry(), n)
		var err error
		if n.tickets, err = auth.NewTicketSigner("b1"); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		go n.probe(ctx, Notifier{Node: "n1", URL: "no URL\x7f"})
		for probes, want := range []int{0, 1, 1, 1} {
			synctest.Wait()
			if got := int(log.n.Load()); got != want {
				t.Errorf("after %d failures it was logged %d times, want %d", probes+1, got, want)
			}
			time.Sleep(time.Second) // of the bubble's clock: the next one
		}
	})
}
