package main

import (
	"io"
	"net"
	"net/http"
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
