package eventlog

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/segmentio/kafka-go/protocol/createpartitions"

	"github.com/mailbell/mailbell/schema"
)

func TestAppendRead(t *testing.T) {
	_, l := startEmbedded(t, EmbeddedConfig{})
	ctx := testContext(t, 20*time.Second)
	if at, err := l.Append(ctx); len(at) != 0 || err != nil {
		t.Fatalf("nothing: %v, %v", at, err)
	}
	recs := []Record{
		{Key: "alice@example.com", Value: []byte("1"), Headers: []Header{{"trace", []byte("t1")}}},
		{Key: "bob@example.com", Value: []byte("2")},
		{Key: "alice@example.com", Value: []byte("3")},
	}
	before := time.Now().Truncate(time.Millisecond)
	at, err := l.Append(ctx, recs...)
	if err != nil {
		t.Fatal(err)
	}
	for i, a := range at {
		if want := schema.PartitionOf(schema.Account(recs[i].Key), l.Partitions()); a.Partition != want {
			t.Errorf("record %d is on partition %d, want %d", i, a.Partition, want)
		}
		got := readUntil(t, l, a.Partition, a.Offset, a.Offset+1)
		if len(got) != 1 || string(got[0].Key) != recs[i].Key || string(got[0].Value) != string(recs[i].Value) || got[0].Time.Before(before) {
			t.Errorf("record %d: read %+v", i, got)
		}
		if len(got) == 1 && len(got[0].Headers) != len(recs[i].Headers) {
			t.Errorf("record %d: headers %v", i, got[0].Headers)
		}
	}
	if at[2].Offset != at[0].Offset+1 {
		t.Errorf("two records of one account in one call stand at %v and %v", at[0], at[2])
	}
	if err := l.Ping(ctx); err != nil {
		t.Error(err)
	}
	later, err := l.OffsetAt(ctx, at[0].Partition, time.Now().Add(time.Hour))
	_, next, _ := l.Bounds(ctx, at[0].Partition)
	if err != nil || later != next {
		t.Errorf("offset in an hour: %d, %v, want %d", later, err, next)
	}
	if first, err := l.OffsetAt(ctx, at[0].Partition, before); err != nil || first > at[0].Offset {
		t.Errorf("offset before the records: %d, %v, want at most %d", first, err, at[0].Offset)
	}
}

// Many write and read at the same time: everything acknowledged is read once, in the order in which each account's
// writer wrote it.
func TestChurn(t *testing.T) {
	_, l := startEmbedded(t, EmbeddedConfig{Partitions: 8})
	ctx, cancel := context.WithCancel(testContext(t, 60*time.Second))
	var got [8][]string
	var read atomic.Int64
	var readers, writers sync.WaitGroup
	for p := range int32(8) {
		readers.Go(func() {
			next := int64(0)
			for ctx.Err() == nil { // now and then a reader starts anew
				stop := errors.New("enough")
				err := l.Read(ctx, p, next, func(batch []Message) error {
					for _, m := range batch {
						if m.Offset != next {
							return fmt.Errorf("partition %d: offset %d after %d", p, m.Offset, next-1)
						}
						next++
						if m.Beacon == nil {
							got[p] = append(got[p], string(m.Value))
							read.Add(1)
						}
					}
					if rand.IntN(50) == 0 {
						return stop
					}
					return nil
				})
				if err != nil && !errors.Is(err, stop) {
					t.Error(err)
					return
				}
			}
		})
	}
	const accounts, calls = 32, 60
	var written atomic.Int64
	for a := range accounts {
		writers.Go(func() {
			n := 0
			for range calls {
				recs := make([]Record, 1+rand.IntN(20))
				for i := range recs {
					recs[i] = Record{Key: fmt.Sprint("account", a), Value: fmt.Appendf(nil, "%d %d", a, n)}
					n++
				}
				if _, err := l.Append(ctx, recs...); err != nil {
					t.Error(err)
					return
				}
				written.Add(int64(len(recs)))
			}
		})
	}
	writers.Wait()
	waitFor(t, func() bool { return read.Load() >= written.Load() || t.Failed() })
	cancel()
	readers.Wait()
	var last [accounts]int
	for p := range got {
		for _, v := range got[p] {
			var a, n int
			if _, err := fmt.Sscan(v, &a, &n); err != nil || n != last[a] {
				t.Fatalf("account %d: record %d after %d", a, n, last[a]-1)
			}
			last[a]++
		}
	}
}

