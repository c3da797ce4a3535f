package dovecot

import (
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/mailbell/mailbell/schema"
	"github.com/mailbell/mailbell/storageadapter"
	"github.com/mailbell/mailbell/storageadapter/spool"
)

// TestOutage: while the log is away everything is accepted, and it comes out in order when
// the log is back, also over a restart of the agent.
func TestOutage(t *testing.T) {
	log := newMemoryLog()
	log.setFail(func(int, []storageadapter.Encoded) error { return storageadapter.ErrUnavailable })
	cfg := Config{Publisher: log, Spool: spool.Config{Dir: t.TempDir()}, TrustLoopback: true}
	t.Run("away", func(t *testing.T) {
		cfg := cfg
		reg := prometheus.NewRegistry()
		cfg.Registerer = reg
		a, server := startAgent(t, cfg)
		for uid := 1; uid <= 50; uid++ {
			if status := report(t, server, expunge("a", uid)); status != 202 {
				t.Fatalf("answered %d while the log is away", status)
			}
		}
		log.wait(t, "a retry", func(calls int, _ []schema.Event) bool { return calls >= 2 })
		if n, _ := a.Spooled(); n != 50 {
			t.Fatalf("%d events in the spool, want 50", n)
		}
		// The age that operators alert on grows, whether or not anything is tried.
		for age, last := 0.0, oldest(t, reg); age <= last; age = oldest(t, reg) {
			if last <= 0 {
				t.Fatalf("the oldest event has waited %v s", last)
			}
		}
	})
	t.Run("back", func(t *testing.T) {
		log.setFail(nil)
		_, server := startAgent(t, cfg)
		if status := report(t, server, expunge("a", 51)); status != 202 {
			t.Fatal(status)
		}
		events := log.wait(t, "51 events", func(_ int, events []schema.Event) bool { return len(events) >= 51 })
		for i, uid := range uidsOf(events, "a") {
			if uid != fmt.Sprint(i+1) {
				t.Fatalf("event %d is about UID %s", i, uid)
			}
		}
	})
}

// TestHangingLog: a log that never answers does not keep the agent from answering.
func TestHangingLog(t *testing.T) {
	publishing, release := make(chan struct{}), make(chan struct{})
	hang := sync.OnceFunc(func() { close(publishing); <-release })
	log := newMemoryLog()
	log.setFail(func(int, []storageadapter.Encoded) error { hang(); return nil })
	a, server := startAgent(t, Config{Publisher: log})
	for uid := 1; uid <= 20; uid++ {
		if status := report(t, server, expunge("a", uid)); status != 202 {
			t.Fatalf("answered %d", status)
		}
		<-publishing // from the first report on
	}
	if n, _ := a.Spooled(); n != 20 {
		t.Errorf("%d events in the spool, want 20", n)
	}
	close(release)
	log.wait(t, "20 events", func(_ int, events []schema.Event) bool { return len(events) == 20 })
}

// oldest reads mailbell_spool_oldest_seconds.
func oldest(t *testing.T, reg *prometheus.Registry) float64 {
	t.Helper()
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == "mailbell_spool_oldest_seconds" {
			return f.GetMetric()[0].GetGauge().GetValue()
		}
	}
	t.Fatal("the age of the oldest event is not exported")
	return 0
}

