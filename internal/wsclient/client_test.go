package wsclient

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gobwas/ws"
	"github.com/mailbell/mailbell/schema"
)

// TestFollow is the plain way: connect, subscribe, events; and events that come twice.
func TestFollow(t *testing.T) {
	s := newServer(t)
	c := start(t, quick(s.url()))
	if err := c.Subscribe(alice, []schema.Mailbox{"INBOX", `"x"`}, ""); err != nil {
		t.Fatal(err)
	}
	updates, _ := run(t, c)
	peer := s.next(t)
	if got := peer.request.Header.Get("Authorization"); got != "Bearer jwt" {
		t.Errorf("Authorization: %q", got)
	}
	peer.expect(`{"type":"subscribe","id":1,"account":"alice@example.com","mailboxes":["INBOX","\"x\""]}`)
	peer.say(subscribed(1, 5, schema.Fresh), event(4), event(5), event(6), event(6), event(9), event(8),
		[]byte(`{"type":"novelty"}`), schema.AppendEvent(nil, "bob@example.com", pos(10), []byte(`{}`)))
	expectUpdates(t, updates, "connected", "subscribed fresh 5 0s", `event 6 {"id":"6"}`, `event 9 {"id":"9"}`)
	peer.say(schema.AppendMissed(nil, alice, pos(20), schema.MissedSlow, 700), event(15), event(21))
	expectUpdates(t, updates, "missed slow 20 700ms", `event 21 {"id":"21"}`)
	if got := c.Position(alice); got != pos(21).String() {
		t.Errorf("position %s", got)
	}
	c.Unsubscribe(alice)
	c.Unsubscribe(alice)
	peer.expect(`{"type":"unsubscribe","id":2,"account":"alice@example.com"}`)
	peer.say(event(22), schema.AppendUnsubscribed(nil, 2))
	if err := c.Subscribe(alice, nil, pos(1).String()); err != nil {
		t.Fatal(err)
	}
	peer.expect(subscribe(3, "1.2.1"))
	// Between the question and its answer nothing counts: the answer covers it.
	peer.say(event(23), subscribed(2, 30, schema.Current), subscribed(3, 30, schema.Replay), event(22), event(23))
	expectUpdates(t, updates, "subscribed replay 30 0s", `event 22 {"id":"22"}`, `event 23 {"id":"23"}`)
}

// TestResume loses connections in several ways; the client asks for what it missed.
func TestResume(t *testing.T) {
	s := newServer(t)
	c := start(t, quick(s.url()))
	if err := c.Subscribe(alice, nil, "kept from another system"); err != nil {
		t.Fatal(err)
	}
	updates, _ := run(t, c)
	peer := s.next(t)
	peer.expect(subscribe(1, "kept from another system"))
	peer.say(schema.AppendSubscribed(nil, 1, alice, pos(5), schema.Resync, 1500), event(6))
	expectUpdates(t, updates, "connected", "subscribed resync 5 1.5s", `event 6 {"id":"6"}`)
	for i, lose := range []func(*fakeConn){
		func(c *fakeConn) { c.conn.Close() },
		func(c *fakeConn) { c.close(1012, "") },
		func(c *fakeConn) { c.close(1008, "the token has expired") },
		func(c *fakeConn) { c.say([]byte(`no json`)) },
		func(c *fakeConn) { _ = ws.WriteFrame(c.conn, ws.NewBinaryFrame([]byte("x"))) },
	} {
		lose(peer)
		expectUpdates(t, updates, "disconnected")
		peer = s.next(t)
		head := int64(10 * (i + 1))
		peer.expect(subscribe(i+2, c.Position(alice)))
		peer.say(subscribed(uint64(i+2), head, schema.Replay), event(head-1), event(head), event(head))
		expectUpdates(t, updates, "connected", line(Update{Kind: Subscribed, CatchUp: schema.Replay, Position: pos(head)}))
		if a, b := wait(t, updates), wait(t, updates); a.Position != pos(head-1) || b.Position != pos(head) {
			t.Errorf("replayed %v, %v", a.Position, b.Position)
		}
	}
}

