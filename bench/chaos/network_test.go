package chaos

import (
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"
)

// reach reports whether a connection can be made from one host to another.
func reach(t *testing.T, from *Host, to net.Listener) bool {
	t.Helper()
	addr := to.Addr().String()
	argv := append(from.Command(), "timeout", "30", "bash", "-c", "exec 3<>/dev/tcp/"+strings.Replace(addr, ":", "/", 1))
	return exec.Command(argv[0], argv[1:]...).Run() == nil
}

// TestNetwork cuts and joins two hosts and the bridge, and leaves nothing behind.
func TestNetwork(t *testing.T) {
	n, err := NewNetwork()
	if err != nil {
		t.Fatal(err)
	}
	if yes, reason := n.Namespaced(); !yes {
		h, err := n.Add("a")
		if err != nil || h.IP != "127.0.0.1" || h.Isolate() == nil || h.Command() != nil {
			t.Errorf("loopback: %+v, %v", h, err)
		}
		t.Logf("no namespaces: %s", reason)
		return
	}
	defer func() {
		prefix := n.prefix
		if err := n.Close(); err != nil {
			t.Error(err)
		}
		left, _ := exec.Command("sh", "-c", "ip netns list; ip -o link").Output()
		if strings.Contains(string(left), prefix) {
			t.Errorf("left behind:\n%s", left)
		}
	}()
	a, err := n.Add("a")
	if err != nil {
		t.Fatal(err)
	}
	b, err := n.Add("b")
	if err != nil {
		t.Fatal(err)
	}
	// Nothing listens on the hosts: they refuse where they are reached, and time passes where they are not.
	refuses := func(from, to *Host, within string) bool {
		argv := append(from.Command(), "timeout", within, "bash", "-c", "exec 3<>/dev/tcp/"+to.IP+"/9")
		out, _ := exec.Command(argv[0], argv[1:]...).CombinedOutput()
		return strings.Contains(string(out), "refused")
	}
	steps := []struct {
		name string
		do   func() error
		want bool
	}{
		{"as made", func() error { return nil }, true},
		{"cut one way", func() error { return a.CutTo(b) }, false},
		{"joined", func() error { return a.JoinTo(b) }, true},
		{"cut the other way", func() error { return b.CutTo(a) }, false},
		{"joined again", func() error { return b.JoinTo(a) }, true},
		{"isolated", a.Isolate, false},
		{"back", a.Join, true},
	}
	for _, s := range steps {
		if err := s.do(); err != nil {
			t.Fatalf("%s: %v", s.name, err)
		}
		within := "1" // enough to be refused, were the link there
		if s.want {
			within = "30" // it is a busy machine
		}
		if got := refuses(a, b, within); got != s.want {
			t.Errorf("%s: answer %v, want %v", s.name, got, s.want)
		}
	}
	if n.Shapes() != "" {
		if err := a.Slow(); err != nil {
			t.Error(err)
		}
		if err := a.Fast(); err != nil {
			t.Error(err)
		}
	}
	l, err := net.Listen("tcp", n.subnet+".254:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if !reach(t, a, l) {
		t.Error("a host does not reach the bridge")
	}
}

func TestFillDisk(t *testing.T) {
	n, err := NewNetwork()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	ok, err := n.SmallDisk(dir, 1)
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	if !ok {
		t.Log("no file system may be mounted here")
		return
	}
	file, err := FillDisk(dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(dir+"/more", make([]byte, 64<<10), 0o600); err == nil {
		t.Error("there was room left")
	}
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(dir+"/more", make([]byte, 64<<10), 0o600); err != nil {
		t.Errorf("after it was freed: %v", err)
	}
}
