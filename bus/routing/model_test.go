package routing

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

// model is a naive partition: the whole log in memory, and what each link was told.
// After every step it holds the core to the promise: each link that subscribed has every
// later event of its accounts, in order, or was told that it has not.
type model struct {
	t   testing.TB
	r   *rand.Rand
	p   *Partition
	now time.Time

	epoch    uint64
	log      []logged
	next     int64
	start    int64 // backfilled down to here
	lost     int64 // what happened up to here can't be replayed
	gen      uint64
	owned    bool
	links    [4]modelLink
	request  uint64
	resyncs  int
	certain  int
	lastStep string
}

type logged struct {
	offset    int64
	account   string
	mailbox   string
	duplicate bool // an event with this id was on the log before
	id        string
}

type modelLink struct {
	id       LinkID
	accounts map[string]*heard
	queue    []modelRequest // subscribes and unsubscribes not yet done
	resumes  map[uint64]Resume
}

type heard struct {
	base int64 // everything later must be in got
	got  []int64
}

type modelRequest struct {
	request  uint64 // 0: unsubscribe
	accounts []string
	after    *Position
}

var modelAccounts = []string{"alice", "bob", "carol", "dave", "erin", "frank"}
var modelMailboxes = []string{"INBOX", "Sent", "Trash"}

func newModel(t testing.TB, r *rand.Rand) *model {
	m := &model{t: t, r: r, now: time.UnixMilli(1_800_000_000_000), epoch: 1}
	for i := range m.links {
		m.links[i] = modelLink{id: LinkID(i + 1), accounts: map[string]*heard{}, resumes: map[uint64]Resume{}}
	}
	m.next = int64(r.IntN(40))
	for range 60 {
		m.write()
	}
	m.start, m.lost = m.next-1, m.next-1
	cfg := Config{WindowBytes: int64(100 + r.IntN(4000)), WindowAge: time.Duration(1+r.IntN(60)) * time.Second,
		IndexAccounts: 1 + r.IntN(8), ReplayRecords: 1 + r.IntN(20), ParkFor: time.Second, ParkedAccounts: 1 + r.IntN(12)}
	m.p = New(cfg, m.epoch, m.start)
	m.p.hasher.mask = []uint64{0, 1, 7, 0x10, 0xf0, ^uint64(0)}[r.IntN(6)]
	return m
}

// write puts a record on the log and returns it.
func (m *model) write() Record {
	m.next += int64(m.r.IntN(2)) // the log may skip offsets
	l := logged{offset: m.next, account: modelAccounts[m.r.IntN(len(modelAccounts))], mailbox: modelMailboxes[m.r.IntN(3)], id: fmt.Sprint("i", m.next)}
	if n := len(m.log); n > 0 && m.r.IntN(8) == 0 {
		l.id = m.log[max(0, n-1-m.r.IntN(5))].id
	}
	l.duplicate = slices.ContainsFunc(m.log, func(o logged) bool { return o.id == l.id && o.account == l.account })
	m.log = append(m.log, l)
	m.next++
	return l.record(m.now)
}

func (l logged) record(now time.Time) Record {
	return Record{Offset: l.offset, Time: now, Account: []byte(l.account), Event: event(l.id, l.mailbox, "")}
}

func (m *model) step() {
	l := &m.links[m.r.IntN(len(m.links))]
	switch n := m.r.IntN(100); {
	case n < 35:
		m.lastStep = "append"
		var rs []Record
		for range 1 + m.r.IntN(5) {
			rs = append(rs, m.write())
		}
		m.take(m.p.Append(m.now, rs))
	case n < 50:
		m.subscribe(l)
	case n < 70:
		m.resume(l)
	case n < 76:
		m.unsubscribe(l)
	case n < 80:
		m.lastStep = "down"
		m.p.LinkDown(l.id)
		m.forget(l)
	case n == 80:
		m.lastStep = "bound"
		m.p.Bound(int64(100+m.r.IntN(4000)), 1+m.r.IntN(80))
		m.take(m.p.Tick(m.now))
	case n < 90:
		m.lastStep = "tick"
		m.now = m.now.Add(time.Duration(m.r.IntN(900)) * time.Millisecond)
		m.take(m.p.Tick(m.now))
	case n < 94:
		m.backfill()
	default:
		m.ownership(n)
	}
	m.check()
}

func (m *model) subscribe(l *modelLink) {
	m.request++
	s := Subscribe{Request: m.request, Generation: m.generation(), After: m.position()}
	for range 1 + m.r.IntN(3) {
		s.Accounts = append(s.Accounts, modelAccounts[m.r.IntN(len(modelAccounts))])
	}
	m.lastStep = fmt.Sprintf("link %d subscribe %+v after %v", l.id, s, s.After)
	l.queue = append(l.queue, modelRequest{m.request, s.Accounts, s.After})
	m.take(m.p.Subscribe(m.now, l.id, s))
}

