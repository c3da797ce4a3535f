package notifier

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/gobwas/ws"
	"github.com/mailbell/mailbell/internal/auth"
	"github.com/mailbell/mailbell/schema"
)

// raw builds a client's frame, right or wrong.
func raw(first byte, payload string, mask bool) []byte {
	b := []byte{first, byte(len(payload))}
	if len(payload) > 125 {
		b = binary.BigEndian.AppendUint16([]byte{first, 126}, uint16(len(payload)))
	}
	if !mask {
		return append(b, payload...)
	}
	b[1] |= 0x80
	b = append(b, 1, 2, 3, 4)
	masked := []byte(payload)
	ws.Cipher(masked, [4]byte{1, 2, 3, 4}, 0)
	return append(b, masked...)
}

func closePayload(code uint16, reason string) string {
	return string(binary.BigEndian.AppendUint16(nil, code)) + reason
}

// What RFC 6455 says of frames, case by case.
func TestRFC6455(t *testing.T) {
	r := start(t, nil)
	const ping1, pong1 = `{"type":"ping","id":1}`, `text {"type":"pong","id":1}`
	long := `{"type":"ping","id":1,"x":"` + strings.Repeat("x", 3000) + `"}`
	join := func(parts ...[]byte) []byte { return bytes.Join(parts, nil) }
	tests := []struct {
		section, name string
		send          []byte
		want          []string // opcode and payload; a close is its code
	}{
		{"5.2", "a text frame", raw(0x81, ping1, true), []string{pong1}},
		{"5.2", "a length of 16 bits", raw(0x81, long, true), []string{pong1}},
		{"5.2", "a length of 64 bits for a small payload", append([]byte{0x81, 0xff, 0, 0, 0, 0, 0, 0, 0, byte(len(ping1)), 0, 0, 0, 0}, ping1...), []string{pong1}},
		{"5.2", "two frames at once", join(raw(0x81, ping1, true), raw(0x81, ping1, true)), []string{pong1, pong1}},
		{"5.2", "RSV1 without an extension", raw(0xc1, ping1, true), []string{"close 1002"}},
		{"5.2", "RSV2", raw(0xa1, ping1, true), []string{"close 1002"}},
		{"5.2", "RSV3", raw(0x91, ping1, true), []string{"close 1002"}},
		{"5.2", "RSV3 of a ping", raw(0x99, "", true), []string{"close 1002"}},
		{"5.2", "reserved data opcode 3", raw(0x83, ping1, true), []string{"close 1002"}},
		{"5.2", "reserved data opcode 7", raw(0x87, ping1, true), []string{"close 1002"}},
		{"5.2", "reserved control opcode 11", raw(0x8b, "", true), []string{"close 1002"}},
		{"5.2", "reserved control opcode 15", raw(0x8f, "", true), []string{"close 1002"}},
		{"5.2", "a length of 2^63", []byte{0x81, 0xff, 0x80, 0, 0, 0, 0, 0, 0, 0, 1, 2, 3, 4}, []string{"close 1002"}},
		{"5.2", "a length of 2^63-1", []byte{0x81, 0xff, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1, 2, 3, 4}, []string{"close 1009"}},
		{"5.1", "not masked", raw(0x81, ping1, false), []string{"close 1002"}},
		{"5.1", "a control frame that is not masked", raw(0x89, "", false), []string{"close 1002"}},
		{"5.4", "two fragments", join(raw(0x01, ping1[:5], true), raw(0x80, ping1[5:], true)), []string{pong1}},
		{"5.4", "three fragments, one of them empty", join(raw(0x01, ping1[:5], true), raw(0x00, "", true), raw(0x80, ping1[5:], true)), []string{pong1}},
		{"5.4", "first and last empty", join(raw(0x01, "", true), raw(0x00, ping1, true), raw(0x80, "", true)), []string{pong1}},
		{"5.4", "a ping between fragments", join(raw(0x01, ping1[:5], true), raw(0x89, "hi", true), raw(0x80, ping1[5:], true)), []string{"pong hi", pong1}},
		{"5.4", "a close between fragments", join(raw(0x01, ping1[:5], true), raw(0x88, closePayload(1000, ""), true)), []string{"close 1000"}},
		{"5.4", "a continuation of nothing", raw(0x80, ping1, true), []string{"close 1002"}},
		{"5.4", "a fragment of nothing", raw(0x00, ping1, true), []string{"close 1002"}},
		{"5.4", "text within a fragmented message", join(raw(0x01, ping1[:5], true), raw(0x81, ping1, true)), []string{"close 1002"}},
		{"5.4", "fragments after the last", join(raw(0x01, ping1[:5], true), raw(0x80, ping1[5:], true), raw(0x80, "x", true)), []string{pong1, "close 1002"}},
		{"5.5", "a ping of 125 bytes", raw(0x89, strings.Repeat("p", 125), true), []string{"pong " + strings.Repeat("p", 125)}},
		{"5.5", "a ping of 126 bytes", raw(0x89, strings.Repeat("p", 126), true), []string{"close 1002"}},
		{"5.5", "a fragmented ping", raw(0x09, "p", true), []string{"close 1002"}},
		{"5.5", "a fragmented close", raw(0x08, "", true), []string{"close 1002"}},
		{"5.5.1", "a close", raw(0x88, closePayload(1000, "bye"), true), []string{"close 1000"}},
		{"5.5.1", "an empty close", raw(0x88, "", true), []string{"close 0"}},
		{"5.5.1", "a close of one byte", raw(0x88, "x", true), []string{"close 1002"}},
		{"5.5.1", "a reason that is not UTF-8", raw(0x88, closePayload(1000, "\xff"), true), []string{"close 1007"}},
		{"5.5.1", "frames after a close are not handled", join(raw(0x88, closePayload(1000, ""), true), raw(0x81, ping1, true)), []string{"close 1000"}},
		{"5.5.2", "a ping", raw(0x89, "hello", true), []string{"pong hello"}},
		{"5.5.3", "a pong that nobody asked for", join(raw(0x8a, "x", true), raw(0x81, ping1, true)), []string{pong1}},
		{"5.6", "binary", raw(0x82, ping1, true), []string{"close 1003"}},
		{"5.6", "fragmented binary", raw(0x02, ping1, true), []string{"close 1003"}},
		{"7.4.1", "code 999", raw(0x88, closePayload(999, ""), true), []string{"close 1002"}},
		{"7.4.1", "code 1004", raw(0x88, closePayload(1004, ""), true), []string{"close 1002"}},
		{"7.4.1", "code 1005 is never sent", raw(0x88, closePayload(1005, ""), true), []string{"close 1002"}},
		{"7.4.1", "code 1006 is never sent", raw(0x88, closePayload(1006, ""), true), []string{"close 1002"}},
		{"7.4.1", "code 1011", raw(0x88, closePayload(1011, ""), true), []string{"close 1011"}},
		{"7.4.2", "code 1015 is never sent", raw(0x88, closePayload(1015, ""), true), []string{"close 1002"}},
		{"7.4.2", "code 2999", raw(0x88, closePayload(2999, ""), true), []string{"close 1002"}},
		{"7.4.2", "code 1012 of the registry", raw(0x88, closePayload(1012, ""), true), []string{"close 1012"}},
		{"7.4.2", "code 3000", raw(0x88, closePayload(3000, ""), true), []string{"close 3000"}},
		{"7.4.2", "code 4999", raw(0x88, closePayload(4999, ""), true), []string{"close 4999"}},
		{"7.4.2", "code 5000", raw(0x88, closePayload(5000, ""), true), []string{"close 1002"}},
		{"8.1", "text that is not UTF-8", raw(0x81, "{\"type\":\"\xc3\x28\"}", true), []string{"close 1007"}},
		{"8.1", "a character cut in two by fragments", join(raw(0x01, "{\"type\":\"ping\",\"id\":1,\"x\":\"\xc3", true), raw(0x80, "\xa4\"}", true)), []string{pong1}},
		{"8.1", "a surrogate in UTF-8", raw(0x81, "\xed\xa0\x80", true), []string{"close 1007"}},
		{"10.4", "a frame over the limit", raw(0x81, strings.Repeat("x", 4097), true), []string{"close 1009"}},
		{"10.4", "a message over the limit", join(raw(0x01, strings.Repeat("x", 4000), true), raw(0x80, strings.Repeat("x", 97), true)), []string{"close 1009"}},
	}
	for _, tt := range tests {
		t.Run(tt.section+" "+tt.name, func(t *testing.T) {
			for _, piece := range []int{len(tt.send), 1} {
				c := r.dial("alice@example.com")
				c.t = t
				for part := range slices.Chunk(tt.send, piece) {
					if _, err := c.conn.Write(part); err != nil {
						break // it has been closed already
					}
				}
				for _, want := range tt.want {
					f, err := c.read()
					if err != nil {
						t.Fatalf("in pieces of %d: %v, want %q", piece, err, want)
					}
					if got := describe(f); got != want {
						t.Fatalf("in pieces of %d: got %q, want %q", piece, got, want)
					}
				}
				if strings.HasPrefix(tt.want[len(tt.want)-1], "close") { // 7.1.1: the server closes the TCP connection
					if f, err := c.read(); err == nil {
						t.Errorf("after the close frame came %q", describe(f))
					}
				}
				c.conn.Close()
			}
		})
	}
	eventually(t, "all are gone", func() bool { return r.admit.sockets.Load() == 0 })
}

