package main

import (
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/mailbell/mailbell/schema"
	"go.yaml.in/yaml/v3"
)

// query is an expression of a dashboard or a rule.
type query struct {
	where, expr string
	panel       bool // has to show something
}

// rareValues are values of labels that a quiet site of one process does not export: metric, label, value. What else a dashboard or an alert
// asks for, it has to have.
var rareValues = []string{
	"mailbell_notifier_catch_ups_total kind " + string(schema.Current),
	"mailbell_notifier_catch_ups_total kind " + string(schema.Replay),
	"mailbell_notifier_catch_ups_total kind " + string(schema.Resync),
}

var (
	metricName  = regexp.MustCompile(`\b(mailbell|process|go)_[a-z_]+`)
	ourSuffixes = regexp.MustCompile(`_(bucket|sum|count)$`)
)

// TestDashboards runs what dashboards and alerts ask on a Prometheus that scrapes a running mailbell: each metric exists, each
// expression is understood, and the panels of what there is always show something.
func TestDashboards(t *testing.T) {
	queries := append(dashboardQueries(t), ruleQueries(t)...)
	if len(queries) < 30 {
		t.Fatalf("only %d queries found", len(queries))
	}
	s := startSite(t, "--dovecot")
	exported, values := make(map[string]bool), make(map[string]bool)
	for line := range strings.Lines(fetch(t, "http://"+s.port+"/metrics")) {
		name, _, _ := strings.Cut(line, " ")
		name, _, _ = strings.Cut(name, "{")
		exported[name] = true
		for _, v := range labelValues(line) {
			values[v] = true
		}
	}
	registered := registeredMetrics(t)
	prometheus := startPrometheus(t, s.port)
	for _, q := range queries {
		filled := true
		for _, name := range metricName.FindAllString(q.expr, -1) {
			filled = filled && exported[name]
			if base := ourSuffixes.ReplaceAllString(name, ""); strings.HasPrefix(name, "mailbell_") && !slices.Contains(registered, name) && !slices.Contains(registered, base) {
				t.Errorf("%s: no part registers %s", q.where, name)
			}
		}
		n, err := ask(prometheus, q.expr)
		switch {
		case err != nil:
			t.Errorf("%s: %s: %v", q.where, q.expr, err)
		case n == 0 && q.panel && filled:
			t.Errorf("%s: %s shows nothing", q.where, q.expr)
		}
		for _, want := range labelValues(q.expr) {
			if !values[want] && !slices.Contains(rareValues, want) {
				t.Errorf("%s asks for %s, which the site does not export", q.where, want)
			}
		}
	}
}

var (
	selector = regexp.MustCompile(`(mailbell_[a-z_]+)\{([^}]*)\}`)
	matcher  = regexp.MustCompile(`([a-z_]+)(=~|!~|!=|=)"([^"]*)"`)
)

// labelValues returns what an expression, or a line of metrics, asks of mailbell's labels, each as "metric label value".
func labelValues(text string) (all []string) {
	for _, s := range selector.FindAllStringSubmatch(text, -1) {
		for _, m := range matcher.FindAllStringSubmatch(s[2], -1) {
			for value := range strings.SplitSeq(m[3], "|") {
				all = append(all, s[1]+" "+m[1]+" "+value)
			}
		}
	}
	return all
}

func dashboardQueries(t *testing.T) []query {
	t.Helper()
	files, err := filepath.Glob("../../deploy/grafana/*.json")
	if err != nil || len(files) == 0 {
		t.Fatalf("no dashboards: %v", err)
	}
	var all []query
	for _, file := range files {
		var d struct {
			Panels []struct {
				Title   string
				Targets []struct{ Expr string }
			}
		}
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(b, &d); err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		for _, p := range d.Panels {
			for _, target := range p.Targets {
				all = append(all, query{where: filepath.Base(file) + ", " + p.Title, expr: strings.ReplaceAll(target.Expr, "$__rate_interval", "5s"), panel: true})
			}
		}
	}
	return all
}

