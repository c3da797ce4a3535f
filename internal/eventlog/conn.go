package eventlog

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"time"

	kafka "github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/protocol"
	"github.com/segmentio/kafka-go/protocol/apiversions"
	"github.com/segmentio/kafka-go/protocol/saslauthenticate"
	"github.com/segmentio/kafka-go/protocol/saslhandshake"
	"github.com/segmentio/kafka-go/sasl"
)

const (
	clientID = "mailbell"
	// dialTimeout bounds connecting, the TLS handshake and the login together.
	dialTimeout = 10 * time.Second
	// maxResponseBytes is more than any broker may answer to what is asked here.
	maxResponseBytes = 128 << 20
)

// dialer opens connections to brokers and logs in.
type dialer struct {
	// Static after construction.
	dial func(ctx context.Context, network, address string) (net.Conn, error)
	tls  *tls.Config
	sasl sasl.Mechanism
}

func newDialer(cfg Config) (*dialer, error) {
	d := &dialer{dial: cfg.Dial}
	var err error
	if d.tls, err = cfg.TLS.config(); err != nil {
		return nil, err
	}
	d.sasl, err = cfg.SASL.mechanism()
	return d, err
}

// conn is a connection to one broker. One goroutine uses it at a time.
type conn struct {
	nc   net.Conn
	pc   *protocol.Conn // for everything but produce and fetch
	r    *bufio.Reader  // for produce and fetch
	out  []byte
	corr int32
}

// connect opens a connection, learns the broker's API versions and logs in.
func (d *dialer) connect(ctx context.Context, address string) (*conn, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	nc, err := d.dial(ctx, "tcp", address)
	if err != nil {
		return nil, fmt.Errorf("connect to %s: %w", address, err)
	}
	c := &conn{nc: nc}
	defer c.abortOn(ctx)()
	if err := d.greet(ctx, c, address); err != nil {
		c.nc.Close()
		return nil, fmt.Errorf("connect to %s: %w", address, err)
	}
	c.r = bufio.NewReaderSize(c.nc, 64<<10)
	return c, nil
}

func (d *dialer) greet(ctx context.Context, c *conn, address string) error {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return err
	}
	if d.tls != nil {
		cfg := d.tls
		if cfg.ServerName == "" {
			cfg = cfg.Clone()
			cfg.ServerName = host
		}
		tc := tls.Client(c.nc, cfg)
		if err := tc.HandshakeContext(ctx); err != nil {
			return fmt.Errorf("tls: %w", err)
		}
		c.nc = tc
	}
	c.pc = protocol.NewConn(c.nc, clientID)
	answer, err := c.pc.RoundTrip(new(apiversions.Request))
	if err != nil {
		return fmt.Errorf("ask for versions: %w", d.hint(err))
	}
	versions := answer.(*apiversions.Response)
	if versions.ErrorCode != 0 {
		return fmt.Errorf("ask for versions: %w", kafka.Error(versions.ErrorCode))
	}
	chosen := make(map[protocol.ApiKey]int16, len(versions.ApiKeys))
	for _, k := range versions.ApiKeys {
		key := protocol.ApiKey(k.ApiKey)
		chosen[key] = key.SelectVersion(k.MinVersion, k.MaxVersion)
	}
	c.pc.SetVersions(chosen)
	if d.sasl == nil {
		return nil
	}
	n, _ := strconv.Atoi(port)
	return login(sasl.WithMetadata(ctx, &sasl.Metadata{Host: host, Port: n}), c.pc, d.sasl)
}

// hint adds what a broker that hangs up at once may mean.
func (d *dialer) hint(err error) error {
	if !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
		return err
	}
	if d.tls == nil {
		return fmt.Errorf("%w (the broker hung up: does this port want TLS?)", err)
	}
	return fmt.Errorf("%w (the broker hung up)", err)
}

func login(ctx context.Context, pc *protocol.Conn, mechanism sasl.Mechanism) error {
	answer, err := pc.RoundTrip(&saslhandshake.Request{Mechanism: mechanism.Name()})
	if err != nil {
		return fmt.Errorf("log in with %s: %w", mechanism.Name(), err)
	}
	if r := answer.(*saslhandshake.Response); r.ErrorCode != 0 {
		return fmt.Errorf("log in: the broker offers %v, not %s: %w", r.Mechanisms, mechanism.Name(), kafka.Error(r.ErrorCode))
	}
	session, out, err := mechanism.Start(ctx)
	if err != nil {
		return fmt.Errorf("log in with %s: %w", mechanism.Name(), err)
	}
	for done := false; !done; {
		answer, err := pc.RoundTrip(&saslauthenticate.Request{AuthBytes: out})
		if err != nil {
			return fmt.Errorf("log in with %s: %w", mechanism.Name(), err)
		}
		r := answer.(*saslauthenticate.Response)
		if r.ErrorCode != 0 {
			return fmt.Errorf("log in with %s: %s: %w", mechanism.Name(), r.ErrorMessage, kafka.Error(r.ErrorCode))
		}
		if done, out, err = session.Next(ctx, r.AuthBytes); err != nil {
			return fmt.Errorf("log in with %s: %w", mechanism.Name(), err)
		}
	}
	return nil
}

