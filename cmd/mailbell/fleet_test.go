package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/mailbell/mailbell/internal/kafkaproc"
	"github.com/mailbell/mailbell/internal/wsclient"
	"github.com/mailbell/mailbell/schema"
)

// TestPartsAsProcesses starts each part alone, as a site on Kafka has them: an adapter, two bus nodes, two notifiers. An
// event reaches a client on either notifier, and nobody else. Buses and notifiers know each other by certificate.
func TestPartsAsProcesses(t *testing.T) {
	brokers := strings.Join(kafkaproc.ForTest(t, 1), ",")
	c := makeCredentials(t)
	adapter := startProcess(t, "adapter", "--brokers", brokers, "--partitions", "16", "--replication", "1", "--service-tokens", c.serviceTokens,
		"--http", "127.0.0.1:0", "--data", t.TempDir())
	ingest := "http://" + adapter.logged(t, "ready", "http") + "/v1/events"
	mutual := linkCertificates(t)
	var links []string
	var buses []*process
	for i := range 2 {
		b := startProcess(t, append([]string{"bus", "--brokers", brokers, "--node", fmt.Sprintf("b%d", i+1), "--link", "127.0.0.1:0", "--http", "127.0.0.1:0",
			"--jwt-keys", c.publicKey, "--service-tokens", c.serviceTokens}, mutual...)...)
		links = append(links, b.logged(t, "starting", "link"))
		buses = append(buses, b)
	}
	for _, b := range buses {
		b.logged(t, "ready", "link")
	}
	clients := make(map[string]*wsclient.Client)
	for i := range 2 {
		n := startProcess(t, append([]string{"notifier", "--bus", strings.Join(links, ","), "--node", fmt.Sprintf("n%d", i+1), "--sockets", "127.0.0.1:0", "--jwt-keys", c.publicKey}, mutual...)...)
		for _, account := range []schema.Account{"alice@example.com", "bob@example.com"} {
			name := fmt.Sprintf("%s at n%d", account, i+1)
			clients[name] = watchAt(t, c, n.logged(t, "ready", "sockets"), account)
		}
	}
	// One event goes straight to Kafka, the others through the adapter.
	direct := start(t, nil, "publish", "--brokers", brokers, "--account", "alice@example.com", "--event", "MailboxCreate", "--mailbox", "Direct", "--id", "direct")
	if code := direct.end(t); code != 0 || !strings.Contains(direct.out.String(), "published direct at ") {
		t.Fatalf("publish --brokers ended with %d: %s%s", code, direct.out, direct.err)
	}
	for _, n := range []string{"n1", "n2"} {
		if e := nextEvent(t, clients["alice@example.com at "+n]); e.ID != "direct" {
			t.Errorf("alice at %s heard %s, want the event published with --brokers", n, e.ID)
		}
	}
	stranger := startProcess(t, "notifier", "--bus", links[0], "--node", "stranger", "--sockets", "127.0.0.1:0", "--jwt-keys", c.publicKey)
	stranger.err.wait(t, stranger.done, "link to a bus node ended")
	if log := stranger.err.String(); strings.Contains(log, "linked to a bus node") {
		t.Errorf("a notifier without a certificate was let in:\n%s", log)
	}
	for i, account := range []schema.Account{"alice@example.com", "bob@example.com"} {
		postEvent(t, ingest, c.serviceToken, fmt.Sprintf(`{"id":"to-%d","event":"MailboxCreate","account":%q,"mailbox":"New","timestamp":"2026-11-21T05:17:58Z"}`, i, account))
	}
	// Each client's first event is its own account's; had it heard of the other's, that would have come first or next.
	for _, account := range []string{"alice@example.com", "bob@example.com"} {
		postEvent(t, ingest, c.serviceToken, fmt.Sprintf(`{"id":"last","event":"MailboxCreate","account":%q,"mailbox":"Last","timestamp":"2026-11-21T05:17:58Z"}`, account))
	}
	for name, client := range clients {
		want := map[bool]string{true: "to-0", false: "to-1"}[strings.HasPrefix(name, "alice")]
		if first, second := nextEvent(t, client), nextEvent(t, client); first.ID != want || second.ID != "last" {
			t.Errorf("%s heard %s and %s, want %s and last", name, first.ID, second.ID, want)
		}
	}
}

// linkCertificates returns the flags of nodes that share one certificate, which is its own authority.
func linkCertificates(t *testing.T) []string {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	write := func(name, kind string, der []byte) string {
		path := filepath.Join(t.TempDir(), name)
		if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	certFile, keyFile := write("link.pem", "CERTIFICATE", cert), write("link.key", "PRIVATE KEY", private)
	return []string{"--link-ca", certFile, "--link-cert", certFile, "--link-key", keyFile}
}

// watchAt subscribes a client straight at a notifier.
func watchAt(t *testing.T, c credentials, sockets string, account schema.Account) *wsclient.Client {
	t.Helper()
	client, err := wsclient.Dial(soon(t), wsclient.Config{
		URL: "ws://" + sockets + schema.SocketPath, Token: c.token(t, account),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = client.Close() })
	if err := client.Subscribe(account, nil, ""); err != nil {
		t.Fatal(err)
	}
	for {
		u, err := client.Next(soon(t))
		if err != nil {
			t.Fatal(err)
		}
		if u.Kind == wsclient.Subscribed {
			return client
		}
	}
}

func nextEvent(t *testing.T, client *wsclient.Client) schema.Event {
	t.Helper()
	for {
		u, err := client.Next(soon(t))
		if err != nil {
			t.Fatal(err)
		}
		if u.Kind == wsclient.Event {
			e, err := u.Decode()
			if err != nil {
				t.Fatal(err)
			}
			return e
		}
	}
}

func postEvent(t *testing.T, url, token, event string) {
	t.Helper()
	if status := post(t, url, token, event); status != http.StatusOK {
		t.Fatalf("ingest answered %d", status)
	}
}
