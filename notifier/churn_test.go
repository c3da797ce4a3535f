package notifier

import (
	"fmt"
	"math/rand/v2"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gobwas/ws"
	"github.com/mailbell/mailbell/internal/auth"
	"github.com/mailbell/mailbell/schema"
)

// Connect, subscribe, publish, unsubscribe, close, from many goroutines, with every rude way to leave: in the end
// every count is zero and no descriptor is left.
func TestChurn(t *testing.T) {
	rounds := 3000
	if os.Getenv("MAILBELL_CHURN") != "" { // the long one: 50,000
		fmt.Sscan(os.Getenv("MAILBELL_CHURN"), &rounds)
	}
	before := openDescriptors(t)
	r := start(t, func(c *Config) { c.Backlog = 2048; c.MaxPerAccount = -1; c.MaxPerAddress = -1 })
	eventually(t, "the link is up", func() bool { return r.linker.up.Load() == 1 })
	const accounts = 20
	tokens := make([]string, accounts)
	for i := range tokens {
		tokens[i] = r.keys.token(t, auth.Claims{Account: accountOf(fmt.Sprint("a", i)), Accounts: []auth.Grant{{Account: "shared"}, {Account: "team", Mailboxes: []schema.Mailbox{"INBOX"}}}})
	}
	var left atomic.Int64
	left.Store(int64(rounds))
	var wg sync.WaitGroup
	for worker := range 16 {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(uint64(worker), 7))
			for left.Add(-1) >= 0 {
				i := rng.IntN(accounts)
				churnOnce(t, r, rng, fmt.Sprint("a", i), tokens[i])
			}
		})
	}
	wg.Wait()
	eventually(t, "no socket is left", func() bool { return r.admit.sockets.Load() == 0 && r.admit.handshakes.Load() == 0 })
	eventually(t, "no name is left", func() bool {
		inUse, holds, wants := r.accounts.counts()
		return inUse == 0 && holds == 0 && wants == 0
	})
	eventually(t, "the bus is asked for nothing", func() bool { return r.bus.wanted() == 0 })
	inUse, holds, _ := r.addrs.counts()
	if inUse != 0 || holds != 0 || r.open.Load() != 0 || r.backlog.Load() != 0 {
		t.Errorf("left: %d addresses, %d holds, %d connections, %d bytes", inUse, holds, r.open.Load(), r.backlog.Load())
	}
	for _, sh := range r.shards {
		sh.enter()
		if sh.slots.used != 0 || sh.subs.count != 0 || sh.subs.accounts != 0 || len(sh.grants) != 0 || len(sh.filters.byKey) != 0 || len(sh.freeExtra) != len(sh.extras)-1 {
			t.Errorf("shard %d: %d slots, %d subscriptions of %d accounts, %d grants, %d filters, %d of %d extras are free",
				sh.id, sh.slots.used, sh.subs.count, sh.subs.accounts, len(sh.grants), len(sh.filters.byKey), len(sh.freeExtra), len(sh.extras)-1)
		}
		sh.leave()
	}
	if err := r.stop(); err != nil {
		t.Error(err)
	}
	r.bus.stop()
	eventually(t, "no descriptor is left", func() bool { return openDescriptors(t) <= before })
}

func churnOnce(t *testing.T, r *rig, rng *rand.Rand, account, token string) {
	if rng.IntN(8) == 0 { // leaves in mid handshake
		conn := mustDialQuiet(r.Addr())
		if conn != nil {
			conn.Write([]byte("GET /v1/ws HTTP/1.1\r\nHost: x\r\n"[:rng.IntN(30)]))
			conn.Close()
		}
		return
	}
	c, err := r.tryDial(token)
	if err != nil {
		t.Errorf("dial: %v", err)
		return
	}
	defer c.conn.Close()
	c.conn.SetDeadline(time.Now().Add(patience))
	send := func(text string) { c.conn.Write(masked(textFrame(text))) }
	target := []string{account, account, "shared", "team"}[rng.IntN(4)]
	send(`{"type":"subscribe","id":1,"account":"` + target + `"}`)
	switch rng.IntN(6) {
	case 0: // leaves before the answer
		return
	case 1: // changes its mind before the answer
		send(`{"type":"unsubscribe","id":2,"account":"` + target + `"}`)
	}
	for {
		f, err := readFrame(c.r)
		if err != nil {
			t.Errorf("read: %v", err)
			return
		}
		s, err := schema.DecodeServerFrame(f.Payload)
		if err != nil {
			t.Errorf("%s: %v", f.Payload, err)
			return
		}
		if s.Account != "" && string(s.Account) != target {
			t.Errorf("%s hears of %s", account, f.Payload)
			return
		}
		if s.ID == 1 {
			break
		}
	}
	r.bus.publish(target, event(target, "INBOX", "e"))
	switch rng.IntN(5) {
	case 0:
		send(`{"type":"unsubscribe","id":3,"account":"` + target + `"}`)
	case 1:
		c.conn.Write(masked(ws.NewCloseFrame(nil)))
		for {
			if _, err := readFrame(c.r); err != nil {
				return
			}
		}
	case 2:
		c.conn.Write(raw(0x82, "binary", true))
	case 3:
		c.conn.Write([]byte{0x81, 0xfe})
	}
}
