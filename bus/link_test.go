package bus

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"math/big"
	mathrand "math/rand/v2"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"

	"github.com/mailbell/mailbell/schema"
	"github.com/mailbell/mailbell/schema/link"
)

// TestBadMessages: what is against the contract ends the stream and says why.
func TestBadMessages(t *testing.T) {
	log := newFakeLog(4)
	n, _ := startNode(t, Config{NodeID: "b1", Log: log})
	log.assign(t, map[string][]int32{"b1": {0, 1, 2, 3}})
	many := make([]string, MaxSubscribeAccounts+1)
	items := make([]*link.ResumeItem, MaxResumeItems+1)
	for i := range items {
		items[i] = &link.ResumeItem{}
	}
	alice := accountIn(2, 4, 0)
	for _, tt := range []struct {
		name string
		send []any
		want string
	}{
		{"no hello", []any{&link.Load{}}, "must be hello"},
		{"empty", []any{&link.Hello{}}, "node has 0 bytes"},
		{"no instance", []any{&link.Hello{Node: "n"}}, "instance"},
		{"no url", []any{&link.Hello{Node: "n", Instance: "i"}}, "public_url"},
		{"bad url", []any{&link.Hello{Node: "n", Instance: "i", PublicUrl: "http://x/"}}, "wss://"},
		{"long name", []any{&link.Hello{Node: strings.Repeat("n", 300), Instance: "i", PublicUrl: "ws://x"}}, "300 bytes"},
		{"bad weight", []any{&link.Hello{Node: "n", Instance: "i", PublicUrl: "ws://x", Weight: -1}}, "weight"},
		{"hello twice", []any{hello("n"), hello("n")}, "twice"},
		{"partition too high", []any{hello("n"), &link.Subscribe{Partition: 4}}, "partition 4 is not one of 0 to 3"},
		{"partition far too high", []any{hello("n"), &link.Unsubscribe{Partition: 1 << 31}}, "is not one of"},
		{"wrong partition", []any{hello("n"), &link.Subscribe{Partition: 1, Accounts: []string{alice}}}, "account 0 is of partition 2, not 1"},
		{"bad account", []any{hello("n"), &link.Subscribe{Partition: 1, Accounts: []string{""}}}, "account 0 is empty"},
		{"too many accounts", []any{hello("n"), &link.Subscribe{Partition: 1, Accounts: many}}, "at most 4096"},
		{"too many items", []any{hello("n"), &link.Resume{Items: items}}, "at most 131072"},
		{"empty item", []any{hello("n"), &link.Resume{Items: items[:1]}}, "account 0 is empty"},
		{"too many mailboxes", []any{hello("n"), &link.Resume{Items: []*link.ResumeItem{{Partition: 2, Account: alice, Mailboxes: make([]string, 1000)}}}}, "mailboxes"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := connect(t, n.LinkAddr(), nil)
			for _, m := range tt.send {
				f.send(m)
			}
			err := f.ended()
			if status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("the link ended with %v, want %q", err, tt.want)
			}
		})
	}
	eventually(t, "the links to be forgotten", func() bool { return len(*n.links.byID.Load()) == 0 && len(n.Fleet().Snapshot(time.Now())) == 0 })
}

