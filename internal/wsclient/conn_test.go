package wsclient

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/gobwas/ws"
	"github.com/gobwas/ws/wsutil"
	"github.com/mailbell/mailbell/schema"
)

// pair is a Conn and the other end of its pipe.
func pair(t testing.TB) (*Conn, net.Conn) {
	t.Helper()
	near, far := net.Pipe()
	t.Cleanup(func() { near.Close(); far.Close() })
	cfg := ConnConfig{}.withDefaults()
	return &Conn{conn: near, size: cfg.ReadBuffer, limit: cfg.MaxMessage}, far
}

func frame(op ws.OpCode, fin bool, payload string) []byte {
	return ws.MustCompileFrame(ws.NewFrame(op, fin, []byte(payload)))
}

// TestConnReads is RFC 6455 as a client must read it, whole and in single bytes.
func TestConnReads(t *testing.T) {
	long := strings.Repeat("x", 70_000)
	cfg := ConnConfig{}.withDefaults()
	for _, tc := range []struct {
		name    string
		wire    [][]byte
		want    []string // messages
		problem string   // then; empty: the end of the connection
	}{
		{"a message", [][]byte{frame(ws.OpText, true, "a")}, []string{"a"}, ""},
		{"several", [][]byte{frame(ws.OpText, true, "a"), frame(ws.OpText, true, ""), frame(ws.OpText, true, "ä")}, []string{"a", "", "ä"}, ""},
		{"16-bit length (5.2)", [][]byte{frame(ws.OpText, true, long[:300])}, []string{long[:300]}, ""},
		{"64-bit length (5.2)", [][]byte{frame(ws.OpText, true, long), frame(ws.OpText, true, "a")}, []string{long, "a"}, ""},
		{"fragments (5.4)", [][]byte{frame(ws.OpText, false, "a"), frame(ws.OpContinuation, false, "b"), frame(ws.OpContinuation, true, "c")}, []string{"abc"}, ""},
		{"a ping between fragments (5.4)", [][]byte{frame(ws.OpText, false, "\xc3"), frame(ws.OpPing, true, "p"), frame(ws.OpContinuation, true, "\xa4")}, []string{"ä"}, ""},
		{"pong (5.5.3)", [][]byte{frame(ws.OpPong, true, "")}, nil, ""},
		{"a message within one (5.4)", [][]byte{frame(ws.OpText, false, "a"), frame(ws.OpText, true, "b")}, nil, "a message within a message"},
		{"a continuation of nothing (5.4)", [][]byte{frame(ws.OpContinuation, true, "a")}, nil, "a continuation of nothing"},
		{"binary", [][]byte{frame(ws.OpBinary, true, "a")}, nil, "has no binary messages"},
		{"bad UTF-8 (8.1)", [][]byte{frame(ws.OpText, true, "\xff")}, nil, "text is not UTF-8"},
		{"masked (5.1)", [][]byte{ws.MustCompileFrame(ws.MaskFrame(ws.NewTextFrame([]byte("a"))))}, nil, "a frame is masked"},
		{"reserved bits (5.2)", [][]byte{{0xc1, 0}}, nil, "reserved bits are set"},
		{"reserved opcode (5.2)", [][]byte{{0x83, 0}}, nil, "opcode 3"},
		{"fragmented ping (5.5)", [][]byte{{0x09, 0}}, nil, "a control frame is fragmented or too long"},
		{"long ping (5.5)", [][]byte{{0x89, 126, 0, 126}}, nil, "a control frame is fragmented or too long"},
		{"2^63 bytes", [][]byte{{0x81, 127, 0x80, 0, 0, 0, 0, 0, 0, 0}}, nil, "a frame of 9223372036854775808 bytes, the limit is 262144"},
		{"too long in fragments", [][]byte{frame(ws.OpText, false, strings.Repeat("x", cfg.MaxMessage)), frame(ws.OpContinuation, true, "x")}, nil, "a message of more than 262144 bytes"},
		{"close (5.5.1)", [][]byte{frame(ws.OpClose, true, "\x03\xe9bye")}, nil, "the server closed the connection with 1001 bye"},
		{"close without a code (7.1.5)", [][]byte{frame(ws.OpClose, true, "")}, nil, "the server closed the connection with 1005"},
		{"half a frame", [][]byte{frame(ws.OpText, true, "abc")[:3]}, nil, ""},
	} {
		for _, step := range []int{1 << 30, 1} {
			wire := bytes.Join(tc.wire, nil)
			if step == 1 && len(wire) > 1000 {
				continue
			}
			t.Run(fmt.Sprintf("%s, steps of %d", tc.name, step), func(t *testing.T) {
				c, far := pair(t)
				go func() {
					for len(wire) > 0 {
						n := min(step, len(wire))
						if _, err := far.Write(wire[:n]); err != nil {
							return
						}
						wire = wire[n:]
					}
					far.Close()
				}()
				go func() { _, _ = io.Copy(io.Discard, far) }() // pongs
				for _, want := range tc.want {
					if got, err := c.Next(); err != nil || string(got) != want {
						t.Fatalf("got %.20q, %v; want %.20q", got, err, want)
					}
				}
				_, err := c.Next()
				if tc.problem == "" && !errors.Is(err, io.ErrUnexpectedEOF) {
					t.Errorf("ends with %v", err)
				}
				if err == nil || !strings.Contains(err.Error(), tc.problem) {
					t.Errorf("ends with %v, want %s", err, tc.problem)
				}
				c.NetConn().Close()
			})
		}
	}
}