// TestEpochs lets the topic be recreated, and a position be of the future.
func TestEpochs(t *testing.T) {
	s := newServer(t)
	c := start(t, quick(s.url()))
	if err := c.Subscribe(alice, nil, pos(1000).String()); err != nil {
		t.Fatal(err)
	}
	updates, _ := run(t, c)
	peer := s.next(t)
	peer.expect(subscribe(1, "1.2.1000"))
	peer.say(subscribed(1, 3, schema.Resync), event(4))
	expectUpdates(t, updates, "connected", "subscribed resync 3 0s", `event 4 {"id":"4"}`)
	other := schema.Position{Epoch: 9, Partition: 2, Offset: 1}
	peer.say(schema.AppendMissed(nil, alice, other, schema.MissedWindow, 0), schema.AppendEvent(nil, alice, other, []byte(`{}`)))
	expectUpdates(t, updates, "missed window 1 0s")
	other.Offset++
	peer.say(schema.AppendEvent(nil, alice, other, []byte(`{}`)))
	expectUpdates(t, updates, "event 2 {}")
}

func TestRefusedFrames(t *testing.T) {
	s := newServer(t)
	c := start(t, quick(s.url()))
	updates, _ := run(t, c)
	peer := s.next(t)
	expectUpdates(t, updates, "connected")
	if err := c.Subscribe(alice, nil, ""); err != nil {
		t.Fatal(err)
	}
	peer.expect(subscribe(1, ""))
	peer.say(schema.AppendError(nil, 1, true, schema.CodeUnavailable, "no owner"))
	// Asked again, also when nothing else wakes the client.
	peer.expect(subscribe(2, ""))
	peer.say(schema.AppendError(nil, 0, false, schema.CodeBadRequest, "what?"), schema.AppendError(nil, 2, true, schema.CodeForbidden, "not yours"))
	expectUpdates(t, updates, "refused alice@example.com forbidden: not yours")
	peer.conn.Close()
	expectUpdates(t, updates, "disconnected", "connected")
	again := s.next(t)
	if err := c.Subscribe("bob", nil, ""); err != nil {
		t.Fatal(err)
	}
	again.expect(`{"type":"subscribe","id":3,"account":"bob"}`) // and not alice
	if err := c.Subscribe("", nil, ""); err == nil {
		t.Error("an empty account")
	}
}

// TestReconnectFrame moves to the URL named, after the time named, whoever hangs up.
func TestReconnectFrame(t *testing.T) {
	for _, hangsUp := range []bool{false, true} {
		first, second := newServer(t), newServer(t)
		c := start(t, quick(first.url()))
		if err := c.Subscribe(alice, nil, ""); err != nil {
			t.Fatal(err)
		}
		updates, _ := run(t, c)
		peer := first.next(t)
		peer.expect(subscribe(1, ""))
		asked := time.Now()
		peer.say(subscribed(1, 5, schema.Fresh), schema.AppendReconnect(nil, 60, schema.ReconnectDrain, second.url()), event(6))
		expectUpdates(t, updates, "connected", "subscribed fresh 5 0s", "moving drain 60ms", `event 6 {"id":"6"}`)
		if hangsUp {
			peer.close(1012, "drain")
			expectUpdates(t, updates, "disconnected")
		}
		next := second.next(t)
		if d := time.Since(asked); d < 60*time.Millisecond {
			t.Errorf("moved after %v", d)
		}
		next.expect(subscribe(2, "1.2.6"))
		if got := next.request.Header.Get("Authorization"); got != "Bearer jwt" {
			t.Errorf("Authorization: %q", got)
		}
		if !hangsUp {
			_ = peer.conn.SetReadDeadline(time.Now().Add(10 * time.Second))
			if f, err := readFrame(peer.conn); err != nil || f.Header.OpCode != ws.OpClose {
				t.Errorf("the old connection ends with %v, %v", f.Header, err)
			}
		}
	}
}