// One slow reader holds up nobody, loses nothing, and is not read ahead for without bounds.
func TestSlowReader(t *testing.T) {
	e, _ := startEmbedded(t, EmbeddedConfig{})
	l := openLog(t, Config{Brokers: e.Brokers(), Topic: "slow", Create: true, Partitions: 2, ReplicationFactor: 1, ReadBuffer: 64 << 10})
	ctx, cancel := context.WithCancel(testContext(t, 60*time.Second))
	var wg sync.WaitGroup
	release := make(chan struct{})
	var slow, quick atomic.Int64
	wg.Go(func() {
		err := l.Read(ctx, 0, 0, func(batch []Message) error {
			<-release
			slow.Add(int64(len(batch)))
			return nil
		})
		if err != nil {
			t.Error(err)
		}
	})
	wg.Go(func() {
		err := l.Read(ctx, 1, 0, func(batch []Message) error {
			quick.Add(int64(len(batch)))
			return nil
		})
		if err != nil {
			t.Error(err)
		}
	})
	const rounds, each = 100, 20
	value := []byte(strings.Repeat("x", 1000))
	for i := range rounds {
		for p := range int32(2) {
			recs := make([]Record, each)
			for j := range recs {
				recs[j] = Record{Key: "k", Value: value}
			}
			if _, err := l.producer.append(ctx, recs, func(*Record) int32 { return p }); err != nil {
				t.Fatal(err)
			}
		}
		want := int64((i + 1) * each)
		waitFor(t, func() bool { return quick.Load() == want })
	}
	if n := slow.Load(); n != 0 {
		t.Errorf("the slow reader has taken %d records", n)
	}
	l.fetchers.mu.Lock()
	for _, ft := range l.fetchers.running {
		for _, f := range ft.feeds {
			if n := f.waiting.Load(); n > 64<<10+fetchPartitionBytes {
				t.Errorf("%d bytes are read ahead", n)
			}
		}
	}
	l.fetchers.mu.Unlock()
	close(release)
	waitFor(t, func() bool { return slow.Load() == rounds*each })
	cancel()
	wg.Wait()
}

func TestReadGap(t *testing.T) {
	e, _ := startEmbedded(t, EmbeddedConfig{})
	l := newTopic(t, e, "gap", 1)
	ctx := testContext(t, 20*time.Second)
	if _, err := l.Append(ctx, benchRecords(10, 1)...); err != nil {
		t.Fatal(err)
	}
	if err := e.cluster.DeleteRecords("gap", 0, 4); err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		from    int64
		gap     GapError
		trimmed bool
	}{
		{0, GapError{Want: 0, First: 4, Next: 10}, true},
		{3, GapError{Want: 3, First: 4, Next: 10}, true},
		{11, GapError{Want: 11, First: 4, Next: 10}, false},
	}
	for _, tt := range tests {
		err := l.Read(ctx, 0, tt.from, func([]Message) error { return errors.New("read something") })
		var gap *GapError
		if !errors.As(err, &gap) || *gap != tt.gap || gap.Trimmed() != tt.trimmed {
			t.Errorf("from %d: got %v", tt.from, err)
		}
	}
	if got := readUntil(t, l, 0, 4, 10); len(got) != 6 || got[0].Offset != 4 {
		t.Errorf("from 4: got %d records", len(got))
	}
	wantError(t, l.Read(ctx, 0, -1, nil), "offset -1 is negative")
	wantError(t, l.Read(ctx, 1, 0, nil), `partition 1 is not one of topic "gap", which has 0 to 0`)
}

// What is trimmed while a reader is slow is a gap, never silence.
func TestReadTrimmedMeanwhile(t *testing.T) {
	e, _ := startEmbedded(t, EmbeddedConfig{})
	l := openLog(t, Config{Brokers: e.Brokers(), Topic: "trim", Create: true, Partitions: 1, ReplicationFactor: 1, ReadBuffer: 16 << 10})
	ctx := testContext(t, 30*time.Second)
	append100 := func() {
		if _, err := l.Append(ctx, benchRecords(100, 1)...); err != nil {
			t.Error(err)
		}
	}
	append100()
	last := int64(-1)
	err := l.Read(ctx, 0, 0, func(batch []Message) error {
		if last < 0 {
			for range 20 {
				append100()
			}
			if err := e.cluster.DeleteRecords("trim", 0, 2000); err != nil {
				t.Error(err)
			}
		}
		if batch[0].Offset != last+1 {
			t.Errorf("offset %d after %d", batch[0].Offset, last)
		}
		last = batch[len(batch)-1].Offset
		return nil
	})
	var gap *GapError
	if !errors.As(err, &gap) || gap.Want != last+1 || gap.First != 2000 {
		t.Fatalf("got %v after offset %d", err, last)
	}
}