func TestNotOwner(t *testing.T) {
	log := newFakeLog(2)
	n, _ := startNode(t, Config{NodeID: "b1", Log: log})
	f := dial(t, n, "n1")
	log.assign(t, map[string][]int32{"b1": {0}})
	owned := f.ownership(0)
	mine, other := accountIn(0, 2, 0), accountIn(1, 2, 0)
	stranger := &link.OwnedPartition{Partition: 1, Generation: 1}
	stale := &link.OwnedPartition{Partition: 0, Generation: 99}
	if s, _ := f.subscribe(stranger, nil, other); s.GetCatchUp() != link.CatchUp_CATCH_UP_NOT_OWNER || s.GetPartition() != 1 || s.GetGeneration() != 1 {
		t.Errorf("subscribed %v", s)
	}
	if s, _ := f.subscribe(stale, nil, mine); s.GetCatchUp() != link.CatchUp_CATCH_UP_NOT_OWNER || s.GetGeneration() != 99 {
		t.Errorf("subscribed %v", s)
	}
	if r := f.resume(stranger, nil, other); r.GetCatchUp() != link.CatchUp_CATCH_UP_NOT_OWNER || r.GetRequest() != 7 {
		t.Errorf("resumed %v", r)
	}
	f.send(&link.Unsubscribe{Partition: 1, Accounts: []string{other}})
	if s, _ := f.subscribe(owned[0], nil, mine); s.GetCatchUp() != link.CatchUp_CATCH_UP_FRESH {
		t.Errorf("subscribed %v", s)
	}
}

func TestSlowLinkIsCut(t *testing.T) {
	log := newFakeLog(1)
	n, _ := startNode(t, Config{NodeID: "b1", Log: log, LinkQueueBytes: 1 << 20})
	log.assign(t, map[string][]int32{"b1": {0}})
	slow, fast := dial(t, n, "slow"), dial(t, n, "fast")
	alice := accountIn(0, 1, 0)
	owned := slow.ownership(0)
	slow.subscribe(owned[0], nil, alice)
	fast.ownership(0)
	fast.subscribe(owned[0], nil, alice)
	const events = 20_000
	ahead := make(chan struct{}, 1000) // of the fast one, far less than a queue's bound
	go func() {
		for i := range events {
			ahead <- struct{}{}
			log.append(alice, fmt.Sprint(i, strings.Repeat("x", 300)))
		}
	}()
	got := 0
	for got < events {
		more := len(fast.events(1))
		got += more
		for range more {
			<-ahead
		}
	}
	if got != events {
		t.Errorf("the fast link got %d of %d", got, events)
	}
	if err := slow.ended(); status.Code(err) != codes.ResourceExhausted || !strings.Contains(err.Error(), string(CutQueueFull)) {
		t.Errorf("the slow link ended with %v", err)
	}
}

// TestReplaysLeaveRoomForLive: a notifier asks for far more replays than its link takes at once. The link asks for the next only when
// there is room, so an event that comes meanwhile waits behind a quarter of the queue at most, in its own partition and in others.
func TestReplaysLeaveRoomForLive(t *testing.T) {
	const replays, replayed, queue = 200, 100, 1 << 20
	log := newFakeLog(2)
	alice, bob, carol := accountIn(0, 2, 0), accountIn(0, 2, 1), accountIn(1, 2, 0)
	since, err := log.FindEpoch(context.Background(), 0)
	if err != nil {
		t.Fatal(err)
	}
	for i := range replayed {
		log.append(alice, fmt.Sprintf("%01000d", i))
	}
	n, _ := startNode(t, Config{NodeID: "b1", Log: log, LinkQueueBytes: queue})
	f := dial(t, n, "n1")
	log.assign(t, map[string][]int32{"b1": {0, 1}})
	owned := f.ownership(0, 1)
	f.subscribe(owned[0], nil, bob)
	f.subscribe(owned[1], nil, carol)
	ask := &link.Resume{}
	for i := range replays {
		ask.Items = append(ask.Items, &link.ResumeItem{Request: uint64(i), Generation: owned[0].GetGeneration(), Account: alice,
			Since: &link.Offset{Epoch: since}})
	}
	f.send(ask)
	f.until("the first replay", func(m *link.FromBus) bool { return m.GetResumed() != nil })

	// Nothing is taken from the link until both live events wait on it.
	_, atBob := log.append(bob, "live")
	_, atCarol := log.append(carol, "live")
	eventually(t, "the node to read them", func() bool {
		s := n.Partitions()
		return s[0].Head.Offset >= atBob && s[1].Head.Offset >= atCarol
	})
	for _, l := range *n.links.byID.Load() {
		if waiting := l.queue.waiting(); waiting > queue/2 {
			t.Errorf("%d bytes wait on the link", waiting)
		}
	}
	seen, live, before := 1, 0, 0
	for seen < replays || live < 2 {
		m := f.next()
		if r := m.GetResumed(); r != nil {
			if seen++; r.GetCatchUp() != link.CatchUp_CATCH_UP_REPLAY || len(r.GetRecords()) < replayed {
				t.Fatalf("resumed %v with %d records", r.GetCatchUp(), len(r.GetRecords()))
			}
		}
		if live += len(recordsOf(m)); live == 2 && before == 0 {
			before = seen
		}
	}
	if before > replays/2 {
		t.Errorf("the live events came after %d of %d replays", before, replays)
	}
	t.Logf("the live events came after %d of %d replays", before, replays)
}

