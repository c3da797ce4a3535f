package wsclient

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/gobwas/ws"
	"github.com/gobwas/ws/wsutil"
	"github.com/mailbell/mailbell/schema"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const alice = schema.Account("alice@example.com")

// fakeServer is a notifier and a gateway that do what a test's script says.
type fakeServer struct {
	*httptest.Server
	conns   chan *fakeConn                                    // accepted, in order
	socket  func(w http.ResponseWriter, r *http.Request) bool // nil or true: upgrade
	gateway http.HandlerFunc
}

// fakeConn is the server's end of one connection.
type fakeConn struct {
	t       *testing.T
	conn    net.Conn
	r       io.Reader
	request *http.Request
}

func newServer(t *testing.T) *fakeServer {
	s := &fakeServer{conns: make(chan *fakeConn, 16)}
	mux := http.NewServeMux()
	mux.HandleFunc(schema.SocketPath, func(w http.ResponseWriter, r *http.Request) {
		if s.socket != nil && !s.socket(w, r) {
			return
		}
		u := ws.HTTPUpgrader{Protocol: func(p string) bool { return p == schema.Subprotocol }}
		conn, rw, _, err := u.Upgrade(r, w)
		if err != nil {
			t.Error(err)
			return
		}
		s.conns <- &fakeConn{t: t, conn: conn, r: readerOf(rw, conn), request: r}
	})
	mux.HandleFunc("/v1/connect", func(w http.ResponseWriter, r *http.Request) { s.gateway(w, r) })
	s.Server = httptest.NewServer(mux)
	t.Cleanup(func() {
		s.Close()
		for {
			select {
			case c := <-s.conns:
				c.conn.Close()
			default:
				return
			}
		}
	})
	return s
}

func readerOf(rw *bufio.ReadWriter, conn net.Conn) io.Reader {
	if rw != nil && rw.Reader.Buffered() > 0 {
		return rw
	}
	return conn
}

func (s *fakeServer) url() string {
	return "ws" + strings.TrimPrefix(s.URL, "http") + schema.SocketPath
}

// next waits for a connection.
func (s *fakeServer) next(t *testing.T) *fakeConn {
	t.Helper()
	select {
	case c := <-s.conns:
		t.Cleanup(func() { c.conn.Close() })
		return c
	case <-time.After(10 * time.Second):
		t.Fatal("nobody connects")
		return nil
	}
}

// expect reads a text message and compares it.
func (c *fakeConn) expect(want string) {
	c.t.Helper()
	if got := c.read(); got != want {
		c.t.Errorf("the client sends\n%s, want\n%s", got, want)
	}
}

func (c *fakeConn) read() string {
	c.t.Helper()
	_ = c.conn.SetReadDeadline(time.Now().Add(10 * time.Second))
	b, err := wsutil.ReadClientText(readWriter{c.r, c.conn})
	if err != nil {
		c.t.Errorf("read what the client sends: %v", err)
	}
	return string(b)
}

type readWriter struct {
	io.Reader
	io.Writer
}

func (c *fakeConn) say(messages ...[]byte) {
	c.t.Helper()
	for _, m := range messages {
		if err := wsutil.WriteServerText(c.conn, m); err != nil {
			c.t.Errorf("say %s: %v", m, err)
		}
	}
}

func (c *fakeConn) close(code ws.StatusCode, reason string) {
	_ = ws.WriteFrame(c.conn, ws.NewCloseFrame(ws.NewCloseFrameBody(code, reason)))
	_ = c.conn.Close()
}

// pos is a position of epoch 1, partition 2.
func pos(offset int64) schema.Position {
	return schema.Position{Epoch: 1, Partition: 2, Offset: offset}
}

func subscribed(id uint64, offset int64, c schema.CatchUp) []byte {
	return schema.AppendSubscribed(nil, id, alice, pos(offset), c, 0)
}

func event(offset int64) []byte {
	return schema.AppendEvent(nil, alice, pos(offset), fmt.Appendf(nil, `{"id":"%d"}`, offset))
}

func subscribe(id int, since string) string {
	if since != "" {
		since = `,"since":"` + since + `"`
	}
	return fmt.Sprintf(`{"type":"subscribe","id":%d,"account":"alice@example.com"%s}`, id, since)
}

// quick is a config that does not make tests wait.
func quick(url string) Config {
	return Config{
		URL: url, Token: "jwt", BackoffBase: time.Millisecond, BackoffMax: 5 * time.Millisecond,
		Logger: slog.New(slog.NewTextHandler(io.Discard, nil)),
	}
}

func start(t *testing.T, cfg Config) *Client {
	t.Helper()
	c, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// run drives the client and hands on what it says.
func run(t *testing.T, c *Client) (<-chan Update, <-chan error) {
	ctx, cancel := context.WithCancel(context.Background())
	updates, end := make(chan Update, 100), make(chan error, 1)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			u, err := c.Next(ctx)
			if err != nil {
				end <- err
				return
			}
			updates <- u
		}
	}()
	t.Cleanup(func() { cancel(); <-done })
	return updates, end
}

func wait[T any](t *testing.T, ch <-chan T) T {
	t.Helper()
	select {
	case v := <-ch:
		return v
	case <-time.After(10 * time.Second):
		t.Fatal("nothing happens")
		panic("unreachable")
	}
}

// expectUpdates compares what the client says with lines such as "event 5".
func expectUpdates(t *testing.T, updates <-chan Update, want ...string) {
	t.Helper()
	for _, w := range want {
		if got := line(wait(t, updates)); got != w {
			t.Errorf("the client says %q, want %q", got, w)
		}
	}
}

func line(u Update) string {
	switch u.Kind {
	case Subscribed:
		return fmt.Sprintf("subscribed %s %d %v", u.CatchUp, u.Position.Offset, u.After)
	case Event:
		return fmt.Sprintf("event %d %s", u.Position.Offset, u.Event)
	case Missed:
		return fmt.Sprintf("missed %s %d %v", u.Reason, u.Position.Offset, u.After)
	case Refused:
		return fmt.Sprintf("refused %s %s: %s", u.Account, u.Code, u.Message)
	case Moving:
		return fmt.Sprintf("moving %s %v", u.Reason, u.After)
	}
	return string(u.Kind)
}

func answerTicket(w http.ResponseWriter, t ticket) {
	_ = json.NewEncoder(w).Encode(t)
}

// closedBy is the close frame in err.
func closedBy(err error) *CloseError {
	e, _ := errors.AsType[*CloseError](err)
	return e
}

// readFrame reads one frame of at most 1 MiB.
func readFrame(r io.Reader) (ws.Frame, error) {
	h, err := ws.ReadHeader(r)
	if err != nil || h.Length > 1<<20 {
		return ws.Frame{}, errors.Join(err, errors.New("no frame, or a very long one"))
	}
	f := ws.Frame{Header: h, Payload: make([]byte, h.Length)}
	_, err = io.ReadFull(r, f.Payload)
	return f, err
}
