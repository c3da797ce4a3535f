package main

import (
	"net"
	"path/filepath"
	"strings"
	"testing"

	"github.com/mailbell/mailbell/internal/wsclient"
)

// TestTakeoverOfProcesses upgrades a notifier with one command line, again and again: the client's socket, the ops port and
// the exit code of the former one notice nothing.
func TestTakeoverOfProcesses(t *testing.T) {
	s := startSite(t)
	c := credentials{privateKey: filepath.Join(keysDir(s.data), "jwt-private.pem")}
	port, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	opsAddr := port.Addr().String()
	port.Close()
	args := []string{"notifier", "--bus", s.link, "--sockets", "127.0.0.1:0", "--jwt-keys", filepath.Join(keysDir(s.data), "jwt-public.pem"),
		"--takeover", filepath.Join(t.TempDir(), "take"), "--ops", opsAddr}
	former := startProcess(t, args...)
	sockets := former.logged(t, "ready", "sockets")
	client := watchAt(t, c, sockets, "alice@example.com")
	for _, id := range []string{"first", "second"} {
		next := startProcess(t, args...)
		if got := next.logged(t, "ready", "sockets"); got != sockets {
			t.Fatalf("the next one is on %s, not %s", got, sockets)
		}
		<-former.done
		if former.exit != nil {
			t.Fatalf("the former one ended with %v", former.exit)
		}
		postEvent(t, s.server+"/v1/events", s.serviceToken(t), `{"id":"`+id+`","event":"MailboxCreate","account":"alice@example.com","mailbox":"New","timestamp":"2026-11-21T05:17:58Z"}`)
		for {
			u, err := client.Next(soon(t))
			if err != nil {
				t.Fatal(err)
			}
			if u.Kind == wsclient.Disconnected {
				t.Fatalf("the client was disconnected: %v", u.Err)
			}
			if u.Kind != wsclient.Event {
				continue
			}
			if e, err := u.Decode(); err != nil || e.ID != id {
				t.Fatalf("got %s, %v, want %s", e.ID, err, id)
			}
			break
		}
		if metrics := fetch(t, "http://"+opsAddr+"/metrics"); strings.Contains(metrics, "mailbell_notifier_taken_over_total 0\n") {
			t.Error("the ops port is not the new process's, or it took nobody over")
		}
		former = next
	}
}