func TestReadEnds(t *testing.T) {
	_, l := startEmbedded(t, EmbeddedConfig{})
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error)
	go func() { ended <- l.Read(ctx, 0, 0, func([]Message) error { cancel(); return nil }) }()
	if err := <-ended; err != nil { // the beacon came, which ended ctx
		t.Errorf("ctx ended: %v", err)
	}
	mine := errors.New("mine")
	if err := l.Read(context.Background(), 0, 0, func([]Message) error { return mine }); !errors.Is(err, mine) {
		t.Errorf("fn's error: %v", err)
	}
	_, next, err := l.Bounds(testContext(t, 5*time.Second), 0)
	if err != nil {
		t.Fatal(err)
	}
	go func() { ended <- l.Read(context.Background(), 0, next, func([]Message) error { return nil }) }()
	l.Close()
	if err := <-ended; !errors.Is(err, ErrClosed) {
		t.Errorf("closed: %v", err)
	}
	if _, err := l.Append(context.Background(), Record{Key: "a"}); !errors.Is(err, ErrClosed) {
		t.Errorf("append after close: %v", err)
	}
	if _, _, err := l.Bounds(context.Background(), 0); !errors.Is(err, ErrClosed) {
		t.Errorf("bounds after close: %v", err)
	}
}

func TestOpenErrors(t *testing.T) {
	e, _ := startEmbedded(t, EmbeddedConfig{})
	tests := []struct {
		name string
		cfg  Config
		want string
	}{
		{"no such topic", Config{Brokers: e.Brokers(), Topic: "none"}, `topic "none" does not exist`},
		{"other count", Config{Brokers: e.Brokers(), Partitions: 4}, "has 16 partitions and is configured to have 4"},
		{"nobody there", Config{Brokers: []string{"127.0.0.1:1"}}, "cannot be reached"},
		{"no topic's name", Config{Brokers: e.Brokers(), Topic: "a b"}, "has the character"},
		{"broker without TLS", Config{Brokers: e.Brokers(), TLS: &TLSConfig{Insecure: true}}, "tls"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			tt.cfg.Logger = quiet()
			_, err := Open(testContext(t, 500*time.Millisecond), tt.cfg)
			wantError(t, err, tt.want)
		})
	}
}

// A partition count that changes under a running system ends everything with a clear error.
func TestPartitionsChanged(t *testing.T) {
	e, _ := startEmbedded(t, EmbeddedConfig{})
	testPartitionsChanged(t, newTopic(t, e, "grows", 2))
}

// testPartitionsChanged takes the topic "grows" with two partitions.
func testPartitionsChanged(t *testing.T, l *Log) {
	ctx := testContext(t, 30*time.Second)
	reading, joined, waiting := make(chan error, 1), make(chan error, 1), make(chan error, 1)
	go func() { waiting <- l.Wait(ctx) }()
	go func() { reading <- l.Read(ctx, 0, 0, func([]Message) error { return nil }) }()
	go func() {
		joined <- l.Join(ctx, GroupConfig{Group: "grows", NodeID: "a", OnAssigned: discardAssigned})
	}()
	if _, err := l.Append(ctx, Record{Key: "a"}); err != nil {
		t.Fatal(err)
	}
	_, err := l.cluster.askAny(ctx, &createpartitions.Request{
		Topics: []createpartitions.RequestTopic{{Name: "grows", Count: 4}}, TimeoutMs: 1000})
	if err != nil {
		t.Fatal(err)
	}
	for err == nil { // real brokers take a moment to tell one another
		err = l.cluster.refresh(ctx, time.Now())
	}
	if !errors.Is(err, ErrPartitionsChanged) {
		t.Fatalf("refresh: %v", err)
	}
	if err := <-waiting; !errors.Is(err, ErrPartitionsChanged) {
		t.Errorf("wait: %v", err)
	}
	_, err = l.Append(ctx, Record{Key: "a"})
	wantError(t, err, `topic "grows" had 2 partitions and now has 4`)
	if err := <-reading; !errors.Is(err, ErrPartitionsChanged) {
		t.Errorf("read: %v", err)
	}
	if err := <-joined; !errors.Is(err, ErrPartitionsChanged) {
		t.Errorf("join: %v", err)
	}
	if err := l.Ping(ctx); !errors.Is(err, ErrPartitionsChanged) {
		t.Errorf("ping: %v", err)
	}
}