// TestPartialFailure: of a batch, what failed is tried again, in order, and what the topic will
// never take is given up.
func TestPartialFailure(t *testing.T) {
	log := newMemoryLog()
	reg := prometheus.NewRegistry()
	a := newAgent(t, Config{Publisher: log, Registerer: reg})
	var events []schema.Event
	for uid := 1; uid <= 4; uid++ {
		events = append(events, schema.Event{ID: fmt.Sprint(uid), Event: schema.MessageExpunge, Account: "a", Mailbox: "INBOX",
			UIDValidity: 9, UIDSet: fmt.Sprint(uid), Timestamp: time.Now()})
	}
	if refused := a.accept(t.Context(), events); refused != nil {
		t.Fatal(refused.message)
	}
	log.setFail(func(call int, events []storageadapter.Encoded) error {
		switch call {
		case 1: // 1 is on the log, 2 too large, 3 and 4 failed
			return &storageadapter.PartialError{Failed: map[int]error{
				1: fmt.Errorf("append: %w", storageadapter.ErrTooLarge), 2: storageadapter.ErrUnavailable, 3: storageadapter.ErrUnavailable}}
		case 2:
			return errors.New("something else")
		}
		return nil
	})
	recs, err := a.spool.Next(t.Context(), 10, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	if err := a.publish(t.Context(), recs); err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(uidsOf(log.events, "a"), " "); got != "1 3 4" {
		t.Fatalf("on the log: %s", got)
	}
	if n := testutil.ToFloat64(a.metrics.dropped.WithLabelValues(dropTooLarge)); n != 1 {
		t.Fatalf("%v dropped as too large", n)
	}
}

func TestPartitionsChangedEndsRun(t *testing.T) {
	log := newMemoryLog()
	log.setFail(func(int, []storageadapter.Encoded) error { return storageadapter.ErrPartitionsChanged })
	a := newAgent(t, Config{Publisher: log})
	if refused := a.accept(t.Context(), []schema.Event{{ID: "1", Event: schema.Login, Account: "a", Timestamp: time.Now()}}); refused != nil {
		t.Fatal(refused.message)
	}
	if err := a.Run(t.Context()); !errors.Is(err, storageadapter.ErrPartitionsChanged) {
		t.Fatalf("Run: %v", err)
	}
	if n, _ := a.Spooled(); n != 1 {
		t.Fatalf("%d events in the spool, want 1", n)
	}
}

func TestFullSpool(t *testing.T) {
	log := newMemoryLog()
	log.setFail(func(int, []storageadapter.Encoded) error { return storageadapter.ErrUnavailable })
	reg := prometheus.NewRegistry()
	a, server := startAgent(t, Config{Publisher: log, Registerer: reg, Spool: spool.Config{Dir: t.TempDir(), MaxBytes: 16 << 10}})
	accepted, status := 0, 0
	for status = report(t, server, expunge("a", 1)); status == 202 && accepted < 1000; status = report(t, server, expunge("a", accepted+1)) {
		accepted++
	}
	if status != http.StatusInsufficientStorage {
		t.Fatalf("after %d events: %d, want 507", accepted, status)
	}
	if testutil.ToFloat64(a.metrics.refused) != 1 {
		t.Fatal("the refused event was not counted")
	}
	log.setFail(nil)
	events := log.wait(t, "what was accepted", func(_ int, events []schema.Event) bool { return len(events) >= accepted })
	if len(events) != accepted {
		t.Fatalf("%d events, %d accepted", len(events), accepted)
	}
}

// TestChurn: many reporters at a time, a log that fails now and then; every account's events
// come out complete and in order.
func TestChurn(t *testing.T) {
	const accounts, each = 8, 60
	log := newMemoryLog()
	log.setFail(func(call int, events []storageadapter.Encoded) error {
		if call%3 == 0 && len(events) > 1 {
			failed := make(map[int]error)
			for i := len(events) / 2; i < len(events); i++ {
				failed[i] = storageadapter.ErrUnavailable
			}
			return &storageadapter.PartialError{Failed: failed}
		}
		return nil
	})
	_, server := startAgent(t, Config{Publisher: log})
	var wg sync.WaitGroup
	for n := range accounts {
		wg.Go(func() {
			for uid := 1; uid <= each; uid++ {
				if status := report(t, server, expunge(fmt.Sprint("user", n), uid)); status != 202 {
					t.Errorf("answered %d", status)
				}
			}
		})
	}
	wg.Wait()
	events := log.wait(t, "all events", func(_ int, events []schema.Event) bool { return len(events) >= accounts*each })
	for n := range accounts {
		uids := uidsOf(events, fmt.Sprint("user", n))
		for i, uid := range uids {
			if uid != fmt.Sprint(i+1) {
				t.Fatalf("user%d: event %d is about UID %s", n, i, uid)
			}
		}
	}
}
