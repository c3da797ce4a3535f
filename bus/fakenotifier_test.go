package bus

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/mailbell/mailbell/schema"
	"github.com/mailbell/mailbell/schema/link"
)

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

// startNode runs a node until the test ends.
func startNode(t testing.TB, cfg Config) (n *Node, stop func()) {
	t.Helper()
	if cfg.LinkAddr == "" {
		cfg.LinkAddr = "127.0.0.1:0"
	}
	if cfg.Linger == 0 {
		cfg.Linger = -1
	}
	if cfg.ProbeInterval == 0 {
		cfg.ProbeInterval = -1 // the fakes have no address
	}
	if cfg.Logger == nil {
		cfg.Logger = quiet()
	}
	n, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- n.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	t.Cleanup(stop)
	return n, stop
}

// fakeNotifier is the far end of one link. Received messages come from next, one by one.
type fakeNotifier struct {
	t      testing.TB
	stream grpc.BidiStreamingClient[link.FromNotifier, link.FromBus]
	in     chan *link.FromBus
	err    error // valid once in is closed
	close  func()
}

// connect opens a link without saying Hello.
func connect(t testing.TB, addr string, creds credentials.TransportCredentials) *fakeNotifier {
	t.Helper()
	if creds == nil {
		creds = insecure.NewCredentials()
	}
	conn, err := grpc.NewClient(addr, grpc.WithTransportCredentials(creds))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	f := &fakeNotifier{t: t, in: make(chan *link.FromBus)}
	stream, err := link.NewLinkClient(conn).Connect(ctx)
	if err != nil {
		cancel()
		conn.Close()
		f.err = err
		close(f.in)
		return f
	}
	f.stream = stream
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer close(f.in)
		for {
			m, err := stream.Recv()
			if err != nil {
				f.err = err
				return
			}
			select {
			case f.in <- m:
			case <-ctx.Done():
				f.err = ctx.Err()
				return
			}
		}
	}()
	f.close = sync.OnceFunc(func() {
		cancel()
		<-done
		conn.Close()
	})
	t.Cleanup(f.close)
	return f
}

func hello(node string) *link.Hello {
	return &link.Hello{Node: node, Instance: node + "-1", PublicUrl: "ws://" + node + ".test:7480/v1/ws", Capacity: 1000}
}

// dial opens a link, says Hello and takes Welcome.
func dial(t testing.TB, n *Node, name string) *fakeNotifier {
	t.Helper()
	f := connect(t, n.LinkAddr(), nil)
	f.send(hello(name))
	if w := f.next().GetWelcome(); w.GetNode() != n.cfg.NodeID || int(w.GetPartitions()) != len(n.partitions) || len(w.GetTicketKeys()) != 1 {
		t.Fatalf("welcome is %v", w)
	}
	return f
}

func (f *fakeNotifier) send(body any) {
	f.t.Helper()
	m := &link.FromNotifier{}
	switch b := body.(type) {
	case *link.Hello:
		m.Body = &link.FromNotifier_Hello{Hello: b}
	case *link.Load:
		m.Body = &link.FromNotifier_Load{Load: b}
	case *link.Subscribe:
		m.Body = &link.FromNotifier_Subscribe{Subscribe: b}
	case *link.Unsubscribe:
		m.Body = &link.FromNotifier_Unsubscribe{Unsubscribe: b}
	case *link.Resume:
		m.Body = &link.FromNotifier_Resume{Resume: b}
	case *link.StandIn:
		m.Body = &link.FromNotifier_StandIn{StandIn: b}
	default:
		f.t.Fatalf("can't send %T", body)
	}
	if f.stream == nil {
		return // it never came up; ended says why
	}
	if err := f.stream.Send(m); err != nil && err != io.EOF {
		f.t.Fatal(err)
	}
}

func (f *fakeNotifier) next() *link.FromBus {
	f.t.Helper()
	select {
	case m, ok := <-f.in:
		if !ok {
			f.t.Fatalf("the link ended: %v", f.err)
		}
		return m
	case <-time.After(10 * time.Second):
		f.t.Fatal("nothing came for 10 s")
		return nil
	}
}

// until takes messages until one fits.
func (f *fakeNotifier) until(what string, fits func(*link.FromBus) bool) *link.FromBus {
	f.t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for time.Now().Before(deadline) {
		if m := f.next(); fits(m) {
			return m
		}
	}
	f.t.Fatalf("%s did not come in 10 s", what)
	return nil
}

// ownership waits until exactly these partitions are owned and returns their generations.
func (f *fakeNotifier) ownership(partitions ...uint32) map[uint32]*link.OwnedPartition {
	f.t.Helper()
	var got map[uint32]*link.OwnedPartition
	f.until(fmt.Sprintf("ownership of %v", partitions), func(m *link.FromBus) bool {
		if m.GetOwned() == nil {
			return false
		}
		got = map[uint32]*link.OwnedPartition{}
		for _, p := range m.GetOwned().GetPartitions() {
			got[p.GetPartition()] = p
		}
		if len(got) != len(partitions) {
			return false
		}
		for _, p := range partitions {
			if got[p] == nil {
				return false
			}
		}
		return true
	})
	return got
}

// ended waits for the end of the link and returns why.
func (f *fakeNotifier) ended() error {
	f.t.Helper()
	for timeout := time.After(10 * time.Second); ; {
		select {
		case _, ok := <-f.in:
			if !ok {
				return f.err
			}
		case <-timeout:
			f.t.Fatal("the link did not end in 10 s")
		}
	}
}

// subscribe asks for accounts of one partition and waits for the answer; records that come before it are returned.
func (f *fakeNotifier) subscribe(p *link.OwnedPartition, after *link.Offset, accounts ...string) (*link.Subscribed, []*link.Record) {
	f.t.Helper()
	f.send(&link.Subscribe{Request: 1, Partition: p.GetPartition(), Generation: p.GetGeneration(), Accounts: accounts, After: after})
	var records []*link.Record
	m := f.until("subscribed", func(m *link.FromBus) bool {
		records = append(records, recordsOf(m)...)
		return m.GetSubscribed() != nil
	})
	return m.GetSubscribed(), records
}

// resume asks for one account and waits for the answer.
func (f *fakeNotifier) resume(p *link.OwnedPartition, since *link.Offset, account string) *link.Resumed {
	f.t.Helper()
	f.send(&link.Resume{Items: []*link.ResumeItem{{Request: 7, Partition: p.GetPartition(), Generation: p.GetGeneration(), Account: account, Since: since}}})
	return f.until("resumed", func(m *link.FromBus) bool { return m.GetResumed() != nil }).GetResumed()
}

func recordsOf(m *link.FromBus) []*link.Record {
	var records []*link.Record
	for _, p := range m.GetDeliveries().GetPartitions() {
		records = append(records, p.GetRecords()...)
	}
	return records
}

// events waits for so many delivered records.
func (f *fakeNotifier) events(n int) []*link.Record {
	f.t.Helper()
	var records []*link.Record
	f.until(fmt.Sprintf("the last of %d events", n), func(m *link.FromBus) bool {
		records = append(records, recordsOf(m)...)
		return len(records) >= n
	})
	return records
}

// accountIn returns an account of a partition.
func accountIn(partition int32, partitions int, n int) string {
	for i := 0; ; i++ {
		a := fmt.Sprintf("user%d@example.com", i)
		if schema.PartitionOf(schema.Account(a), partitions) == partition {
			if n == 0 {
				return a
			}
			n--
		}
	}
}
