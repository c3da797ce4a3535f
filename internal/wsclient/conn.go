package wsclient

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/gobwas/ws"
	"github.com/mailbell/mailbell/schema"
)

// ConnConfig says how to open one connection. The zero value does for a URL with a ticket.
type ConnConfig struct {
	// Token is sent as Authorization: Bearer, unless empty.
	Token string
	// Origin is sent as the Origin header, unless empty. Programs need none.
	Origin string
	// TLS for wss; nil means the system's roots.
	TLS *tls.Config
	// Dialer makes the TCP connection; nil means a plain one. A bench sets its LocalAddr.
	Dialer *net.Dialer
	// Timeout of connect and handshake; 0 means 10 s.
	Timeout time.Duration
	// ReadBuffer is how many bytes a connection keeps for reading; 0 means 1 KiB. It grows
	// for a longer frame and shrinks again.
	ReadBuffer int
	// MaxMessage is the longest message taken; 0 means 256 KiB.
	MaxMessage int
}

func (c ConnConfig) withDefaults() ConnConfig {
	if c.Timeout == 0 {
		c.Timeout = 10 * time.Second
	}
	if c.ReadBuffer == 0 {
		c.ReadBuffer = 1 << 10
	}
	if c.MaxMessage == 0 {
		c.MaxMessage = 4 * schema.MaxEventBytes
	}
	if c.Dialer == nil {
		c.Dialer = &net.Dialer{}
	}
	return c
}

// StatusError says that a server answered a handshake, or a gateway a request, with something
// other than what was asked for.
type StatusError struct {
	Status     int
	RetryAfter time.Duration // 0: none was given
	Message    string        // may be empty
}

func (e *StatusError) Error() string {
	s := fmt.Sprintf("the server answered %d %s", e.Status, http.StatusText(e.Status))
	if e.Message != "" {
		s += ": " + e.Message
	}
	return s
}

// denied reports whether only another token helps.
func (e *StatusError) denied() bool {
	return e.Status == http.StatusUnauthorized || e.Status == http.StatusForbidden
}

// CloseError says that the server ended the connection with a close frame.
type CloseError struct {
	Code   ws.StatusCode // RFC 6455, section 7.4; 1005 when there was none
	Reason string
}

func (e *CloseError) Error() string {
	return strings.TrimSpace(fmt.Sprintf("the server closed the connection with %d %s", e.Code, e.Reason))
}

// Conn is one connection, without a goroutine of its own. One goroutine may call Next
// while others call Send.
type Conn struct {
	// Static after construction.
	conn  net.Conn
	size  int
	limit int

	// Owned by Next's caller.
	buf      []byte // buf[at:] has been read and not been used
	at       int
	message  []byte // of a fragmented message, so far
	partial  bool   // within one
	received uint64 // bytes read

	wmu sync.Mutex
	// Guarded by wmu.
	out    []byte
	closed bool
}

// DialConn connects to a socket URL (ws or wss) and upgrades. A refusal is a *StatusError.
func DialConn(ctx context.Context, url string, cfg ConnConfig) (*Conn, error) {
	cfg = cfg.withDefaults()
	header := http.Header{}
	if cfg.Token != "" {
		header.Set("Authorization", "Bearer "+cfg.Token)
	}
	if cfg.Origin != "" {
		header.Set("Origin", cfg.Origin)
	}
	var refused *StatusError
	d := ws.Dialer{
		Timeout:   cfg.Timeout,
		Protocols: []string{schema.Subprotocol},
		Header:    ws.HandshakeHeaderHTTP(header),
		NetDial:   cfg.Dialer.DialContext,
		TLSConfig: cfg.TLS,
		OnStatusError: func(status int, _ []byte, resp io.Reader) {
			refused = readRefusal(status, resp)
		},
	}
	conn, br, hs, err := d.Dial(ctx, url)
	if refused != nil {
		return nil, refused
	}
	if err != nil {
		return nil, fmt.Errorf("connect: %w", err)
	}
	c := &Conn{conn: conn, size: cfg.ReadBuffer, limit: cfg.MaxMessage}
	if br != nil { // frames came with the handshake's answer
		early, _ := br.Peek(br.Buffered())
		c.buf = slices.Clone(early)
		c.received = uint64(len(early))
		ws.PutReader(br)
	}
	if hs.Protocol != schema.Subprotocol {
		_ = conn.Close()
		return nil, fmt.Errorf("connect: the server does not speak %s", schema.Subprotocol)
	}
	return c, nil
}

// readRefusal reads an HTTP answer that is no upgrade.
func readRefusal(status int, r io.Reader) *StatusError {
	e := &StatusError{Status: status}
	resp, err := http.ReadResponse(bufio.NewReader(r), nil)
	if err != nil {
		return e
	}
	defer resp.Body.Close()
	e.RetryAfter = retryAfter(resp.Header)
	if resp.ContentLength > 0 && resp.ContentLength <= 4<<10 { // a body without a length might never end
		b, _ := io.ReadAll(resp.Body)
		e.Message = refusalText(b)
	}
	return e
}

// retryAfter reads Retry-After (RFC 9110, section 10.2.3), in seconds or as a date.
func retryAfter(h http.Header) time.Duration {
	v := h.Get("Retry-After")
	if s, err := strconv.ParseUint(v, 10, 31); err == nil {
		return time.Duration(s) * time.Second
	}
	if t, err := http.ParseTime(v); err == nil {
		return max(0, time.Until(t))
	}
	return 0
}

