package ops

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"runtime/debug"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// running starts a server that ends with the test.
func running(t *testing.T, cfg Config) *Server {
	t.Helper()
	cfg.Addr = "127.0.0.1:0"
	s, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	return s
}

func get(t *testing.T, s *Server, path string) (int, string) {
	t.Helper()
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Get("http://" + s.Addr() + path)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(b)
}

func TestPaths(t *testing.T) {
	s := running(t, Config{Version: "v1.2.3"})
	mine := prometheus.NewCounter(prometheus.CounterOpts{Name: "mailbell_test_total", Help: "A test's."})
	s.Registry().MustRegister(mine)
	mine.Inc()
	s.Handle("GET /console/", http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "console") }))
	for _, tc := range []struct {
		path   string
		status int
		parts  []string
	}{
		{"/healthz", 200, []string{"ok\n"}},
		{"/readyz", 200, []string{"ready\n"}},
		{"/metrics", 200, []string{"mailbell_test_total 1\n", `mailbell_build_info{commit="`, `version="v1.2.3"`, "go_goroutines", "process_resident_memory_bytes"}},
		{"/debug/pprof/", 200, []string{"goroutine"}},
		{"/debug/pprof/goroutine?debug=1", 200, []string{"goroutine profile"}},
		{"/debug/pprof/cmdline", 200, []string{"ops.test"}},
		{"/console/", 200, []string{"console"}},
		{"/nothing", 404, nil},
	} {
		status, body := get(t, s, tc.path)
		if status != tc.status {
			t.Errorf("%s: %d", tc.path, status)
		}
		for _, part := range tc.parts {
			if !strings.Contains(body, part) {
				t.Errorf("%s: no %q in %.200q", tc.path, part, body)
			}
		}
	}
}

// TestBuildInfo: what the go command stamped wins, since it knows whether the tree had changes.
func TestBuildInfo(t *testing.T) {
	stamped := func(revision, modified string) *debug.BuildInfo {
		return &debug.BuildInfo{Settings: []debug.BuildSetting{{Key: "vcs.revision", Value: revision}, {Key: "vcs.modified", Value: modified}}}
	}
	for _, tc := range []struct {
		info         *debug.BuildInfo
		linked, want string
	}{
		{stamped("aaaa", "false"), "bbbb", "aaaa"},
		{stamped("aaaa", "true"), "bbbb", "aaaa-dirty"},
		{&debug.BuildInfo{}, "bbbb", "bbbb"},
		{&debug.BuildInfo{}, "", "unknown"},
	} {
		if got := buildOf(tc.info, "", tc.linked); got.Commit != tc.want || got.Version != "devel" {
			t.Errorf("%v, linked %q: %+v, want commit %q", tc.info.Settings, tc.linked, got, tc.want)
		}
	}
}

func TestReadyNamesWhatFails(t *testing.T) {
	s := running(t, Config{CheckTimeout: 50 * time.Millisecond})
	var broken atomic.Bool
	s.Ready("kafka", func(context.Context) error {
		if broken.Load() {
			return errors.New("no broker answers:\nconnection refused")
		}
		return nil
	})
	s.Ready("link", func(context.Context) error { return nil })
	if status, body := get(t, s, "/readyz"); status != 200 || body != "ok      kafka\nok      link\nready\n" {
		t.Errorf("%d %q", status, body)
	}
	broken.Store(true)
	if status, body := get(t, s, "/readyz"); status != 503 || body != "failing kafka: no broker answers: connection refused\nok      link\nnot ready\n" {
		t.Errorf("%d %q", status, body)
	}
	s.Ready("kafka", func(context.Context) error { return errors.New("replaced") })
	if status, body := get(t, s, "/readyz"); status != 503 || !strings.HasPrefix(body, "failing kafka: replaced\nok      link\n") {
		t.Errorf("%d %q", status, body)
	}
}

// TestReadyRunsACheckOnce has a hung check asked by many: it runs once, and each asker
// is answered in time.
func TestReadyRunsACheckOnce(t *testing.T) {
	s := running(t, Config{CheckTimeout: 20 * time.Millisecond})
	release := make(chan struct{})
	var runs atomic.Int32
	s.Ready("hung", func(context.Context) error {
		runs.Add(1)
		<-release
		return nil
	})
	s.Ready("fine", func(context.Context) error { return nil })
	var all sync.WaitGroup
	for range 20 {
		all.Go(func() {
			if status, body := get(t, s, "/readyz"); status != 503 || body != "failing hung: no answer within 20ms\nok      fine\nnot ready\n" {
				t.Errorf("%d %q", status, body)
			}
		})
	}
	all.Wait()
	if n := runs.Load(); n != 1 {
		t.Errorf("the check ran %d times at once", n)
	}
	close(release)
	for {
		if status, _ := get(t, s, "/readyz"); status == 200 {
			break
		}
	}
}

func TestRunEndsWithItsContext(t *testing.T) {
	s, err := New(Config{Addr: "127.0.0.1:0"})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := s.Run(ctx); err != nil {
		t.Error(err)
	}
	if _, err := net.Dial("tcp", s.Addr()); err == nil {
		t.Error("the port is still open")
	}
}

