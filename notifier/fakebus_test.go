package notifier

import (
	"context"
	"net"
	"slices"
	"sync"
	"testing"

	"github.com/mailbell/mailbell/internal/auth"
	"github.com/mailbell/mailbell/schema"
	"github.com/mailbell/mailbell/schema/link"
	"google.golang.org/grpc"
)

// fakeBus is a bus node with its log in memory. It owns what own gives it.
type fakeBus struct {
	link.UnimplementedLinkServer
	t      testing.TB
	name   string
	addr   string
	server *grpc.Server
	signer *auth.TicketSigner

	mu    sync.Mutex
	log   *fakeLog
	owns  map[int32]uint64 // generation by partition
	links map[*fakeLink]bool
	loads []*link.Load
	hello *link.Hello
}

// fakeLog may be shared by several nodes.
type fakeLog struct {
	mu    sync.Mutex
	epoch uint64
	parts [][]*link.Record
	first int64 // offsets before it have left the window
}

type fakeLink struct {
	out      chan *link.FromBus
	ctx      context.Context
	accounts map[string]bool
}

func newFakeLog(partitions int) *fakeLog {
	l := &fakeLog{epoch: 0xabc, parts: make([][]*link.Record, partitions)}
	for i := range l.parts {
		l.parts[i] = []*link.Record{{}} // the beacon, which is no event
	}
	return l
}

func (l *fakeLog) head(i int32) *link.Offset {
	l.mu.Lock()
	defer l.mu.Unlock()
	return &link.Offset{Epoch: l.epoch, Offset: int64(len(l.parts[i])) - 1}
}

func (l *fakeLog) append(account string, event []byte) (int32, *link.Record) {
	l.mu.Lock()
	defer l.mu.Unlock()
	i := schema.PartitionOf(schema.Account(account), len(l.parts))
	r := &link.Record{Offset: int64(len(l.parts[i])), Account: account, Event: event}
	l.parts[i] = append(l.parts[i], r)
	return i, r
}

// since returns the accounts' records after an offset, or false when the window does not reach back.
func (l *fakeLog) since(i int32, after *link.Offset, accounts []string) ([]*link.Record, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if after.Epoch != l.epoch || after.Offset+1 < l.first || after.Offset >= int64(len(l.parts[i])) {
		return nil, false
	}
	var found []*link.Record
	for _, r := range l.parts[i][after.Offset+1:] {
		if slices.Contains(accounts, r.Account) {
			found = append(found, r)
		}
	}
	return found, true
}

// newFakeBus starts a node that owns all partitions of a log of its own.
func newFakeBus(t testing.TB, name string, partitions int) *fakeBus {
	t.Helper()
	b := newFakeNode(t, name, newFakeLog(partitions))
	for i := range partitions {
		b.owns[int32(i)] = 1
	}
	return b
}

// newFakeNode starts a node that owns nothing yet.
func newFakeNode(t testing.TB, name string, log *fakeLog) *fakeBus {
	t.Helper()
	signer, err := auth.NewTicketSigner(name)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	b := &fakeBus{t: t, name: name, addr: l.Addr().String(), log: log, signer: signer, owns: make(map[int32]uint64), links: make(map[*fakeLink]bool)}
	b.serve(l)
	t.Cleanup(b.stop)
	return b
}

func (b *fakeBus) serve(l net.Listener) {
	b.server = grpc.NewServer()
	link.RegisterLinkServer(b.server, b)
	go b.server.Serve(l)
}

func (b *fakeBus) stop() { b.server.Stop() }

// restart begins to listen again on the same address.
func (b *fakeBus) restart() {
	b.t.Helper()
	l, err := net.Listen("tcp", b.addr)
	if err != nil {
		b.t.Fatal(err)
	}
	b.serve(l)
}

func (b *fakeBus) Connect(stream grpc.BidiStreamingServer[link.FromNotifier, link.FromBus]) error {
	first, err := stream.Recv()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(stream.Context())
	l := &fakeLink{out: make(chan *link.FromBus, 1<<16), ctx: ctx, accounts: make(map[string]bool)}
	id, key := b.signer.Key()
	l.out <- &link.FromBus{Body: &link.FromBus_Welcome{Welcome: &link.Welcome{Node: b.name, Partitions: uint32(len(b.log.parts)),
		TicketKeys: []*link.TicketKey{{Id: id, PublicKey: key}}}}}
	b.mu.Lock()
	b.hello = first.GetHello()
	b.links[l] = true
	l.out <- b.owned()
	b.mu.Unlock()
	var writer sync.WaitGroup
	writer.Go(func() {
		for {
			select {
			case m := <-l.out:
				if stream.Send(m) != nil {
					return
				}
			case <-ctx.Done():
				return
			}
		}
	})
	defer writer.Wait()
	defer cancel()
	for {
		m, err := stream.Recv()
		if err != nil {
			b.mu.Lock()
			delete(b.links, l)
			b.mu.Unlock()
			return err
		}
		b.receive(l, m)
	}
}