// NetConn is what lies below.
func (c *Conn) NetConn() net.Conn { return c.conn }

// SetReadDeadline makes Next fail with os.ErrDeadlineExceeded from then on. What has been
// read of a frame is kept.
func (c *Conn) SetReadDeadline(t time.Time) error { return c.conn.SetReadDeadline(t) }

// Next returns the next message, which is valid until the next call. Pings are answered
// on the way. The end is a *CloseError or what the network says.
func (c *Conn) Next() ([]byte, error) {
	for {
		f, n, need, err := ParseFrame(c.buf[c.at:], c.limit)
		if err != nil {
			return nil, err
		}
		if n == 0 {
			if err := c.fill(need); err != nil {
				return nil, err
			}
			continue
		}
		c.at += n
		message, done, err := c.take(f)
		if err != nil || done {
			return message, err
		}
	}
}

// Buffered reports whether Next has a whole frame to look at before it must read.
func (c *Conn) Buffered() bool {
	_, n, _, err := ParseFrame(c.buf[c.at:], c.limit)
	return n > 0 || err != nil
}

// fill reads some more, into room for a frame of that many bytes.
func (c *Conn) fill(need int) error {
	have := len(c.buf) - c.at
	size := max(c.size, need)
	if cap(c.buf) < size || cap(c.buf) > size && have == 0 {
		c.buf = append(make([]byte, 0, size), c.buf[c.at:]...)
	} else {
		c.buf = c.buf[:copy(c.buf, c.buf[c.at:])]
	}
	c.at = 0
	n, err := c.conn.Read(c.buf[have:cap(c.buf)])
	c.buf = c.buf[:have+n]
	c.received += uint64(n)
	if n > 0 {
		return nil
	}
	if err == nil || errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF // without a close frame
	}
	return err
}

// take deals with one frame; done says that message is one.
func (c *Conn) take(f Frame) (message []byte, done bool, err error) {
	switch f.Op {
	case ws.OpPing:
		_ = c.write(ws.OpPong, f.Payload, writeTimeout) // what came before the end is still to be read
		return nil, false, nil
	case ws.OpPong:
		return nil, false, nil
	case ws.OpClose:
		return nil, false, c.hangUp(f.Payload)
	case ws.OpBinary:
		return nil, false, fmt.Errorf("%w: %s has no binary messages", ErrProtocol, schema.Subprotocol)
	case ws.OpText:
		if c.partial {
			return nil, false, fmt.Errorf("%w: a message within a message", ErrProtocol)
		}
		if f.Fin {
			return checkText(f.Payload)
		}
	case ws.OpContinuation:
		if !c.partial {
			return nil, false, fmt.Errorf("%w: a continuation of nothing", ErrProtocol)
		}
	}
	if len(c.message)+len(f.Payload) > c.limit {
		return nil, false, fmt.Errorf("websocket: a message of more than %d bytes", c.limit)
	}
	c.message = append(c.message, f.Payload...)
	c.partial = !f.Fin
	if c.partial {
		return nil, false, nil
	}
	whole := c.message
	c.message = nil
	return checkText(whole)
}

func checkText(b []byte) ([]byte, bool, error) {
	if !utf8.Valid(b) {
		return nil, false, fmt.Errorf("%w: text is not UTF-8", ErrProtocol)
	}
	return b, true, nil
}

// hangUp answers a close frame.
func (c *Conn) hangUp(payload []byte) error {
	e := &CloseError{Code: ws.StatusNoStatusRcvd}
	if len(payload) >= 2 {
		e.Code, e.Reason = ws.StatusCode(binary.BigEndian.Uint16(payload)), string(payload[2:])
		payload = payload[:2]
	}
	_ = c.write(ws.OpClose, payload, byeTimeout)
	return e
}

// Send sends one text message, in one write.
func (c *Conn) Send(message []byte) error { return c.write(ws.OpText, message, writeTimeout) }

const (
	// writeTimeout bounds one write; a server that does not read for so long is gone.
	writeTimeout = 10 * time.Second
	byeTimeout   = time.Second // of a close frame
)

func (c *Conn) write(op ws.OpCode, payload []byte, timeout time.Duration) error {
	c.wmu.Lock()
	defer c.wmu.Unlock()
	if c.closed {
		return net.ErrClosed
	}
	var mask [4]byte
	binary.LittleEndian.PutUint32(mask[:], rand.Uint32())
	c.out = AppendFrame(c.out[:0], op, payload, mask)
	_ = c.conn.SetWriteDeadline(time.Now().Add(timeout))
	_, err := c.conn.Write(c.out)
	if cap(c.out) > c.size {
		c.out = nil
	}
	return err
}

// Close says goodbye (1000) and ends the connection without waiting for an answer.
func (c *Conn) Close() error {
	_ = c.conn.SetWriteDeadline(time.Now().Add(byeTimeout)) // for a Send that is stuck
	_ = c.write(ws.OpClose, ws.NewCloseFrameBody(ws.StatusNormalClosure, ""), byeTimeout)
	c.wmu.Lock()
	defer c.wmu.Unlock()
	if c.closed {
		return nil
	}
	c.closed = true
	return c.conn.Close()
}

// refusalText takes the message out of a JSON answer, or a short text as it stands.
func refusalText(b []byte) string {
	if m := jsonMessage(b); m != "" {
		return m
	}
	if b = bytes.TrimSpace(b); len(b) <= 300 && !bytes.HasPrefix(b, []byte("<")) && utf8.Valid(b) {
		return strings.Join(strings.Fields(string(b)), " ")
	}
	return ""
}