func TestNewSaysWhatIsWrong(t *testing.T) {
	s, err := New(Config{Addr: "127.0.0.1:0"})
	if err != nil {
		t.Fatal(err)
	}
	for addr, problem := range map[string]string{
		s.Addr():    "choose another address with --ops",
		"localhost": "want host:port, such as 127.0.0.1:7489",
	} {
		if _, err := New(Config{Addr: addr}); err == nil || !strings.Contains(err.Error(), problem) {
			t.Errorf("%s: %v", addr, err)
		}
	}
	if err := errors.Join(s.Close(), s.Close()); err != nil {
		t.Error(err)
	}
	if (Config{CheckTimeout: -1}).Validate() == nil {
		t.Error("a negative timeout is accepted")
	}
}

func TestLogger(t *testing.T) {
	for format, want := range map[string]string{
		"":     `level=INFO msg=hello n=1`,
		"text": `level=INFO msg=hello n=1`,
		"json": `"level":"INFO","msg":"hello","n":1}`,
	} {
		var b bytes.Buffer
		log, err := NewLogger(&b, format, nil)
		if err != nil {
			t.Fatal(err)
		}
		log.Debug("hidden")
		log.Info("hello", "n", 1)
		if !strings.Contains(b.String(), want) || strings.Contains(b.String(), "hidden") {
			t.Errorf("%q: %s", format, &b)
		}
	}
	if _, err := NewLogger(io.Discard, "xml", nil); err == nil || err.Error() != `log format "xml": want text or json` {
		t.Errorf("got %v", err)
	}
	for text, want := range map[string]slog.Level{"": slog.LevelInfo, "debug": slog.LevelDebug, "WARN": slog.LevelWarn, "error": slog.LevelError} {
		if got, err := ParseLevel(text); got != want || err != nil {
			t.Errorf("%q: %v, %v", text, got, err)
		}
	}
	if _, err := ParseLevel("loud"); err == nil {
		t.Error("a level that does not exist")
	}
}

// manager listens as systemd does.
func manager(t *testing.T) *net.UnixConn {
	t.Helper()
	path := filepath.Join(t.TempDir(), "notify")
	c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	t.Setenv("NOTIFY_SOCKET", path)
	return c
}

func hear(t *testing.T, c *net.UnixConn) string {
	t.Helper()
	var b [256]byte
	_ = c.SetReadDeadline(time.Now().Add(10 * time.Second))
	n, err := c.Read(b[:])
	if err != nil {
		t.Fatal(err)
	}
	return string(b[:n])
}

func TestNotify(t *testing.T) {
	if err := errors.Join(NotifyReady(), NotifyStopping(), NotifyStatus("x")); err != nil {
		t.Errorf("without systemd: %v", err)
	}
	c := manager(t)
	for _, tc := range []struct {
		call func() error
		want string
	}{
		{NotifyReady, "READY=1"},
		{NotifyStopping, "STOPPING=1"},
		{func() error { return NotifyStatus("12 connections\nX=1") }, "STATUS=12 connections X=1"},
	} {
		if err := tc.call(); err != nil {
			t.Fatal(err)
		}
		if got := hear(t, c); got != tc.want {
			t.Errorf("systemd hears %q, want %q", got, tc.want)
		}
	}
	t.Setenv("NOTIFY_SOCKET", "/no/such/socket")
	if err := NotifyReady(); err == nil {
		t.Error("a missing socket is no error")
	}
}

func TestWatchdog(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	var ended sync.WaitGroup
	watch := func(healthy func(context.Context) error) {
		ended.Go(func() {
			if err := Watchdog(ctx, healthy); err != nil {
				t.Error(err)
			}
		})
	}
	t.Setenv("WATCHDOG_USEC", "")
	soon, over := context.WithTimeout(ctx, time.Millisecond)
	defer over()
	if err := Watchdog(soon, nil); err != nil || soon.Err() == nil {
		t.Errorf("without a watchdog: %v; it must wait for its ctx", err)
	}
	c := manager(t)
	t.Setenv("WATCHDOG_USEC", "20000")
	var sick atomic.Bool
	asked := make(chan struct{}, 100)
	watch(func(context.Context) error {
		select {
		case asked <- struct{}{}:
		default:
		}
		if sick.Load() {
			return errors.New("sick")
		}
		return nil
	})
	for range 3 {
		if got := hear(t, c); got != "WATCHDOG=1" {
			t.Errorf("systemd hears %q", got)
		}
	}
	sick.Store(true)
	for len(asked) > 0 {
		<-asked
	}
	<-asked // asked after it fell sick; what was sent before may still be there
	<-asked
	var b [64]byte
	for err := error(nil); err == nil; {
		_ = c.SetReadDeadline(time.Now().Add(5 * time.Millisecond))
		_, err = c.Read(b[:])
	}
	<-asked
	_ = c.SetReadDeadline(time.Now().Add(30 * time.Millisecond))
	if n, err := c.Read(b[:]); err == nil {
		t.Errorf("a sick process says %q", b[:n])
	}
	cancel()
	ended.Wait()
	t.Setenv("WATCHDOG_USEC", "soon")
	if err := Watchdog(t.Context(), nil); err == nil {
		t.Error("a broken WATCHDOG_USEC is no error")
	}
}

func TestSharedPort(t *testing.T) {
	first, err := New(Config{Addr: "127.0.0.1:0", Share: true})
	if err != nil {
		t.Fatal(err)
	}
	defer first.Close()
	if _, err := New(Config{Addr: first.Addr()}); err == nil {
		t.Error("a process that does not share got the address too")
	}
	second, err := New(Config{Addr: first.Addr(), Share: true})
	if err != nil {
		t.Fatal(err)
	}
	if err := second.Close(); err != nil {
		t.Error(err)
	}
}
