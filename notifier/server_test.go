package notifier

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/mailbell/mailbell/internal/auth"
	"github.com/mailbell/mailbell/schema"
)

func TestEventReachesOnlyItsAccount(t *testing.T) {
	r := start(t, nil)
	alice, bob := r.dial("alice@example.com"), r.dial("bob@example.com")
	if f := alice.subscribe("1", "alice@example.com"); f.ID != 1 || f.CatchUp != schema.Fresh || f.Account != "alice@example.com" {
		t.Fatalf("%+v", f)
	}
	bob.subscribe("1", "bob@example.com")
	pos := r.bus.publish("alice@example.com", event("alice@example.com", "INBOX", "e1"))
	f := alice.expect(schema.FrameEvent)
	if f.Position != pos || f.Account != "alice@example.com" || idOf(t, f.Event) != "e1" {
		t.Errorf("%+v", f)
	}
	bob.silent()
	bob.send(`{"type":"subscribe","id":2,"account":"alice@example.com"}`)
	if f := bob.expect(schema.FrameErr); f.Code != schema.CodeForbidden || f.ID != 2 {
		t.Errorf("%+v", f)
	}
}

func TestUnsubscribe(t *testing.T) {
	r := start(t, nil)
	c := r.dial("alice@example.com")
	c.subscribe("1", "alice@example.com")
	c.send(`{"type":"unsubscribe","id":2,"account":"alice@example.com"}`)
	if f := c.expect(schema.FrameUnsubscribed); f.ID != 2 {
		t.Errorf("%+v", f)
	}
	eventually(t, "the bus hears of it", func() bool { return r.bus.wanted() == 0 })
	r.bus.publish("alice@example.com", event("alice@example.com", "INBOX", "e1"))
	c.silent()
	// A subscribe and its unsubscribe in one write are answered in that order.
	c.send(`{"type":"subscribe","id":3,"account":"alice@example.com"}`)
	c.send(`{"type":"unsubscribe","id":4,"account":"alice@example.com"}`)
	if f := c.next(); f.ID != 3 {
		t.Errorf("%+v", f)
	}
	if f := c.expect(schema.FrameUnsubscribed); f.ID != 4 {
		t.Errorf("%+v", f)
	}
	eventually(t, "nothing is wanted any more", func() bool { return r.bus.wanted() == 0 })
}

func TestCatchUp(t *testing.T) {
	r := start(t, nil)
	const a = "alice@example.com"
	c := r.dial(a)
	c.subscribe("1", a)
	var at [4]schema.Position
	for i := range at {
		at[i] = r.bus.publish(a, event(a, "INBOX", fmt.Sprint("e", i)))
		c.expect(schema.FrameEvent)
	}
	resume := func(since string) *client {
		c := r.dial(a)
		c.send(`{"type":"subscribe","id":9,"account":"` + a + `","since":"` + since + `"}`)
		return c
	}
	if f := resume(at[3].String()).expect(schema.FrameSubscribed); f.CatchUp != schema.Current || f.Position != at[3] {
		t.Errorf("current: %+v", f)
	}
	replay := resume(at[1].String())
	if f := replay.expect(schema.FrameSubscribed); f.CatchUp != schema.Replay || f.Position != at[1] {
		t.Errorf("replay: %+v", f)
	}
	for i := 2; i < 4; i++ {
		if f := replay.expect(schema.FrameEvent); f.Position != at[i] {
			t.Errorf("replay: %+v", f)
		}
	}
	live := r.bus.publish(a, event(a, "INBOX", "e4"))
	if f := replay.expect(schema.FrameEvent); f.Position != live {
		t.Errorf("live: %+v", f)
	}
	other := at[1]
	other.Epoch++
	foreign := at[1]
	foreign.Partition = (foreign.Partition + 1) % 8
	for _, since := range []string{other.String(), foreign.String(), "not a position"} {
		if f := resume(since).expect(schema.FrameSubscribed); f.CatchUp != schema.Resync || f.Position != live {
			t.Errorf("resync since %s: %+v", since, f)
		}
	}
}

func TestMailboxFilterAndGrants(t *testing.T) {
	r := start(t, nil)
	token := r.keys.token(t, auth.Claims{Account: "bob@example.com", Accounts: []auth.Grant{
		{Account: "team@example.com", Mailboxes: []schema.Mailbox{"Sales", "Support"}}, {Account: "all@example.com"}}})
	c := r.dialToken(token)
	c.subscribe("1", "team@example.com")
	c.subscribe("2", "all@example.com")
	c.send(`{"type":"subscribe","id":3,"account":"team@example.com","mailboxes":["Board"]}`)
	if f := c.expect(schema.FrameErr); f.Code != schema.CodeForbidden {
		t.Errorf("%+v", f)
	}
	c.send(`{"type":"subscribe","id":4,"account":"bob@example.com","mailboxes":["INBOX"]}`)
	c.expect(schema.FrameSubscribed)
	r.bus.publish("team@example.com", event("team@example.com", "Board", "secret"))
	r.bus.publish("bob@example.com", event("bob@example.com", "Trash", "trash"))
	c.silent()
	for _, want := range []struct{ account, mailbox string }{{"team@example.com", "Support"}, {"all@example.com", "Any"}, {"bob@example.com", "INBOX"}} {
		r.bus.publish(want.account, event(want.account, want.mailbox, "x"))
		if f := c.expect(schema.FrameEvent); string(f.Account) != want.account {
			t.Errorf("%+v", f)
		}
	}
}

func TestTicket(t *testing.T) {
	r := start(t, nil)
	access := auth.Access{Subject: "alice@example.com", Grants: []auth.Grant{{Account: "alice@example.com"}}}
	ticket, err := r.bus.signer.Sign(access, "n1", 20*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	head := "GET /v1/ws?ticket=" + ticket + " HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: mailbell.v1\r\n\r\n"
	c := r.dialRaw(head)
	c.subscribe("1", "alice@example.com")
	if got := r.request(head); status(got) != 401 {
		t.Errorf("used again: %s", got)
	}
	eventually(t, "the load tells it", func() bool {
		r.bus.mu.Lock()
		defer r.bus.mu.Unlock()
		return len(r.bus.loads) > 0 && r.bus.loads[len(r.bus.loads)-1].TicketConnections == 1
	})
}

func TestReadyAndHello(t *testing.T) {
	r := start(t, func(c *Config) { c.Zone, c.Version = "z", "v1" })
	r.bus.mu.Lock()
	h := r.bus.hello
	r.bus.mu.Unlock()
	if h.Node != "n1" || h.Zone != "z" || h.Version != "v1" || h.PublicUrl != "ws://"+r.Addr()+"/v1/ws" || h.Instance == "" || h.Capacity == 0 {
		t.Errorf("%v", h)
	}
	r.bus.stop()
	eventually(t, "not ready without a bus node", func() bool { return r.Ready(context.Background()) != nil })
}
