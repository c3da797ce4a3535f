package roundcube

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestValidate(t *testing.T) {
	for _, good := range []Config{{}, {Users: 500, Interval: time.Second, Span: time.Hour, Squeeze: 50}} {
		if err := good.Validate(); err != nil {
			t.Errorf("%+v: %v", good, err)
		}
	}
	for _, bad := range []Config{
		{Users: -1}, {Users: 501}, {Interval: time.Millisecond}, {Interval: 2 * time.Hour}, {ChangeRate: -1}, {ChangeRate: 1001},
		{Span: time.Second}, {Squeeze: 0.5}, {Span: time.Minute, Squeeze: 60}, {Messages: 1001}, {SessionLifetime: time.Minute}, {Squeeze: 51},
	} {
		if bad.Validate() == nil {
			t.Errorf("%+v is valid", bad)
		}
	}
}

func TestTreeCPU(t *testing.T) {
	first, err := treeCPU(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	// Work until the clock of /proc has seen it.
	deadline := time.Now().Add(time.Minute)
	for now := first; now <= first; {
		if time.Now().After(deadline) {
			t.Fatalf("still %v s", now)
		}
		for i := range 10_000_000 {
			_ = i * i
		}
		if now, err = treeCPU(os.Getpid()); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := treeCPU(1 << 30); err == nil {
		t.Error("a process that is not there has CPU time")
	}
}

// TestPoll runs the side that needs no mailbell, for a minute of users' time.
func TestPoll(t *testing.T) {
	cfg := Config{Users: 2, Messages: 3, Interval: 10 * time.Second, ChangeRate: 300, Span: time.Minute, Squeeze: 10}.withDefaults()
	s, err := startSide(t.Context(), cfg, false)
	if err != nil {
		t.Fatal(err)
	}
	defer s.stop()
	var r Result
	if err := s.measure(t.Context(), &r); err != nil {
		t.Fatal(err)
	}
	if busy := r.Busy.Poll; busy.Failed > 0 || busy.Changes == 0 || busy.Unseen == busy.Changes || busy.RequestsByAction["refresh"] < 6 {
		t.Errorf("busy = %+v", busy)
	}
	if idle := r.Idle.Poll; idle.Failed > 0 || idle.Changes > 0 || idle.RequestsByAction["refresh"] < 6 {
		t.Errorf("idle = %+v", idle)
	}
}

// TestCompare runs both sides, and reads what is printed.
func TestCompare(t *testing.T) {
	binary := filepath.Join(t.TempDir(), "mailbell")
	if out, err := exec.Command("go", "build", "-o", binary, "../../cmd/mailbell").CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	r, err := Compare(t.Context(), Config{Users: 2, PushUsers: 3, IdlePushUsers: 4, Messages: 3, ChangeRate: 60, Span: 10 * time.Minute, Binary: binary})
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Broken(); err != nil {
		t.Error(err)
	}
	if push := r.Busy.Push; push.Changes == 0 || push.RequestsByAction["check-recent"] == 0 || push.RequestsByAction["refresh"] > 3 || push.SocketBytesOut == 0 {
		t.Errorf("busy push = %+v", push)
	}
	// Who gets half elsewhere asks for what is in the open folder, and for nothing else.
	if push := r.Mixed.Push; push.Elsewhere == 0 || push.Changes == 0 || push.RequestsByAction["check-recent"] > push.Changes {
		t.Errorf("mixed push = %+v", push)
	}
	// Twelve pings for each of four sockets, of two bytes, and their pongs, of six.
	if idle := r.Idle.Push; idle.RequestsByAction["check-recent"] > 0 || idle.SocketBytesOut < 4*2*5 || idle.SocketBytesIn < 4*6*5 {
		t.Errorf("idle push = %+v", idle)
	}
	printed, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	for _, key := range []string{
		"settings.store", "settings.pushUsers", "settings.idlePushUsers", "busy.poll.cpuSeconds", "busy.push.cpuSecondsByProcess.mailbell", "busy.push.socketBytesIn", "busy.push.socketBytesOut", "busy.ratio.cpu", "mixed.push.elsewhere", "mixed.ratio.cpu",
		"idle.poll.requests", "idle.push.secondsToKnowMean", "idle.ratio.bytes", "mailbellIdleCores", "deliveryCpuMs", "keepAliveCpuMs",
		"sites.2.idleRatio", "lifetimes.0.seconds", "lifetimes.1.idleCpuRatio",
	} {
		if !has(t, printed, strings.Split(key, ".")) {
			t.Errorf("the JSON has no %s", key)
		}
	}
}

func has(t *testing.T, text []byte, path []string) bool {
	t.Helper()
	var value any
	if err := json.Unmarshal(text, &value); err != nil {
		t.Fatal(err)
	}
	for _, key := range path {
		switch v := value.(type) {
		case map[string]any:
			value = v[key]
		case []any:
			i, err := strconv.Atoi(key)
			if err != nil || i >= len(v) {
				return false
			}
			value = v[i]
		default:
			return false
		}
	}
	return value != nil
}

// Ratios are for a user, however many of them either side has.
func TestPairConcludes(t *testing.T) {
	var p Pair
	p.Poll = Figures{CPUMsPerUserHour: 900, Requests: 60, BytesIn: 3000, BytesOut: 3000}
	p.Push = Figures{CPUMsPerUserHour: 100, Requests: 15, BytesIn: 1000, SocketBytesOut: 2000}
	p.conclude(2, 5)
	if p.Ratio.CPU != 9 || p.Ratio.Requests != 10 || p.Ratio.Bytes != 5 {
		t.Errorf("ratios %+v", p.Ratio)
	}
}

func TestLifetime(t *testing.T) {
	r := Result{Settings: Settings{SessionLifetimeSeconds: 3600}, KeepAliveCPUMs: 3}
	r.Busy.Poll.CPUMsPerUserHour, r.Busy.Push.CPUMsPerUserHour = 1000, 80
	r.Idle.Poll.CPUMsPerUserHour, r.Idle.Push.CPUMsPerUserHour = 1000, 20
	if got, want := r.lifetime(time.Hour), (Lifetime{Seconds: 3600, Busy: 12.5, Idle: 50}); got != want {
		t.Errorf("an hour: %+v, want %+v", got, want)
	}
	// Eight keep-alives an hour in place of one and a third: 20 ms more.
	if got, want := r.lifetime(10*time.Minute), (Lifetime{Seconds: 600, Busy: 10, Idle: 25}); got != want {
		t.Errorf("ten minutes: %+v, want %+v", got, want)
	}
}
