package main

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/mailbell/mailbell/internal/kafkaproc"
)

// onKafka makes the topic and returns the arguments of a bus node.
func onKafka(t *testing.T, c credentials) (bus []string) {
	t.Helper()
	brokers := strings.Join(kafkaproc.ForTest(t, 1), ",")
	adapter := startProcess(t, "adapter", "--brokers", brokers, "--partitions", "4", "--replication", "1", "--service-tokens", c.serviceTokens,
		"--http", "127.0.0.1:0", "--data", t.TempDir())
	adapter.logged(t, "ready", "http")
	return []string{"bus", "--brokers", brokers, "--http", "127.0.0.1:0", "--jwt-keys", c.publicKey, "--service-tokens", c.serviceTokens, "--autoscale"}
}

func decisions(p *process) int { return strings.Count(p.err.String(), `"msg":"autoscale"`) }

// TestLeaseHolderKilled kills the bus node that decides about the number of notifiers; another decides within 10 s.
func TestLeaseHolderKilled(t *testing.T) {
	args := onKafka(t, makeCredentials(t))
	var nodes []*process
	for i := range 2 {
		b := startProcess(t, slices.Concat(args, []string{"--node", fmt.Sprintf("b%d", i+1), "--link", "127.0.0.1:0", "--autoscale-launch", "100ms"})...)
		b.logged(t, "ready", "link")
		nodes = append(nodes, b)
	}
	var holder, other *process
	waitFor(t, "one decides", func() bool {
		for i, n := range nodes {
			if decisions(n) > 0 {
				holder, other = n, nodes[1-i]
			}
		}
		return holder != nil
	})
	// The lease may have gone over when the second came.
	atFirst := [2]int{decisions(holder), decisions(other)}
	waitFor(t, "one of them goes on", func() bool {
		if decisions(other) > atFirst[1] {
			holder, other = other, holder
			return true
		}
		return decisions(holder) > atFirst[0]
	})
	holder.killed = true
	before, began := decisions(other), time.Now()
	if err := holder.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the other decides", func() bool { return decisions(other) > before })
	took := time.Since(began)
	t.Logf("the other decided after %v", took)
	if took > 10*time.Second {
		t.Errorf("the other decided after %v", took)
	}
}

// TestLocalNotifiersByLoad: connections come and a second notifier is started; they go and one of
// the two is drained and ended.
func TestLocalNotifiersByLoad(t *testing.T) {
	c := makeCredentials(t)
	addr := freeAddress(t)
	dir := t.TempDir()
	notifier := []string{"notifier", "--bus", addr, "--sockets", "127.0.0.1:0", "--jwt-keys", c.publicKey}
	local := strings.Join(slices.Concat([]string{mailbellBinary(t)}, notifier, []string{"--ops", "127.0.0.1:0", "--node", "{node}"}), " ")
	bus := startProcess(t, slices.Concat(onKafka(t, c), []string{"--node", "b1", "--link", addr, "--autoscale-act", "--autoscale-dir", dir, "--autoscale-local", local,
		"--autoscale-min", "1", "--autoscale-max", "2", "--autoscale-out-above", "5", "--autoscale-in-below", "3", "--autoscale-launch", "1m",
		"--autoscale-out-every", "1s", "--autoscale-in-every", "1s", "--autoscale-drain", "2s"})...)
	t.Cleanup(func() { endLocal(dir) })
	pid := ""
	// At the beginning there is none, so one is started at once.
	waitFor(t, "the first is started", func() bool { pid = localPid(dir, "local-1"); return pid != "" })
	first := bus.err.wait(t, bus.done, `"msg":"a notifier's public address works"`)
	url := first[strings.Index(first, "ws://")+len("ws://"):]
	var conns []*rawSocket
	for range 10 {
		conns = append(conns, openRaw(t, url[:strings.IndexAny(url, "/\"")], c.token(t, "alice@example.com")))
	}
	second := ""
	waitFor(t, "a second is started", func() bool { second = localPid(dir, "local-2"); return second != "" })
	waitFor(t, "it takes clients", func() bool {
		return strings.Count(bus.err.String(), `"msg":"a notifier's public address works"`) > 1
	})
	for _, conn := range conns {
		conn.Close()
	}
	bus.err.wait(t, bus.done, `"action":"drain"`)
	ended := bus.err.wait(t, bus.done, `"action":"in"`)
	if !strings.Contains(ended, `"result":"done"`) || !strings.Contains(ended, "it is drained and empty") {
		t.Error(ended)
	}
	waitFor(t, "one process has ended", func() bool { return gone(pid) != gone(second) })
}

func localPid(dir, name string) string {
	b, err := os.ReadFile(filepath.Join(dir, name+".pid"))
	if err != nil {
		return ""
	}
	pid, _, _ := strings.Cut(string(b), " ")
	return pid
}

// gone reports whether a process has ended; its parent may not have taken leave of it.
func gone(pid string) bool {
	b, err := os.ReadFile("/proc/" + pid + "/stat")
	return err != nil || strings.Contains(string(b), ") Z ")
}

// endLocal ends the notifiers that are still there: they outlive the bus node.
func endLocal(dir string) {
	files, _ := filepath.Glob(filepath.Join(dir, "*.pid"))
	for _, f := range files {
		var pid int
		if _, err := fmt.Sscan(localPid(dir, strings.TrimSuffix(filepath.Base(f), ".pid")), &pid); err == nil {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
	}
}