func TestSameInstanceReplaces(t *testing.T) {
	n, stop := startNode(t, Config{NodeID: "b1", Log: newFakeLog(1), MaxLinks: 2})
	first := dial(t, n, "n1")
	second := dial(t, n, "n1")
	if err := first.ended(); !strings.Contains(err.Error(), string(CutReplaced)) {
		t.Errorf("the first link ended with %v", err)
	}
	// Another process of that name: both are served, the later one gets the clients.
	third := connect(t, n.LinkAddr(), nil)
	h := hello("n1")
	h.Instance = "another"
	third.send(h)
	third.next()
	eventually(t, "two links", func() bool { return len(*n.links.byID.Load()) == 2 })
	states := map[string]NotifierState{}
	for _, s := range n.Fleet().Snapshot(time.Now()) {
		states[s.Instance] = s.State
	}
	if states["another"] != Serving || states["n1-1"] != Replaced {
		t.Errorf("states %v", states)
	}
	fourth := connect(t, n.LinkAddr(), nil)
	fourth.send(hello("n4"))
	if err := fourth.ended(); status.Code(err) != codes.ResourceExhausted {
		t.Errorf("over the limit: %v", err)
	}
	stop()
	if err := second.ended(); status.Code(err) != codes.Unavailable {
		t.Errorf("at shutdown: %v", err)
	}
}

func TestOrders(t *testing.T) {
	n, _ := startNode(t, Config{NodeID: "b1", Log: newFakeLog(1)})
	f := dial(t, n, "n1")
	drain := &link.FromBus{Body: &link.FromBus_Drain{Drain: &link.Drain{OverMs: 1000, Reason: "drain"}}}
	if ok, err := n.Tell("n1", drain); !ok || err != nil {
		t.Errorf("Tell = %t, %v", ok, err)
	}
	if ok, _ := n.Tell("nobody", drain); ok {
		t.Error("told nobody")
	}
	if _, err := n.Tell("n1", &link.FromBus{}); err == nil {
		t.Error("an empty order passed")
	}
	f.until("drain", func(m *link.FromBus) bool { return m.GetDrain().GetOverMs() == 1000 })
}

