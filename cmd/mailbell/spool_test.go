package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/mailbell/mailbell/internal/eventlog"
	"github.com/mailbell/mailbell/internal/kafkaproc"
)

// TestAdapterOutlivesKafka lets Dovecot report while there is no Kafka, kills the adapter, and
// finds every accepted report on the log once both are back, in order.
func TestAdapterOutlivesKafka(t *testing.T) {
	kafka := kafkaproc.ClusterForTest(t, kafkaproc.Options{Brokers: 1})
	c := makeCredentials(t)
	log, err := eventlog.Open(soon(t), eventlog.Config{Brokers: kafka.Brokers(), Create: true, Partitions: 1, ReplicationFactor: 1})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = log.Close() })
	kafka.Kill(0)

	data := t.TempDir()
	systemd := listenNotify(t)
	adapter := func() *process {
		return startProcess(t, "adapter", "--brokers", strings.Join(kafka.Brokers(), ","), "--service-tokens", c.serviceTokens, "--http", "127.0.0.1:0", "--data", data, "--dovecot")
	}
	report := func(p *process, uids ...int) {
		t.Helper()
		web := "http://" + p.logged(t, "starting", "http")
		for _, uid := range uids {
			body := fmt.Sprintf(`{"user":"ann@example.com","events":[{"name":"MessageNew","mailbox":"INBOX","uid":%d,"uid_validity":7,"flags":[],"keywords":[]}],"status":{}}`, uid)
			if status := post(t, web+"/dovecot/v1/events", c.serviceToken, body); status != http.StatusAccepted {
				t.Fatalf("the agent answered %d", status)
			}
		}
		if status := post(t, web+"/v1/events", c.serviceToken, `{"id":"x","event":"MailboxCreate","account":"a","mailbox":"New","timestamp":"2026-11-21T05:17:58Z"}`); status != http.StatusServiceUnavailable {
			t.Errorf("ingest answered %d without Kafka", status)
		}
	}
	first := adapter()
	if state := systemd(); state != "READY=1" {
		t.Errorf("systemd was told %q while Kafka is away, want READY=1", state)
	}
	report(first, 1, 2)
	first.kill(t)
	second := adapter()
	report(second, 3)
	if err := kafka.Restart(soon(t), 0); err != nil {
		t.Fatal(err)
	}

	var uids []string
	done := errors.New("done")
	err = log.Read(soon(t), 0, 0, func(batch []eventlog.Message) error {
		for _, m := range batch {
			if m.Beacon == nil {
				uids = append(uids, between(string(m.Value), `"uidset":"`, `"`))
			}
		}
		if len(uids) >= 3 && uids[len(uids)-1] == "3" {
			return done
		}
		return nil
	})
	if !errors.Is(err, done) {
		t.Fatalf("read %v, then %v", uids, err)
	}
	if got := strings.Join(uids, " "); got != "1 2 3" {
		t.Errorf("the log has the messages %s, want 1 2 3", got)
	}
}

// listenNotify is systemd's end of Type=notify for the processes of this test. What it returns waits for a state.
func listenNotify(t *testing.T) func() string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "notify")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	t.Setenv("NOTIFY_SOCKET", path)
	return func() string {
		t.Helper()
		if err := conn.SetReadDeadline(time.Now().Add(patience)); err != nil {
			t.Fatal(err)
		}
		var b [256]byte
		n, err := conn.Read(b[:])
		if err != nil {
			t.Fatal(err)
		}
		return string(b[:n])
	}
}

func between(s, before, after string) string {
	_, s, _ = strings.Cut(s, before)
	s, _, _ = strings.Cut(s, after)
	return s
}

// kill ends the process as a power cut would.
func (p *process) kill(t *testing.T) {
	t.Helper()
	if err := p.cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		t.Fatal(err)
	}
	<-p.done
	p.killed = true
}

func post(t *testing.T, url, token, body string) (status int) {
	t.Helper()
	req, err := http.NewRequestWithContext(context.Background(), http.MethodPost, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+token)
	req.Header.Set("Content-Type", "application/json")
	client := http.Client{Timeout: patience, Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	return resp.StatusCode
}
