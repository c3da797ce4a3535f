package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/mailbell/mailbell/bench"
	"github.com/mailbell/mailbell/bench/report"
)

// compare runs a small comparison as processes. The result is also returned as it was printed.
func compare(t *testing.T, args ...string) (report.Comparison, []byte) {
	t.Helper()
	var complaints bytes.Buffer
	ctx, cancel := context.WithTimeout(t.Context(), 5*patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, mailbellBinary(t), append([]string{"bench", "compare", "--quiet", "1s", "--json"}, args...)...)
	cmd.Stderr = &complaints
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("bench compare: %v\n%s", err, &complaints)
	}
	c, err := report.Read(bytes.NewReader(out))
	if err != nil {
		t.Fatal(err)
	}
	return c, out
}

// TestCompare checks what every comparison promises: the same changes, nothing lost, honest sums.
func TestCompare(t *testing.T) {
	tests := []struct {
		name  string
		args  []string
		check func(*testing.T, bench.CompareResult)
	}{
		{"memory", []string{"--users", "60", "--poll-interval", "1s", "--duration", "3s", "--outage", "1s"}, checkShare},
		{"sqlite", []string{"--users", "60", "--poll-interval", "1s", "--duration", "3s", "--outage", "-1s", "--store", "sqlite", "--mailboxes", "100", "--keep-alive", "200ms"}, checkKeepAlive},
		{"dovecot", []string{"--users", "20", "--poll-interval", "1s", "--outage", "1s", "--store", "dovecot", "--sweep", "500ms,1500ms", "--burst", "3", "--diurnal", "--duration", "1s"}, checkDovecot},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			html := filepath.Join(t.TempDir(), "r.html")
			c, printed := compare(t, append(tt.args, "--report", html)...)
			checkKeys(t, printed)
			checkSides(t, c.Result)
			tt.check(t, c.Result)
			if info, err := os.Stat(html); err != nil || info.Size() < 1<<20 {
				t.Errorf("the report: %v", err)
			}
		})
	}
}

// checkKeys looks for the keys that the design fixes.
func checkKeys(t *testing.T, printed []byte) {
	t.Helper()
	var all map[string]any
	if err := json.Unmarshal(printed, &all); err != nil {
		t.Fatal(err)
	}
	figures := []string{"requests", "events", "notModifiedShare", "cpuSeconds", "bytesIn", "bytesOut", "residentBytes", "kernelBytes", "storeReads", "latencyMs"}
	for path, keys := range map[string][]string{
		"": {"bench", "args", "machine", "commit", "startedAt", "result"}, "machine": {"cpus", "memoryBytes", "kernel", "go"}, "result": {"settings", "poll", "push", "ratio"},
		"result.poll": figures, "result.push": figures, "result.ratio": {"cpu", "bytes"}, "result.poll.latencyMs": {"p50", "p90", "p99", "max"},
	} {
		at := all
		for step := range strings.SplitSeq(path, ".") {
			if step != "" {
				at, _ = at[step].(map[string]any)
			}
		}
		for _, key := range keys {
			if _, ok := at[key]; !ok {
				t.Errorf("what is printed lacks %s.%s", path, key)
			}
		}
	}
}

// checkSides checks what does not depend on the store.
func checkSides(t *testing.T, r bench.CompareResult) {
	t.Helper()
	poll, push, users := r.Poll, r.Push, r.Settings.Users
	switch {
	// A change at the end of the stretch that is measured may fall to either side of it.
	case poll.Changes == 0 || math.Abs(float64(poll.Changes-push.Changes)) > 5:
		t.Errorf("%d changes polled, %d pushed: want the same but for the edges", poll.Changes, push.Changes)
	case push.Unknown+poll.Unknown > 0:
		t.Errorf("lost: polling %d, pushing %d", poll.Unknown, push.Unknown)
	case math.Abs(float64(push.Events-push.Changes)) > 5 || push.Requests == 0 || push.WithoutFetch.Requests != 0:
		t.Errorf("%d events of %d changes, %d fetches", push.Events, push.Changes, push.Requests)
	case poll.LatencyMs.P50 < push.LatencyMs.P50:
		t.Errorf("latencies: polling %v, pushing %v", poll.LatencyMs, push.LatencyMs)
	case poll.BytesIn == 0 || poll.BytesOut == 0 || push.BytesIn == 0 || push.BytesOut < push.WithoutFetch.BytesOut:
		t.Errorf("bytes: polling %d, %d, pushing %d, %d", poll.BytesIn, poll.BytesOut, push.BytesIn, push.BytesOut)
	case poll.Sockets != users || poll.KernelBytes < int64(users)*2000 || poll.ResidentBytes < 1<<20:
		t.Errorf("%d sockets of %d bytes, %d resident", poll.Sockets, poll.KernelBytes, poll.ResidentBytes)
	case poll.StoreReads < int64(poll.Requests-users/10) || // the clients' counts and the store's are taken one after the other
		poll.Failed > 0 || poll.Connects > 0:
		t.Errorf("%d store reads in %d polls, of which %d failed; %d connections", poll.StoreReads, poll.Requests, poll.Failed, poll.Connects)
	}
	u := r.Units
	for name, v := range map[string]float64{
		"poll304Us": u.Poll304Us, "poll200Us": u.Poll200Us, "poll304Bytes": u.Poll304Bytes, "poll200Bytes": u.Poll200Bytes, "eventUs": u.EventUs, "fetchUs": u.FetchUs,
		"eventBytes": u.EventBytes, "fetchBytes": u.FetchBytes, "fetchesPerEvent": u.FetchesPerEvent, "poll304Reads": u.Poll304Reads, "fetchReads": u.FetchReads,
		"CPU of the polling side": poll.CPUSeconds, "CPU of the pushing side": push.CPUSeconds, "CPU of mailbell": push.WithoutFetch.CPUSeconds, "ratio of CPU": r.Ratio.CPU,
	} {
		if v <= 0 {
			t.Errorf("%s is %v", name, v)
		}
	}
	for name, s := range map[string]bench.CompareSide{"polling": poll, "pushing": push} {
		checkTimeline(t, name, s)
	}
}

