package main

import (
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// benchReport runs a bench as a process, since its children are this binary too, and returns its result. They are tiny:
// what is shown here is that each bench works and prints its keys, not how fast anything is.
func benchReport(t *testing.T, args ...string) map[string]any {
	t.Helper()
	t.Parallel() // they wait more than they work
	ctx, cancel := context.WithTimeout(context.Background(), 5*patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, mailbellBinary(t), append(append([]string{"bench"}, args...), "--json")...)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if _, exited := err.(*exec.ExitError); err != nil && !exited {
		t.Fatal(err)
	}
	var report struct {
		Bench     string
		Machine   struct{ CPUs int }
		Commit    string
		StartedAt string
		Result    map[string]any
	}
	if jsonErr := json.Unmarshal(out, &report); jsonErr != nil {
		t.Fatalf("mailbell bench %s: %v, %v:\n%s%s", strings.Join(args, " "), err, jsonErr, out, stderr.String())
	}
	if report.Bench != args[0] || report.Machine.CPUs == 0 || report.Commit == "" || report.StartedAt == "" {
		t.Errorf("the report of bench %s is %+v", args[0], report)
	}
	return report.Result
}

func wantKeys(t *testing.T, in map[string]any, keys ...string) {
	t.Helper()
	for _, k := range keys {
		if in[k] == nil {
			t.Errorf("%q is missing in %v", k, in)
		}
	}
}

func wantLatencies(t *testing.T, in map[string]any) {
	t.Helper()
	l, _ := in["latencyMs"].(map[string]any)
	wantKeys(t, l, "p50", "p90", "p99", "max")
}

var holdKeys = []string{"connections", "notifiers", "userBytesPerConnection", "kernelBytesPerSocket", "totalMemoryBytes", "connectsPerSecond",
	"idleCores", "eventsExpected", "eventsReceived", "lost", "latencyMs"}

func TestBenchHold(t *testing.T) {
	r := benchReport(t, "hold", "--connections", "60", "--nodes", "2", "--rate", "100", "--duration", "1s", "--quiet", "1s")
	wantKeys(t, r, holdKeys...)
	wantLatencies(t, r)
	if r["connections"] != 60.0 || r["notifiers"] != 2.0 || r["lost"] != 0.0 || r["eventsReceived"] != 100.0 || r["eventsExpected"] != 100.0 {
		t.Errorf("hold found %v", r)
	}
}

// Clients whose TCP is the bench's own, on a device that only root may make.
func TestBenchHoldPackets(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root, to make the device")
	}
	r := benchReport(t, "hold", "--connections", "60", "--nodes", "2", "--rate", "100", "--duration", "1s", "--quiet", "1s", "--clients", "packets")
	wantKeys(t, r, holdKeys...)
	if r["connections"] != 60.0 || r["lost"] != 0.0 || r["eventsReceived"] != 100.0 {
		t.Errorf("hold found %v", r)
	}
}

func TestBenchHoldTickets(t *testing.T) {
	r := benchReport(t, "hold", "--connections", "40", "--nodes", "1", "--rate", "50", "--duration", "1s", "--quiet", "1s", "--tickets")
	if r["connections"] != 40.0 || r["lost"] != 0.0 || r["eventsReceived"] != 50.0 {
		t.Errorf("hold found %v", r)
	}
}

func TestBenchPipeline(t *testing.T) {
	profiles := t.TempDir()
	r := benchReport(t, "pipeline", "--rate", "100", "--duration", "1s", "--subscribers", "50", "--profile", profiles)
	wantKeys(t, r, "offered", "acknowledged", "delivered", "lost", "duplicates", "perSecond", "latencyMs")
	wantLatencies(t, r)
	if r["lost"] != 0.0 || r["acknowledged"] == 0.0 || r["acknowledged"] != r["offered"] || r["delivered"] != r["acknowledged"] {
		t.Errorf("pipeline found %v", r)
	}
	if info, err := os.Stat(filepath.Join(profiles, "run.pprof")); err != nil || info.Size() == 0 {
		t.Errorf("the server's profile: %v", err)
	}
}

func TestBenchPush(t *testing.T) {
	r := benchReport(t, "push", "--sockets", "50", "--rounds", "1", "--round", "50ms")
	wantKeys(t, r, "sockets", "notifierPerSecond", "bareSendPerSecond", "ratio")
	if r["sockets"] != 50.0 {
		t.Errorf("push found %v", r)
	}
}

func TestBenchUpgrade(t *testing.T) {
	r := benchReport(t, "upgrade", "--rounds", "1", "--round", "10ms")
	wantKeys(t, r, "ours", "netHTTP", "ratio")
	for _, who := range []string{"ours", "netHTTP"} {
		cost, _ := r[who].(map[string]any)
		wantKeys(t, cost, "nsPerOp", "allocsPerOp", "bytesPerOp")
	}
}