func ruleQueries(t *testing.T) []query {
	t.Helper()
	var rules struct {
		Groups []struct {
			Rules []struct {
				Alert, Expr string
				Annotations map[string]string
			}
		}
	}
	b, err := os.ReadFile("../../deploy/prometheus/mailbell.rules.yml")
	if err != nil {
		t.Fatal(err)
	}
	if err := yaml.Unmarshal(b, &rules); err != nil {
		t.Fatal(err)
	}
	var all []query
	for _, g := range rules.Groups {
		for _, r := range g.Rules {
			all = append(all, query{where: r.Alert, expr: r.Expr})
			if r.Annotations["runbook"] == "" || r.Annotations["summary"] == "" {
				t.Errorf("%s has no summary or no runbook line", r.Alert)
			}
		}
	}
	return all
}

// startPrometheus runs one that scrapes a target every 200 ms, and returns its address once it has a few samples.
func startPrometheus(t *testing.T, target string) string {
	t.Helper()
	dir := t.TempDir()
	config := filepath.Join(dir, "prometheus.yml")
	text := fmt.Sprintf("global: {scrape_interval: 200ms, scrape_timeout: 200ms}\nscrape_configs: [{job_name: mailbell, static_configs: [{targets: [%q]}]}]\n", target)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0") // Prometheus does not tell which port it got
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	l.Close()
	out := newLines()
	cmd := exec.Command("prometheus", "--config.file="+config, "--storage.tsdb.path="+filepath.Join(dir, "data"), "--web.listen-address="+addr)
	cmd.Stderr, cmd.Stdout = out, out
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatalf("start Prometheus (Debian's package prometheus; make deps installs it): %v", err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Signal(os.Interrupt)
		_ = cmd.Wait()
	})
	deadline := time.Now().Add(patience)
	for {
		if n, err := ask(addr, `count_over_time(up{job="mailbell"}[1m]) >= 5 and up == 1`); err == nil && n > 0 {
			return addr
		}
		if time.Now().After(deadline) {
			t.Fatalf("Prometheus has scraped nothing:\n%s", out)
		}
		time.Sleep(100 * time.Millisecond) // between two questions
	}
}

// ask evaluates an expression and returns how many series it has.
func ask(addr, expr string) (series int, err error) {
	client := http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Get("http://" + addr + "/api/v1/query?query=" + url.QueryEscape(expr))
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	var answer struct {
		Status, Error string
		Data          struct{ Result []json.RawMessage }
	}
	if err := json.NewDecoder(resp.Body).Decode(&answer); err != nil {
		return 0, err
	}
	if answer.Status != "success" {
		return 0, fmt.Errorf("%s", answer.Error)
	}
	return len(answer.Data.Result), nil
}

// TestRules has promtool check the configuration and run the rules' own tests.
func TestRules(t *testing.T) {
	for _, args := range [][]string{{"check", "config", "prometheus.yml"}, {"test", "rules", "mailbell.rules_test.yml"}} {
		cmd := exec.Command("promtool", args...)
		cmd.Dir = "../../deploy/prometheus"
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("promtool %s: %v\n%s", strings.Join(args, " "), err, out)
		}
	}
}

// Every alert has a case in which it fires: an expression that can never be true looks like a quiet night.
func TestEveryAlertFires(t *testing.T) {
	var tests struct {
		Tests []struct {
			Cases []struct {
				Alert    string `yaml:"alertname"`
				Expected []any  `yaml:"exp_alerts"`
			} `yaml:"alert_rule_test"`
		}
	}
	b, err := os.ReadFile("../../deploy/prometheus/mailbell.rules_test.yml")
	if err != nil {
		t.Fatal(err)
	}
	if err := yaml.Unmarshal(b, &tests); err != nil {
		t.Fatal(err)
	}
	fires, silent := make(map[string]bool), make(map[string]bool)
	for _, group := range tests.Tests {
		for _, c := range group.Cases {
			if len(c.Expected) > 0 {
				fires[c.Alert] = true
			} else {
				silent[c.Alert] = true
			}
		}
	}
	for _, q := range ruleQueries(t) {
		if !fires[q.where] || !silent[q.where] {
			t.Errorf("%s: a case in which it fires: %v; one in which it does not: %v", q.where, fires[q.where], silent[q.where])
		}
	}
}
