package main

import (
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/mailbell/mailbell/internal/wsclient"
	"github.com/mailbell/mailbell/schema"
)

// TestHAProxy puts Debian's HAProxy in front of two notifiers, with PROXY protocol v2 and the bus as its agent. Clients
// reach both; one that is drained gets nobody new.
func TestHAProxy(t *testing.T) {
	if _, err := exec.LookPath("haproxy"); err != nil {
		t.Fatalf("%v: run make deps", err)
	}
	for _, file := range []string{"../../deploy/haproxy/haproxy.cfg"} {
		if out, err := exec.Command("haproxy", "-c", "-f", file).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v\n%s", file, err, out)
		}
	}
	agent := freeAddr(t)
	front := freeAddr(t)
	s := startSite(t, "--agent", agent, "--proxy-protocol", "127.0.0.1/32", "--probe-interval", "-1s", "--move-rate", "0")
	c := credentials{data: s.data, privateKey: filepath.Join(s.data, "keys", "jwt-private.pem"), publicKey: filepath.Join(s.data, "keys", "jwt-public.pem")}
	other := startProcess(t, "notifier", "--bus", s.link, "--node", "other", "--sockets", "127.0.0.1:0", "--jwt-keys", c.publicKey, "--proxy-protocol", "127.0.0.1/32", "--drain", "1s")
	nodes := map[string]string{"other": other.logged(t, "ready", "sockets")}
	for _, n := range fleetOf(t, s).Notifiers {
		if n.Node != "other" {
			nodes[n.Node] = s.sockets
		}
	}
	host, port, _ := net.SplitHostPort(agent)
	config := "global\n maxconn 1000\ndefaults\n mode http\n timeout connect 3s\n timeout client 30s\n timeout server 30s\n timeout tunnel 1m\nfrontend f\n bind " + front +
		"\n default_backend b\nbackend b\n balance leastconn\n default-server check inter 200ms fall 2 rise 1 send-proxy-v2 agent-check agent-inter 200ms agent-addr " + host + " agent-port " + port + "\n"
	i := 0
	for name, addr := range nodes {
		i++
		config += fmt.Sprintf(" server s%d %s agent-send \"%s\\n\"\n", i, addr, name)
	}
	file := filepath.Join(t.TempDir(), "haproxy.cfg")
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	proxy := exec.Command("haproxy", "-db", "-f", file)
	log := newLines()
	proxy.Stderr = log
	if err := proxy.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = proxy.Process.Kill()
		_ = proxy.Wait()
		if t.Failed() {
			t.Logf("%s\n%s", config, log)
		}
	})
	waitFor(t, "HAProxy listens", func() bool {
		conn, err := net.Dial("tcp", front)
		if err == nil {
			conn.Close()
		}
		return err == nil
	})
	held := func() map[string]int {
		all := map[string]int{}
		for _, n := range fleetOf(t, s).Notifiers {
			all[n.Node] = int(n.Load.Connections)
		}
		return all
	}
	var clients []*wsclient.Client
	for range 6 {
		clients = append(clients, watchAt(t, c, front, "alice@example.com"))
	}
	waitFor(t, "both have clients", func() bool {
		all := held()
		return len(all) == 2 && all["other"] > 0 && all["other"] < len(clients)
	})
	resp, err := http.Post("http://"+s.port+"/fleet/drain", "application/json", strings.NewReader(`{"notifier":"other","overSeconds":1}`))
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusAccepted {
		t.Fatalf("drain: %s", resp.Status)
	}
	waitFor(t, "the drained one is empty", func() bool { return held()["other"] == 0 })
	inARow := 0
	waitFor(t, "HAProxy has heard of it", func() bool {
		client, err := wsclient.Dial(soon(t), wsclient.Config{URL: "ws://" + front + schema.SocketPath, Token: c.token(t, "alice@example.com")})
		if inARow++; err != nil {
			inARow = 0
			return false
		}
		t.Cleanup(func() { _ = client.Close() })
		return inARow == 4
	})
	if n := held()["other"]; n != 0 {
		t.Errorf("the drained one has %d clients", n)
	}
}

func freeAddr(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

func waitFor(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !ok(); {
		if time.Now().After(deadline) {
			t.Fatalf("waited too long: %s", what)
		}
		time.Sleep(20 * time.Millisecond) // between two looks
	}
}

// fleetReply is what is read of GET /fleet.
type fleetReply struct {
	Notifiers []struct {
		Node, State string
		Load        struct{ Connections uint64 }
	}
}

func fleetOf(t *testing.T, s *site) (r fleetReply) {
	t.Helper()
	if err := json.Unmarshal([]byte(fetch(t, "http://"+s.port+"/fleet")), &r); err != nil {
		t.Fatal(err)
	}
	return r
}