func describe(f ws.Frame) string {
	switch f.Header.OpCode {
	case ws.OpClose:
		code, reason := ws.ParseCloseFrameData(f.Payload)
		if code >= 1002 && code <= 1009 && reason == "" {
			return fmt.Sprintf("close %d without a reason", code)
		}
		return fmt.Sprintf("close %d", code)
	case ws.OpPong:
		return "pong " + string(f.Payload)
	case ws.OpPing:
		return "ping " + string(f.Payload)
	}
	return "text " + string(f.Payload)
}

func TestSeal(t *testing.T) {
	for _, n := range []int{0, 1, 125, 126, 65535, 65536} {
		payload := bytes.Repeat([]byte("x"), n)
		got := seal(append(newFrame(nil), payload...), ws.OpText)
		if want := ws.MustCompileFrame(ws.NewTextFrame(payload)); !bytes.Equal(got, want) {
			t.Errorf("%d bytes: % x, want % x", n, got[:min(len(got), 12)], want[:min(len(want), 12)])
		}
		if size, p := frameAt(append(got, "more"...)); size != len(got) || !bytes.Equal(p, payload) {
			t.Errorf("%d bytes: frameAt says %d", n, size)
		}
	}
}

func TestCloseReasonsFit(t *testing.T) {
	for _, c := range []closing{closeShutdown, closeUnmasked, closeReserved, closeOpCode, closeControl, closeFragments, closeLength, closeCloseCode,
		closeBinary, closeUTF8, closeExpired, closeRate, closeHalf, closeStalled, closeSilent, closeTooBig, closeMoved} {
		if len(c.text) > 123 || c.text == "" {
			t.Errorf("%d: the reason has %d bytes, 1 to 123 are allowed", c.code, len(c.text))
		}
		if bad := checkClose(c.frame()[2:]); bad != nil {
			t.Errorf("%d: %v", c.code, bad)
		}
	}
}