func (b *fakeBus) owned() *link.FromBus {
	m := &link.Owned{}
	for i, g := range b.owns {
		m.Partitions = append(m.Partitions, &link.OwnedPartition{Partition: uint32(i), Generation: g, Head: b.log.head(i)})
	}
	return &link.FromBus{Body: &link.FromBus_Owned{Owned: m}}
}

// own changes what the node owns and tells it.
func (b *fakeBus) own(generation uint64, partitions ...int32) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.owns = make(map[int32]uint64)
	for _, i := range partitions {
		b.owns[i] = generation
	}
	b.broadcast(b.owned())
}

func (b *fakeBus) broadcast(m *link.FromBus) {
	for l := range b.links {
		l.out <- m
	}
}

func (b *fakeBus) tellAll(m *link.FromBus) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.broadcast(m)
}

func (b *fakeBus) receive(l *fakeLink, m *link.FromNotifier) {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch m := m.Body.(type) {
	case *link.FromNotifier_Load:
		b.loads = append(b.loads, m.Load)
	case *link.FromNotifier_Subscribe:
		b.subscribe(l, m.Subscribe)
	case *link.FromNotifier_Unsubscribe:
		for _, a := range m.Unsubscribe.Accounts {
			delete(l.accounts, a)
		}
	case *link.FromNotifier_Resume:
		for _, item := range m.Resume.Items {
			l.out <- &link.FromBus{Body: &link.FromBus_Resumed{Resumed: b.resume(item)}}
		}
	}
}

func (b *fakeBus) subscribe(l *fakeLink, s *link.Subscribe) {
	i := int32(s.Partition)
	answer := &link.Subscribed{Request: s.Request, Partition: s.Partition, Generation: s.Generation, Head: b.log.head(i), CatchUp: link.CatchUp_CATCH_UP_FRESH}
	for _, a := range s.Accounts {
		l.accounts[a] = true
	}
	switch {
	case b.owns[i] != s.Generation:
		answer.CatchUp = link.CatchUp_CATCH_UP_NOT_OWNER
	case s.After != nil:
		records, ok := b.log.since(i, s.After, s.Accounts)
		answer.CatchUp = link.CatchUp_CATCH_UP_CURRENT
		if !ok {
			answer.CatchUp = link.CatchUp_CATCH_UP_RESYNC
		} else if len(records) > 0 {
			answer.CatchUp = link.CatchUp_CATCH_UP_REPLAY
			replay := b.deliveries(i, records)
			replay.GetDeliveries().Partitions[0].Request = s.Request
			l.out <- replay
		}
	}
	l.out <- &link.FromBus{Body: &link.FromBus_Subscribed{Subscribed: answer}}
}

func (b *fakeBus) deliveries(i int32, records []*link.Record) *link.FromBus {
	return &link.FromBus{Body: &link.FromBus_Deliveries{Deliveries: &link.Deliveries{Partitions: []*link.PartitionRecords{{
		Partition: uint32(i), Generation: b.owns[i], Epoch: b.log.epoch, Upto: records[len(records)-1].Offset, Records: records}}}}}
}

func (b *fakeBus) resume(item *link.ResumeItem) *link.Resumed {
	i := int32(item.Partition)
	m := &link.Resumed{Request: item.Request, Partition: item.Partition, Generation: item.Generation, Head: b.log.head(i), CatchUp: link.CatchUp_CATCH_UP_FRESH}
	switch {
	case b.owns[i] != item.Generation:
		m.CatchUp = link.CatchUp_CATCH_UP_NOT_OWNER
	case item.Since != nil:
		records, ok := b.log.since(i, item.Since, []string{item.Account})
		switch {
		case !ok:
			m.CatchUp = link.CatchUp_CATCH_UP_RESYNC
		case len(records) == 0:
			m.CatchUp = link.CatchUp_CATCH_UP_CURRENT
		default:
			m.CatchUp, m.Records = link.CatchUp_CATCH_UP_REPLAY, records
		}
	}
	return m
}

// publish appends an event and sends it to the links that want it.
func (b *fakeBus) publish(account string, event []byte) schema.Position {
	b.mu.Lock()
	defer b.mu.Unlock()
	i, r := b.log.append(account, event)
	if _, ok := b.owns[i]; ok {
		for l := range b.links {
			if l.accounts[account] {
				l.out <- b.deliveries(i, []*link.Record{r})
			}
		}
	}
	return schema.Position{Epoch: b.log.epoch, Partition: i, Offset: r.Offset}
}

// wanted is how many accounts notifiers have subscribed to.
func (b *fakeBus) wanted() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	n := 0
	for l := range b.links {
		n += len(l.accounts)
	}
	return n
}