func TestNeverFromTLSToPlain(t *testing.T) {
	c := start(t, quick("wss://n1.example.com/v1/ws"))
	c.connected = "wss://n1.example.com/v1/ws"
	c.follow(schema.ServerFrame{URL: "ws://n1.example.com/v1/ws"})
	if c.moveTo != "" {
		t.Errorf("moves to %s", c.moveTo)
	}
	c.follow(schema.ServerFrame{URL: "wss://n2.example.com/v1/ws"})
	if c.moveTo != "wss://n2.example.com/v1/ws" {
		t.Errorf("moves to %s", c.moveTo)
	}
}

// TestGateway asks for a ticket, for oneself and on behalf of a user.
func TestGateway(t *testing.T) {
	for _, account := range []schema.Account{"", alice} {
		s := newServer(t)
		var asked atomic.Int32
		s.gateway = func(w http.ResponseWriter, r *http.Request) {
			body, _ := io.ReadAll(r.Body)
			want := "GET "
			if account != "" {
				want = `POST {"account":"alice@example.com"}`
			}
			if got := r.Method + " " + string(body); got != want || r.Header.Get("Authorization") != "Bearer jwt" {
				t.Errorf("the gateway is asked %s %v", got, r.Header)
			}
			switch asked.Add(1) {
			case 1: // an answer to be used later
				answerTicket(w, ticket{URL: s.url() + "?ticket=1", ExpiresIn: 30, RetryAfterMs: 30})
			case 2: // one that will have expired by then
				answerTicket(w, ticket{URL: s.url() + "?ticket=2", ExpiresIn: 0, RetryAfterMs: 20})
			case 3: // too many
				w.Header().Set("Content-Type", "application/json")
				w.WriteHeader(http.StatusServiceUnavailable)
				_, _ = w.Write([]byte(`{"retryAfterMs":10,"error":{"code":"unavailable","message":"full"}}`))
			case 4:
				_, _ = w.Write([]byte(`<html>`))
			case 5:
				answerTicket(w, ticket{})
			default:
				answerTicket(w, ticket{URL: s.url() + "?ticket=3", ExpiresIn: 30})
			}
		}
		cfg := quick("")
		cfg.Gateways, cfg.Account = []string{s.URL + "/v1/connect"}, account
		c := start(t, cfg)
		updates, _ := run(t, c)
		if u := wait(t, updates); u.Kind != Disconnected || u.After != 30*time.Millisecond {
			t.Errorf("told to wait: %+v", u)
		}
		peer := s.next(t)
		if got := peer.request.URL.Query().Get("ticket"); got != "1" || peer.request.Header.Get("Authorization") != "" {
			t.Errorf("ticket %q, %v", got, peer.request.Header)
		}
		expectUpdates(t, updates, "connected")
		peer.conn.Close()
		expectUpdates(t, updates, "disconnected")
		if u := wait(t, updates); !errors.Is(u.Err, errWait) || u.After != 20*time.Millisecond {
			t.Errorf("told to wait: %+v", u)
		}
		u := wait(t, updates)
		if u.Kind != Disconnected || !strings.Contains(u.Err.Error(), "503 Service Unavailable: full") || u.After < 10*time.Millisecond {
			t.Errorf("refused for now: %+v", u)
		}
		for _, problem := range []string{"is not a ticket", "names no socket"} {
			if u := wait(t, updates); u.Err == nil || !strings.Contains(u.Err.Error(), problem) {
				t.Errorf("got %+v, want %s", u, problem)
			}
		}
		expectUpdates(t, updates, "connected")
		if got := s.next(t).request.URL.Query().Get("ticket"); got != "3" {
			t.Errorf("ticket %q", got)
		}
	}
}

// TestGatewaysInTurn asks the next gateway when one is gone.
func TestGatewaysInTurn(t *testing.T) {
	gone, s := newServer(t), newServer(t)
	gone.Close()
	s.gateway = func(w http.ResponseWriter, _ *http.Request) { answerTicket(w, ticket{URL: s.url() + "?ticket=1"}) }
	cfg := quick("")
	cfg.Gateways = []string{gone.URL + "/v1/connect", s.URL + "/v1/connect"}
	updates, _ := run(t, start(t, cfg))
	expectUpdates(t, updates, "disconnected", "connected")
}

