package ops

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"
)

// readiness answers /readyz.
type readiness struct {
	// Static after construction.
	timeout time.Duration
	ctx     context.Context // of the checks; ends with stop
	cancel  context.CancelFunc
	running sync.WaitGroup

	mu sync.Mutex
	// Guarded by mu.
	checks  []*check
	stopped bool
}

// check is one named condition. A run that outlasts the time allowed keeps its
// place: who asks meanwhile waits for the same run.
type check struct {
	// Static after construction.
	name string
	fn   func(context.Context) error

	// Guarded by readiness.mu.
	run *checkRun // nil when not running
}

type checkRun struct {
	done chan struct{}
	err  error // valid once done is closed
}

func newReadiness(timeout time.Duration) *readiness {
	ctx, cancel := context.WithCancel(context.Background())
	return &readiness{timeout: timeout, ctx: ctx, cancel: cancel}
}

func (r *readiness) add(name string, fn func(context.Context) error) {
	c := &check{name: name, fn: fn}
	r.mu.Lock()
	defer r.mu.Unlock()
	if i := slices.IndexFunc(r.checks, func(c *check) bool { return c.name == name }); i >= 0 {
		r.checks[i] = c
		return
	}
	r.checks = append(r.checks, c)
}

// stop ends what runs and waits for it.
func (r *readiness) stop() {
	r.mu.Lock()
	r.stopped = true
	r.mu.Unlock()
	r.cancel()
	r.running.Wait()
}

type verdict struct {
	name string
	err  error
}

// ask runs every check that is not running already and waits for all of them,
// as long as the timeout allows.
func (r *readiness) ask() []verdict {
	r.mu.Lock()
	if r.stopped {
		r.mu.Unlock()
		return []verdict{{name: "process", err: errors.New("stopping")}}
	}
	out := make([]verdict, len(r.checks))
	runs := make([]*checkRun, len(r.checks))
	for i, c := range r.checks {
		out[i].name = c.name
		if c.run == nil {
			c.run = &checkRun{done: make(chan struct{})}
			r.running.Add(1)
			go r.execute(c, c.run)
		}
		runs[i] = c.run
	}
	r.mu.Unlock()

	deadline := time.NewTimer(r.timeout)
	defer deadline.Stop()
	late := false
	for i, run := range runs {
		if !late {
			select {
			case <-run.done:
			case <-deadline.C:
				late = true
			}
		}
		select {
		case <-run.done:
			out[i].err = run.err
		default:
			out[i].err = fmt.Errorf("no answer within %v", r.timeout)
		}
	}
	return out
}

func (r *readiness) execute(c *check, run *checkRun) {
	defer r.running.Done()
	ctx, cancel := context.WithTimeout(r.ctx, r.timeout)
	defer cancel()
	run.err = c.fn(ctx)
	r.mu.Lock()
	c.run = nil
	r.mu.Unlock()
	close(run.done)
}

func (r *readiness) ServeHTTP(w http.ResponseWriter, _ *http.Request) {
	status, body := http.StatusOK, &strings.Builder{}
	for _, v := range r.ask() {
		if v.err == nil {
			fmt.Fprintf(body, "ok      %s\n", v.name)
			continue
		}
		status = http.StatusServiceUnavailable
		fmt.Fprintf(body, "failing %s: %s\n", v.name, oneLine(v.err.Error()))
	}
	if status == http.StatusOK {
		body.WriteString("ready\n")
	} else {
		body.WriteString("not ready\n")
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	_, _ = w.Write([]byte(body.String()))
}

func oneLine(s string) string { return strings.Join(strings.Fields(s), " ") }
