// Package bench measures mailbell: the pipeline end to end, what idle connections cost, what polling
// costs, and what is left when things break. Each bench starts the real program as
// processes of its own, drives it from other processes, and prints one report.
//
// Every bench is bounded in count and time, talks only to this machine's loopback or to network namespaces of its own, and
// ends all it started when its context ends.
package bench

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"runtime"
	"strconv"
	"strings"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
	"github.com/mailbell/mailbell/internal/ops"
	"golang.org/x/sys/unix"
)

// Report is what a bench prints: what ran where, and its result.
type Report struct {
	Bench     string    `json:"bench"`
	Args      []string  `json:"args"`
	Machine   Machine   `json:"machine"`
	Commit    string    `json:"commit"`
	StartedAt time.Time `json:"startedAt"`
	Result    any       `json:"result"`
}

// Machine names what a figure was measured on.
type Machine struct {
	CPUs        int    `json:"cpus"`
	CPU         string `json:"cpu"`
	MemoryBytes int64  `json:"memoryBytes"`
	Kernel      string `json:"kernel"`
	Go          string `json:"go"`
}

// NewReport begins a report: now, here, by this binary.
func NewReport(name string, args []string) Report {
	if args == nil {
		args = []string{}
	}
	return Report{Bench: name, Args: args, Machine: thisMachine(), Commit: ops.BuildInfo("").Commit, StartedAt: time.Now().UTC().Truncate(time.Second)}
}

// WriteJSON prints the report as one JSON object on one line.
func (r Report) WriteJSON(w io.Writer) error { return json.NewEncoder(w).Encode(r) }

func thisMachine() Machine {
	m := Machine{CPUs: runtime.NumCPU(), CPU: cpuModel(), Go: runtime.Version()}
	var uts unix.Utsname
	if unix.Uname(&uts) == nil {
		m.Kernel = unix.ByteSliceToString(uts.Release[:])
	}
	var info unix.Sysinfo_t
	if unix.Sysinfo(&info) == nil {
		m.MemoryBytes = int64(info.Totalram) * int64(info.Unit)
	}
	return m
}

func cpuModel() string {
	b, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return ""
	}
	for line := range strings.Lines(string(b)) {
		if key, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(key) == "model name" {
			return strings.TrimSpace(value)
		}
	}
	return ""
}

// LatencyMs is a latency's distribution in milliseconds.
type LatencyMs struct {
	P50 float64 `json:"p50"`
	P90 float64 `json:"p90"`
	P99 float64 `json:"p99"`
	Max float64 `json:"max"`
}

// latencyMs reads a histogram of microseconds.
func latencyMs(h *hdrhistogram.Histogram) LatencyMs {
	ms := func(us int64) float64 {
		rounded, _ := strconv.ParseFloat(strconv.FormatFloat(float64(us)/1000, 'f', 3, 64), 64)
		return rounded
	}
	return LatencyMs{P50: ms(h.ValueAtQuantile(50)), P90: ms(h.ValueAtQuantile(90)), P99: ms(h.ValueAtQuantile(99)), Max: ms(h.Max())}
}

func (l LatencyMs) String() string {
	return fmt.Sprintf("p50 %.2f ms, p90 %.2f ms, p99 %.2f ms, max %.2f ms", l.P50, l.P90, l.P99, l.Max)
}
