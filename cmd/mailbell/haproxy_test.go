package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/mailbell/mailbell/bus"
	"github.com/mailbell/mailbell/internal/eventlog"
	"github.com/mailbell/mailbell/internal/wsclient"
	"github.com/mailbell/mailbell/schema"
)

// TestHAProxy runs deploy's HAProxy, with this machine's addresses in place of the example's, before a bus node and two notifiers.
// A ticket of the gateway leads to its notifier through it, notifiers know the clients' addresses, and one that is drained gets nobody
// new.
func TestHAProxy(t *testing.T) {
	if _, err := exec.LookPath("haproxy"); err != nil {
		t.Fatalf("%v: run make deps", err)
	}
	const perAddress = 3
	c := makeCredentials(t)
	front, agent, gateway := freeAddr(t), freeAddr(t), freeAddr(t)
	addresses := map[string]string{"10.0.0.11:7480": freeAddr(t), "10.0.0.12:7480": freeAddr(t)}
	node := startProcess(t, "bus", "--brokers", embeddedBrokers(t), "--partitions", "4", "--node", "b1", "--link", "127.0.0.1:0", "--http", gateway, "--agent", agent,
		"--trusted-proxies", "127.0.0.1", "--move-rate", "0", "--jwt-keys", c.publicKey, "--service-tokens", c.serviceTokens)
	link := node.logged(t, "starting", "link")
	host, port, _ := net.SplitHostPort(agent)
	startHAProxy(t, "../../deploy/haproxy/haproxy.cfg", "maxconn 200000", "maxconn 1000", "bind :8443", "bind "+front, "10.0.0.5:8480", gateway, "agent-addr 10.0.0.5 agent-port 7482", "agent-addr "+host+" agent-port "+port,
		"10.0.0.11:7480", addresses["10.0.0.11:7480"], "10.0.0.12:7480", addresses["10.0.0.12:7480"])
	for name, sockets := range map[string]string{"n1": addresses["10.0.0.11:7480"], "n2": addresses["10.0.0.12:7480"]} {
		startProcess(t, "notifier", "--bus", link, "--node", name, "--sockets", sockets, "--public-url", "ws://"+front+"/n/"+name+schema.SocketPath,
			"--jwt-keys", c.publicKey, "--proxy-protocol", "127.0.0.1/32", "--max-per-address", strconv.Itoa(perAddress), "--drain", "1s")
	}
	ops := node.logged(t, "starting", "ops")
	serving := func() (names []string) {
		for _, n := range fleetAt(t, ops).Notifiers {
			if n.State == "serving" {
				names = append(names, n.Node)
			}
		}
		return names
	}
	waitFor(t, "the bus reaches both through HAProxy", func() bool { return len(serving()) == 2 })

	// More than one address may have: each comes from one of its own.
	came := map[string]int{}
	for i := range 2 * perAddress * 2 {
		ticket := askGateway(t, "http://"+front+gatewayPath, c.token(t, "alice@example.com"))
		dialFrom(t, fmt.Sprintf("127.0.1.%d", i+1), ticket.URL, "", nil)
		came[strings.Split(ticket.URL, "/")[4]]++
	}
	if came["n1"] == 0 || came["n2"] == 0 || len(came) != 2 {
		t.Errorf("the tickets were for %v, want both", came)
	}
	direct := "ws://" + front + "/n/n1" + schema.SocketPath
	for range perAddress {
		dialFrom(t, "127.0.2.1", direct, c.token(t, "bob@example.com"), nil)
	}
	dialFrom(t, "127.0.2.1", direct, c.token(t, "bob@example.com"), func(err *wsclient.StatusError) bool { return err.Status == http.StatusTooManyRequests })
	dialFrom(t, "127.0.2.2", direct, c.token(t, "bob@example.com"), nil)
	dialFrom(t, "127.0.2.3", "ws://"+front+"/n/n3"+schema.SocketPath, c.token(t, "bob@example.com"), func(err *wsclient.StatusError) bool { return err.Status == http.StatusNotFound })

	// From now on it is HAProxy that chooses.
	n2 := func() int {
		for _, n := range fleetAt(t, ops).Notifiers {
			if n.Node == "n2" {
				return int(n.Load.Connections)
			}
		}
		return 0
	}
	waitFor(t, "n2 has told how many it has", func() bool { return n2() >= came["n2"] })
	resp, err := http.Post("http://"+ops+"/fleet/drain", "application/json", strings.NewReader(`{"notifier":"n2","overSeconds":1}`))
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusAccepted {
		t.Fatalf("drain: %s", resp.Status)
	}
	waitFor(t, "the drained one is empty", func() bool { return n2() == 0 })
	inARow, from := 0, 0
	waitFor(t, "HAProxy has heard of it", func() bool {
		from++
		conn, err := wsclient.DialConn(soon(t), "ws://"+front+schema.SocketPath, connFrom(fmt.Sprintf("127.0.3.%d", from%250+1), c.token(t, "carol@example.com")))
		if inARow++; err != nil {
			inARow = 0
			return false
		}
		t.Cleanup(func() { _ = conn.Close() })
		return inARow == 4
	})
	if got := serving(); n2() != 0 || len(got) != 1 || got[0] != "n1" {
		t.Errorf("the drained one has %d clients; serving are %v", n2(), got)
	}
}

