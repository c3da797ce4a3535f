package autoscale

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"math"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"

	"github.com/mailbell/mailbell/internal/eventlog"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// world is a fleet in virtual time.
type world struct {
	now    time.Time
	nodes  []Node
	drains map[string]time.Time
	coming []time.Time
	next   int
	log    []string
	outs   []time.Time
	ins    []time.Time
}

func newWorld(now time.Time, nodes int) *world {
	w := &world{now: now, drains: make(map[string]time.Time)}
	for range nodes {
		w.add()
	}
	return w
}

func (w *world) add() {
	w.next++
	w.nodes = append(w.nodes, Node{Name: fmt.Sprintf("n%d", w.next), Healthy: true, Since: w.now})
}

// share gives the connections out evenly, but for those that are drained.
func (w *world) share(connections int) {
	taking, drained := 0, 0
	for i := range w.nodes {
		n := &w.nodes[i]
		if n.Draining {
			if left := w.drains[n.Name].Sub(w.now); left <= 0 {
				n.Connections = 0
			}
			drained += n.Connections
		} else {
			taking++
		}
	}
	for i := range w.nodes {
		if n := &w.nodes[i]; !n.Draining {
			n.Connections = (connections - drained) / max(1, taking)
		}
	}
}

func (w *world) apply(t *testing.T, all []Decision) {
	t.Helper()
	for _, d := range all {
		w.log = append(w.log, fmt.Sprintf("%s %s", d.At.Format("15:04"), d))
		switch d.Action {
		case Out:
			w.outs = append(w.outs, w.now)
			for range d.Count {
				w.coming = append(w.coming, w.now.Add(30*time.Second))
			}
		case Drain:
			i := slices.IndexFunc(w.nodes, func(n Node) bool { return n.Name == d.Node })
			w.nodes[i].Draining, w.nodes[i].Healthy = true, false
			w.drains[d.Node] = w.now.Add(d.Over)
		case In:
			w.ins = append(w.ins, w.now)
			i := slices.IndexFunc(w.nodes, func(n Node) bool { return n.Name == d.Node })
			if n := w.nodes[i]; n.Connections > 0 && w.now.Before(w.drains[n.Name]) {
				t.Errorf("%s: %s ended with %d connections before its drain is over", w.now, n.Name, n.Connections)
			}
			w.nodes = slices.Delete(w.nodes, i, i+1)
		}
	}
}

// TestADay plays a working day, from midnight, second by second.
func TestADay(t *testing.T) {
	rush, err := ParseSchedule("mon-fri 06:30-10:00 UTC min=5")
	if err != nil {
		t.Fatal(err)
	}
	c, err := NewController(Policy{Min: 2, Max: 8, OutAbove: 10_000, InBelow: 4000, Schedules: []Schedule{rush}})
	if err != nil {
		t.Fatal(err)
	}
	midnight := time.Date(2026, 11, 23, 0, 0, 0, 0, time.UTC) // a Monday
	w := newWorld(midnight, 2)
	most, worst := 0, 0
	for second := range 24 * 60 * 60 {
		w.now = midnight.Add(time.Duration(second) * time.Second)
		w.coming = slices.DeleteFunc(w.coming, func(at time.Time) bool {
			if at.After(w.now) {
				return false
			}
			w.add()
			return true
		})
		if second == 14*3600 { // one dies in the afternoon, with the one before it: below the minimum
			w.nodes = w.nodes[:1]
		}
		hour := float64(second) / 3600
		w.share(int(5000 + 50_000*math.Exp(-(hour-12)*(hour-12)/8)))
		for _, n := range w.nodes {
			if n.Healthy && second > 3600 && second < 14*3600 {
				worst = max(worst, n.Connections)
			}
		}
		w.apply(t, c.Decide(w.now, w.nodes))
		most = max(most, len(w.nodes))
	}
	for i := 1; i < len(w.ins); i++ {
		if gap := w.ins[i].Sub(w.ins[i-1]); gap < 50*time.Minute {
			t.Errorf("two ended within %v", gap)
		}
	}
	at := func(clock string) bool {
		return slices.ContainsFunc(w.log, func(l string) bool { return strings.HasPrefix(l, clock) })
	}
	if !at("06:30 start 3") {
		t.Error("the schedule did not begin at 06:30")
	}
	if !at("14:00 start 1: 1 healthy") {
		t.Error("below the minimum nothing was started at once")
	}
	if most > 8 || worst > 12_000 || len(w.nodes) != 2 && len(w.nodes) != 3 {
		t.Errorf("at most %d nodes, at most %d connections each, %d in the end", most, worst, len(w.nodes))
	}
	if t.Failed() {
		t.Log(strings.Join(w.log, "\n"))
	}
}

