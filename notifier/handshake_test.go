package notifier

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/mailbell/mailbell/internal/auth"
)

const upgradeHeaders = "Host: h.example\r\nUpgrade: websocket\r\nConnection: keep-alive, Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"

func TestHandshakeAnswers(t *testing.T) {
	r := start(t, nil)
	token := r.keys.token(t, auth.Claims{Account: "alice@example.com"})
	bearer := "Authorization: Bearer " + token + "\r\n"
	const offer = "Sec-WebSocket-Protocol: chat, mailbell.v1\r\n"
	request := func(target, headers string) string { return "GET " + target + " HTTP/1.1\r\n" + headers + "\r\n" }
	without := func(name string) string {
		var b strings.Builder
		for line := range strings.Lines(upgradeHeaders) {
			if !strings.HasPrefix(line, name) {
				b.WriteString(line)
			}
		}
		return b.String() + offer + bearer
	}
	tests := []struct {
		name, request string
		status        int
		has           string
	}{
		{"good", request("/v1/ws", upgradeHeaders+offer+bearer), 101, "Sec-WebSocket-Protocol: mailbell.v1"},
		{"the accept of RFC 6455, section 1.3", request("/v1/ws", upgradeHeaders+offer+bearer), 101, "Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo="},
		{"a cookie", request("/v1/ws", upgradeHeaders+offer+"Cookie: a=b; mailbell_token="+token+"; c=d\r\n"), 101, ""},
		{"bare LF", strings.ReplaceAll(request("/v1/ws", upgradeHeaders+offer+bearer), "\r\n", "\n"), 101, ""},
		{"same origin", request("/v1/ws", upgradeHeaders+offer+bearer+"Origin: http://h.example\r\n"), 101, ""},
		{"another path", request("/", "Host: h\r\n"), 404, "notFound"},
		{"a health check", request("/healthz", "Host: h\r\n"), 404, ""},
		{"a path that begins alike", request("/v1/ws2", upgradeHeaders+offer+bearer), 404, ""},
		{"a browser's GET", request("/v1/ws", "Host: h\r\n"), 426, "Sec-WebSocket-Version: 13"},
		{"another version", request("/v1/ws", strings.Replace(upgradeHeaders, ": 13", ": 8", 1)+offer+bearer), 426, "Sec-WebSocket-Version: 13"},
		{"POST", "POST /v1/ws HTTP/1.1\r\n" + upgradeHeaders + "\r\n", 405, "Allow: GET"},
		{"HTTP/1.0", "GET /v1/ws HTTP/1.0\r\n" + upgradeHeaders + "\r\n", 505, ""},
		{"HTTP/2", "PRI * HTTP/2.0\r\n\r\n", 505, ""},
		{"no host", request("/v1/ws", without("Host")), 400, ""},
		{"no upgrade", request("/v1/ws", without("Upgrade")), 426, ""},
		{"no connection", request("/v1/ws", without("Connection")), 426, ""},
		{"no key", request("/v1/ws", without("Sec-WebSocket-Key")), 400, ""},
		{"no version", request("/v1/ws", without("Sec-WebSocket-Version")), 426, ""},
		{"no subprotocol", request("/v1/ws", upgradeHeaders+bearer), 400, "badSubprotocol"},
		{"another subprotocol", request("/v1/ws", upgradeHeaders+"Sec-WebSocket-Protocol: mailbell.v2\r\n"+bearer), 400, "mailbell.v1"},
		{"no token", request("/v1/ws", upgradeHeaders+offer), 401, "WWW-Authenticate: Bearer"},
		{"a bad token", request("/v1/ws", upgradeHeaders+offer+"Authorization: Bearer x.y.z\r\n"), 401, ""},
		{"a bad ticket", request("/v1/ws?ticket=x.y.z", upgradeHeaders+offer+bearer), 401, ""},
		{"a ticket badly escaped", request("/v1/ws?ticket=%zz", upgradeHeaders+offer+bearer), 400, ""},
		{"another origin", request("/v1/ws", upgradeHeaders+offer+bearer+"Origin: https://evil.example\r\n"), 403, "origin"},
		{"a body", request("/v1/ws", upgradeHeaders+offer+bearer+"Content-Length: 5\r\n"), 400, ""},
		{"no colon", request("/v1/ws", "nonsense\r\n"), 400, ""},
		{"nonsense", "\r\n\r\n", 400, ""},
		{"TLS on the wrong port", "\x16\x03\x01\x02\x00\n\n", 400, ""},
		{"8 KiB and more", request("/v1/ws", upgradeHeaders+"X: "+strings.Repeat("x", 8<<10)+"\r\n"), 431, "headTooLarge"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var got string
			if tt.status == 101 {
				c := &client{t: t, conn: mustDial(t, r.Addr())}
				io.WriteString(c.conn, tt.request)
				got = c.head()
			} else {
				got = r.request(tt.request)
				head, body, _ := strings.Cut(got, "\r\n\r\n")
				var v struct {
					Error struct{ Code, Message string }
				}
				if err := json.Unmarshal([]byte(body), &v); err != nil || v.Error.Code == "" || v.Error.Message == "" || !strings.Contains(head, "application/json") {
					t.Errorf("%s\n%v", got, err)
				}
			}
			if status(got) != tt.status || !strings.Contains(got, tt.has) {
				t.Errorf("got %q, want %d with %q", got, tt.status, tt.has)
			}
		})
	}
	eventually(t, "all are gone", func() bool { return r.admit.sockets.Load() == 0 })
}