// startHAProxy runs a configuration in which some texts are replaced by others, until the test ends.
func startHAProxy(t *testing.T, file string, replace ...string) {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(replace); i += 2 {
		if !strings.Contains(string(b), replace[i]) {
			t.Fatalf("%s has no %q", file, replace[i])
		}
	}
	config := strings.NewReplacer(replace...).Replace(string(b))
	changed := filepath.Join(t.TempDir(), "haproxy.cfg")
	if err := os.WriteFile(changed, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, f := range []string{file, changed} {
		if out, err := exec.Command("haproxy", "-c", "-f", f).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v\n%s", f, err, out)
		}
	}
	proxy := exec.Command("haproxy", "-db", "-f", changed)
	log := newLines()
	proxy.Stdout, proxy.Stderr = log, log
	proxy.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
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
}

// embeddedBrokers starts a log of this process for others to use.
func embeddedBrokers(t *testing.T) string {
	t.Helper()
	quiet := slog.New(slog.DiscardHandler)
	embedded, err := eventlog.StartEmbedded(soon(t), eventlog.EmbeddedConfig{Dir: t.TempDir(), Topic: "mail-events", Partitions: 4, Logger: quiet})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = embedded.Close() })
	return strings.Join(embedded.Brokers(), ",")
}

// askGateway gets a ticket with a user's token; it asks again while the gateway has nobody to hand out.
func askGateway(t *testing.T, gateway, token string) (answer bus.ConnectAnswer) {
	t.Helper()
	waitFor(t, "the gateway has a ticket", func() bool {
		req, err := http.NewRequestWithContext(soon(t), http.MethodGet, gateway, nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", "Bearer "+token)
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		return resp.StatusCode == http.StatusOK && json.NewDecoder(resp.Body).Decode(&answer) == nil
	})
	return answer
}

// connFrom is how a client of one of this machine's loopback addresses connects.
func connFrom(address, token string) wsclient.ConnConfig {
	return wsclient.ConnConfig{Token: token, Dialer: &net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(address)}}}
}

// dialFrom makes one attempt from an address. It must succeed, or fail as refused says unless that is nil.
func dialFrom(t *testing.T, address, url, token string, refused func(*wsclient.StatusError) bool) {
	t.Helper()
	conn, err := wsclient.DialConn(soon(t), url, connFrom(address, token))
	if err == nil {
		t.Cleanup(func() { _ = conn.Close() })
	}
	status, _ := errors.AsType[*wsclient.StatusError](err)
	if refused == nil && err != nil || refused != nil && (status == nil || !refused(status)) {
		t.Fatalf("from %s to %s: %v", address, url, err)
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

func fleetOf(t *testing.T, s *site) fleetReply {
	t.Helper()
	return fleetAt(t, s.port)
}

// fleetAt is what the bus node with this operations port says.
func fleetAt(t *testing.T, ops string) (r fleetReply) {
	t.Helper()
	if err := json.Unmarshal([]byte(fetch(t, "http://"+ops+"/fleet")), &r); err != nil {
		t.Fatal(err)
	}
	return r
}