func TestOutAtMostEveryThreeMinutes(t *testing.T) {
	c, err := NewController(Policy{OutAbove: 100})
	if err != nil {
		t.Fatal(err)
	}
	now := time.Date(2026, 11, 23, 0, 0, 0, 0, time.UTC)
	nodes := []Node{{Name: "a", Connections: 900, Healthy: true, Since: now.Add(-time.Hour)}, {Name: "b", Connections: 900, Healthy: true, Since: now.Add(-time.Hour)}}
	var at []time.Duration
	for second := range 600 {
		moment := now.Add(time.Duration(second) * time.Second)
		for _, d := range c.Decide(moment, nodes) {
			at = append(at, time.Duration(second)*time.Second)
			for range d.Count {
				nodes = append(nodes, Node{Name: fmt.Sprint("x", len(nodes)), Connections: 900, Healthy: true, Since: moment})
			}
		}
	}
	if fmt.Sprint(at) != "[3s 3m3s 6m3s 9m3s]" {
		t.Errorf("out at %v", at)
	}
}

// Nodes that never come are asked for again, but not every second.
func TestNodesThatDoNotCome(t *testing.T) {
	c, err := NewController(Policy{Min: 3, Launch: time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	now := time.Date(2026, 11, 23, 0, 0, 0, 0, time.UTC)
	asked := 0
	for second := range 185 {
		for _, d := range c.Decide(now.Add(time.Duration(second)*time.Second), []Node{{Name: "a", Healthy: true}}) {
			asked += d.Count
		}
	}
	if asked != 6 {
		t.Errorf("asked for %d in three minutes, want 2 each minute", asked)
	}
}

func TestSchedule(t *testing.T) {
	for _, bad := range []string{"", "mon 07:00-19:00 UTC", "mun 07:00-19:00 UTC min=3", "mon 7-19 UTC min=3", "mon 07:00-07:00 UTC min=3",
		"mon 07:00-19:00 Mars min=3", "mon 07:00-19:00 UTC min=0", "mon 07:00-19:00 UTC max=3"} {
		if _, err := ParseSchedule(bad); err == nil || !strings.Contains(err.Error(), "mon-fri") {
			t.Errorf("%q: %v", bad, err)
		}
	}
	for _, tt := range []struct {
		text, at string
		want     bool
	}{
		{"mon-fri 07:00-19:00 Europe/Berlin min=3", "2026-11-23T06:00:00Z", true}, // 07:00 there
		{"mon-fri 07:00-19:00 Europe/Berlin min=3", "2026-11-23T05:59:59Z", false},
		{"mon-fri 07:00-19:00 Europe/Berlin min=3", "2026-11-22T12:00:00Z", false}, // Sunday
		{"fri-mon 00:00-24:00 UTC min=3", "2026-11-22T12:00:00Z", true},
		{"sat 22:00-02:00 UTC min=3", "2026-11-22T01:00:00Z", true}, // Sunday morning
		{"sat 22:00-02:00 UTC min=3", "2026-11-21T01:00:00Z", false},
		{"2026-12-24 00:00-24:00 UTC min=9", "2026-12-24T23:59:59Z", true},
		{"2026-12-24 00:00-24:00 UTC min=9", "2026-12-25T00:00:00Z", false},
		{"daily 12:00-13:00 UTC min=2", "2026-12-25T12:30:00Z", true},
	} {
		s, err := ParseSchedule(tt.text)
		if err != nil {
			t.Fatal(err)
		}
		at, err := time.Parse(time.RFC3339, tt.at)
		if err != nil {
			t.Fatal(err)
		}
		if s.Active(at) != tt.want {
			t.Errorf("%s at %s: want %v", tt.text, tt.at, tt.want)
		}
	}
}

// recorder is an actuator that remembers.
type recorder struct {
	mu    sync.Mutex
	calls []string
}

func (r *recorder) note(s string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.calls = append(r.calls, s)
}

func (r *recorder) Out(_ context.Context, count int, _ []string, _ string) error {
	r.note(fmt.Sprint("out ", count))
	return nil
}

func (r *recorder) In(_ context.Context, node, _ string) error {
	r.note("in " + node)
	return nil
}

func (r *recorder) Owns(string) bool { return true }

func (r *recorder) count() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.calls)
}