func (m *model) resume(l *modelLink) {
	m.request++
	r := Resume{Request: m.request, Generation: m.generation(), Account: modelAccounts[m.r.IntN(len(modelAccounts))], Since: m.position()}
	if len(l.queue) > 0 || l.accounts[r.Account] == nil {
		return // a notifier subscribes first
	}
	if m.r.IntN(3) == 0 {
		r.Mailboxes = modelMailboxes[:1+m.r.IntN(2)]
	}
	m.lastStep = fmt.Sprintf("link %d resume %+v since %v", l.id, r, r.Since)
	l.resumes[m.request] = r
	m.take(m.p.Resume(m.now, l.id, r))
}

func (m *model) unsubscribe(l *modelLink) {
	accounts := []string{modelAccounts[m.r.IntN(len(modelAccounts))]}
	m.lastStep = fmt.Sprintf("link %d unsubscribe %v", l.id, accounts)
	if !m.owned {
		return
	}
	l.queue = append(l.queue, modelRequest{accounts: accounts})
	m.take(m.p.Unsubscribe(m.now, l.id, accounts))
	m.unsubscribed(l)
}

func (m *model) backfill() {
	m.lastStep = "backfill"
	after := m.start - int64(m.r.IntN(20))
	var rs []Record
	for _, l := range m.log {
		if l.offset > after && l.offset <= m.start {
			rs = append(rs, l.record(m.now))
		}
	}
	m.p.Backfill(after, m.start, rs)
	m.start = after
}

func (m *model) ownership(n int) {
	switch {
	case !m.owned:
		m.lastStep = "own"
		m.gen++
		m.owned = true
		m.p.Own(m.gen)
	case n < 97:
		m.lastStep = "disown"
		m.owned = false
		m.take(m.p.Disown())
		m.forgetAll()
	case n < 99:
		m.lastStep = "gap"
		for range m.r.IntN(4) {
			m.write()
		}
		m.owned = false
		m.take(m.p.Gap(m.next - 1))
		m.lost, m.start = max(m.lost, m.next-1), m.next-1
		m.forgetAll()
	default:
		m.lastStep = "beacon"
		m.epoch++
		m.owned = false
		out, _ := m.p.Beacon(m.epoch, m.next)
		m.next++
		m.take(out)
		m.forgetAll()
	}
}

// position is mostly one that a client may hold, sometimes none, of another epoch, or not yet written.
func (m *model) position() *Position {
	switch n := m.r.IntN(20); {
	case n == 0:
		return nil
	case n == 1:
		return &Position{m.epoch + 1, m.next}
	case n < 5:
		return &Position{m.epoch, m.p.head + int64(m.r.IntN(8))}
	default:
		return &Position{m.epoch, m.p.head - int64(m.r.IntN(50))}
	}
}

func (m *model) generation() uint64 {
	if m.r.IntN(20) == 0 {
		return m.gen + 1
	}
	return m.gen
}

func (m *model) forget(l *modelLink) {
	l.accounts, l.queue, l.resumes = map[string]*heard{}, nil, map[uint64]Resume{}
}

func (m *model) forgetAll() {
	for i := range m.links {
		if len(m.links[i].resumes) > 0 {
			m.fail("resumes %v of link %d were not answered", m.links[i].resumes, i+1)
		}
		m.forget(&m.links[i])
	}
}

func (m *model) fail(format string, args ...any) {
	m.t.Helper()
	m.t.Fatalf("after %s: %s", m.lastStep, fmt.Sprintf(format, args...))
}

func (m *model) take(outs []Output) {
	for i := range outs {
		o := &outs[i]
		l := &m.links[o.Link-1]
		switch o.Kind {
		case Delivery:
			if i+1 < len(outs) && outs[i+1].Kind == Subscribed && outs[i+1].Answer == Replay && outs[i+1].Link == o.Link {
				continue // taken with the answer
			}
			for _, r := range o.Records {
				if h := l.accounts[string(r.Account)]; h != nil {
					h.got = append(h.got, r.Offset)
				}
			}
		case Subscribed:
			var replayed []Record
			if o.Answer == Replay {
				replayed = outs[i-1].Records
			}
			m.subscribed(l, o, replayed)
		case Resumed:
			m.resumed(l, o)
		}
	}
}

func (m *model) subscribed(l *modelLink, o *Output, replayed []Record) {
	at := slices.IndexFunc(l.queue, func(r modelRequest) bool { return r.request == o.Request })
	if at < 0 {
		m.fail("link %d was answered %d, which it did not ask or out of order", o.Link, o.Request)
	}
	if o.Answer == NotOwner {
		l.queue = slices.Delete(l.queue, at, at+1)
		return
	}
	if at != 0 {
		m.fail("link %d: request %d answered before %v", o.Link, o.Request, l.queue[0])
	}
	req := l.queue[0]
	l.queue = l.queue[1:]
	for _, a := range req.accounts {
		h := &heard{base: o.Head.Offset}
		switch o.Answer {
		case Current, Replay:
			m.certain++
			h.base = req.after.Offset
			m.mustReach(*req.after)
			for _, r := range replayed {
				if string(r.Account) == a {
					h.got = append(h.got, r.Offset)
				}
			}
		case Resync:
			m.resyncs++
		}
		l.accounts[a] = h
	}
	m.unsubscribed(l)
}

