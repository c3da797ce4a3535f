package report

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"encoding/xml"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/mailbell/mailbell/bench"
)

// sample is a comparison with two sides, an outage and a sweep.
func sample() Comparison {
	figures := func(cpu float64) bench.CompareFigures {
		return bench.CompareFigures{Seconds: 10, Changes: 50, Requests: 100, RequestsPerSecond: 10, CPUSeconds: cpu, BytesIn: 1000, BytesOut: 3000, NotModifiedShare: 0.6,
			LatencyMs: bench.LatencyMs{P50: 5000 * cpu, P90: 9000 * cpu, P99: 9900 * cpu, Max: 10000 * cpu}, PerUserHour: bench.PerUserHour{CPUSeconds: cpu * 3.6}}
	}
	ms := func(v float64) *float64 { return &v }
	side := func(cpu float64) bench.CompareSide {
		return bench.CompareSide{CompareFigures: figures(cpu), LatencyCDF: [][2]float64{{1, 0}, {100 * cpu, 0.5}, {1000 * cpu, 1}},
			Timeline: []bench.TimelinePoint{{Seconds: 1, Requests: 10, Cores: cpu, Stage: "measured"}, {Seconds: 2, Stage: "outage"}, {Seconds: 3, Requests: 20, Cores: cpu, Stage: "recovery"}},
			Outage:   &bench.CompareOutage{Seconds: 1, EveryoneBackMs: ms(700), CaughtUpMs: ms(900), WatchedSeconds: 12}}
	}
	r := bench.CompareResult{
		Settings: bench.CompareSettings{Users: 100, PollIntervalMs: 10000, ChangesPerHour: 180, Store: "memory</script>", Mailboxes: 5, OutageSeconds: 1},
		Poll:     side(1), Push: side(0.5), Ratio: bench.CompareRatio{CPU: 2, Bytes: 0.5, LatencyP50: 2}, Crossing: &bench.Crossing{},
		Sweep: []bench.SweepPoint{{IntervalSeconds: 2, Poll: figures(4)}, {IntervalSeconds: 60, Poll: figures(0.2)}},
		Units: bench.CompareUnits{Poll304Us: 50, Poll200Us: 90, EventUs: 200, Mailboxes: 5},
	}
	bare := figures(0.2)
	r.Push.WithoutFetch = &bare
	return Of(bench.NewReport("compare", []string{"--users", "100"}), r)
}

var loads = regexp.MustCompile(`(?i)<(?:script|link|img|iframe)[^>]*\s(?:src|href)=|@import|url\(\s*['"]?http`)

func TestHTML(t *testing.T) {
	var page bytes.Buffer
	if err := HTML(&page, sample(), sample()); err != nil {
		t.Fatal(err)
	}
	text := page.String()
	for _, part := range []string{"2 × less", "CPU of the servers, by push", "bytes on the clients&#39; sockets, by polling", "--users 100", `id="chart-sweep"`, `id="chart-stores"`, "<svg"} {
		if !strings.Contains(text, part) {
			t.Errorf("the page lacks %q", part)
		}
	}
	own := strings.ReplaceAll(text, string(must(assets.ReadFile("assets/echarts.min.js"))), "")
	if found := loads.FindString(own); found != "" {
		t.Errorf("the page loads something: %s", found)
	}
	if strings.Contains(own, "memory</script>") {
		t.Error("a setting ends a script")
	}
	if err := HTML(io.Discard); err == nil {
		t.Error("nothing is drawn without an error")
	}
}

func must(b []byte, err error) []byte {
	if err != nil {
		panic(err)
	}
	return b
}

func TestFixed(t *testing.T) {
	for want, v := range map[string]float64{"0.00": 0, "999.00": 999, "1,000.50": 1000.5, "-1,234,567.00": -1234567, "-123.00": -123} {
		if got := fixed(v, 2); got != want {
			t.Errorf("%v is %q, want %q", v, got, want)
		}
	}
}

func TestSVG(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "slides")
	if err := SVG(dir, sample()); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"load", "cpu", "latency", "cpu-per-user", "bytes-per-user", "sweep"} {
		b, err := os.ReadFile(filepath.Join(dir, name+".svg"))
		if err != nil {
			t.Error(err)
			continue
		}
		if err := xml.Unmarshal(b, new(struct{ XMLName xml.Name })); err != nil || bytes.Contains(b, []byte("NaN")) {
			t.Errorf("%s.svg: %v", name, err)
		}
	}
}

func TestRead(t *testing.T) {
	b, err := json.Marshal(sample())
	if err != nil {
		t.Fatal(err)
	}
	c, err := Read(bytes.NewReader(b))
	if err != nil || c.Result.Push.WithoutFetch.CPUSeconds != 0.2 || c.Args[1] != "100" {
		t.Errorf("read %+v, %v", c, err)
	}
	if _, err := Read(strings.NewReader(`{"bench":"hold"}`)); err == nil {
		t.Error("another bench's report is taken")
	}
}

// The library is the one that assets/README.md names.
func TestLibrary(t *testing.T) {
	sum := sha256.Sum256(must(assets.ReadFile("assets/echarts.min.js")))
	if !bytes.Contains(must(assets.ReadFile("assets/README.md")), []byte(hex.EncodeToString(sum[:]))) {
		t.Errorf("assets/README.md does not have the sum %x", sum)
	}
}
