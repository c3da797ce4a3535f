package bus

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/mailbell/mailbell/internal/eventlog"
	"github.com/mailbell/mailbell/schema/link"
)

// firehose is a log whose one partition hands on what feed gives it, without waiting.
type firehose struct {
	*fakeLog
	feed chan []eventlog.Message
}

func (l *firehose) Read(ctx context.Context, _ int32, from int64, fn func([]eventlog.Message) error) error {
	if from == 0 {
		if err := fn([]eventlog.Message{{Offset: 0, Time: time.Now(), Beacon: &eventlog.Beacon{Epoch: 1000, After: -1}}}); err != nil {
			return err
		}
	}
	for {
		select {
		case batch := <-l.feed:
			if err := fn(batch); err != nil {
				return err
			}
		case <-ctx.Done():
			return nil
		}
	}
}

// benchLink is a node with one partition and one link that wants all of its accounts.
func benchLink(b *testing.B, accounts int) (feed chan []eventlog.Message, names []string, stream grpc.BidiStreamingClient[link.FromNotifier, link.FromBus]) {
	log := &firehose{fakeLog: newFakeLog(1), feed: make(chan []eventlog.Message)}
	n, _ := startNode(b, Config{NodeID: "b1", Log: log, IndexReach: -1})
	log.assign(b, map[string][]int32{"b1": {0}})
	conn, err := grpc.NewClient(n.LinkAddr(), grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithInitialWindowSize(8<<20), grpc.WithInitialConnWindowSize(8<<20))
	if err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	b.Cleanup(func() { cancel(); conn.Close() })
	stream, err = link.NewLinkClient(conn).Connect(ctx)
	if err != nil {
		b.Fatal(err)
	}
	must := func(m *link.FromNotifier) {
		if err := stream.Send(m); err != nil {
			b.Fatal(err)
		}
	}
	must(&link.FromNotifier{Body: &link.FromNotifier_Hello{Hello: hello("n1")}})
	for i := range accounts {
		names = append(names, fmt.Sprintf("user%07d@example.com", i))
	}
	for asked := false; ; {
		m, err := stream.Recv()
		if err != nil {
			b.Fatal(err)
		}
		if p := m.GetOwned().GetPartitions(); len(p) == 1 && !asked {
			asked = true
			for chunk := range slices.Chunk(names, MaxSubscribeAccounts) {
				must(&link.FromNotifier{Body: &link.FromNotifier_Subscribe{Subscribe: &link.Subscribe{Generation: p[0].GetGeneration(), Accounts: chunk}}})
			}
			must(&link.FromNotifier{Body: &link.FromNotifier_Resume{Resume: &link.Resume{Items: []*link.ResumeItem{
				{Generation: p[0].GetGeneration(), Account: names[0]}}}}})
		}
		if m.GetResumed() != nil {
			return log.feed, names, stream
		}
	}
}

// BenchmarkLinkThroughput: from the reader's batch to the notifier's decoded message,
// over real gRPC on loopback, both ends in this process. One op is one delivery.
func BenchmarkLinkThroughput(b *testing.B) {
	const batch = 500
	feed, names, stream := benchLink(b, 20_000)
	value := []byte(`{"id":"`)
	pad := strings.Repeat("x", 250)
	b.ReportAllocs()
	got := make(chan int64, 1)
	go func() {
		last := int64(0)
		for {
			m, err := stream.Recv()
			if err != nil {
				if err != io.EOF && b.Context().Err() == nil {
					got <- -1
				}
				return
			}
			for _, p := range m.GetDeliveries().GetPartitions() {
				if n := len(p.GetRecords()); n > 0 {
					last = p.GetRecords()[n-1].GetOffset()
				}
			}
			select {
			case <-got:
			default:
			}
			got <- last
		}
	}()
	offset, last := int64(0), int64(0)
	for b.Loop() {
		if offset%batch == 0 {
			messages := make([]eventlog.Message, batch)
			now := time.Now()
			for i := range messages {
				o := offset + int64(i) + 1
				messages[i] = eventlog.Message{Offset: o, Time: now, Key: []byte(names[int(o)%len(names)]), Value: fmt.Appendf(value[:len(value):len(value)], `%d","pad":"%s"}`, o, pad)}
			}
			feed <- messages
			// The log's own flow control is the reader; here the link must not be outrun.
			for offset-last > 50_000 {
				if last = <-got; last < 0 {
					b.Fatal("the link ended")
				}
			}
		}
		offset++
	}
	for last < (offset-1)/batch*batch {
		if last = <-got; last < 0 {
			b.Fatal("the link ended")
		}
	}
	b.ReportMetric(float64(offset)/b.Elapsed().Seconds(), "deliveries/s")
}

// BenchmarkLinkLatency: one event every 2 ms, from the reader's batch to the notifier's decoded message.
func BenchmarkLinkLatency(b *testing.B) {
	feed, names, stream := benchLink(b, 100)
	var took []time.Duration
	offset := int64(0)
	for b.Loop() {
		offset++
		time.Sleep(2 * time.Millisecond) // so that each event is alone on its way
		m := []eventlog.Message{{Offset: offset, Time: time.Now(), Key: []byte(names[int(offset)%len(names)]), Value: eventJSON("a", fmt.Sprint(offset))}}
		began := time.Now()
		feed <- m
		for {
			m, err := stream.Recv()
			if err != nil {
				b.Fatal(err)
			}
			if m.GetDeliveries() != nil {
				break
			}
		}
		took = append(took, time.Since(began))
	}
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)/2].Microseconds()), "p50-µs")
	b.ReportMetric(float64(took[len(took)*99/100].Microseconds()), "p99-µs")
}
