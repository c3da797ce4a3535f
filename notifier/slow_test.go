package notifier

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/gobwas/ws"
	"github.com/mailbell/mailbell/internal/auth"
	"github.com/mailbell/mailbell/schema"
)

// A client that does not read gets `missed`; nobody else waits for it.
func TestSlowReader(t *testing.T) {
	for _, caps := range []struct {
		name           string
		backlog, total int
		reason         dropReason
	}{{"its own cap", 4 << 10, 64 << 20, dropConnection}, {"the cap of all", 64 << 20, 4 << 10, dropTotal}} {
		t.Run(caps.name, func(t *testing.T) {
			r := start(t, func(c *Config) { c.Backlog, c.TotalBacklog = caps.backlog, caps.total })
			const a = "alice@example.com"
			slow, quick := r.dialNarrow(a), r.dial(a)
			slow.subscribe("1", a)
			quick.subscribe("1", a)
			big := event(a, strings.Repeat("m", 1000), "e")
			var last schema.Position
			for n := 0; r.metrics.dropped[dropMissed].Load() < 10; n++ {
				if n == 100000 {
					t.Fatal("nothing is ever dropped")
				}
				last = r.bus.publish(a, big)
				if f := quick.expect(schema.FrameEvent); f.Position != last {
					t.Fatalf("%+v", f)
				}
			}
			for reason := range r.metrics.dropped {
				wanted := dropReason(reason) == caps.reason || dropReason(reason) == dropMissed || dropReason(reason) == dropDiscarded
				if n := r.metrics.dropped[reason].Load(); (n > 0) != wanted {
					t.Errorf("%d events were dropped for the reason %s", n, dropLabels[reason])
				}
			}
			// Answers are never dropped.
			slow.send(`{"type":"ping","id":77}`)
			events, pong := 0, false
			var at schema.Position
			for {
				f := slow.next()
				if f.Type == schema.FramePong {
					pong = true
					continue
				}
				if f.Type == schema.FrameMissed {
					if f.Reason != string(schema.MissedSlow) || f.Position != last {
						t.Errorf("%+v, want position %s", f, last)
					}
					break
				}
				if cmp, ok := f.Position.Compare(at); at.Offset > 0 && (!ok || cmp <= 0) {
					t.Fatalf("%s after %s", f.Position, at)
				}
				events, at = events+1, f.Position
			}
			// The pong may also come after missed.
			next := r.bus.publish(a, big)
			for !pong {
				f := slow.next()
				pong = f.Type == schema.FramePong
			}
			if f := slow.expect(schema.FrameEvent); f.Position != next {
				t.Errorf("live again: %+v", f)
			}
			eventually(t, "nothing is parked", func() bool { return r.backlog.Load() == 0 })
		})
	}
}

// A client that never reads is closed in the end, and what was parked for it is gone.
func TestNeverReads(t *testing.T) {
	r := start(t, func(c *Config) { c.WriteTimeout = 300 * time.Millisecond })
	const a = "alice@example.com"
	c := r.dialNarrow(a)
	c.subscribe("1", a)
	big := event(a, strings.Repeat("m", 1000), "e")
	for n := 0; r.backlog.Load() == 0; n++ {
		if n == 100000 {
			t.Fatal("nothing is ever parked")
		}
		for range 100 {
			r.bus.publish(a, big)
		}
		eventually(t, "they are sent", func() bool { return r.metrics.records.Load() == uint64(100*(n+1)) })
	}
	eventually(t, "it is closed", func() bool { return r.Connections() == 0 })
	eventually(t, "nothing is parked", func() bool { return r.backlog.Load() == 0 && r.admit.sockets.Load() == 0 })
	eventually(t, "nothing is wanted", func() bool { return r.bus.wanted() == 0 })
}

// Who asks and never reads the answers is closed.
func TestAnswersUnread(t *testing.T) {
	r := start(t, func(c *Config) { c.FrameRate, c.FrameBurst, c.Backlog = 1000, 1<<20, 1<<10 })
	c := r.dialNarrow("alice@example.com")
	c.conn.SetWriteDeadline(time.Now().Add(patience))
	many := []byte(strings.Repeat(string(masked(ws.NewPingFrame(make([]byte, 125)))), 100))
	for {
		if _, err := c.conn.Write(many); err != nil {
			break
		}
	}
	eventually(t, "it is closed", func() bool { return r.admit.sockets.Load() == 0 })
	if counterOf(t, r.metrics.closes.WithLabelValues(endUnread)) != 1 {
		t.Error("not counted")
	}
}

