package notifier

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/mailbell/mailbell/schema"
	"github.com/mailbell/mailbell/schema/link"
)

var rewrite = flag.Bool("rewrite", false, "write the transcripts' answers anew")

// The core by transcripts: each testdata/core/*.txt is a list of what happens (lines that begin with a word),
// each followed by what the core says to it (lines that begin with "  ").
func TestCoreTranscripts(t *testing.T) {
	files, err := filepath.Glob("testdata/core/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatal("no transcripts", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) {
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			got := playTranscript(t, string(want))
			if *rewrite {
				if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			} else if got != string(want) {
				t.Errorf("got\n%s\nwant\n%s", got, want)
			}
		})
	}
}

// player is a core with its answers written down.
type player struct {
	t       *testing.T
	core    *core
	out     bytes.Buffer
	clients map[handle]map[nameID]bool // live subscriptions
	gone    map[handle]bool
	now     time.Time
}

func playTranscript(t *testing.T, script string) string {
	p := &player{t: t, clients: map[handle]map[nameID]bool{}, gone: map[handle]bool{}, now: time.Unix(1000, 0)}
	p.core = newCore(p, newNames(), 10*time.Second)
	for line := range strings.Lines(script) {
		line = strings.TrimRight(line, "\n")
		if strings.HasPrefix(line, "  ") {
			continue // an answer; they are made anew
		}
		fmt.Fprintln(&p.out, line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		words := strings.Fields(line)
		p.step(words[0], words[1:])
		p.core.flush()
	}
	return p.out.String()
}

func (p *player) say(format string, args ...any) { fmt.Fprintf(&p.out, "  "+format+"\n", args...) }

// number reads "name=7" or "7".
func (p *player) number(s string) uint64 {
	if _, v, ok := strings.Cut(s, "="); ok {
		s = v
	}
	n, err := strconv.ParseUint(s, 10, 64)
	if err != nil {
		p.t.Fatalf("%q: %v", s, err)
	}
	return n
}

// offset reads "epoch:offset".
func (p *player) offset(s string) *link.Offset {
	e, o, _ := strings.Cut(s, ":")
	return &link.Offset{Epoch: p.number(e), Offset: int64(p.number(o))}
}

func (p *player) part(account string) uint32 {
	return uint32(schema.PartitionOf(schema.Account(account), len(p.core.parts)))
}

func (p *player) step(what string, w []string) {
	switch what {
	case "welcome": // link partitions [name]
		name := "node" + w[0]
		if len(w) > 2 {
			name = w[2]
		}
		p.core.meet(linkID(p.number(w[0])), name)
		p.core.welcome(linkID(p.number(w[0])), int(p.number(w[1])))
	case "owned": // link partition@generation@head[@standin]...
		m := &link.Owned{}
		for _, s := range w[1:] {
			f := strings.Split(s, "@")
			m.Partitions = append(m.Partitions, &link.OwnedPartition{Partition: uint32(p.number(f[0])), Generation: p.number(f[1]), Head: p.offset(f[2]), StandIn: len(f) > 3})
		}
		p.core.owned(linkID(p.number(w[0])), m)
	case "down":
		p.core.down(linkID(p.number(w[0])))
	case "subscribe": // client account [since=epoch:offset | since=invalid]
		o := &op{kind: opSubscribe, h: handle(p.number(w[0])), id: p.number(w[0]) * 10, account: schema.Account(w[1])}
		if len(w) > 2 {
			if v := strings.TrimPrefix(w[2], "since="); v == "invalid" {
				o.sinceInvalid = true
			} else {
				at := p.offset(v)
				o.since = &schema.Position{Epoch: at.Epoch, Partition: int32(p.part(w[1])), Offset: at.Offset}
			}
		}
		p.core.subscribe(o, p.now)
	case "cancel":
		p.core.cancel(handle(p.number(w[0])), schema.Account(w[1]))
	case "leave": // client: its subscriptions end
		h := handle(p.number(w[0]))
		for a := range p.clients[h] {
			p.core.drop(a)
		}
		delete(p.clients, h)
		p.gone[h] = true
	case "subscribed": // link partition generation request head catchup
		p.core.subscribed(linkID(p.number(w[0])), &link.Subscribed{Partition: uint32(p.number(w[1])), Generation: p.number(w[2]), Request: p.number(w[3]),
			Head: p.offset(w[4]), CatchUp: link.CatchUp(link.CatchUp_value["CATCH_UP_"+w[5]])})
	case "resumed": // link partition generation request head catchup [offset...]
		m := &link.Resumed{Partition: uint32(p.number(w[1])), Generation: p.number(w[2]), Request: p.number(w[3]), Head: p.offset(w[4]), CatchUp: link.CatchUp(link.CatchUp_value["CATCH_UP_"+w[5]])}
		for _, s := range w[6:] {
			m.Records = append(m.Records, &link.Record{Offset: int64(p.number(s)), Event: []byte("{}")})
		}
		p.core.resumed(linkID(p.number(w[0])), m)
	case "deliver": // link partition generation epoch upto account@offset... [for=request], of a replay
		r := &link.PartitionRecords{Partition: uint32(p.number(w[1])), Generation: p.number(w[2]), Epoch: p.number(w[3]), Upto: int64(p.number(w[4]))}
		for _, s := range w[5:] {
			if request, ok := strings.CutPrefix(s, "for="); ok {
				r.Request = p.number(request)
				continue
			}
			account, offset, _ := strings.Cut(s, "@")
			r.Records = append(r.Records, &link.Record{Account: account, Offset: int64(p.number(offset)), Event: []byte("{}")})
		}
		if _, fenced := p.core.deliveries(linkID(p.number(w[0])), &link.Deliveries{Partitions: []*link.PartitionRecords{r}}); fenced > 0 {
			p.say("fenced %d", fenced)
		}
	case "positions": // link partition generation head
		p.core.positions(linkID(p.number(w[0])), &link.Positions{Partitions: []*link.OwnedPartition{{Partition: uint32(p.number(w[1])), Generation: p.number(w[2]), Head: p.offset(w[3])}}})
	case "position": // partition
		part := &p.core.parts[p.number(w[0])]
		p.say("%d:%d owner=%d", part.epoch, part.offset, part.owner)
	case "wait":
		d, err := time.ParseDuration(w[0])
		if err != nil {
			p.t.Fatal(err)
		}
		p.now = p.now.Add(d)
		p.core.tick(p.now)
	default:
		p.t.Fatalf("no step %q", what)
	}
}

func (p *player) send(l linkID, m *link.FromNotifier) {
	at := func(o *link.Offset) string {
		if o == nil {
			return "-"
		}
		return fmt.Sprintf("%d:%d", o.Epoch, o.Offset)
	}
	switch m := m.Body.(type) {
	case *link.FromNotifier_Subscribe:
		s := m.Subscribe
		p.say("to %d: subscribe request=%d partition=%d generation=%d after=%s %s", l, s.Request, s.Partition, s.Generation, at(s.After), strings.Join(s.Accounts, " "))
	case *link.FromNotifier_Unsubscribe:
		p.say("to %d: unsubscribe partition=%d %s", l, m.Unsubscribe.Partition, strings.Join(m.Unsubscribe.Accounts, " "))
	case *link.FromNotifier_StandIn:
		for _, s := range m.StandIn.Partitions {
			p.say("to %d: stand in for partition=%d after=%s", l, s.Partition, at(s.After))
		}
	case *link.FromNotifier_Resume:
		for _, i := range m.Resume.Items {
			p.say("to %d: resume request=%d partition=%d generation=%d since=%s %s", l, i.Request, i.Partition, i.Generation, at(i.Since), i.Account)
		}
	}
}

func (p *player) event(_ nameID, account string, pos schema.Position, _ []byte) {
	p.say("event %s %s", account, pos)
}

func (p *player) subscribed(a *answer) bool {
	p.say("client %d: subscribed %s %s %s (%d records)", a.h, a.account, a.pos, a.catchUp, len(a.records))
	if p.gone[a.h] || p.clients[a.h][a.aid] {
		return false
	}
	if p.clients[a.h] == nil {
		p.clients[a.h] = map[nameID]bool{}
	}
	p.clients[a.h][a.aid] = true
	return true
}

func (p *player) denied(h handle, id uint64, code schema.ErrorCode, message string) {
	p.say("client %d: %s: %s", h, code, message)
}

func (p *player) missed(_ nameID, account string, pos schema.Position, spread uint32) {
	if spread > 0 {
		p.say("missed %s %s within %d ms", account, pos, spread)
		return
	}
	p.say("missed %s %s", account, pos)
}

func (p *player) cut(l linkID, why string) { p.say("cut %d: %s", l, why) }

// While some accounts of a partition have been told of another epoch and others not, where an account is can't be said.
func TestNoPlaceBetweenEpochs(t *testing.T) {
	p := &player{t: t, clients: map[handle]map[nameID]bool{}, now: time.Unix(1000, 0)}
	p.core = newCore(p, newNames(), 10*time.Second)
	play := func(lines ...string) {
		for _, line := range lines {
			words := strings.Fields(line)
			p.step(words[0], words[1:])
			p.core.flush()
		}
	}
	// More accounts than one message takes.
	play("welcome 1 1", "owned 1 0@5@7:10", "subscribe 1 alice", "subscribed 1 0 5 5 7:10 FRESH", "resumed 1 0 5 4 7:10 FRESH")
	for i := range maxBatch {
		a, _ := p.core.accounts.want(fmt.Sprintf("bob%d", i), 0)
		p.core.accounts.setAsked(a, askedNot, askedLive)
	}
	alice := p.core.accounts.wanted("alice")
	play("owned 1 0@6@8:2", "subscribed 1 0 6 6 8:2 RESYNC")
	if _, pos, ok := p.core.place(alice); ok {
		t.Errorf("alice is at %s", pos)
	}
	play("subscribed 1 0 6 7 8:3 RESYNC")
	if _, pos, ok := p.core.place(alice); !ok || pos != (schema.Position{Epoch: 8, Offset: 3}) {
		t.Errorf("alice is at %s, %t", pos, ok)
	}
}

// When a log is another one than before, everybody is told, and not to fetch at once.
func TestOtherEpochIsSpread(t *testing.T) {
	p := &player{t: t, clients: map[handle]map[nameID]bool{}, now: time.Unix(1000, 0)}
	p.core = newCore(p, newNames(), 10*time.Second)
	p.step("welcome", []string{"1", "2"})
	p.step("owned", []string{"1", "0@5@7:10", "1@5@7:10"})
	for i := range 2 * slowFetches {
		p.core.accounts.want(fmt.Sprint("user", i), 0)
	}
	p.out.Reset()
	p.step("deliver", []string{"1", "0", "5", "8", "11"})
	if n, want := strings.Count(p.out.String(), "missed"), strings.Count(p.out.String(), "within 2000 ms"); n == 0 || n != want {
		t.Errorf("%d told, %d of them to spread: %s", n, want, p.out.String())
	}
}

// A new owner, a lost link, a restart: no event is lost, none comes twice.
func TestOwnerChanges(t *testing.T) {
	const a = "alice@example.com"
	log := newFakeLog(8)
	b1, b2 := newFakeNode(t, "b1", log), newFakeNode(t, "b2", log)
	part := schema.PartitionOf(a, 8)
	b1.owns[part] = 1
	keys := newKeyring(t)
	r := startWith(t, Config{NodeID: "n1", Addr: "127.0.0.1:0", Bus: []string{b1.addr, b2.addr}, Keys: keys.keys, Logger: quiet(), Shards: 2}, b1, keys)
	eventually(t, "both are linked", func() bool { return r.linker.up.Load() == 2 })
	c := r.dial(a)
	c.subscribe("1", a)
	n := 0
	publish := func(b *fakeBus) { b.publish(a, event(a, "INBOX", fmt.Sprint("e", n))); n++ }
	want := 0
	expect := func() {
		t.Helper()
		for ; want < n; want++ {
			if f := c.expect(schema.FrameEvent); idOf(t, f.Event) != fmt.Sprint("e", want) {
				t.Fatalf("%+v, want e%d", f, want)
			}
		}
		c.silent()
	}
	publish(b1)
	expect()
	b1.own(1) // nobody's for a moment
	publish(b1)
	b2.own(2, part)
	publish(b2)
	expect()
	// The former owner does not know yet, and sends: fenced.
	b1.tellAll(&link.FromBus{Body: &link.FromBus_Deliveries{Deliveries: &link.Deliveries{Partitions: []*link.PartitionRecords{{
		Partition: uint32(part), Generation: 1, Epoch: log.epoch, Upto: 1 << 40, Records: []*link.Record{{Offset: 1 << 40, Account: a, Event: event(a, "INBOX", "stale")}}}}}}})
	eventually(t, "it is fenced", func() bool { return r.metrics.fenced.Load() == 1 })
	expect()
	// The owner is gone with its links, and comes back with the same generation.
	b2.stop()
	eventually(t, "the link is down", func() bool { return r.linker.up.Load() == 1 })
	publish(b2)
	b2.restart()
	expect()
	publish(b2)
	expect()
}

// What the window does not have any more is told.
func TestMissedWindow(t *testing.T) {
	const a = "alice@example.com"
	r := start(t, nil)
	c := r.dial(a)
	c.subscribe("1", a)
	part := schema.PartitionOf(a, 8)
	r.bus.own(1)
	var last schema.Position
	for i := range 5 {
		last = r.bus.publish(a, event(a, "INBOX", fmt.Sprint(i)))
	}
	r.bus.log.mu.Lock()
	r.bus.log.first = 4
	r.bus.log.mu.Unlock()
	r.bus.own(2, part)
	if f := c.expect(schema.FrameMissed); f.Reason != string(schema.MissedWindow) || f.Position != last {
		t.Errorf("%+v, want position %s", f, last)
	}
	next := r.bus.publish(a, event(a, "INBOX", "next"))
	if f := c.expect(schema.FrameEvent); f.Position != next {
		t.Errorf("%+v", f)
	}
}

// Without an owner a subscribe waits, and is answered when one appears or when the time is over.
func TestNoOwner(t *testing.T) {
	const a = "alice@example.com"
	r := start(t, func(c *Config) { c.OwnerTimeout = 1500 * time.Millisecond })
	part := schema.PartitionOf(a, 8)
	r.bus.own(1)
	c := r.dial(a)
	c.send(`{"type":"subscribe","id":1,"account":"` + a + `"}`)
	if f := c.expect(schema.FrameErr); f.Code != schema.CodeUnavailable || f.ID != 1 {
		t.Errorf("%+v", f)
	}
	c.send(`{"type":"subscribe","id":2,"account":"` + a + `"}`)
	c.silent()
	r.bus.own(2, part)
	if f := c.expect(schema.FrameSubscribed); f.ID != 2 {
		t.Errorf("%+v", f)
	}
	inUse, _, wants := r.accounts.counts()
	if inUse != 1 || wants != 1 {
		t.Errorf("%d names, %d wants", inUse, wants)
	}
}

func TestDrain(t *testing.T) {
	r := start(t, nil)
	var clients []*client
	for i := range 20 {
		clients = append(clients, r.dial(accountOf(fmt.Sprint("a", i%5))))
	}
	done := make(chan error, 1)
	const over = 2 * time.Second
	begin := time.Now()
	go func() { done <- r.Drain(context.Background(), over) }()
	var latest uint32
	for i, c := range clients {
		f := c.expect(schema.FrameReconnect)
		if f.Reason != string(schema.ReconnectDrain) || time.Duration(f.AfterMs)*time.Millisecond > over {
			t.Errorf("%+v", f)
		}
		latest = max(latest, f.AfterMs)
		if i < 5 {
			c.conn.Close() // goes by itself
			continue
		}
		if code, _ := c.closed(); code != statusServiceRestart {
			t.Errorf("closed with %d", code)
		}
	}
	if err := <-done; err != nil || time.Since(begin) > over+time.Second {
		t.Errorf("%v after %v", err, time.Since(begin))
	}
	if latest < 200 {
		t.Errorf("all within %d ms: not spread", latest)
	}
	if r.Ready(context.Background()) == nil {
		t.Error("ready while drained")
	}
	if _, err := r.tryDial("x"); err == nil {
		t.Error("connected while drained")
	}
	eventually(t, "nothing is left", func() bool { return r.admit.sockets.Load() == 0 })
}

func TestOrdersOfTheBus(t *testing.T) {
	r := start(t, func(cfg *Config) { cfg.MoveAge = -1 })
	var clients []*client
	for range 6 {
		clients = append(clients, r.dial("a"))
	}
	r.bus.tellAll(&link.FromBus{Body: &link.FromBus_Move{Move: &link.Move{Connections: 6, PerSecond: 100, Targets: []*link.MoveTarget{{Url: "ws://n2/", Connections: 4}, {Url: "ws://n3/", Connections: 2}}}}})
	to := map[string]int{}
	for _, c := range clients {
		f := c.expect(schema.FrameReconnect)
		if f.Reason != string(schema.ReconnectRebalance) {
			t.Errorf("%+v", f)
		}
		to[f.URL]++
		c.conn.Close()
	}
	if to["ws://n2/"] != 4 || to["ws://n3/"] != 2 {
		t.Errorf("sent to %v", to)
	}
	last := r.dial("a")
	r.bus.tellAll(&link.FromBus{Body: &link.FromBus_Drain{Drain: &link.Drain{OverMs: 300, Reason: "rebalance"}}})
	last.expect(schema.FrameReconnect)
	if code, _ := last.closed(); code != statusServiceRestart {
		t.Errorf("closed with %d", code)
	}
	eventually(t, "it accepts again", func() bool { return r.Ready(context.Background()) == nil })
	r.dial("a")
}

// A Drain that comes before Run ends nothing but accepting.
func TestDrainBeforeRun(t *testing.T) {
	bus, keys := newFakeBus(t, "b1", 4), newKeyring(t)
	s, err := New(Config{NodeID: "n1", Addr: "127.0.0.1:0", Bus: []string{bus.addr}, Keys: keys.keys, Logger: quiet()})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Drain(context.Background(), time.Second); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	eventually(t, "the link is up", func() bool { return s.linker.up.Load() == 1 })
	cancel()
	if err := <-done; err != nil {
		t.Errorf("Run: %v", err)
	}
}
