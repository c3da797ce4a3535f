package bench

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// build makes mailbell, with build tags.
func build(t *testing.T, tags string) (binary string) {
	t.Helper()
	binary = filepath.Join(t.TempDir(), "mailbell")
	if out, err := exec.Command("go", "build", "-tags", tags, "-o", binary, "../cmd/mailbell").CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	return binary
}

// bench runs a bench to its end and reads its result.
func runBench(t *testing.T, binary string, result any, args ...string) (code int) {
	t.Helper()
	cmd := exec.Command(binary, append([]string{"bench"}, args...)...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	exit, failed := errors.AsType[*exec.ExitError](err)
	if err != nil && !failed {
		t.Fatal(err)
	}
	report := Report{Result: result}
	if err := json.Unmarshal(stdout.Bytes(), &report); err != nil {
		t.Fatalf("the report is %q: %v\n%s", stdout.String(), err, stderr.String())
	}
	if failed {
		t.Logf("exit code %d: %s", exit.ExitCode(), stderr.String())
		return exit.ExitCode()
	}
	return 0
}

// TestChaos is the short one of `make chaos`: two minutes of faults, always the same.
func TestChaos(t *testing.T) {
	if testing.Short() {
		t.Skip("needs Apache Kafka and minutes")
	}
	t.Parallel()
	var r ChaosResult
	code := runBench(t, build(t, ""), &r, "chaos", "--minutes", "2", "--seed", "1", "--clients", "900", "--rate", "60", "--json")
	t.Logf("%d faults %v, acknowledged %d, delivered %d, told %d, duplicates %d, longest silence %d ms, skipped %v",
		r.Injected, r.Faults, r.Acknowledged, r.Delivered, r.Told, r.Duplicates, r.LongestSilenceMs, r.Skipped)
	if code != 0 || r.Lost != 0 || r.Misordered != 0 {
		t.Errorf("exit code %d: lost %d, misordered %d, not back %d, crashes %q, examples %q", code, r.Lost, r.Misordered, r.NotBack, r.Crashes, r.Examples)
	}
	if r.StandIns != 0 {
		t.Errorf("%d partitions are stood in for though their owners are well", r.StandIns)
	}
	if len(r.Skipped) > 0 && os.Geteuid() == 0 {
		t.Errorf("skipped %v: root may try every kind of fault", r.Skipped)
	}
	if r.Injected < 15 || r.Acknowledged < 5000 {
		t.Errorf("%d faults and %d events prove nothing", r.Injected, r.Acknowledged)
	}
}

// TestLedgerCanFail drops one event in a thousand inside the bus: the ledger has to find them.
func TestLedgerCanFail(t *testing.T) {
	if testing.Short() {
		t.Skip("builds mailbell")
	}
	t.Parallel()
	binary := build(t, "mailbell_lossy")
	var r PipelineResult
	code := runBench(t, binary, &r, "pipeline", "--rate", "1000", "--duration", "8s", "--subscribers", "16", "--json")
	if code != 1 || r.Lost == 0 || r.Lost > r.Acknowledged/200 {
		t.Errorf("exit code %d, %d lost of %d: one in a thousand was dropped", code, r.Lost, r.Acknowledged)
	}
	if r.Misordered != 0 {
		t.Errorf("%d out of order: none was", r.Misordered)
	}
	// The same of the books that chaos keeps, in which nothing else goes wrong.
	var c ChaosResult
	code = runBench(t, binary, &c, "chaos", "--minutes", "0.25", "--every", "10m", "--clients", "300", "--rate", "1000", "--json")
	if code != 1 || c.Lost == 0 || c.Lost > c.Delivered/200 || c.NotOnLog != 0 {
		t.Errorf("chaos: exit code %d, %d lost, %d delivered, %d not on the log: one in a thousand was dropped", code, c.Lost, c.Delivered, c.NotOnLog)
	}
	if c.Misordered != 0 || c.NotBack != 0 || c.StandIns != 0 || len(c.Crashes) != 0 {
		t.Errorf("chaos: misordered %d, not back %d, stand-ins %d, crashes %q: there were no faults", c.Misordered, c.NotBack, c.StandIns, c.Crashes)
	}
}