func TestExpiry(t *testing.T) {
	r := start(t, nil)
	c := r.dialToken(r.keys.token(t, auth.Claims{Account: "alice@example.com", TTL: 2 * time.Second}))
	if code, reason := c.closed(); code != ws.StatusPolicyViolation || !strings.Contains(reason, "expired") {
		t.Errorf("%d %s", code, reason)
	}
}

func TestPings(t *testing.T) {
	r := start(t, func(c *Config) { c.PingInterval, c.PongTimeout = 300*time.Millisecond, 300*time.Millisecond })
	lively, dead := r.dial("a"), r.dial("b")
	for range 3 {
		f, err := lively.read()
		if err != nil || f.Header.OpCode != ws.OpPing {
			t.Fatalf("%+v %v", f, err)
		}
		lively.conn.Write(masked(ws.NewPongFrame(nil)))
	}
	if code, reason := dead.closed(); code != ws.StatusPolicyViolation || !strings.Contains(reason, "ping") {
		t.Errorf("%d %s", code, reason)
	}
	lively.silent()
}

func TestNoPings(t *testing.T) {
	r := start(t, func(c *Config) { c.PingInterval = -1 })
	c := r.dialToken(r.keys.token(t, auth.Claims{Account: "a"}))
	c.silent()
	for _, sh := range r.shards {
		sh.enter()
		for i := uint32(1); i < sh.slots.all.next; i++ {
			if s := sh.slots.all.at(i); s.quiet != 0 {
				t.Error("a ping is due")
			}
		}
		sh.leave()
	}
}

// A descriptor used again never gets what was meant for its former owner.
func TestReusedDescriptors(t *testing.T) {
	r := start(t, func(c *Config) { c.Shards = 1 })
	sh := r.shards[0]
	for round := range 20 {
		former, now := fmt.Sprint("former", round), fmt.Sprint("now", round)
		a := r.dial(accountOf(former))
		a.subscribe("1", former)
		id := sh.accounts.wanted(former)
		sh.enter()
		n := sh.subs.first(id)
		i := sh.subs.all.at(n).slot
		fd := sh.slots.all.at(i).fd
		h := sh.handleOf(i, sh.slots.all.at(i))
		sh.leave()
		a.conn.Close()
		eventually(t, "it is gone", func() bool { return r.admit.sockets.Load() == 0 })
		b := r.dial(accountOf(now))
		b.subscribe("1", now)
		sh.enter()
		s := sh.slots.all.at(i)
		if s.fd != fd || s.state != slotOpen {
			t.Fatalf("slot %d has descriptor %d, want %d again", i, s.fd, fd)
		}
		sh.leave()
		// All that may still be under way for the former one: an answer, a missed, an event, an epoll event.
		sh.subscribed(&answer{h: h, id: 9, account: accountOf(former), aid: id, catchUp: schema.Fresh})
		sh.denied(h, 9, schema.CodeUnavailable, "no")
		sh.unsubscribed(h, 9, accountOf(now))
		sh.tellMissed(h, func(nameID) (schema.Account, schema.Position, bool) {
			return accountOf(former), schema.Position{}, true
		}, 0)
		sh.event(h, pollGone|pollOut)
		sh.event(h, pollIn)
		// The former's account is wanted again, by somebody else.
		third := r.dial(accountOf(former))
		third.subscribe("1", former)
		frame := seal(schema.AppendEvent(newFrame(nil), accountOf(former), schema.Position{Epoch: 1, Offset: 1 << 40}, event(former, "INBOX", "late")), ws.OpText)
		r.inHub(func() {
			sh.deliver([]delivery{{account: sh.accounts.wanted(former), offset: 1 << 40, frame: frame}})
		})
		third.expect(schema.FrameEvent)
		third.conn.Close()
		eventually(t, "the third is gone", func() bool { return r.admit.sockets.Load() == 1 })
		r.bus.publish(former, event(former, "INBOX", "e"))
		b.silent()
		r.bus.publish(now, event(now, "INBOX", "e"))
		if f := b.expect(schema.FrameEvent); f.Account != accountOf(now) {
			t.Fatalf("%+v", f)
		}
		b.conn.Close()
		eventually(t, "it is gone", func() bool { return r.admit.sockets.Load() == 0 })
	}
}
