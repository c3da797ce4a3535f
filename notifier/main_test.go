package notifier

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/gobwas/ws"
	"github.com/mailbell/mailbell/internal/auth"
	"github.com/mailbell/mailbell/schema"
	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) {
	if bus := os.Getenv("MAILBELL_TEST_BUS"); bus != "" {
		if err := nodeProcess(bus, os.Getenv("MAILBELL_TEST_KEYS")); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	goleak.VerifyTestMain(m)
}

// patience is how long a test waits for what must come.
const patience = 20 * time.Second

// eventually waits for a condition.
func eventually(t testing.TB, what string, cond func() bool) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for !cond() {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain until %s", what)
		}
		time.Sleep(time.Millisecond) // between two looks
	}
}

const testSecret = "a secret of thirty-two bytes or more, for tests"

// keyring is an HS256 secret in a file.
type keyring struct {
	file string
	keys *auth.Keys
}

func newKeyring(t testing.TB) *keyring {
	t.Helper()
	file := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(file, []byte(testSecret), 0o600); err != nil {
		t.Fatal(err)
	}
	keys, err := auth.OpenKeys(context.Background(), auth.KeysConfig{Source: file})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(keys.Close)
	return &keyring{file: file, keys: keys}
}

func (k *keyring) token(t testing.TB, c auth.Claims) string {
	t.Helper()
	token, err := auth.MintToken(k.file, c)
	if err != nil {
		t.Fatal(err)
	}
	return token
}

// rig is a notifier with a fake bus node.
type rig struct {
	*Server
	t    testing.TB
	bus  *fakeBus
	keys *keyring
	stop func() error
	wait func() error // for Run to end by itself
}

func quiet() *slog.Logger { return slog.New(slog.NewTextHandler(io.Discard, nil)) }

// start runs a notifier and a fake bus node for the test.
func start(t testing.TB, change func(*Config)) *rig {
	t.Helper()
	bus := newFakeBus(t, "b1", 8)
	keys := newKeyring(t)
	cfg := Config{NodeID: "n1", Addr: "127.0.0.1:0", Bus: []string{bus.addr}, Keys: keys.keys, Logger: quiet(), Shards: 2}
	if change != nil {
		change(&cfg)
	}
	return startWith(t, cfg, bus, keys)
}

func startWith(t testing.TB, cfg Config, bus *fakeBus, keys *keyring, tweaks ...func(*Server)) *rig {
	t.Helper()
	s, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	for _, tweak := range tweaks {
		tweak(s)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	r := &rig{Server: s, t: t, bus: bus, keys: keys}
	r.wait = sync.OnceValue(func() error { return <-done })
	r.stop = func() error {
		cancel()
		return r.wait()
	}
	t.Cleanup(func() {
		if err := r.stop(); err != nil && !errors.Is(err, ErrTakenOver) {
			t.Errorf("Run: %v", err)
		}
	})
	if len(cfg.Bus) > 0 && bus != nil {
		eventually(t, "the notifier is ready", func() bool { return s.Ready(context.Background()) == nil })
	}
	return r
}

// client is one WebSocket.
type client struct {
	t    testing.TB
	conn net.Conn
	r    io.Reader
}

// dial opens a WebSocket as the account.
func (r *rig) dial(account schema.Account) *client {
	r.t.Helper()
	return r.dialToken(r.keys.token(r.t, auth.Claims{Account: account}))
}

func (r *rig) dialToken(token string) *client {
	r.t.Helper()
	c, err := r.tryDial(token)
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { c.conn.Close() })
	return c
}

// dialNarrow opens a WebSocket whose receive buffer is small from the start.
func (r *rig) dialNarrow(account schema.Account) *client {
	r.t.Helper()
	c, err := r.dialBy(r.keys.token(r.t, auth.Claims{Account: account}), narrow())
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { c.conn.Close() })
	return c
}

func narrow() *net.Dialer {
	return &net.Dialer{Control: func(_, _ string, raw syscall.RawConn) error {
		return raw.Control(func(fd uintptr) { unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF, 2048) })
	}}
}

func (r *rig) tryDial(token string) (*client, error) { return r.dialBy(token, &net.Dialer{}) }

func (r *rig) dialBy(token string, by *net.Dialer) (*client, error) {
	d := ws.Dialer{
		NetDial:   by.DialContext,
		Timeout:   patience,
		Protocols: []string{schema.Subprotocol},
		Header:    ws.HandshakeHeaderHTTP(http.Header{"Authorization": {"Bearer " + token}}),
	}
	conn, buffered, _, err := d.Dial(context.Background(), "ws://"+r.Addr()+schema.SocketPath)
	if err != nil {
		return nil, err
	}
	c := &client{t: r.t, conn: conn, r: conn}
	if buffered != nil {
		c.r = io.MultiReader(io.LimitReader(buffered, int64(buffered.Buffered())), conn)
	}
	return c, nil
}

func (c *client) send(text string) {
	c.t.Helper()
	if _, err := c.conn.Write(masked(ws.NewTextFrame([]byte(text)))); err != nil {
		c.t.Fatal(err)
	}
}

func masked(f ws.Frame) []byte { return ws.MustCompileFrame(ws.MaskFrame(f)) }

// read returns the next frame.
func (c *client) read() (ws.Frame, error) {
	c.conn.SetReadDeadline(time.Now().Add(patience))
	return readFrame(c.r)
}

