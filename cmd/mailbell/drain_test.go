package main

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/mailbell/mailbell/schema"
)

// TestDrainOnTerm ends a notifier as a service manager does: its clients are asked to come back, each at a moment of its own, who
// stays is closed with 1012, new ones are let in no more, and the process has ended within --drain.
func TestDrainOnTerm(t *testing.T) {
	const drain = 5 * time.Second
	s := startSite(t)
	c := credentials{privateKey: filepath.Join(keysDir(s.data), "jwt-private.pem")}
	n := startProcess(t, "notifier", "--bus", s.link, "--sockets", "127.0.0.1:0", "--jwt-keys", filepath.Join(keysDir(s.data), "jwt-public.pem"), "--drain", drain.String())
	sockets := n.logged(t, "ready", "sockets")
	var conns []*rawSocket
	for range 10 {
		conns = append(conns, openRaw(t, sockets, c.token(t, "alice@example.com")))
	}
	began := time.Now()
	if err := n.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	moments := map[uint32]bool{}
	for _, conn := range conns {
		_, text := conn.frame(t)
		f, err := schema.DecodeServerFrame(text)
		if err != nil || f.Type != schema.FrameReconnect || f.Reason != string(schema.ReconnectDrain) || f.AfterMs > uint32(drain/time.Millisecond) {
			t.Fatalf("%s %v", text, err)
		}
		moments[f.AfterMs] = true
	}
	if len(moments) < 3 {
		t.Errorf("%d clients come back at %d moments", len(conns), len(moments))
	}
	if conn, err := net.Dial("tcp", sockets); err == nil {
		conn.Close()
		t.Error("somebody new is let in")
	}
	for _, conn := range conns {
		if op, payload := conn.frame(t); op != 8 || binary.BigEndian.Uint16(payload) != 1012 {
			t.Errorf("opcode %d, %q: want it closed with 1012", op, payload)
		}
		conn.Close()
	}
	<-n.done
	if took := time.Since(began); n.exit != nil || took > drain+2*time.Second {
		t.Errorf("ended after %v with %v", took, n.exit)
	}
}

// rawSocket is a WebSocket whose frames a test reads itself.
type rawSocket struct {
	net.Conn
	r *bufio.Reader
}

func openRaw(t *testing.T, addr, token string) *rawSocket {
	t.Helper()
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	conn.SetDeadline(time.Now().Add(patience))
	fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: %s\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"+
		"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: %s\r\nAuthorization: Bearer %s\r\n\r\n", schema.SocketPath, addr, schema.Subprotocol, token)
	r := bufio.NewReader(conn)
	answer, err := http.ReadResponse(r, nil)
	if err != nil || answer.StatusCode != http.StatusSwitchingProtocols {
		t.Fatalf("%v %v", answer, err)
	}
	return &rawSocket{conn, r}
}

// frame reads a frame of less than 126 bytes (RFC 6455, section 5.2).
func (s *rawSocket) frame(t *testing.T) (op byte, payload []byte) {
	t.Helper()
	var head [2]byte
	if _, err := io.ReadFull(s.r, head[:]); err != nil || head[1] >= 126 {
		t.Fatalf("% x %v", head, err)
	}
	payload = make([]byte, head[1])
	if _, err := io.ReadFull(s.r, payload); err != nil {
		t.Fatal(err)
	}
	return head[0] & 0xf, payload
}