// TestChurn: links come, subscribe, go, while events flow and partitions move. The one
// that stays gets everything, and in the end nothing is left.
func TestChurn(t *testing.T) {
	const partitions = 4
	log := newFakeLog(partitions)
	n, _ := startNode(t, Config{NodeID: "b1", Log: log})
	log.assign(t, map[string][]int32{"b1": {0, 1, 2, 3}})
	steady := dial(t, n, "steady")
	owned := steady.ownership(0, 1, 2, 3)
	accounts := make([][]string, partitions)
	for p := range accounts {
		for i := range 20 {
			accounts[p] = append(accounts[p], accountIn(int32(p), partitions, i))
		}
		steady.subscribe(owned[uint32(p)], nil, accounts[p]...)
	}
	duration := 2 * time.Second
	if testing.Short() {
		duration = 500 * time.Millisecond
	}
	end := time.Now().Add(duration)
	var wg sync.WaitGroup
	for w := range 6 {
		wg.Go(func() {
			r := mathrand.New(mathrand.NewPCG(uint64(w), 1))
			for i := 0; time.Now().Before(end); i++ {
				f := dial(t, n, fmt.Sprint("churn", w))
				for range r.IntN(20) {
					p := uint32(r.IntN(partitions))
					at := &link.OwnedPartition{Partition: p, Generation: owned[p].GetGeneration()}
					a := accounts[p][r.IntN(20)]
					switch r.IntN(4) {
					case 0:
						f.subscribe(at, &link.Offset{Epoch: 1000 + uint64(p), Offset: r.Int64N(50)}, a)
					case 1:
						f.resume(at, &link.Offset{Epoch: 1000 + uint64(p), Offset: r.Int64N(1000)}, a)
					case 2:
						f.send(&link.Unsubscribe{Partition: p, Accounts: []string{a}})
					case 3:
						f.send(&link.Load{Connections: r.Uint64N(100)})
					}
				}
				f.close()
			}
		})
	}
	sent := 0
	wg.Go(func() {
		for i := 0; time.Now().Before(end); i++ {
			log.append(accounts[i%partitions][i%20], schema.NewID())
			sent++
			if i%100 == 0 {
				time.Sleep(time.Millisecond) // the fake log copies
			}
		}
	})
	done := make(chan struct{})
	go func() { wg.Wait(); close(done) }()
	got, last := 0, map[string]int64{}
	for finished := false; !finished || got < sent; {
		select {
		case <-done:
			finished, done = true, nil
		case m, ok := <-steady.in:
			if !ok {
				t.Fatalf("the steady link ended: %v", steady.err)
			}
			for _, r := range recordsOf(m) {
				if r.GetOffset() <= last[r.GetAccount()] {
					t.Fatalf("%s: %d after %d", r.GetAccount(), r.GetOffset(), last[r.GetAccount()])
				}
				last[r.GetAccount()] = r.GetOffset()
				got++
			}
		case <-time.After(10 * time.Second):
			t.Fatalf("%d of %d events came", got, sent)
		}
	}
	steady.close()
	eventually(t, "all routes to be gone", func() bool {
		for _, p := range n.Partitions() {
			if p.Stats.Routes != 0 {
				return false
			}
		}
		return len(*n.links.byID.Load()) == 0
	})
	t.Logf("%d events, %d links", sent, n.links.next.Load())
}

func TestMutualTLS(t *testing.T) {
	ca, pool := newCA(t)
	n, _ := startNode(t, Config{NodeID: "b1", Log: newFakeLog(1), LinkTLS: &tls.Config{
		Certificates: []tls.Certificate{ca.issue(t)}, ClientCAs: pool, ClientAuth: tls.RequireAndVerifyClientCert}})
	good := connect(t, n.LinkAddr(), credentials.NewTLS(&tls.Config{RootCAs: pool, Certificates: []tls.Certificate{ca.issue(t)}}))
	good.send(hello("n1"))
	if good.next().GetWelcome() == nil {
		t.Error("no welcome")
	}
	stranger, _ := newCA(t)
	bad := connect(t, n.LinkAddr(), credentials.NewTLS(&tls.Config{RootCAs: pool, Certificates: []tls.Certificate{stranger.issue(t)}}))
	bad.send(hello("n2"))
	if err := bad.ended(); status.Code(err) != codes.Unavailable {
		t.Errorf("a stranger's link ended with %v", err)
	}
}

type testCA struct {
	key  *ecdsa.PrivateKey
	cert *x509.Certificate
}

func newCA(t *testing.T) (testCA, *x509.CertPool) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"}, NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(cert)
	return testCA{key, cert}, pool
}

func (ca testCA) issue(t *testing.T) tls.Certificate {
	t.Helper()
	template := &x509.Certificate{SerialNumber: big.NewInt(2), NotAfter: time.Now().Add(time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificate(rand.Reader, template, ca.cert, &key.PublicKey, ca.key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}