// TestAnotherTakesOver ends the holder of the lease, on a real log, and watches another one decide.
func TestAnotherTakesOver(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	quiet := slog.New(slog.DiscardHandler)
	embedded, err := eventlog.StartEmbedded(ctx, eventlog.EmbeddedConfig{Dir: t.TempDir(), Partitions: 4, Logger: quiet})
	if err != nil {
		t.Fatal(err)
	}
	defer embedded.Close()
	log, err := eventlog.Open(ctx, eventlog.Config{Brokers: embedded.Brokers(), Logger: quiet})
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	recorders := map[string]*recorder{"b1": {}, "b2": {}}
	stops := map[string]func(){}
	for name, r := range recorders {
		s, err := New(Config{
			Policy: Policy{Min: 2, Launch: time.Millisecond}, Lease: KafkaLease{Log: log, Group: "mailbell-bus-autoscale", Node: name}, Act: true, Actuator: r,
			Fleet:  func(time.Time) []Node { return []Node{{Name: "n1", Healthy: true}} },
			Drain:  func(_ string, over time.Duration) (time.Duration, error) { return over, nil },
			Every:  100 * time.Millisecond,
			Logger: quiet,
		})
		if err != nil {
			t.Fatal(err)
		}
		running, stop := context.WithCancel(ctx)
		done := make(chan error, 1)
		go func() { done <- s.Run(running) }()
		stops[name] = sync.OnceFunc(func() {
			stop()
			if err := <-done; err != nil {
				t.Error(err)
			}
		})
		defer stops[name]()
	}
	holder := ""
	until(t, "one decides", func() bool {
		for name, r := range recorders {
			if r.count() > 0 {
				holder = name
			}
		}
		return holder != ""
	})
	other := recorders[map[string]string{"b1": "b2", "b2": "b1"}[holder]]
	stops[holder]()
	before, begin := other.count(), time.Now()
	until(t, "the other decides", func() bool { return other.count() > before })
	if took := time.Since(begin); took > 10*time.Second {
		t.Errorf("after %v", took)
	}
}

func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !ok(); {
		if time.Now().After(deadline) {
			t.Fatalf("waited too long: %s", what)
		}
		time.Sleep(5 * time.Millisecond) // between two looks
	}
}

// mine is a lease without others.
type mine struct{}

func (mine) Hold(ctx context.Context, fn func(ctx context.Context)) error {
	fn(ctx)
	return nil
}