func TestBadFramesOfMailbell(t *testing.T) {
	r := start(t, nil)
	c := r.dial("alice@example.com")
	for _, tt := range []struct {
		send string
		code schema.ErrorCode
		id   uint64
	}{
		{`hello`, schema.CodeBadRequest, 0},
		{`[]`, schema.CodeBadRequest, 0},
		{`{"type":"dance","id":3}`, schema.CodeBadRequest, 3},
		{`{"type":"subscribe","id":4}`, schema.CodeBadRequest, 4},
		{`{"type":"subscribe","id":5,"account":"bob@example.com"}`, schema.CodeForbidden, 5},
		{`{"type":"subscribe","id":"x","account":"alice@example.com"}`, schema.CodeBadRequest, 0},
	} {
		c.send(tt.send)
		if f := c.expect(schema.FrameErr); f.Code != tt.code || f.ID != tt.id || f.Message == "" {
			t.Errorf("%s: %+v", tt.send, f)
		}
	}
	c.send(`{"type":"unsubscribe","id":6,"account":"nobody"}`)
	if f := c.expect(schema.FrameUnsubscribed); f.ID != 6 {
		t.Errorf("%+v", f)
	}
}

func TestFrameLimits(t *testing.T) {
	t.Run("half a frame", func(t *testing.T) {
		r := start(t, func(c *Config) { c.FrameTimeout = 200 * time.Millisecond })
		for _, half := range [][]byte{{0x81}, raw(0x81, "0123456789", true)[:9], raw(0x01, "half a message", true), {0x81, 0xfe, 0x0f}} {
			c := r.dial("alice@example.com")
			c.conn.Write(half)
			if code, reason := c.closed(); code != ws.StatusPolicyViolation || !strings.Contains(reason, "in time") {
				t.Errorf("% x: %d %s", half, code, reason)
			}
		}
	})
	t.Run("frame rate", func(t *testing.T) {
		r := start(t, func(c *Config) { c.FrameRate, c.FrameBurst = 1, 20 })
		c := r.dial("alice@example.com")
		c.conn.Write(bytes.Repeat(masked(ws.NewPingFrame(nil)), 20))
		for range 20 {
			if f, err := c.read(); err != nil || f.Header.OpCode != ws.OpPong {
				t.Fatalf("%v %v", f, err)
			}
		}
		c.conn.Write(bytes.Repeat(masked(ws.NewPingFrame(nil)), 5))
		if code, reason := c.closed(); code != ws.StatusPolicyViolation || !strings.Contains(reason, "too many frames") {
			t.Errorf("%d %s", code, reason)
		}
	})
	t.Run("subscriptions", func(t *testing.T) {
		r := start(t, func(c *Config) { c.MaxSubscriptions = 2 })
		var grants []auth.Grant
		for i := range 3 {
			grants = append(grants, auth.Grant{Account: accountOf(fmt.Sprint("shared", i))})
		}
		c := r.dialToken(r.keys.token(t, auth.Claims{Account: "alice@example.com", Accounts: grants}))
		c.subscribe("1", "shared0")
		c.subscribe("2", "shared1")
		c.send(`{"type":"subscribe","id":3,"account":"shared2"}`)
		if f := c.expect(schema.FrameErr); f.Code != schema.CodeTooMany {
			t.Errorf("%+v", f)
		}
		c.send(`{"type":"unsubscribe","id":4,"account":"shared0"}`)
		c.expect(schema.FrameUnsubscribed)
		c.subscribe("5", "shared2")
	})
	t.Run("closing handshakes never finished", func(t *testing.T) {
		r := start(t, func(c *Config) { c.CloseTimeout = 200 * time.Millisecond })
		c := r.dial("alice@example.com")
		c.conn.Write(raw(0x82, "", true))
		if code, _ := c.closed(); code != ws.StatusUnsupportedData {
			t.Errorf("%d", code)
		}
		eventually(t, "the descriptor is closed", func() bool { return r.admit.sockets.Load() == 0 })
	})
}

func FuzzFrames(f *testing.F) {
	f.Add(raw(0x81, `{"type":"ping","id":1}`, true), 0)
	f.Add([]byte{0x81, 0xff, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1, 2, 3, 4}, 3)
	f.Add(raw(0x08, "", false), 100)
	f.Fuzz(func(t *testing.T, b []byte, assembled int) {
		if assembled < 0 || assembled > 4096 {
			return
		}
		p := parser{maxSize: 4096}
		h, size, more, bad := p.next(b, ws.StateServerSide, assembled)
		if bad != nil || more {
			return
		}
		if size+int(h.Length) > len(b) || h.Length > 4096 {
			t.Fatalf("% x: %+v %d", b, h, size)
		}
		want, err := ws.ReadHeader(bytes.NewReader(b))
		if err != nil || want != h {
			t.Fatalf("% x: %+v, want %+v, %v", b, h, want, err)
		}
		if err := ws.CheckHeader(h, ws.StateServerSide); err != nil {
			t.Fatal(err)
		}
	})
}