func TestConnAnswers(t *testing.T) {
	c, far := pair(t)
	ended := make(chan error, 1)
	go func() {
		_, err := c.Next()
		ended <- err
	}()
	_, _ = far.Write(frame(ws.OpPing, true, "are you there?"))
	expect := func(op ws.OpCode, payload string) {
		t.Helper()
		f, err := readFrame(far)
		if err != nil || f.Header.OpCode != op || !f.Header.Masked {
			t.Fatalf("%+v, %v", f.Header, err)
		}
		if f = ws.UnmaskFrame(f); string(f.Payload) != payload {
			t.Errorf("%q, want %q", f.Payload, payload)
		}
	}
	expect(ws.OpPong, "are you there?")
	_, _ = far.Write(frame(ws.OpClose, true, "\x03\xf0drain"))
	expect(ws.OpClose, "\x03\xf0")
	if e := closedBy(<-ended); e == nil || e.Code != 1008 || e.Reason != "drain" {
		t.Errorf("%v", e)
	}
	go func() { ended <- c.Close() }()
	expect(ws.OpClose, "\x03\xe8")
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if err := c.Send([]byte("x")); !errors.Is(err, net.ErrClosed) {
		t.Errorf("send after close: %v", err)
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
}

// TestConnBuffer grows for a long message and shrinks again.
func TestConnBuffer(t *testing.T) {
	c, far := pair(t)
	go func() {
		_, _ = far.Write(frame(ws.OpText, true, strings.Repeat("x", 50_000)))
		_, _ = far.Write(frame(ws.OpText, true, "a"))
	}()
	for range 2 {
		if _, err := c.Next(); err != nil {
			t.Fatal(err)
		}
	}
	if cap(c.buf) > c.size {
		t.Errorf("keeps %d bytes", cap(c.buf))
	}
}

// TestEarlyFrames has events arrive in the packet of the handshake's answer.
func TestEarlyFrames(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	served := make(chan struct{})
	go func() {
		defer close(served)
		conn, err := l.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		var answer bytes.Buffer
		u := ws.Upgrader{Protocol: func([]byte) bool { return true }}
		if _, err := u.Upgrade(readWriter{conn, &answer}); err != nil {
			t.Error(err)
		}
		answer.Write(frame(ws.OpText, true, "early"))
		answer.Write(frame(ws.OpText, true, "later")[:4])
		_, _ = conn.Write(answer.Bytes())
		_, _ = conn.Write(frame(ws.OpText, true, "later")[4:])
		_, _ = io.Copy(io.Discard, conn)
	}()
	c, err := DialConn(t.Context(), "ws://"+l.Addr().String()+schema.SocketPath, ConnConfig{})
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"early", "later"} {
		if got, err := c.Next(); err != nil || string(got) != want {
			t.Errorf("%q, %v", got, err)
		}
	}
	c.Close()
	<-served
}

