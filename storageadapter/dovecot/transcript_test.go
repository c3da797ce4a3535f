package dovecot

import (
	"bufio"
	"bytes"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
	"time"
)

// TestTranscripts feeds what Dovecot 2.3.19.1 really sent (testdata/*.log) to the agent and
// compares what it accepts with testdata/*.events. Run with -update to write those anew.
//
// lua.log was recorded with a script that passes everything on as Dovecot has it, the most
// verbose report there can be; short.log has what mailbell.lua makes of such transactions.
func TestTranscripts(t *testing.T) {
	for _, name := range []string{"lua", "ox", "short", "odd"} {
		t.Run(name, func(t *testing.T) {
			recording, err := os.ReadFile("testdata/" + name + ".log")
			if err != nil {
				t.Fatal(err)
			}
			got := replay(t, recording)
			path := "testdata/" + name + ".events"
			if *update {
				if err := os.WriteFile(path, got, 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got, want) {
				t.Errorf("%s differs, run with -update and look at what changed. Got:\n%s", path, got)
			}
		})
	}
}

// replay sends each request of a recording, and writes under each heading what came of it.
func replay(t *testing.T, recording []byte) []byte {
	n := 0
	a := newAgent(t, Config{
		now:   func() time.Time { return time.Date(2026, 11, 21, 5, 17, 58, 0, time.UTC) },
		newID: func() string { n++; return fmt.Sprint(n) },
	})
	var out bytes.Buffer
	scanner := bufio.NewScanner(bytes.NewReader(recording))
	scanner.Buffer(nil, 1<<20)
	var method string
	path := EventsPath
	for scanner.Scan() {
		line := scanner.Text()
		switch {
		case strings.HasPrefix(line, "#####"):
			fmt.Fprintln(&out, line)
		case strings.HasPrefix(line, "POST "):
			method, path = http.MethodPost, EventsPath
		case strings.HasPrefix(line, "PUT "):
			method, path = http.MethodPut, strings.TrimPrefix(line, "PUT ")
		case strings.HasPrefix(line, "{"):
			replayOne(t, a, &out, method, path, line)
		}
	}
	if err := scanner.Err(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func replayOne(t *testing.T, a *Agent, out *bytes.Buffer, method, path, body string) {
	t.Helper()
	before, _ := a.Spooled()
	r := httptest.NewRequest(method, path, strings.NewReader(body))
	r.RemoteAddr = "127.0.0.1:1"
	r.Header.Set("Content-Type", "application/json")
	w := httptest.NewRecorder()
	a.ServeHTTP(w, r)
	if w.Code != http.StatusAccepted {
		fmt.Fprintf(out, "%d %s", w.Code, w.Body)
		return
	}
	after, _ := a.Spooled()
	if after == before {
		fmt.Fprintln(out, "(nothing)")
		return
	}
	recs, err := a.spool.Next(t.Context(), after, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range recs {
		fmt.Fprintf(out, "%s\n", r.Value)
	}
	a.spool.Done(len(recs))
}
