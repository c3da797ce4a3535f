package attack

import (
	"bytes"
	"context"
	"fmt"
	"time"

	"github.com/mailbell/mailbell/bench/swarm"
	"github.com/mailbell/mailbell/internal/auth"
	"github.com/mailbell/mailbell/schema"
)

// All returns the attacks in the order in which they are tried.
func All() []Attack {
	gone := handshakes("peer", "busy", "timeout")
	return []Attack{
		{Name: "silent", What: "connections that send nothing", Connections: 10_000, Effect: gone, run: opening("")},
		{Name: "halfLine", What: "half a request line, and no more", Connections: 10_000, Effect: gone, run: opening("GET /v1/w")},
		{Name: "drip", What: "one header byte a second", Connections: 10_000, Effect: gone, run: drip},
		{Name: "longHeader", What: "a header line of 64 MiB", Connections: 20, Effect: handshakes("headTooLarge"), run: longHeader},
		{Name: "halfFrames", What: "half a frame, and no more", Connections: 2000, Effect: closes("half_frame", "peer"), run: framing([]byte{0x81, 0xfe, 0x01, 0x00, 0, 0, 0, 0, 'x'})},
		{Name: "hugeFrame", What: "a frame that announces 2^63-1 bytes", Connections: 500, Effect: closes("too_big"), run: framing([]byte{0x82, 0xff, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0})},
		{Name: "unmasked", What: "frames without a mask", Connections: 500, Effect: closes("protocol"), run: framing([]byte("\x81\x15{\"type\":\"ping\",\"id\":1}"))},
		{Name: "reservedBits", What: "frames with reserved bits", Connections: 500, Effect: closes("protocol"), run: framing(masked(0xf1, `{"type":"ping","id":1}`))},
		{Name: "badUTF8", What: "text that is not UTF-8", Connections: 500, Effect: closes("utf8"), run: framing(masked(0x81, "{\"type\":\"ping\xc3\x28\"}"))},
		{Name: "binary", What: "text in binary frames", Connections: 500, Effect: closes("binary"), run: framing(masked(0x82, `{"type":"ping","id":1}`))},
		{Name: "fragmentedControl", What: "fragmented control frames", Connections: 500, Effect: closes("protocol"), run: framing(masked(0x09, "x"))},
		{Name: "pingFlood", What: "10,000 pings a second", Connections: 10, Effect: closes("rate"), run: flood(func(*attacker, int) []byte { return masked(0x89, "") })},
		{Name: "subscribeFlood", What: "thousands of subscribes", Connections: 20, Effect: closes("rate"), run: flood(subscribeAnyone)},
		{Name: "neverClose", What: "closing handshakes never finished", Connections: 2000, Effect: closes("binary"), run: neverClose},
		{Name: "deaf", What: "clients that never read while events pour in", Connections: 1000, AtLeast: 100, Accounts: 20, Effect: []string{"mailbell_notifier_events_dropped_total"}, Sets: true, NeedsEvents: true, run: deaf},
		{Name: "connectReset", What: "connect and reset, as fast as possible", Connections: 50, Effect: handshakes("peer"), run: reset("")},
		{Name: "resetInHandshake", What: "reset in mid handshake", Connections: 50, Effect: handshakes("peer"), run: reset("GET /v1/ws HTTP/1.1\r\nHost: x\r\n")},
		{Name: "perAddress", What: "more connections from one address than it may have", AtLeast: 1, Effect: handshakes("perAddress"), Sets: true, OneAddress: true, run: staying},
		{Name: "perAccount", What: "more connections of one account than it may have", Connections: 500, AtLeast: 200, Accounts: 1, Effect: handshakes("perAccount"), Sets: true, run: staying},
		{Name: "unknownKeys", What: "tokens signed by invented keys, while the source of keys is slow", Connections: 500, AtLeast: 50, Effect: handshakes("keysBusy"), Sets: true, SlowKeys: true, run: inventKey},
		{Name: "files", What: "all descriptors taken, by clients with good tokens", Connections: 17_000, AtLeast: 100, Effect: []string{`mailbell_notifier_accept_pauses_total{reason="files"}`}, Sets: true, FewFiles: true, run: staying},
		{Name: "stampede", What: "5,000 good clients at once, as after a restart", Connections: 5000, AllEnter: true, Effect: handshakes("ok"), run: staying},
	}
}

// handshakes and closes are the metrics of those that ended so.
func handshakes(results ...string) []string { return metric("handshakes_total{result=%q}", results) }
func closes(reasons ...string) []string     { return metric("closes_total{reason=%q}", reasons) }

func metric(format string, values []string) (all []string) {
	for _, v := range values {
		all = append(all, fmt.Sprintf("mailbell_notifier_"+format, v))
	}
	return all
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

// staying is not even hostile by itself: clients that come all at once, subscribe, and stay.
func staying(a *attacker, ctx context.Context, i int) {
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

// inventKey asks to be let in with a token whose key nobody has heard of, and reads the answer.
func inventKey(a *attacker, ctx context.Context, i int) {
	c, err := a.dial(ctx, i)
	if err != nil {
		return
	}
	defer c.end()
	token, err := auth.MintToken(a.cfg.KeyFile, auth.Claims{Account: schema.Account(a.account(i)), KeyID: fmt.Sprintf("invented-%d-%d", i, a.attempts.Add(1))})
	if err == nil {
		_, err = c.Write(swarm.AppendHandshake(nil, a.cfg.Target, token))
	}
	if err == nil {
		c.outlast()
	}
	_ = wait(ctx, 100*time.Millisecond)
}