func TestBenchLadder(t *testing.T) {
	svg := filepath.Join(t.TempDir(), "ladder.svg")
	r := benchReport(t, "ladder", "--connections", "40", "--svg", svg)
	rungs, _ := r["rungs"].([]any)
	if len(rungs) != 5 {
		t.Fatalf("ladder has the rungs %v", r["rungs"])
	}
	for _, rung := range rungs {
		wantKeys(t, rung.(map[string]any), "name", "connections", "bytesPerConnection", "bytesAt3Million")
	}
	if b, err := os.ReadFile(svg); err != nil || !strings.HasPrefix(string(b), "<svg") {
		t.Errorf("the chart is %.40q, %v", b, err)
	}
}

// Latency under a test's other load proves nothing, so `ok` may be false here; nobody may be disconnected or lose
// an event all the same, each attack takes place, and whoever else comes gets in.
func TestBenchAbuse(t *testing.T) {
	names := "halfLine,longHeader,hugeFrame,badUTF8,pingFlood,subscribeFlood,neverClose,deaf,resetInHandshake,perAddress,perAccount,unknownKeys,files,stampede"
	r := benchReport(t, "abuse", "--honest", "50", "--rate", "50", "--duration", "500ms", "--scale", "0.02", "--attacks", names)
	attacks, _ := r["attacks"].([]any)
	if len(attacks) != 1+strings.Count(names, ",") {
		t.Fatalf("abuse tried %v", r["attacks"])
	}
	for _, a := range attacks {
		m := a.(map[string]any)
		wantKeys(t, m, "name", "attempts", "baselineP99Ms", "honestP99Ms", "honestDisconnected", "honestLost", "ok")
		if m["honestDisconnected"] != 0.0 || m["honestLost"] != 0.0 || m["attempts"] == 0.0 || m["effect"] == 0.0 || m["problem"] != nil {
			t.Errorf("%v", m)
		}
	}
}

// What is wrong is said before anything starts.
func TestBenchRefuses(t *testing.T) {
	for _, tt := range []struct{ args, want string }{
		{"hold --connections -1", "--connections must be from 1"},
		{"hold --clients ghosts", "--clients must be sockets or packets"},
		{"hold --connections 50000 --nodes 1 --quiet 1s", "open files per process"},
		{"push --sockets 100000", "--sockets must be from 1"},
		{"abuse --attacks rudeness", "no attack is named"},
		{"ladder --connections 100000", "--connections must be from 1"},
	} {
		c := start(t, strings.NewReader(""), append([]string{"bench"}, strings.Fields(tt.args)...)...)
		if code := c.end(t); code == 0 || !strings.Contains(c.err.String(), tt.want) {
			t.Errorf("bench %s: exit %d, %q; want %q", tt.args, code, c.err, tt.want)
		}
	}
}

// The storm with few: nothing is lost, whoever joins gets its share.
func TestBenchStorm(t *testing.T) {
	r := benchReport(t, "storm", "--connections", "1200", "--notifiers", "3", "--accept-rate", "400")
	wantKeys(t, r, "connections", "recoveredMs", "returned", "expectedMs", "peakAcceptsPerSecond", "peakCores", "gatewayAnswers", "lost", "withoutAdmission", "join", "rollingRestart")
	wantLatencies(t, r)
	without, _ := r["withoutAdmission"].(map[string]any)
	if r["connections"] != 1200.0 || r["lost"] != 0.0 || without["lost"] != 0.0 || r["misordered"] != 0.0 {
		t.Errorf("storm found %v", r)
	}
	join, _ := r["join"].(map[string]any)
	if off, ok := join["offTheMean"].(float64); !ok || off < -0.1 || off > 0.1 {
		t.Errorf("the one that joined: %v", join)
	}
}

func TestBenchPlacement(t *testing.T) {
	r := benchReport(t, "placement", "--nodes", "20", "--connections", "40000", "--policies", "room,hash-account")
	wantKeys(t, r, "nodes", "connections", "policies")
	policies, _ := r["policies"].([]any)
	if len(policies) != 2 {
		t.Fatalf("placement found %v", r)
	}
	for _, p := range policies {
		p, _ := p.(map[string]any)
		wantKeys(t, p, "name", "imbalance", "moved", "secondsToEven")
		// Two join 20; the larger of the machines have four times the share of the smaller.
		if moved, _ := p["moved"].(float64); moved <= 0 || moved > 40_000/5 {
			t.Errorf("%v moved %v", p["name"], moved)
		}
	}
}