func mustDial(t testing.TB, addr string) net.Conn {
	t.Helper()
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

// Frames that follow the handshake in the same segment are not lost, nor are bytes that come one by one.
func TestHandshakeInPieces(t *testing.T) {
	r := start(t, nil)
	head := "GET /v1/ws HTTP/1.1\r\n" + upgradeHeaders + "Sec-WebSocket-Protocol: mailbell.v1\r\nAuthorization: Bearer " +
		r.keys.token(t, auth.Claims{Account: "alice@example.com"}) + "\r\n\r\n"
	all := append([]byte(head), masked(textFrame(`{"type":"ping","id":1}`))...)
	all = append(all, masked(textFrame(`{"type":"ping","id":2}`))...)
	for _, piece := range []int{1, 7, len(head) - 1, len(head), len(head) + 3, len(all)} {
		conn := mustDial(t, r.Addr())
		for rest := all; len(rest) > 0; {
			n := min(piece, len(rest))
			if _, err := conn.Write(rest[:n]); err != nil {
				t.Fatal(err)
			}
			rest = rest[n:]
		}
		c := &client{t: t, conn: conn, r: conn}
		if got := c.head(); status(got) != 101 {
			t.Fatalf("%s", got)
		}
		for id := uint64(1); id <= 2; id++ {
			if f := c.next(); f.ID != id {
				t.Errorf("pieces of %d: %+v", piece, f)
			}
		}
	}
}

func TestHandshakeTimeout(t *testing.T) {
	r := start(t, func(c *Config) { c.HandshakeTimeout = 200 * time.Millisecond })
	for _, sent := range []string{"", "GET /v1", "GET /v1/ws HTTP/1.1\r\nHost: x\r\n"} {
		begin := time.Now()
		if got := r.request(sent); status(got) != 408 || time.Since(begin) > 5*time.Second {
			t.Errorf("%q after %v", got, time.Since(begin))
		}
	}
}

// A header line that never ends costs 8 KiB, whatever is sent.
func TestHandshakeEndlessLine(t *testing.T) {
	r := start(t, nil)
	conn := mustDial(t, r.Addr())
	io.WriteString(conn, "GET /v1/ws HTTP/1.1\r\nX: ")
	block := bytes.Repeat([]byte("x"), 1<<16)
	for range 1024 {
		if _, err := conn.Write(block); err != nil {
			return // cut off, as it should be
		}
	}
	t.Error("64 MiB were taken")
}

func TestHandshakeLimits(t *testing.T) {
	t.Run("per account", func(t *testing.T) {
		r := start(t, func(c *Config) { c.MaxPerAccount = 2 })
		first := r.dial("a")
		r.dial("a")
		got := r.request(r.head("a"))
		if status(got) != 429 || !strings.Contains(got, "Retry-After: ") || !strings.Contains(got, "perAccount") {
			t.Errorf("%s", got)
		}
		r.dial("b")
		first.conn.Close()
		eventually(t, "there is room again", func() bool { return r.Connections() == 2 })
		r.dial("a")
	})
	t.Run("per address", func(t *testing.T) {
		r := start(t, func(c *Config) { c.MaxPerAddress = 2 })
		first := r.dial("a")
		r.dial("b")
		if got := r.request(r.head("c")); status(got) != 429 {
			t.Errorf("%s", got)
		}
		d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 2)}}
		conn, err := d.Dial("tcp", r.Addr())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		io.WriteString(conn, r.head("d"))
		if got := (&client{t: t, conn: conn}).head(); status(got) != 101 {
			t.Errorf("another address: %s", got)
		}
		first.conn.Close()
		eventually(t, "there is room again", func() bool { return r.admit.sockets.Load() == 2 })
		r.dial("a")
	})
	t.Run("connections", func(t *testing.T) {
		r := start(t, func(c *Config) { c.MaxConnections = 2 })
		r.dial("a")
		r.dial("b")
		got := r.request(r.head("c"))
		if status(got) != 503 || !strings.Contains(got, "Retry-After: ") {
			t.Errorf("%s", got)
		}
	})
}