func TestDialConnRefusals(t *testing.T) {
	for _, tc := range []struct{ name, answer, problem string }{
		{"429", "HTTP/1.1 429 Too Many Requests\r\nRetry-After: 7\r\nContent-Length: 5\r\n\r\nslow\n", "the server answered 429 Too Many Requests: slow"},
		{"HTML", "HTTP/1.1 502 Bad Gateway\r\nContent-Length: 6\r\n\r\n<html>", "the server answered 502 Bad Gateway"},
		{"no length", "HTTP/1.1 404 Not Found\r\n\r\n", "the server answered 404 Not Found"},
		{"not HTTP", "SSH-2.0-OpenSSH\r\n", "connect: "},
		{"another protocol", "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: x\r\n\r\n", "connect: "},
	} {
		t.Run(tc.name, func(t *testing.T) {
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			served := make(chan struct{})
			go func() {
				defer close(served)
				conn, err := l.Accept()
				if err != nil {
					return
				}
				defer conn.Close()
				_, _ = conn.Write([]byte(tc.answer))
				_, _ = io.Copy(io.Discard, conn)
			}()
			_, err = DialConn(t.Context(), "ws://"+l.Addr().String()+"/", ConnConfig{Timeout: 5 * time.Second})
			if err == nil || !strings.HasPrefix(err.Error(), tc.problem) {
				t.Errorf("got %v, want %s", err, tc.problem)
			}
			if status, ok := errors.AsType[*StatusError](err); ok && status.Status == 429 && status.RetryAfter != 7*time.Second {
				t.Errorf("retry after %v", status.RetryAfter)
			}
			<-served
		})
	}
}

// TestFrames are golden bytes, read back by gobwas/ws and by the schema.
func TestFrames(t *testing.T) {
	mask := [4]byte{1, 2, 3, 4}
	if got, want := AppendFrame(nil, ws.OpText, []byte("hello"), mask), "\x81\x85\x01\x02\x03\x04\x69\x67\x6f\x68\x6e"; string(got) != want {
		t.Errorf("%q, want %q", got, want)
	}
	for _, n := range []int{0, 125, 126, 0xffff, 0x10000} {
		payload := strings.Repeat("x", n)
		wire := AppendFrame([]byte("before"), ws.OpText, []byte(payload), mask)[len("before"):]
		got, err := wsutil.ReadClientText(readWriter{bytes.NewReader(wire), io.Discard})
		if err != nil || string(got) != payload {
			t.Errorf("%d bytes: %v", n, err)
		}
	}
	for want, got := range map[string][]byte{
		`{"type":"subscribe","id":1,"account":"a"}`:                                           AppendSubscribe(nil, 1, "a", nil, ""),
		`{"type":"subscribe","id":1,"account":"\"a\"","mailboxes":["b","c"],"since":"1.2.3"}`: AppendSubscribe(nil, 1, `"a"`, []schema.Mailbox{"b", "c"}, "1.2.3"),
		`{"type":"unsubscribe","id":2,"account":"a"}`:                                         AppendUnsubscribe(nil, 2, "a"),
		`{"type":"ping","id":3}`:                                                              AppendPing(nil, 3),
	} {
		if string(got) != want {
			t.Errorf("%s, want %s", got, want)
		}
		if _, err := schema.DecodeClientFrame(got); err != nil {
			t.Errorf("%s: %v", got, err)
		}
	}
}

func FuzzParseFrame(f *testing.F) {
	f.Add(frame(ws.OpText, true, "hello"))
	f.Add([]byte{0x81, 127, 0x80, 0, 0, 0, 0, 0, 0, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		frame, n, need, err := ParseFrame(b, 1<<10)
		switch {
		case err != nil:
			return
		case n == 0:
			if need <= len(b) || need > 1<<10+14 {
				t.Fatalf("needs %d of %d", need, len(b))
			}
			return
		case n > len(b) || len(frame.Payload) > n:
			t.Fatalf("%d bytes of %d", n, len(b))
		}
		whole, err := readFrame(bytes.NewReader(b))
		if err == nil && !bytes.Equal(whole.Payload, frame.Payload) {
			t.Fatalf("%q, gobwas/ws reads %q", frame.Payload, whole.Payload)
		}
	})
}

func BenchmarkConnNext(b *testing.B) {
	c, far := pair(b)
	wire := bytes.Repeat(ws.MustCompileFrame(ws.NewTextFrame(bytes.Repeat([]byte("x"), 400))), 100)
	go func() {
		for {
			if _, err := far.Write(wire); err != nil {
				return
			}
		}
	}()
	b.ReportAllocs()
	for b.Loop() {
		if _, err := c.Next(); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkAppendFrame(b *testing.B) {
	message := AppendSubscribe(nil, 1, alice, nil, "")
	var out []byte
	b.ReportAllocs()
	for b.Loop() {
		out = AppendFrame(out[:0], ws.OpText, message, [4]byte{1, 2, 3, 4})
	}
}