// TestDenied ends for good when the token is refused, unless there may be another.
func TestDenied(t *testing.T) {
	s := newServer(t)
	var refusals atomic.Int32
	refusals.Store(1)
	s.socket = func(w http.ResponseWriter, r *http.Request) bool {
		if refusals.Add(-1) < 0 {
			return true
		}
		http.Error(w, `{"error":{"code":"unauthorized","message":"token: expired 5m0s ago; get a new one"}}`, http.StatusUnauthorized)
		return false
	}
	c := start(t, quick(s.url()))
	_, err := c.Next(t.Context())
	status, ok := errors.AsType[*StatusError](err)
	if !ok || status.Status != 401 || err.Error() != "the server answered 401 Unauthorized: token: expired 5m0s ago; get a new one" {
		t.Fatalf("got %v", err)
	}
	if _, again := c.Next(t.Context()); again != err {
		t.Errorf("asked again: %v", again)
	}

	cfg := quick(s.url())
	var tokens atomic.Int32
	cfg.NewToken = func(context.Context) (string, error) {
		if tokens.Add(1) == 1 {
			return "", errors.New("the login service is down")
		}
		return "fresh", nil
	}
	refusals.Store(1)
	c = start(t, cfg)
	updates, end := run(t, c)
	expectUpdates(t, updates, "disconnected", "disconnected", "connected")
	peer := s.next(t)
	if got := peer.request.Header.Get("Authorization"); got != "Bearer fresh" {
		t.Errorf("Authorization: %q", got)
	}
	refusals.Store(2)
	peer.conn.Close()
	expectUpdates(t, updates, "disconnected", "disconnected")
	if err := wait(t, end); !strings.Contains(err.Error(), "401") {
		t.Errorf("got %v", err)
	}
}

func TestForbiddenClose(t *testing.T) {
	s := newServer(t)
	_, end := run(t, start(t, quick(s.url())))
	s.next(t).close(1008, "origin not allowed")
	if e := closedBy(wait(t, end)); e == nil || e.Code != 1008 || e.Error() != "the server closed the connection with 1008 origin not allowed" {
		t.Errorf("got %v", e)
	}
}

func TestRetryAfterOfTheSocket(t *testing.T) {
	s := newServer(t)
	var refused atomic.Bool
	s.socket = func(w http.ResponseWriter, r *http.Request) bool {
		if refused.Swap(true) {
			return true
		}
		w.Header().Set("Retry-After", "1")
		http.Error(w, "too many at once", http.StatusServiceUnavailable)
		return false
	}
	updates, _ := run(t, start(t, quick(s.url())))
	if u := wait(t, updates); u.After < time.Second || u.After > time.Second+5*time.Millisecond || !strings.Contains(u.Err.Error(), "too many at once") {
		t.Errorf("got %+v", u)
	}
}

// TestSilence finds out that a server is gone which does not say so.
func TestSilence(t *testing.T) {
	s := newServer(t)
	cfg := quick(s.url())
	cfg.PingInterval, cfg.PingTimeout = 20*time.Millisecond, 40*time.Millisecond
	updates, _ := run(t, start(t, cfg))
	peer := s.next(t)
	expectUpdates(t, updates, "connected")
	for id := range uint64(3) {
		peer.expect(string(AppendPing(nil, id+1)))
		peer.say(schema.AppendPong(nil, id+1))
	}
	peer.read() // and no answer
	if u := wait(t, updates); !errors.Is(u.Err, errSilent) {
		t.Errorf("got %+v", u)
	}
	expectUpdates(t, updates, "connected")
}