// head is a good request of the account.
func (r *rig) head(account string) string {
	return "GET /v1/ws HTTP/1.1\r\n" + upgradeHeaders + "Sec-WebSocket-Protocol: mailbell.v1\r\nAuthorization: Bearer " +
		r.keys.token(r.t, auth.Claims{Account: accountOf(account)}) + "\r\n\r\n"
}

// slowKeys has to fetch a key for every token, and is told when it has it.
type slowKeys struct{ asked, release chan struct{} }

func (k slowKeys) VerifyNow(string) (auth.Access, error) { return auth.Access{}, auth.ErrUnknownKey }

func (k slowKeys) Verify(ctx context.Context, token string) (auth.Access, error) {
	k.asked <- struct{}{}
	select {
	case <-k.release:
	case <-ctx.Done():
		return auth.Access{}, ctx.Err()
	}
	return auth.Access{Subject: "a", Grants: []auth.Grant{{Account: "a"}}}, nil
}

// While keys are fetched the workers' room is what is let in; then all go on, and frames that
// came meanwhile are handled.
func TestHandshakeWaitsForKeys(t *testing.T) {
	keys := slowKeys{make(chan struct{}, 100), make(chan struct{})}
	ring := newKeyring(t)
	bus := newFakeBus(t, "b1", 4)
	r := startWith(t, Config{NodeID: "n1", Addr: "127.0.0.1:0", Bus: []string{bus.addr}, Keys: ring.keys, Logger: quiet(), Shards: 1, Workers: 1}, bus, ring,
		func(s *Server) { s.gate.keys = keys })
	var clients []*client
	for range 3 {
		conn := mustDial(t, r.Addr())
		io.WriteString(conn, r.head("a")+string(masked(textFrame(`{"type":"ping","id":1}`))))
		clients = append(clients, &client{t: t, conn: conn, r: conn})
	}
	<-keys.asked
	eventually(t, "the pool is late", r.pool.late)
	late := mustDial(t, r.Addr())
	io.WriteString(late, r.head("a"))
	eventually(t, "accepting has stopped", func() bool { return counterOf(t, r.metrics.pauses.WithLabelValues(pauseWorkers)) > 0 })
	clients[2].conn.Close() // gives up waiting
	close(keys.release)
	for _, c := range clients[:2] {
		if got := c.head(); status(got) != 101 {
			t.Fatalf("%s", got)
		}
		c.send(`{"type":"ping","id":2}`)
		for id := uint64(1); id <= 2; id++ {
			if f := c.next(); f.ID != id {
				t.Errorf("%+v", f)
			}
		}
	}
	if got := (&client{t: t, conn: late}).head(); status(got) != 101 {
		t.Fatalf("%s", got)
	}
}

func TestHeadEnd(t *testing.T) {
	for _, tt := range []struct {
		in   string
		want int
	}{{"", 0}, {"\n", 0}, {"\r\n", 0}, {"a\r\n\r", 0}, {"a\r\n\r\n", 5}, {"a\n\n", 3}, {"a\n\r\nrest", 4}, {"a\r\n\nrest", 4}, {"a\r\nb\r\n\r\nrest", 8}, {"\n\nx", 2}} {
		if got := headEnd([]byte(tt.in), 0); got != tt.want {
			t.Errorf("headEnd(%q) = %d, want %d", tt.in, got, tt.want)
		}
		for from := range len(tt.in) {
			if headEnd([]byte(tt.in[:from]), 0) == 0 {
				if got := headEnd([]byte(tt.in), from); got != tt.want {
					t.Errorf("headEnd(%q, %d) = %d, want %d", tt.in, from, got, tt.want)
				}
			}
		}
	}
}

func FuzzUpgrade(f *testing.F) {
	f.Add([]byte("GET /v1/ws?ticket=a HTTP/1.1\r\n" + upgradeHeaders + "Sec-WebSocket-Protocol: mailbell.v1\r\nOrigin: http://h.example\r\nCookie: mailbell_token=x\r\n\r\n"))
	f.Add([]byte("GET / HTTP/1.1\n\n"))
	up := newUpgrader(&gate{node: "n", cookie: "mailbell_token", keys: newKeyring(f).keys, tickets: new(auth.TicketKeys), now: time.Now, admit: func() *refusal { return nil }})
	f.Fuzz(func(t *testing.T, head []byte) {
		end := headEnd(head, 0)
		if end == 0 || end > maxHead {
			return
		}
		_, _, err := up.upgrade(head[:end])
		if err == nil {
			t.Fatalf("nobody can have a token: %q", head)
		}
		response := refusalOf(err).response(0)
		if s := status(string(response)); s < 400 || s > 599 {
			t.Fatalf("%q: %q", head, response)
		}
	})
}
