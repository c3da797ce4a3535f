package attack

import (
	"bytes"
	"context"
	"fmt"
	"time"

	"github.com/mailbell/mailbell/bench/swarm"
	"github.com/mailbell/mailbell/schema"
)

// All returns the attacks in the order in which they are tried.
func All() []Attack {
	return []Attack{
		{Name: "silent", What: "connections that send nothing", Connections: 10_000, run: opening("")},
		{Name: "halfLine", What: "half a request line, and no more", Connections: 10_000, run: opening("GET /v1/w")},
		{Name: "drip", What: "one header byte a second", Connections: 10_000, run: drip},
		{Name: "longHeader", What: "a header line of 64 MiB", Connections: 20, run: longHeader},
		{Name: "halfFrames", What: "half a frame, and no more", Connections: 2000, run: framing([]byte{0x81, 0xfe, 0x01, 0x00, 0, 0, 0, 0, 'x'})},
		{Name: "hugeFrame", What: "a frame that announces 2^63-1 bytes", Connections: 500, run: framing([]byte{0x82, 0xff, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0})},
		{Name: "unmasked", What: "frames without a mask", Connections: 500, run: framing([]byte("\x81\x15{\"type\":\"ping\",\"id\":1}"))},
		{Name: "reservedBits", What: "frames with reserved bits", Connections: 500, run: framing(masked(0xf1, `{"type":"ping","id":1}`))},
		{Name: "badUTF8", What: "text that is not UTF-8", Connections: 500, run: framing(masked(0x81, "{\"type\":\"ping\xc3\x28\"}"))},
		{Name: "binary", What: "text in binary frames", Connections: 500, run: framing(masked(0x82, `{"type":"ping","id":1}`))},
		{Name: "fragmentedControl", What: "fragmented control frames", Connections: 500, run: framing(masked(0x09, "x"))},
		{Name: "pingFlood", What: "10,000 pings a second", Connections: 10, run: flood(func(*attacker, int) []byte { return masked(0x89, "") })},
		{Name: "subscribeFlood", What: "thousands of subscribes", Connections: 20, run: flood(subscribeAnyone)},
		{Name: "neverClose", What: "closing handshakes never finished", Connections: 2000, run: neverClose},
		{Name: "deaf", What: "clients that never read while events pour in", Connections: 1000, NeedsEvents: true, run: deaf},
		{Name: "connectReset", What: "connect and reset, as fast as possible", Connections: 50, run: reset("")},
		{Name: "resetInHandshake", What: "reset in mid handshake", Connections: 50, run: reset("GET /v1/ws HTTP/1.1\r\nHost: x\r\n")},
		{Name: "files", What: "all descriptors taken", Connections: 17_000, run: opening("")},
		{Name: "stampede", What: "5,000 good clients at once, as after a restart", Connections: 5000, run: stampede},
	}
}

// opening sends the start of a request and waits to be thrown out.
func opening(start string) func(*attacker, context.Context, int) {
	return func(a *attacker, ctx context.Context, i int) {
		c, err := a.dial(ctx, i)
		if err != nil {
			return
		}
		defer c.end()
		a.attempts.Add(1)
		if _, err := c.Write([]byte(start)); err == nil {
			c.outlast()
		}
	}
}

func drip(a *attacker, ctx context.Context, i int) {
	c, err := a.dial(ctx, i)
	if err != nil {
		return
	}
	defer c.end()
	a.attempts.Add(1)
	_, err = c.Write([]byte("GET /v1/ws HTTP/1.1\r\nX: "))
	for err == nil && wait(ctx, time.Second) == nil {
		_, err = c.Write([]byte("x"))
	}
}

func longHeader(a *attacker, ctx context.Context, i int) {
	c, err := a.dial(ctx, i)
	if err != nil {
		return
	}
	defer c.end()
	a.attempts.Add(1)
	_, err = c.Write([]byte("GET /v1/ws HTTP/1.1\r\nX: "))
	part := bytes.Repeat([]byte{'x'}, 64<<10)
	for n := 0; err == nil && n < 64<<20 && ctx.Err() == nil; n += len(part) {
		_, err = c.Write(part)
	}
	_ = wait(ctx, 10*time.Millisecond)
}

func masked(first byte, payload string) []byte {
	return swarm.AppendMasked(nil, first, []byte(payload))
}

// framing enters with a good token, then sends these bytes and waits to be thrown out.
func framing(frame []byte) func(*attacker, context.Context, int) {
	return func(a *attacker, ctx context.Context, i int) {
		c, err := a.enter(ctx, i)
		if err != nil {
			return
		}
		defer c.end()
		a.attempts.Add(1)
		if _, err := c.Write(frame); err == nil {
			c.outlast()
		}
		_ = wait(ctx, 100*time.Millisecond)
	}
}

// flood sends 1,000 frames a second on each connection, and comes back when it is thrown out.
func flood(frame func(*attacker, int) []byte) func(*attacker, context.Context, int) {
	return func(a *attacker, ctx context.Context, i int) {
		c, err := a.enter(ctx, i)
		if err != nil {
			return
		}
		defer c.end()
		go c.outlast() // reads the answers; ends with the connection
		for k := 0; err == nil; k++ {
			var batch []byte
			for n := range 100 {
				batch = append(batch, frame(a, k*100+n)...)
			}
			if _, err = c.Write(batch); err == nil {
				a.attempts.Add(100)
				err = wait(ctx, 100*time.Millisecond)
			}
		}
	}
}

func subscribeAnyone(a *attacker, n int) []byte {
	return masked(0x81, fmt.Sprintf(`{"type":"subscribe","id":%d,"account":"%s"}`, n+1, a.account(n%7)))
}

// neverClose is thrown out and takes no notice.
func neverClose(a *attacker, ctx context.Context, i int) {
	c, err := a.enter(ctx, i)
	if err != nil {
		return
	}
	defer c.end()
	a.attempts.Add(1)
	if _, err := c.Write(masked(0x82, "x")); err == nil {
		_ = wait(ctx, 5*time.Second)
	}
}

// deaf subscribes to an account for which events pour in, and reads nothing.
func deaf(a *attacker, ctx context.Context, i int) {
	c, err := a.enter(ctx, i)
	if err != nil {
		return
	}
	defer c.end()
	a.attempts.Add(1)
	_ = c.SetReadBuffer(4096)
	if _, err := c.Write(masked(0x81, `{"type":"subscribe","id":1,"account":"`+a.account(i)+`"}`)); err == nil {
		_ = wait(ctx, time.Hour)
	}
}

func reset(start string) func(*attacker, context.Context, int) {
	return func(a *attacker, ctx context.Context, i int) {
		c, err := a.dial(ctx, i)
		if err != nil {
			return
		}
		a.attempts.Add(1)
		_, _ = c.Write([]byte(start))
		c.end()
	}
}

// stampede is not even hostile: clients that come all at once, subscribe, and stay.
func stampede(a *attacker, ctx context.Context, i int) {
	c, err := a.enter(ctx, i)
	if err != nil {
		return
	}
	defer c.end()
	a.attempts.Add(1)
	name := schema.Account(a.account(i))
	if _, err := c.Write(masked(0x81, `{"type":"subscribe","id":1,"account":"`+string(name)+`"}`)); err == nil {
		c.outlast()
	}
}
