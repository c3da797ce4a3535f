package notifier

import (
	"encoding/binary"
	"net"
	"net/netip"
	"strings"
	"testing"

	"github.com/mailbell/mailbell/schema"
)

// proxied is a header of PROXY protocol version 2.
func proxied(command, family byte, addresses string) string {
	b := append([]byte(proxySignature), 0x20|command, family)
	b = binary.BigEndian.AppendUint16(b, uint16(len(addresses)))
	return string(b) + addresses
}

func from(ip string) string {
	a := netip.MustParseAddr(ip)
	if a.Is4() {
		return proxied(1, 0x11, string(a.AsSlice())+"\x7f\x00\x00\x01\x30\x39\x1d\x38")
	}
	return proxied(1, 0x21, string(a.AsSlice())+strings.Repeat("\x00", 15)+"\x01\x30\x39\x1d\x38")
}

func TestParseProxy(t *testing.T) {
	for _, tt := range []struct {
		name, in, client string
		size             int
		ok               bool
	}{
		{"IPv4", from("192.0.2.7") + "GET", "192.0.2.7", 28, true},
		{"IPv6", from("2001:db8::7") + "GET", "2001:db8::7", 52, true},
		{"IPv4 in IPv6", from("::ffff:192.0.2.7"), "192.0.2.7", 52, true},
		{"local", proxied(0, 0, ""), "", 16, true},
		{"unknown", proxied(1, 0, "abc"), "", 19, true},
		{"with further fields", proxied(1, 0x11, "\xc0\x00\x02\x07\x7f\x00\x00\x01\x30\x39\x1d\x38\x04\x00\x01x"), "192.0.2.7", 32, true},
		{"half", from("192.0.2.7")[:20], "", 0, true},
		{"a byte", "\r", "", 0, true},
		{"not one", "GET / HTTP/1.1\r\n", "", 0, false},
		{"version 1", "PROXY TCP4 192.0.2.7 127.0.0.1 1 2\r\n", "", 0, false},
		{"UDP", proxied(1, 0x12, strings.Repeat("x", 12)), "", 0, false},
		{"too short", proxied(1, 0x11, "abc"), "", 0, false},
		{"too long", proxied(1, 0x11, strings.Repeat("x", 3000)), "", 0, false},
	} {
		size, client, ok := parseProxy([]byte(tt.in))
		got := ""
		if client.IsValid() {
			got = client.String()
		}
		if ok != tt.ok || ok && size != tt.size || got != tt.client {
			t.Errorf("%s: size %d, client %q, %v", tt.name, size, got, ok)
		}
	}
}

func FuzzParseProxy(f *testing.F) {
	f.Add([]byte(from("192.0.2.7")))
	f.Add([]byte(from("2001:db8::7")))
	f.Fuzz(func(t *testing.T, b []byte) {
		if size, client, ok := parseProxy(b); size > len(b) || !ok && client.IsValid() {
			t.Errorf("size %d of %d, client %v, %v", size, len(b), client, ok)
		}
	})
}

func TestProxyProtocol(t *testing.T) {
	r := start(t, func(cfg *Config) {
		cfg.ProxyProtocol = []netip.Prefix{netip.MustParsePrefix("127.0.0.1/32")}
		cfg.MaxPerAddress = 1
	})
	head := r.head("alice@example.com")
	first := r.dialRaw(from("192.0.2.7") + head)
	first.subscribe("1", "alice@example.com")
	r.dialRaw(from("192.0.2.8") + head) // another client, by the same proxy
	if got := r.request(from("192.0.2.7") + head); status(got) != 429 {
		t.Errorf("a second one of the client: %s", got)
	}
	r.dialRaw(proxied(0, 0, "") + head) // the proxy itself
	if got := r.request(head); status(got) != 400 || !strings.Contains(got, "proxyProtocol") {
		t.Errorf("without a header: %s", got)
	}
	other := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 2)}}
	conn, err := other.Dial("tcp", r.Addr())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := conn.Write([]byte(from("192.0.2.9") + head)); err != nil {
		t.Fatal(err)
	}
	if got := (&client{t: t, conn: conn, r: conn}).head(); status(got) == 101 {
		t.Error("a header from an address that is not trusted was taken")
	}
	// In bytes, as a slow network brings it.
	slow, err := net.Dial("tcp", r.Addr())
	if err != nil {
		t.Fatal(err)
	}
	defer slow.Close()
	whole := from("2001:db8::7") + head
	for i := range whole {
		if _, err := slow.Write([]byte{whole[i]}); err != nil {
			t.Fatal(err)
		}
	}
	c := &client{t: t, conn: slow, r: slow}
	if got := c.head(); status(got) != 101 {
		t.Errorf("byte by byte: %s", got)
	}
	c.send(`{"type":"ping","id":1}`)
	c.expect(schema.FramePong)
}