func checkTimeline(t *testing.T, name string, s bench.CompareSide) {
	t.Helper()
	stages, last, stage := make(map[string]int), math.Inf(-1), ""
	for _, p := range s.Timeline {
		stages[p.Stage]++
		if p.Stage != stage { // a look that comes late may end after the next stage's beginning
			last, stage = math.Inf(-1), p.Stage
		}
		if p.Seconds < last || p.Cores > 4*float64(runtime.NumCPU()) {
			t.Errorf("%s: %v cores at %v s, after %v s", name, p.Cores, p.Seconds, last)
		}
		last = p.Seconds
	}
	if stages["measured"] < 4 || s.Outage != nil && stages["recovery"] == 0 {
		t.Errorf("%s: the timeline has %v", name, stages)
	}
	if o := s.Outage; o != nil && (o.EveryoneBackMs == nil || o.CaughtUpMs == nil || o.Lost > 0 || o.CPUSeconds <= 0 || o.Changes == 0) {
		t.Errorf("%s: the outage: %+v", name, o)
	}
}

// checkShare looks for the share of 304 that is the default.
func checkShare(t *testing.T, r bench.CompareResult) {
	t.Helper()
	if share := r.Poll.NotModifiedShare; share < 0.4 || share > 0.8 {
		t.Errorf("%v of the polls were answered by 304, want about 0.6", share)
	}
	if r.Push.Connects > 5 {
		t.Errorf("fetches opened %d connections", r.Push.Connects)
	}
}

// checkKeepAlive: the pushing side's connections end when they are idle, a poll's never (see checkSides).
func checkKeepAlive(t *testing.T, r bench.CompareResult) {
	t.Helper()
	if r.Push.Connects == 0 || r.Push.WithoutFetch.Connects != 0 {
		t.Errorf("fetches opened %d connections, %d without them", r.Push.Connects, r.Push.WithoutFetch.Connects)
	}
	if r.Settings.Mailboxes != 100 || r.Units.Poll200Bytes < 100*50 {
		t.Errorf("an answer with %d mailboxes has %v bytes", r.Settings.Mailboxes, r.Units.Poll200Bytes)
	}
}

func checkDovecot(t *testing.T, r bench.CompareResult) {
	t.Helper()
	for name, s := range map[string]bench.CompareSide{"polling": r.Poll, "pushing": r.Push} {
		if s.DeliveryCPUMs <= 0 || s.CPUByProcess["dovecot"] <= 0 || s.Quiet.CPUByProcess["dovecot"] < 0 {
			t.Errorf("%s: a delivery costs %v ms; CPU %v", name, s.DeliveryCPUMs, s.CPUByProcess)
		}
	}
	if r.Poll.Quiet.CPUByProcess["dovecot"] <= 0 || r.Units.ReadsPerMailbox != 1 {
		t.Errorf("the quiet stretch cost Dovecot %v s; units %+v", r.Poll.Quiet.CPUByProcess, r.Units)
	}
	if len(r.Sweep) != 2 {
		t.Fatalf("%d points", len(r.Sweep))
	}
	for _, p := range r.Sweep {
		rate := float64(r.Settings.Users) / p.IntervalSeconds
		if p.Poll.Changes < r.Poll.Changes-5 || p.Poll.Changes > r.Poll.Changes+5 || p.Poll.Seconds < 3 || p.Poll.CPUSeconds <= 0 || p.Poll.OtherCores == nil ||
			math.Abs(p.Poll.RequestsPerSecond-rate) > 0.3*rate {
			t.Errorf("every %v s: %s", p.IntervalSeconds, fmt.Sprintf("%+v", p.Poll))
		}
	}
}