func TestNextAndItsContext(t *testing.T) {
	s := newServer(t)
	c, err := Dial(t.Context(), quick(s.url()))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if u, err := c.Next(t.Context()); u.Kind != Connected || err != nil {
		t.Errorf("%+v, %v", u, err)
	}
	if err := c.Subscribe(alice, nil, ""); err != nil {
		t.Fatal(err)
	}
	peer := s.next(t)
	peer.expect(subscribe(1, ""))
	for range 20 { // ends at any moment, also within a frame
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		if _, err := c.Next(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Fatalf("got %v", err)
		}
		cancel()
	}
	whole := ws.MustCompileFrame(ws.NewTextFrame(subscribed(1, 5, schema.Fresh)))
	for i := range whole {
		if _, err := peer.conn.Write(whole[i : i+1]); err != nil {
			t.Fatal(err)
		}
		if i%10 == 0 && i < len(whole)-1 {
			ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
			if _, err := c.Next(ctx); !errors.Is(err, context.DeadlineExceeded) {
				t.Fatalf("after %d bytes: %v", i+1, err)
			}
			cancel()
		}
	}
	if u, err := c.Next(t.Context()); u.Kind != Subscribed || err != nil {
		t.Errorf("%+v, %v", u, err)
	}
	var waits sync.WaitGroup
	waits.Go(func() {
		if _, err := c.Next(context.Background()); !errors.Is(err, ErrClosed) {
			t.Errorf("closed under Next: %v", err)
		}
	})
	c.Close()
	waits.Wait()
	if _, err := c.Next(t.Context()); !errors.Is(err, ErrClosed) {
		t.Errorf("closed: %v", err)
	}
	peer.conn.Close()
}

func TestDial(t *testing.T) {
	s := newServer(t)
	var asked atomic.Int32
	s.gateway = func(w http.ResponseWriter, _ *http.Request) {
		if asked.Add(1) == 1 {
			answerTicket(w, ticket{RetryAfterMs: 5})
			return
		}
		answerTicket(w, ticket{URL: s.url() + "?ticket=1"})
	}
	cfg := quick("")
	cfg.Gateways = []string{s.URL + "/v1/connect"}
	c, err := Dial(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
	s.Close()
	if _, err := Dial(t.Context(), quick(s.url())); err == nil || !strings.Contains(err.Error(), "refused") {
		t.Errorf("nobody listens: %v", err)
	}
	for _, cfg := range []Config{
		{},
		{URL: "ws://x", Gateways: []string{"http://x"}},
		{URL: "http://x"},
		{Gateways: []string{"ws://x"}},
		{URL: "ws://x", Account: alice},
		{Gateways: []string{"http://x"}, Account: " "},
		{URL: "ws://x", PingTimeout: -1},
	} {
		if _, err := New(cfg); err == nil {
			t.Errorf("%+v is accepted", cfg)
		}
	}
}

func TestBackoff(t *testing.T) {
	c := start(t, Config{URL: "ws://x"})
	for failures, limit := range map[int]time.Duration{0: 500 * time.Millisecond, 1: time.Second, 3: 4 * time.Second, 6: 30 * time.Second, 1000: 30 * time.Second} {
		var sum, highest time.Duration
		const n = 2000
		for range n {
			d := c.backoff(failures)
			sum, highest = sum+d, max(highest, d)
		}
		if mean := sum / n; highest > limit || mean < limit*4/10 || mean > limit*6/10 {
			t.Errorf("after %d failures: mean %v, highest %v, want full jitter up to %v", failures, mean, highest, limit)
		}
	}
}

// TestChurn subscribes and unsubscribes from many goroutines while connections end.
func TestChurn(t *testing.T) {
	s := newServer(t)
	c := start(t, quick(s.url()))
	updates, _ := run(t, c)
	stop := make(chan struct{})
	var peers, users sync.WaitGroup
	peers.Go(func() {
		for {
			select {
			case peer := <-s.conns:
				for range 20 {
					_ = peer.conn.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
					if _, err := readFrame(peer.conn); err != nil {
						break
					}
				}
				peer.conn.Close()
			case <-updates:
			case <-stop:
				return
			}
		}
	})
	for i := range 4 {
		account := schema.Account(rune('a' + i))
		users.Go(func() {
			for range 200 {
				if err := c.Subscribe(account, nil, ""); err != nil {
					t.Error(err)
				}
				c.Unsubscribe(account)
			}
		})
	}
	users.Wait()
	c.Close()
	close(stop)
	peers.Wait()
	if len(c.subs) != 0 {
		t.Errorf("%d subscriptions are left", len(c.subs))
	}
}
