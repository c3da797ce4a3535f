package main

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// patience is how long a test waits for what should happen at once.
const patience = 60 * time.Second

// lines collects what a command writes, and lets a test wait for a line of it.
type lines struct {
	mu      sync.Mutex
	text    bytes.Buffer  // guarded by mu
	changed chan struct{} // guarded by mu; closed and replaced on each write
}

func newLines() *lines { return &lines{changed: make(chan struct{})} }

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.text.Write(p)
	close(l.changed)
	l.changed = make(chan struct{})
	return len(p), nil
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// wait blocks until a whole line has part in it, and returns the line. The test fails when done is closed first.
func (l *lines) wait(t *testing.T, done <-chan struct{}, part string) string {
	t.Helper()
	deadline := time.After(patience)
	for {
		l.mu.Lock()
		text, changed := l.text.String(), l.changed
		l.mu.Unlock()
		for line := range strings.Lines(text) {
			if strings.HasSuffix(line, "\n") && strings.Contains(line, part) {
				return strings.TrimSuffix(line, "\n")
			}
		}
		select {
		case <-changed:
		case <-done:
			if l.String() == text {
				t.Fatalf("the command ended before it wrote a line with %q:\n%s", part, text)
			}
		case <-deadline:
			t.Fatalf("no line with %q in:\n%s", part, text)
		}
	}
}

// command is a command line that runs in this process.
type command struct {
	out, err *lines
	stop     context.CancelFunc
	done     chan struct{}
	code     int // valid after done
}

// start runs a command line until it ends by itself or the test does.
func start(t *testing.T, stdin io.Reader, args ...string) *command {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	c := &command{out: newLines(), err: newLines(), stop: cancel, done: make(chan struct{})}
	go func() {
		defer close(c.done)
		c.code = execute(ctx, terminal{in: stdin, out: c.out, err: c.err}, args)
	}()
	t.Cleanup(func() {
		cancel()
		<-c.done
		if t.Failed() {
			t.Logf("mailbell %s: exit %d\n%s%s", strings.Join(args, " "), c.code, c.out, c.err)
		}
	})
	return c
}

// wait blocks until a whole line of l has part in it, and returns the line.
func (c *command) wait(t *testing.T, l *lines, part string) string {
	t.Helper()
	return l.wait(t, c.done, part)
}

// end waits for the exit code.
func (c *command) end(t *testing.T) int {
	t.Helper()
	select {
	case <-c.done:
		return c.code
	case <-time.After(patience):
		t.Fatalf("the command goes on:\n%s%s", c.out, c.err)
		return 0
	}
}

// logged waits for a log line (of --log-format json) and returns its attributes.
func (c *command) logged(t *testing.T, message string) map[string]any {
	t.Helper()
	attrs := map[string]any{}
	line := c.wait(t, c.err, `"msg":"`+message+`"`)
	if err := json.Unmarshal([]byte(line), &attrs); err != nil {
		t.Fatalf("log line %q: %v", line, err)
	}
	return attrs
}

// site is a `mailbell run` in this process.
type site struct {
	*command
	data                        string
	server, sockets, link, port string // link and port (of ops) are host:port
}

// startSite starts one and waits until its gateway has somebody to hand out.
func startSite(t *testing.T, args ...string) *site {
	t.Helper()
	s := launchSite(t, args...)
	s.logged(t, "a notifier's public address works")
	return s
}

// launchSite starts one and waits until it says that it is ready.
func launchSite(t *testing.T, args ...string) *site {
	t.Helper()
	s := &site{data: filepath.Join(t.TempDir(), "data")}
	s.command = start(t, strings.NewReader(""), append([]string{"run", "--log-format", "json", "--data", s.data,
		"--http", "127.0.0.1:0", "--sockets", "127.0.0.1:0", "--link", "127.0.0.1:0", "--ops", "127.0.0.1:0", "--partitions", "4"}, args...)...)
	attrs := s.logged(t, "ready")
	s.server = "http://" + attrs["http"].(string)
	s.sockets = attrs["sockets"].(string)
	s.link = attrs["link"].(string)
	s.port = attrs["ops"].(string)
	return s
}

// serviceToken is the plain token that run made.
func (s *site) serviceToken(t *testing.T) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(s.data, "keys", "service-token"))
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(b))
}
