package docs

import (
	"encoding/json"
	"os"
	"path/filepath"
	"testing"
)

// report is what a bench printed, as far as every one has it.
type report struct {
	Bench   string
	Args    []string
	Commit  string
	Machine struct{ CPUs int }
	Result  json.RawMessage
}

func read(t *testing.T, path string) report {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var r report
	if err := json.Unmarshal(b, &r); err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	return r
}

// TestReportsSayWhereTheyComeFrom: a figure without its command, commit and machine is a claim.
func TestReportsSayWhereTheyComeFrom(t *testing.T) {
	var all []string
	for _, pattern := range []string{"*.json", "*/*.json"} {
		found, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, found...)
	}
	if len(all) < 5 {
		t.Fatalf("only %d reports: %v", len(all), all)
	}
	for _, path := range all {
		if r := read(t, path); r.Bench == "" || len(r.Args) == 0 || len(r.Commit) < 10 || r.Machine.CPUs == 0 {
			t.Errorf("%s: bench %q, args %q, commit %q, %d CPUs", path, r.Bench, r.Args, r.Commit, r.Machine.CPUs)
		}
	}
}

// TestChaosWasLongAndLostNothing: the report of the long run must be one.
func TestChaosWasLongAndLostNothing(t *testing.T) {
	var r struct {
		Minutes                                  float64
		Injected                                 int
		Network                                  string
		Skipped                                  []string
		Acknowledged, Lost, Misordered, NotOnLog int
		NotBack, StandIns                        int
	}
	if err := json.Unmarshal(read(t, "chaos.json").Result, &r); err != nil {
		t.Fatal(err)
	}
	if r.Minutes < 30 || r.Injected < 300 || r.Network != "namespaces" || len(r.Skipped) > 0 || r.Acknowledged == 0 {
		t.Errorf("not the long run: %+v", r)
	}
	if r.Lost != 0 || r.Misordered != 0 || r.NotOnLog != 0 || r.NotBack != 0 || r.StandIns != 0 {
		t.Errorf("a promise was broken: %+v", r)
	}
}