// TestDryRunTellsTheWebhook: it hears what would be done, one decision after the other, and while it hangs others are made.
func TestDryRunTellsTheWebhook(t *testing.T) {
	posts, hang := make(chan string, 100), make(chan struct{})
	hook := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		posts <- string(b)
		<-hang
	}))
	defer hook.Close()
	defer http.DefaultClient.CloseIdleConnections()
	r, looks := &recorder{}, make(chan struct{}, 1000)
	reg := prometheus.NewRegistry()
	s, err := New(Config{Policy: Policy{Launch: time.Millisecond}, Lease: mine{}, Every: time.Millisecond, Registerer: reg,
		Fleet:    func(time.Time) []Node { looks <- struct{}{}; return nil },
		Drain:    func(string, time.Duration) (time.Duration, error) { return 0, nil },
		Actuator: r, Notify: hook.URL, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	s.controller.began = time.Unix(0, 0)
	s.controller.known, s.controller.retiring = map[string]bool{}, map[string]*retirement{}
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	if got := <-posts; got != `{"text":"mailbell: start 2 (dry run): 0 healthy nodes and 0 on their way, the minimum is 2"}` {
		t.Errorf("posted %s", got)
	}
	for range 100 { // the webhook hangs
		<-looks
	}
	close(hang)
	<-posts
	stop()
	for len(done) == 0 {
		select {
		case <-looks:
		case err := <-done:
			done <- err
		}
	}
	if err := <-done; err != nil || r.count() != 0 {
		t.Errorf("%v, calls %v", err, r.calls)
	}
}

// TestWebhook: it is posted what is to be done, and its refusal is an error.
func TestWebhook(t *testing.T) {
	var posts []string
	status := http.StatusNoContent
	hook := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		posts = append(posts, r.Header.Get("Content-Type")+" "+string(b))
		w.WriteHeader(status)
	}))
	defer hook.Close()
	defer http.DefaultClient.CloseIdleConnections()
	w := Webhook{URL: hook.URL}
	if err := w.Out(t.Context(), 2, nil, "r"); err != nil {
		t.Fatal(err)
	}
	if err := w.In(t.Context(), "n1", "r"); err != nil {
		t.Fatal(err)
	}
	want := []string{`application/json {"action":"out","count":2,"reason":"r"}`, `application/json {"action":"in","node":"n1","reason":"r"}`}
	if !slices.Equal(posts, want) {
		t.Errorf("posted %q, want %q", posts, want)
	}
	status = http.StatusServiceUnavailable
	if err := w.In(t.Context(), "n1", "r"); err == nil {
		t.Error("a refusal is no error")
	}
}

func TestActuators(t *testing.T) {
	dir := t.TempDir()
	out := filepath.Join(dir, "out")
	script := filepath.Join(dir, "do")
	if err := os.WriteFile(script, []byte("#!/bin/sh\necho \"$MAILBELL_ACTION $MAILBELL_COUNT $MAILBELL_NODE $MAILBELL_REASON $*\" >>"+out+"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, a := range []Actuator{Command{Args: []string{script, "x"}}, Systemd{Unit: "mailbell-notifier@.service", Tool: script}} {
		if err := a.Out(t.Context(), 2, []string{"notifier-1"}, "r"); err != nil {
			t.Fatal(err)
		}
		if err := a.In(t.Context(), "notifier-1", "r"); err != nil {
			t.Fatal(err)
		}
	}
	b, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	want := "out 2  r x\nin 1 notifier-1 r x\n    --no-block start mailbell-notifier@notifier-2.service\n    --no-block start mailbell-notifier@notifier-3.service\n    --no-block stop mailbell-notifier@notifier-1.service\n"
	if string(b) != want {
		t.Errorf("called with\n%swant\n%s", b, want)
	}
	if err := (Command{Args: []string{"/bin/false"}}).In(t.Context(), "n", ""); err == nil {
		t.Error("a command that failed is no error")
	}
}

func TestLocalProcesses(t *testing.T) {
	l := &Local{Dir: t.TempDir(), Args: []string{"sleep", "300"}}
	if err := l.Out(t.Context(), 2, []string{"local-1"}, ""); err != nil {
		t.Fatal(err)
	}
	// Another instance, which only has the files, ends them.
	other := &Local{Dir: l.Dir}
	for _, name := range []string{"local-2", "local-3"} {
		if _, _, err := other.process(name); err != nil {
			t.Fatal(err)
		}
		if err := other.In(t.Context(), name, ""); err != nil {
			t.Fatal(err)
		}
	}
	until(t, "both have ended", func() bool { l.reap(); return len(l.started) == 0 })
	if err := other.In(t.Context(), "local-2", ""); err == nil {
		t.Error("one that is gone was ended")
	}
}

func TestPolicyIsChecked(t *testing.T) {
	for _, bad := range []Policy{{Min: 5, Max: 3}, {OutAbove: 10, InBelow: 10}, {Step: -1}, {OutEvery: -1}} {
		if bad.Validate() == nil {
			t.Errorf("%+v is taken", bad)
		}
	}
	if _, err := New(Config{}); err == nil {
		t.Error("a scaler of nothing")
	}
}
