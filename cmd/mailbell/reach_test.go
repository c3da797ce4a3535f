package main

import (
	"encoding/pem"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// relay passes connections on to a notifier, as a load balancer in front of it does, until it is cut.
func relay(t *testing.T) (addr string, lead func(to string), cut func()) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	target := make(chan string, 1)
	wg.Go(func() {
		to := ""
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			if to == "" {
				to = <-target
			}
			wg.Go(func() {
				defer conn.Close()
				back, err := net.Dial("tcp", to)
				if err != nil {
					return
				}
				defer back.Close()
				wg.Go(func() {
					_, _ = io.Copy(back, conn)
					back.Close()
				})
				_, _ = io.Copy(conn, back)
			})
		}
	})
	cut = sync.OnceFunc(func() {
		l.Close()
		close(target) // nobody will be led any more
	})
	t.Cleanup(wg.Wait)
	t.Cleanup(cut)
	return l.Addr().String(), func(to string) { target <- to }, cut
}

// TestProbeOfPrivateAuthority: a notifier whose public address has a certificate of a site's own authority gets clients when
// the bus knows the authority.
func TestProbeOfPrivateAuthority(t *testing.T) {
	addr, lead, _ := relay(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	front := httptest.NewUnstartedServer(&httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) { r.SetURL(&url.URL{Scheme: "http", Host: addr}) }})
	front.Listener.Close()
	front.Listener, front.Config.ErrorLog = l, log.New(io.Discard, "", 0) // of handshakes that the bus gave up
	front.StartTLS()
	t.Cleanup(front.Close)
	ca := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: front.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	public := []string{"--public-url", "wss://" + l.Addr().String() + "/v1/ws"}

	stranger := launchSite(t, public...)
	why := stranger.logged(t, "a notifier's public address does not work: it gets no clients")
	if err, _ := why["err"].(string); !strings.Contains(err, "unknown authority") {
		t.Errorf("without --probe-ca: %v", why)
	}
	s := launchSite(t, append(public, "--probe-ca", ca)...)
	lead(s.sockets)
	s.logged(t, "a notifier's public address works")
}

func TestBadProbeCA(t *testing.T) {
	text := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(text, []byte("not PEM"), 0o600); err != nil {
		t.Fatal(err)
	}
	for file, want := range map[string]string{text: "mailbell: --probe-ca " + text + ": holds no PEM certificate", text + ".none": "mailbell: --probe-ca: open " + text + ".none: no such file"} {
		c := start(t, nil, "run", "--data", t.TempDir(), "--http", "127.0.0.1:0", "--sockets", "127.0.0.1:0", "--link", "127.0.0.1:0", "--ops", "127.0.0.1:0", "--probe-ca", file)
		if code := c.end(t); code != 1 || !strings.Contains(c.err.String(), want) {
			t.Errorf("code %d, want 1 and %q in\n%s", code, want, c.err)
		}
	}
}

// A notifier that lives, but can't be reached by clients, must not be handed out: within 3 seconds.
func TestUnreachableNotifierGetsNobody(t *testing.T) {
	addr, lead, cut := relay(t)
	s := launchSite(t, "--public-url", "ws://"+addr+"/v1/ws")
	lead(s.sockets)
	c := credentials{privateKey: filepath.Join(s.data, "keys", "jwt-private.pem")}
	token := c.token(t, "alice@example.com")
	ask := func() int {
		req, err := http.NewRequest(http.MethodGet, s.server+gatewayPath, strings.NewReader(""))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", "Bearer "+token)
		client := http.Client{Timeout: patience, Transport: &http.Transport{DisableKeepAlives: true}}
		resp, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		return resp.StatusCode
	}
	waitFor(t, "the notifier is handed out", func() bool { return ask() == http.StatusOK })
	cut()
	begin := time.Now()
	waitFor(t, "it is taken out", func() bool { return ask() == http.StatusServiceUnavailable })
	if took := time.Since(begin); took > 3*time.Second {
		t.Errorf("after %v", took)
	}
	if n := fleetOf(t, s).Notifiers[0]; n.State != "unreachable" {
		t.Errorf("its state is %s", n.State)
	}
}