// unsubscribed applies the unsubscribes that nothing is in front of.
func (m *model) unsubscribed(l *modelLink) {
	for len(l.queue) > 0 && l.queue[0].request == 0 {
		for _, a := range l.queue[0].accounts {
			delete(l.accounts, a)
		}
		l.queue = l.queue[1:]
	}
}

func (m *model) mustReach(since Position) {
	if since.Epoch != m.epoch || since.Offset > m.p.head {
		m.fail("a certain answer for %v, head is %v", since, m.p.Head())
	}
	if since.Offset < m.lost && since.Offset < m.start {
		m.fail("a certain answer for %v, known is what follows %d", since, m.start)
	}
}

func (m *model) resumed(l *modelLink, o *Output) {
	r, ok := l.resumes[o.Request]
	if !ok {
		m.fail("link %d was answered resume %d, which it did not ask", o.Link, o.Request)
	}
	delete(l.resumes, o.Request)
	switch o.Answer {
	case Current, Replay:
		m.certain++
		m.mustReach(*r.Since)
		var got []int64
		for _, rec := range o.Records {
			got = append(got, rec.Offset)
		}
		m.compare(r.Account, r.Mailboxes, r.Since.Offset, o.Head.Offset, got)
		if o.Answer == Replay && len(got) == 0 {
			m.fail("a replay of nothing")
		}
	case Fresh:
		if r.Since != nil {
			m.fail("fresh for a position")
		}
	case Resync:
		m.resyncs++
	}
}

// compare holds got to the log: strictly rising, of the account and its mailboxes, and nothing missing but duplicates.
func (m *model) compare(account string, mailboxes []string, after, upTo int64, got []int64) {
	m.t.Helper()
	var all, must []int64
	for _, l := range m.log {
		if l.account == account && l.offset > after && l.offset <= upTo && (len(mailboxes) == 0 || slices.Contains(mailboxes, l.mailbox)) {
			all = append(all, l.offset)
			if !l.duplicate {
				must = append(must, l.offset)
			}
		}
	}
	for i, g := range got {
		if i > 0 && g <= got[i-1] || !slices.Contains(all, g) {
			m.fail("%s after %d: got %v of %v", account, after, got, all)
		}
	}
	for _, w := range must {
		if !slices.Contains(got, w) {
			m.fail("%s after %d up to %d: got %v, must have %v", account, after, upTo, got, must)
		}
	}
}

func (m *model) check() {
	for i := range m.links {
		for a, h := range m.links[i].accounts {
			m.compare(a, nil, h.base, m.p.head, h.got)
		}
	}
	w := &m.p.window
	if bytes := w.bytes; bytes > m.p.cfg.WindowBytes {
		m.fail("window of %d bytes", bytes)
	}
}

func (m *model) finish() {
	m.now = m.now.Add(time.Hour)
	m.lastStep = "the end"
	m.take(m.p.Tick(m.now))
	for i := range m.links {
		if l := &m.links[i]; len(l.queue) > 0 || len(l.resumes) > 0 {
			m.fail("link %d waits for ever: %v %v", i+1, l.queue, l.resumes)
		}
	}
	for i := range m.links {
		m.p.LinkDown(LinkID(i + 1))
	}
	if s := m.p.Stats(); s.Routes != 0 || s.Parked != 0 || len(m.p.routes.accounts) != 0 || len(m.p.links) != 0 {
		m.fail("left over: %+v", s)
	}
}

func runModel(t testing.TB, seed uint64, steps int) *model {
	m := newModel(t, rand.New(rand.NewPCG(seed, 1)))
	for range steps {
		m.step()
	}
	m.finish()
	return m
}

func TestModel(t *testing.T) {
	runs := uint64(400)
	if testing.Short() {
		runs = 100
	}
	certain, resyncs := 0, 0
	for seed := range runs {
		m := runModel(t, seed, 300)
		certain, resyncs = certain+m.certain, resyncs+m.resyncs
		if t.Failed() {
			t.Fatalf("seed %d", seed)
		}
	}
	t.Logf("%d certain answers, %d resyncs", certain, resyncs)
	if certain < resyncs/4 {
		t.Errorf("%d certain answers against %d resyncs: the test shows little", certain, resyncs)
	}
}

func FuzzModel(f *testing.F) {
	f.Add([]byte("12345678"), uint16(100))
	f.Fuzz(func(t *testing.T, seed []byte, steps uint16) {
		runModel(t, binary.LittleEndian.Uint64(append(seed, make([]byte, 8)...)), int(steps%1000))
	})
}