// next returns the next frame of mailbell.v1, answering pings on the way.
func (c *client) next() schema.ServerFrame {
	c.t.Helper()
	for {
		f, err := c.read()
		if err != nil {
			c.t.Fatalf("read: %v", err)
		}
		switch f.Header.OpCode {
		case ws.OpPing:
			c.conn.Write(masked(ws.NewPongFrame(f.Payload)))
			continue
		case ws.OpClose:
			code, reason := ws.ParseCloseFrameData(f.Payload)
			c.t.Fatalf("closed: %d %s", code, reason)
		}
		s, err := schema.DecodeServerFrame(f.Payload)
		if err != nil {
			c.t.Fatalf("%s: %v", f.Payload, err)
		}
		return s
	}
}

// closed reads on until the close frame and returns it.
func (c *client) closed() (ws.StatusCode, string) {
	c.t.Helper()
	for {
		f, err := c.read()
		if err != nil {
			c.t.Fatalf("no close frame: %v", err)
		}
		if f.Header.OpCode == ws.OpClose {
			code, reason := ws.ParseCloseFrameData(f.Payload)
			return code, reason
		}
	}
}

// expect reads one frame and compares the type.
func (c *client) expect(want schema.FrameType) schema.ServerFrame {
	c.t.Helper()
	f := c.next()
	if f.Type != want {
		c.t.Fatalf("got %+v, want a frame of type %s", f, want)
	}
	return f
}

func (c *client) subscribe(id, account string) schema.ServerFrame {
	c.t.Helper()
	c.send(`{"type":"subscribe","id":` + id + `,"account":"` + account + `"}`)
	return c.expect(schema.FrameSubscribed)
}

// silent fails if anything comes before the answer to a ping.
func (c *client) silent() {
	c.t.Helper()
	c.send(`{"type":"ping","id":4711}`)
	if f := c.next(); f.Type != schema.FramePong || f.ID != 4711 {
		c.t.Fatalf("got %+v, want nothing but the pong", f)
	}
}

// event is an event's JSON.
func event(account, mailbox, id string) []byte {
	e := schema.Event{ID: id, Event: schema.MessageNew, Account: schema.Account(account), Mailbox: schema.Mailbox(mailbox), UIDValidity: 1, UIDSet: "1", Timestamp: time.Unix(0, 0).UTC()}
	return e.AppendJSON(nil)
}

func idOf(t testing.TB, raw json.RawMessage) string {
	t.Helper()
	e, err := schema.DecodeEvent(raw)
	if err != nil {
		t.Fatal(err)
	}
	return e.ID
}

// request sends raw bytes and returns the whole answer.
func (r *rig) request(raw string) string {
	r.t.Helper()
	conn, err := net.Dial("tcp", r.Addr())
	if err != nil {
		r.t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(patience))
	if _, err := io.WriteString(conn, raw); err != nil {
		r.t.Fatal(err)
	}
	var b bytes.Buffer
	if _, err := io.Copy(&b, conn); err != nil && !errors.Is(err, io.EOF) && !strings.Contains(err.Error(), "reset") {
		r.t.Fatal(err)
	}
	return b.String()
}

// dialRaw opens a WebSocket with a request of one's own.
func (r *rig) dialRaw(head string) *client {
	r.t.Helper()
	conn, err := net.Dial("tcp", r.Addr())
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { conn.Close() })
	if _, err := io.WriteString(conn, head); err != nil {
		r.t.Fatal(err)
	}
	c := &client{t: r.t, conn: conn, r: conn}
	if got := c.head(); status(got) != 101 {
		r.t.Fatalf("%s", got)
	}
	return c
}

// head reads an answer's head, byte by byte.
func (c *client) head() string {
	c.t.Helper()
	c.conn.SetReadDeadline(time.Now().Add(patience))
	var b []byte
	for !bytes.HasSuffix(b, []byte("\r\n\r\n")) {
		var one [1]byte
		if _, err := io.ReadFull(c.conn, one[:]); err != nil {
			c.t.Fatalf("after %q: %v", b, err)
		}
		b = append(b, one[0])
	}
	return string(b)
}

// status is an HTTP answer's status.
func status(answer string) int {
	var n int
	fmt.Sscanf(answer, "HTTP/1.1 %d", &n)
	return n
}

func accountOf(s string) schema.Account { return schema.Account(s) }

func textFrame(text string) ws.Frame { return ws.NewTextFrame([]byte(text)) }

// counterOf is a counter's value.
func counterOf(t testing.TB, c prometheus.Counter) float64 {
	t.Helper()
	var m dto.Metric
	if err := c.Write(&m); err != nil {
		t.Fatal(err)
	}
	return m.GetCounter().GetValue()
}

func mustDialQuiet(addr string) net.Conn {
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		return nil
	}
	return conn
}

func openDescriptors(t testing.TB) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

// readFrame reads a server's frame, of a size that a server may send.
func readFrame(r io.Reader) (f ws.Frame, err error) {
	if f.Header, err = ws.ReadHeader(r); err != nil {
		return f, err
	}
	if f.Header.Length > 1<<20 {
		return f, fmt.Errorf("a frame of %d bytes", f.Header.Length)
	}
	f.Payload = make([]byte, f.Header.Length)
	_, err = io.ReadFull(r, f.Payload)
	return f, err
}
