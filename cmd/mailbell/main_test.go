package main

import (
	"encoding/json"
	"os"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
	"go.uber.org/goleak"
)

// TestMain lets the scripts below testdata/script call this very binary as mailbell.
func TestMain(m *testing.M) {
	testscript.Main(leakChecked{m}, map[string]func(){"mailbell": main})
}

// leakChecked fails the tests when one of them leaves a goroutine behind.
type leakChecked struct{ m *testing.M }

func (l leakChecked) Run() int {
	code := l.m.Run()
	if code == 0 {
		if err := goleak.Find(); err != nil {
			os.Stderr.WriteString(err.Error() + "\n")
			return 1
		}
	}
	return code
}

func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{Dir: "testdata/script", RequireExplicitExec: true})
}

// TestScriptsWithRun has a `mailbell run` at $SERVER, with its keys in $DATA.
func TestScriptsWithRun(t *testing.T) {
	s := startSite(t)
	testscript.Run(t, testscript.Params{
		Dir: "testdata/running", RequireExplicitExec: true,
		Setup: func(env *testscript.Env) error {
			env.Setenv("SERVER", s.server)
			env.Setenv("DATA", s.data)
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			// position FILE sets $POSITION to that of publish's JSON.
			"position": func(ts *testscript.TestScript, _ bool, args []string) {
				var line struct{ Position string }
				ts.Check(json.Unmarshal([]byte(ts.ReadFile(args[0])), &line))
				ts.Setenv("POSITION", line.Position)
			},
			// token FILE sets $TOKEN to what is in the file.
			"token": func(ts *testscript.TestScript, _ bool, args []string) {
				ts.Setenv("TOKEN", strings.TrimSpace(ts.ReadFile(args[0])))
			},
		},
	})
}
