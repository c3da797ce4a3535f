package bus

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/proto"

	"github.com/mailbell/mailbell/bus/routing"
	"github.com/mailbell/mailbell/schema/link"
)

// message decodes what the codec makes of a frame.
func message(t testing.TB, f *frame) *link.FromBus {
	t.Helper()
	buffers, err := newCodec(&bufferPool{}).Marshal(f)
	if err != nil {
		t.Fatal(err)
	}
	m := &link.FromBus{}
	if err := proto.Unmarshal(buffers.Materialize(), m); err != nil {
		t.Fatal(err)
	}
	return m
}

func record(offset int64, account string, size int) routing.Record {
	return routing.Record{Offset: offset, Account: []byte(account), Event: []byte(strings.Repeat("x", size))}
}

func wireRecords(rs []routing.Record) []*link.Record {
	var out []*link.Record
	for _, r := range rs {
		out = append(out, &link.Record{Offset: r.Offset, Account: string(r.Account), Event: r.Event})
	}
	return out
}

// TestWire holds the hand-written encoding to the generated code.
func TestWire(t *testing.T) {
	outputs := []routing.Output{
		{Kind: routing.Delivery, Generation: 5, Head: routing.Position{Epoch: 1 << 63, Offset: 1 << 40}, Records: []routing.Record{record(1, "alice", 300), record(2, "böb", 0)}},
		{Kind: routing.Delivery, Head: routing.Position{Offset: -1}, Records: []routing.Record{record(-1, "a", 1)}},
		{Kind: routing.Resumed, Request: 9, Generation: 5, Answer: routing.Replay, Head: routing.Position{Epoch: 7, Offset: 12}, Records: []routing.Record{record(11, "alice", 10), record(12, "alice", 70_000)}},
		{Kind: routing.Resumed, Request: 1 << 50, Generation: 5, Answer: routing.Resync, Head: routing.Position{Epoch: 7, Offset: 12}, SpreadMs: 2500},
		{Kind: routing.Resumed, Request: 3, Generation: 4, Answer: routing.NotOwner},
		{Kind: routing.Progress, Generation: 5, Head: routing.Position{Epoch: 7}},
		{Kind: routing.Progress, Generation: 5, Head: routing.Position{Epoch: 7, Offset: -1}},
	}
	for i, o := range outputs {
		for _, partition := range []int32{0, 3, 300} {
			t.Run(fmt.Sprint(i, partition), func(t *testing.T) {
				want := &link.FromBus{}
				head := &link.Offset{Epoch: o.Head.Epoch, Offset: o.Head.Offset}
				switch o.Kind {
				case routing.Delivery:
					want.Body = &link.FromBus_Deliveries{Deliveries: &link.Deliveries{Partitions: []*link.PartitionRecords{
						{Partition: uint32(partition), Generation: o.Generation, Epoch: o.Head.Epoch, Upto: o.Head.Offset, Records: wireRecords(o.Records)}}}}
				case routing.Resumed:
					r := &link.Resumed{Request: o.Request, Partition: uint32(partition), Generation: o.Generation, Head: head,
						CatchUp: link.CatchUp(o.Answer), Records: wireRecords(o.Records), SpreadMs: o.SpreadMs}
					if o.Answer == routing.NotOwner {
						r.Head = nil
					}
					want.Body = &link.FromBus_Resumed{Resumed: r}
				case routing.Progress:
					want.Body = &link.FromBus_Positions{Positions: &link.Positions{Partitions: []*link.OwnedPartition{
						{Partition: uint32(partition), Generation: o.Generation, Head: head}}}}
				}
				q := newQueue(&bufferPool{}, 1<<20)
				if !q.add(partition, &o) || len(q.frames) != 1 {
					t.Fatal("the queue did not take it")
				}
				if q.bytes != len(*q.frames[0].body) {
					t.Errorf("counted %d bytes, wrote %d", q.bytes, len(*q.frames[0].body))
				}
				if got := message(t, &q.frames[0]); !proto.Equal(got, want) {
					t.Errorf("got  %v\nwant %v", got, want)
				}
			})
		}
	}
}

// TestQueueJoins: deliveries that wait become one message, order is kept, what is large is parted.
func TestQueueJoins(t *testing.T) {
	q := newQueue(&bufferPool{}, 64<<20)
	r := rand.New(rand.NewPCG(1, 1))
	var want []string
	offset := int64(0)
	for range 300 {
		o := &routing.Output{Kind: routing.Delivery, Generation: 1}
		for range 1 + r.IntN(20) {
			offset++
			o.Records = append(o.Records, record(offset, "alice", r.IntN(20_000)))
			want = append(want, fmt.Sprint(offset))
		}
		o.Head.Offset = offset
		if !q.add(int32(r.IntN(3)), o) {
			t.Fatal("full")
		}
		if r.IntN(50) == 0 {
			q.add(0, &routing.Output{Kind: routing.Progress, Head: routing.Position{Offset: offset}})
			want = append(want, fmt.Sprint("p", offset))
		}
	}
	frames, err := q.take(context.Background(), nil)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	total := 0
	for i := range frames {
		total += len(*frames[i].body)
		if len(*frames[i].body) > maxPart+maxPart/2 {
			t.Errorf("a message of %d bytes", len(*frames[i].body))
		}
		m := message(t, &frames[i])
		for _, p := range m.GetDeliveries().GetPartitions() {
			for _, r := range p.GetRecords() {
				got = append(got, fmt.Sprint(r.GetOffset()))
				if r.GetOffset() > p.GetUpto() {
					t.Errorf("record %d in a part up to %d", r.GetOffset(), p.GetUpto())
				}
			}
		}
		for _, p := range m.GetPositions().GetPartitions() {
			got = append(got, fmt.Sprint("p", p.GetHead().GetOffset()))
		}
	}
	if strings.Join(got, " ") != strings.Join(want, " ") {
		t.Error("the order changed")
	}
	if total != q.waiting() {
		t.Errorf("%d bytes counted, %d taken", q.waiting(), total)
	}
	if len(frames) > 2*total/maxPart+20 {
		t.Errorf("%d messages for %d bytes", len(frames), total)
	}
	q.sent(total)
	if q.waiting() != 0 {
		t.Errorf("%d bytes left", q.waiting())
	}
}

func TestQueueIsBounded(t *testing.T) {
	q := newQueue(&bufferPool{}, 10_000)
	o := &routing.Output{Kind: routing.Delivery, Records: []routing.Record{record(1, "alice", 900)}}
	n := 0
	for ; q.add(0, o); n++ {
		if n > 11 {
			t.Fatal("no end")
		}
	}
	if n < 9 {
		t.Errorf("full after %d", n)
	}
	if q.addMessage([]byte("x")) {
		t.Error("a full queue took more")
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := q.waitRoom(ctx); err == nil {
		t.Error("room in a full queue")
	}
	waited := make(chan error)
	go func() { waited <- q.waitRoom(context.Background()) }()
	eventually(t, "somebody who waits", func() bool {
		q.mu.Lock()
		defer q.mu.Unlock()
		return q.room != nil
	})
	q.sent(q.waiting())
	if err := <-waited; err != nil {
		t.Error(err)
	}
}

func TestPoolSizes(t *testing.T) {
	var p bufferPool
	for _, n := range []int{0, 1, 4096, 4097, 65536, 100_000, 1 << 20} {
		b := p.Get(n)
		if len(*b) != n {
			t.Errorf("Get(%d) has %d", n, len(*b))
		}
		p.Put(b)
	}
	var _ mem.BufferPool = &p
}
