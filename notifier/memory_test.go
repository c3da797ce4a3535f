package notifier

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/mailbell/mailbell/internal/auth"
	"golang.org/x/sys/unix"
)

// nodeProcess is what the test's own binary does as a process of its own: it is a notifier, and nothing else, until its
// input ends. So its memory is a notifier's.
func nodeProcess(bus, keyFile string) error {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	keys, err := auth.OpenKeys(ctx, auth.KeysConfig{Source: keyFile})
	if err != nil {
		return err
	}
	defer keys.Close()
	s, err := New(Config{NodeID: "n1", Addr: "127.0.0.1:0", Bus: []string{bus}, Keys: keys, Logger: quiet(), Shards: 2, Takeover: os.Getenv("MAILBELL_TEST_TAKEOVER")})
	if err != nil {
		return err
	}
	if n, err := strconv.ParseUint(os.Getenv("MAILBELL_TEST_FILES"), 10, 64); err == nil {
		if err := limitFiles(n); err != nil {
			return err
		}
	}
	s.hub.calm.after, s.hub.calm.every = 1, 1 // the test need not wait for a minute
	debug.SetGCPercent(25)                    // as a process that is nothing but a notifier should
	fmt.Println(s.Addr())
	go func() {
		io.Copy(io.Discard, os.Stdin)
		cancel()
	}()
	if err := s.Run(ctx); err != nil && !errors.Is(err, ErrTakenOver) {
		return err
	}
	return nil
}

// node is a notifier in a process of its own.
type node struct {
	t    *testing.T
	pid  int
	port int
	keys *keyring

	ended chan struct{}
	exit  error // valid after ended
}

func startNode(t *testing.T, bus *fakeBus) *node {
	t.Helper()
	n := spawnNode(t, bus, newKeyring(t))
	eventually(t, "the node is linked", func() bool {
		bus.mu.Lock()
		defer bus.mu.Unlock()
		return len(bus.links) == 1
	})
	return n
}

func spawnNode(t *testing.T, bus *fakeBus, keys *keyring, env ...string) *node {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "MAILBELL_TEST_BUS="+bus.addr, "MAILBELL_TEST_KEYS="+keys.file)
	cmd.Env = append(cmd.Env, env...)
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	n := &node{t: t, pid: cmd.Process.Pid, keys: keys, ended: make(chan struct{})}
	go func() {
		defer close(n.ended)
		n.exit = cmd.Wait()
	}()
	t.Cleanup(func() {
		in.Close()
		if <-n.ended; n.exit != nil {
			t.Error(n.exit)
		}
	})
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	_, port, _ := strings.Cut(strings.TrimSpace(line), ":")
	if n.port, err = strconv.Atoi(port); err != nil {
		t.Fatal(err)
	}
	return n
}

// Anonymous memory per idle connection, authenticated and subscribed, everything counted: the process's after less
// before. MAILBELL_MEMORY=15000 is what the goal is stated for.
func TestMemoryPerConnection(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector's own memory would be measured")
	}
	n := 3000
	if v := os.Getenv("MAILBELL_MEMORY"); v != "" {
		n, _ = strconv.Atoi(v)
	}
	if openFiles() < n+500 {
		t.Skipf("%d connections, and %d open files are allowed", n, openFiles())
	}
	bus := newFakeBus(t, "b1", 8)
	p := startNode(t, bus)
	let := func(fds []int) {
		for _, fd := range fds {
			unix.Close(fd)
		}
	}
	let(p.hold("warm", 300))
	eventually(t, "the first ones are gone", func() bool { return bus.wanted() == 0 })
	before := p.settled()
	fds := p.hold("user", n)
	defer let(fds)
	after := p.settled()
	per := float64(after-before) / float64(n)
	t.Logf("%d connections: %.0f bytes each (%d KiB before, %d KiB after)", n, per, before>>10, after>>10)
	if n >= 15000 && per > 300 {
		t.Errorf("%.0f bytes per connection, want 300 at most", per)
	}
}

// hold opens n connections, each subscribed to an account of its own.
func (p *node) hold(prefix string, n int) []int {
	p.t.Helper()
	fds := make([]int, 0, n)
	buf := make([]byte, 1024)
	for i := range n {
		account := fmt.Sprintf("%s%05d@example.com", prefix, i)
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			p.t.Fatal(err)
		}
		fds = append(fds, fd)
		if err := unix.Connect(fd, &unix.SockaddrInet4{Port: p.port, Addr: [4]byte{127, 0, 0, 1}}); err != nil {
			p.t.Fatal(err)
		}
		head := "GET /v1/ws HTTP/1.1\r\n" + upgradeHeaders + "Sec-WebSocket-Protocol: mailbell.v1\r\nAuthorization: Bearer " + p.keys.token(p.t, auth.Claims{Account: accountOf(account)}) + "\r\n\r\n"
		unix.Write(fd, append([]byte(head), masked(textFrame(`{"type":"subscribe","id":1,"account":"`+account+`"}`))...))
		for got := ""; !strings.Contains(got, `"subscribed"`); {
			k, err := unix.Read(fd, buf)
			if err != nil || k == 0 {
				p.t.Fatalf("connection %d: %v after %q", i, err, got)
			}
			got += string(buf[:k])
		}
	}
	return fds
}

// settled is the process's anonymous memory once it no longer falls.
func (p *node) settled() int64 {
	p.t.Helper()
	least, since := int64(1)<<62, time.Now()
	for time.Since(since) < 4*time.Second {
		if now := p.anonymous(); now < least {
			least, since = now, time.Now()
		}
		time.Sleep(100 * time.Millisecond) // between two looks
	}
	return p.anonymous()
}

func (p *node) anonymous() int64 {
	p.t.Helper()
	b, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(p.pid), "smaps_rollup"))
	if err != nil {
		p.t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if v, ok := strings.CutPrefix(line, "Anonymous:"); ok {
			kb, err := strconv.ParseInt(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(v), "kB")), 10, 64)
			if err != nil {
				p.t.Fatal(err)
			}
			return kb << 10
		}
	}
	p.t.Fatal("no Anonymous in smaps_rollup")
	return 0
}