// cutter dials connections that it can cut: writes then vanish and reads wait, as when a cable is pulled.
type cutter struct {
	cut atomic.Bool
}

type cutConn struct {
	net.Conn
	c *cutter
}

func (c *cutter) dial(ctx context.Context, network, address string) (net.Conn, error) {
	if c.cut.Load() {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	var d net.Dialer
	nc, err := d.DialContext(ctx, network, address)
	if err != nil {
		return nil, err
	}
	return &cutConn{nc, c}, nil
}

func (c *cutConn) Write(b []byte) (int, error) {
	if c.c.cut.Load() {
		return len(b), nil
	}
	return c.Conn.Write(b)
}

// An append whose deadline passes is an error, and one that was not sent yet never reaches the log. Afterwards
// everything goes on.
func TestAppendDeadline(t *testing.T) {
	e, _ := startEmbedded(t, EmbeddedConfig{Partitions: 1})
	var c cutter
	l := openLog(t, Config{Brokers: e.Brokers(), Dial: c.dial})
	ctx := testContext(t, 60*time.Second)
	if _, err := l.Append(ctx, Record{Key: "a", Value: []byte("before")}); err != nil {
		t.Fatal(err)
	}
	c.cut.Store(true)
	var wg sync.WaitGroup
	for i := range 20 {
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(ctx, 200*time.Millisecond)
			defer cancel()
			at, err := l.Append(ctx, Record{Key: "a", Value: fmt.Appendf(nil, "lost %d", i)}, Record{Key: "b", Value: []byte("lost")})
			if err == nil || !errors.Is(err, ErrUnavailable) || !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("got %v, %v", at, err)
			}
		})
	}
	wg.Wait()
	c.cut.Store(false)
	at, err := l.Append(ctx, Record{Key: "a", Value: []byte("after")})
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range readUntil(t, l, 0, 0, at[0].Offset) {
		if strings.HasPrefix(string(m.Value), "lost") {
			t.Errorf("%q is on the log after its caller was told that it is not", m.Value)
		}
	}
	l.producer.mu.Lock()
	defer l.producer.mu.Unlock()
	if n := len(l.producer.queues[0].items); n != 0 {
		t.Errorf("%d records still wait", n)
	}
}

// A buffer that is full makes further callers wait, and fail when nothing moves.
func TestAppendBuffer(t *testing.T) {
	e, _ := startEmbedded(t, EmbeddedConfig{Partitions: 1})
	var c cutter
	l := openLog(t, Config{Brokers: e.Brokers(), Dial: c.dial, AppendBuffer: 10_000})
	ctx := testContext(t, 60*time.Second)
	if _, err := l.Append(ctx, benchRecords(100, 1)...); err != nil { // larger than the buffer, alone
		t.Fatal(err)
	}
	c.cut.Store(true)
	holding, giveUp := context.WithCancel(ctx)
	defer giveUp()
	held := make(chan error, 1)
	go func() {
		_, err := l.Append(holding, benchRecords(100, 1)...) // fills the buffer
		held <- err
	}()
	for l.producer.room.TryAcquire(1) {
		l.producer.room.Release(1)
		runtime.Gosched()
	}
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(ctx, 100*time.Millisecond)
			defer cancel()
			_, err := l.Append(ctx, benchRecords(2, 1)...)
			if !errors.Is(err, ErrUnavailable) || !strings.Contains(err.Error(), "10000 bytes wait already") {
				t.Errorf("with a full buffer: got %v", err)
			}
		})
	}
	wg.Wait()
	giveUp()
	if err := <-held; !errors.Is(err, ErrUnavailable) {
		t.Errorf("who filled the buffer and gave up: got %v", err)
	}
	if !l.producer.room.TryAcquire(10_000) {
		t.Error("who gave up still holds room")
	}
}

// TestBrokerHangs: one of the brokers accepts connections and says nothing, as a stopped process does. What any broker
// can answer is not held up by it.
func TestBrokerHangs(t *testing.T) {
	e, _ := startEmbedded(t, EmbeddedConfig{Partitions: 2})
	hung, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer hung.Close()
	for range 6 { // it starts with either of them
		ctx, cancel := context.WithTimeout(context.Background(), dialTimeout*9/10)
		l, err := Open(ctx, Config{Brokers: append([]string{hung.Addr().String()}, e.Brokers()...), Logger: quiet()})
		cancel()
		if err != nil {
			t.Fatal(err)
		}
		if err := l.Ping(testContext(t, dialTimeout*9/10)); err != nil {
			t.Error(err)
		}
		l.Close()
	}
}
