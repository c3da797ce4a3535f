package main

import (
	"context"
	"os"
	"regexp"
	"slices"
	"sort"
	"strings"
	"testing"

	"github.com/mailbell/mailbell/internal/ops"
	"github.com/prometheus/client_golang/prometheus"
)

// A metric's row in docs/metrics.md begins with its name in backquotes.
var metricRow = regexp.MustCompile("(?m)^\\| `(mailbell_\\w+)` \\|")

// TestMetricsAreDocumented compares docs/metrics.md with what a node registers,
// every part in one process: those that have had no value yet as well.
func TestMetricsAreDocumented(t *testing.T) {
	page, err := os.ReadFile("../../docs/metrics.md")
	if err != nil {
		t.Fatal(err)
	}
	var documented []string
	for _, m := range metricRow.FindAllStringSubmatch(string(page), -1) {
		documented = append(documented, m[1])
	}
	registered := registeredMetrics(t)
	for _, name := range registered {
		if !slices.Contains(documented, name) {
			t.Errorf("%s is not in docs/metrics.md", name)
		}
	}
	for _, name := range documented {
		if !slices.Contains(registered, name) {
			t.Errorf("docs/metrics.md has %s, which no part registers", name)
		}
	}

	// What is exported is what is registered.
	s := startSite(t, "--dovecot")
	for line := range strings.Lines(fetch(t, "http://"+s.port+"/metrics")) {
		if name, ok := strings.CutPrefix(line, "# TYPE mailbell_"); ok {
			name, _, _ = strings.Cut("mailbell_"+name, " ")
			if !slices.Contains(documented, name) {
				t.Errorf("the node exports %s, which is not in docs/metrics.md", name)
			}
		}
	}
}

// registeredMetrics runs all parts until they are ready, and lists what they register.
func registeredMetrics(t *testing.T) []string {
	t.Helper()
	f := runFlags{http: "127.0.0.1:0", link: "127.0.0.1:0", ops: "127.0.0.1:0", data: t.TempDir(), demo: true}
	f.sockets.sockets = "127.0.0.1:0"
	f.dovecot.enabled = true
	f.kafka.topic, f.kafka.partitions = "mail-events", 4
	logger, err := ops.NewLogger(t.Output(), "text", nil)
	if err != nil {
		t.Fatal(err)
	}
	recorder := &recordingRegisterer{names: map[string]bool{}}
	e := &everything{flags: &f, logger: logger, watchMetrics: recorder.wrap}
	defer func() { e.opened.close() }()
	if err := e.open(t.Context()); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	if err := e.run(ctx, stop); err != nil {
		t.Fatal(err)
	}
	if _, err := (&autoscaleFlags{on: true}).scaler(e.node, e.log, "", "b1", logger, recorder.wrap(prometheus.NewRegistry())); err != nil {
		t.Fatal(err)
	}
	names := make([]string, 0, len(recorder.names))
	for name := range recorder.names {
		names = append(names, name)
	}
	names = append(names, "mailbell_build_info") // registered by ops itself
	sort.Strings(names)
	return names
}

// recordingRegisterer notes the names of the metrics that pass through it.
type recordingRegisterer struct {
	prometheus.Registerer
	names map[string]bool
}

func (r *recordingRegisterer) wrap(inner prometheus.Registerer) prometheus.Registerer {
	r.Registerer = inner
	return r
}

var descName = regexp.MustCompile(`fqName: "([^"]+)"`)

func (r *recordingRegisterer) note(c prometheus.Collector) {
	descs := make(chan *prometheus.Desc)
	go func() {
		c.Describe(descs)
		close(descs)
	}()
	for desc := range descs {
		if m := descName.FindStringSubmatch(desc.String()); m != nil {
			r.names[m[1]] = true
		}
	}
}

func (r *recordingRegisterer) Register(c prometheus.Collector) error {
	r.note(c)
	return r.Registerer.Register(c)
}

func (r *recordingRegisterer) MustRegister(cs ...prometheus.Collector) {
	for _, c := range cs {
		r.note(c)
	}
	r.Registerer.MustRegister(cs...)
}