// abortOn makes the connection's reads and writes fail when ctx ends, until the returned function is called.
func (c *conn) abortOn(ctx context.Context) (release func()) {
	nc := c.nc
	if deadline, ok := ctx.Deadline(); ok {
		_ = nc.SetDeadline(deadline)
	}
	stop := context.AfterFunc(ctx, func() { _ = nc.SetDeadline(time.Unix(1, 0)) })
	return func() {
		if stop() {
			_ = nc.SetDeadline(time.Time{})
		}
	}
}

// roundTrip sends a message that kafka-go encodes. The connection is useless after an error.
func (c *conn) roundTrip(ctx context.Context, m protocol.Message) (protocol.Message, error) {
	defer c.abortOn(ctx)()
	answer, err := c.pc.RoundTrip(m)
	if err != nil && ctx.Err() != nil {
		err = ctx.Err()
	}
	return answer, err
}

func (c *conn) close() { _ = c.nc.Close() }

// begin starts a request in the connection's own buffer: size, key, version, correlation id, client id.
func (c *conn) begin(key protocol.ApiKey, version int16) []byte {
	c.corr++
	b := append(c.out[:0], 0, 0, 0, 0)
	b = binary.BigEndian.AppendUint16(b, uint16(key))
	b = binary.BigEndian.AppendUint16(b, uint16(version))
	b = binary.BigEndian.AppendUint32(b, uint32(c.corr))
	return appendString(b, clientID)
}

// send writes the request that begin started.
func (c *conn) send(b []byte) error {
	binary.BigEndian.PutUint32(b, uint32(len(b)-4))
	_, err := c.nc.Write(b)
	if c.out = b; cap(b) > 4<<20 {
		c.out = nil
	}
	return err
}

// response reads the head of the answer to the last request and returns a reader for the rest of it.
func (c *conn) response() (*wireReader, error) {
	var head [8]byte
	if _, err := io.ReadFull(c.r, head[:]); err != nil {
		return nil, err
	}
	size := int(int32(binary.BigEndian.Uint32(head[:])))
	if size < 4 || size > maxResponseBytes {
		return nil, fmt.Errorf("an answer announces %d bytes", size)
	}
	if corr := int32(binary.BigEndian.Uint32(head[4:])); corr != c.corr {
		return nil, fmt.Errorf("an answer has the number %d, not %d", corr, c.corr)
	}
	return &wireReader{r: c.r, left: size - 4}, nil
}

// wireReader reads the fields of an answer. After the first error everything returns zero.
type wireReader struct {
	r    *bufio.Reader
	left int
	err  error
	b    [8]byte
}

func (w *wireReader) fixed(n int) []byte {
	if w.err == nil && w.left < n {
		w.err = io.ErrUnexpectedEOF
	}
	if w.err == nil {
		_, w.err = io.ReadFull(w.r, w.b[:n])
		w.left -= n
	}
	if w.err != nil {
		clear(w.b[:])
	}
	return w.b[:n]
}

func (w *wireReader) int16() int16 { return int16(binary.BigEndian.Uint16(w.fixed(2))) }
func (w *wireReader) int32() int32 { return int32(binary.BigEndian.Uint32(w.fixed(4))) }
func (w *wireReader) int64() int64 { return int64(binary.BigEndian.Uint64(w.fixed(8))) }

// count reads the length of an array whose elements have at least min bytes; -1 counts as 0.
func (w *wireReader) count(min int) int {
	n := int(w.int32())
	if n > 0 && n > w.left/min {
		w.err = io.ErrUnexpectedEOF
	}
	if n < 0 || w.err != nil {
		return 0
	}
	return n
}

func (w *wireReader) skip(n int) {
	if w.err == nil && (n < 0 || n > w.left) {
		w.err = io.ErrUnexpectedEOF
	}
	if w.err == nil {
		_, w.err = w.r.Discard(n)
		w.left -= n
	}
}

// bytes reads a length and as many bytes, into memory of their own.
func (w *wireReader) bytes() []byte {
	n := w.count(1)
	if n == 0 {
		return nil
	}
	b := make([]byte, n)
	_, w.err = io.ReadFull(w.r, b)
	w.left -= n
	return b
}

// end makes sure that the whole answer was read.
func (w *wireReader) end() error {
	if w.err == nil && w.left > 0 {
		w.skip(w.left)
	}
	return w.err
}

func appendString(b []byte, s string) []byte {
	b = binary.BigEndian.AppendUint16(b, uint16(len(s)))
	return append(b, s...)
}

func appendInt32(b []byte, v int32) []byte { return binary.BigEndian.AppendUint32(b, uint32(v)) }
func appendInt64(b []byte, v int64) []byte { return binary.BigEndian.AppendUint64(b, uint64(v)) }
