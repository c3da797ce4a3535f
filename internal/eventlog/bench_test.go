package eventlog

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	kafka "github.com/segmentio/kafka-go"

	"github.com/mailbell/mailbell/internal/kafkaproc"
)

// benchRecords returns n records with a value of 350 bytes, for many accounts.
func benchRecords(n, seed int) []Record {
	value := []byte(strings.Repeat("x", 350))
	recs := make([]Record, n)
	for i := range recs {
		recs[i] = Record{Key: fmt.Sprintf("user%d@example.com", (seed*7919+i*104729)%100_000), Value: value}
	}
	return recs
}

// benchAppend runs b.N records through do from 64 callers with per records each.
func benchAppend(b *testing.B, per int, do func(recs []Record) error) {
	b.ReportAllocs()
	var next atomic.Int64
	var wg sync.WaitGroup
	b.ResetTimer()
	for w := range 64 {
		wg.Go(func() {
			recs := benchRecords(per, w)
			for next.Add(int64(per)) <= int64(b.N+per-1) {
				if err := do(recs); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "records/s")
}

func BenchmarkAppendEmbedded(b *testing.B) {
	for _, per := range []int{1, 100} {
		b.Run(fmt.Sprintf("per=%d", per), func(b *testing.B) {
			_, l := startEmbedded(b, EmbeddedConfig{})
			benchAppend(b, per, func(recs []Record) error {
				_, err := l.Append(context.Background(), recs...)
				return err
			})
		})
	}
}

// BenchmarkAppendKafka compares Append with kafka-go's Writer on the same broker.
func BenchmarkAppendKafka(b *testing.B) {
	brokers := kafkaproc.ForTest(b, 1)
	for _, partitions := range []int{16, 64, 256} {
		topic := fmt.Sprintf("bench-%d", partitions)
		l := openLog(b, Config{Brokers: brokers, Topic: topic, Create: true, Partitions: partitions})
		w := &kafka.Writer{Addr: kafka.TCP(brokers...), Topic: topic, Balancer: kafka.Murmur2Balancer{},
			RequiredAcks: kafka.RequireAll, BatchTimeout: time.Millisecond, Transport: &kafka.Transport{}}
		ours := func(recs []Record) error {
			_, err := l.Append(context.Background(), recs...)
			return err
		}
		writer := func(recs []Record) error {
			msgs := make([]kafka.Message, len(recs))
			for i, r := range recs {
				msgs[i] = kafka.Message{Key: []byte(r.Key), Value: r.Value}
			}
			return w.WriteMessages(context.Background(), msgs...)
		}
		for _, per := range []int{1, 100} {
			b.Run(fmt.Sprintf("partitions=%d/per=%d/append", partitions, per), func(b *testing.B) { benchAppend(b, per, ours) })
			b.Run(fmt.Sprintf("partitions=%d/per=%d/writer", partitions, per), func(b *testing.B) { benchAppend(b, per, writer) })
		}
		_ = w.Close()
		w.Transport.(*kafka.Transport).CloseIdleConnections()
	}
}

// benchLatency publishes at 200 records a second and reports the time from Append's call to the reader.
func benchLatency(b *testing.B, l *Log) {
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	var mu sync.Mutex
	sent := make(map[string]time.Time)
	var took []time.Duration
	for p := range int32(l.Partitions()) {
		_, next, err := l.Bounds(ctx, p)
		if err != nil {
			b.Fatal(err)
		}
		wg.Go(func() {
			err := l.Read(ctx, p, next, func(batch []Message) error {
				now := time.Now()
				mu.Lock()
				defer mu.Unlock()
				for _, m := range batch {
					if at, ok := sent[string(m.Value)]; ok {
						took = append(took, now.Sub(at))
					}
				}
				return nil
			})
			if err != nil {
				b.Error(err)
			}
		})
	}
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for i := 0; b.Loop(); i++ {
		<-tick.C
		value := fmt.Sprintf("%d %s", i, strings.Repeat("x", 340))
		mu.Lock()
		sent[value] = time.Now()
		mu.Unlock()
		wg.Go(func() {
			if _, err := l.Append(ctx, Record{Key: fmt.Sprintf("user%d@example.com", i), Value: []byte(value)}); err != nil {
				b.Error(err)
			}
		})
	}
	waitFor(b, func() bool {
		mu.Lock()
		defer mu.Unlock()
		return len(took) >= len(sent)
	})
	cancel()
	wg.Wait()
	slices.Sort(took)
	b.ReportMetric(0, "ns/op")
	for _, q := range []struct {
		name string
		q    float64
	}{{"p50-ms", 0.5}, {"p99-ms", 0.99}, {"max-ms", 1}} {
		b.ReportMetric(float64(took[int(q.q*float64(len(took)-1))].Microseconds())/1000, q.name)
	}
}

func BenchmarkLatencyEmbedded(b *testing.B) {
	_, l := startEmbedded(b, EmbeddedConfig{})
	benchLatency(b, l)
}

func BenchmarkLatencyKafka(b *testing.B) {
	brokers := kafkaproc.ForTest(b, 1)
	for _, partitions := range []int{16, 256} {
		l := openLog(b, Config{Brokers: brokers, Topic: fmt.Sprintf("latency-%d", partitions), Create: true, Partitions: partitions})
		benchAppend(&testing.B{N: 200_000}, 100, func(recs []Record) error { // warm the broker up
			_, err := l.Append(context.Background(), recs...)
			return err
		})
		b.Run(fmt.Sprintf("partitions=%d", partitions), func(b *testing.B) { benchLatency(b, l) })
	}
}

// BenchmarkRead reads back what is on the log, from all partitions at a time.
func BenchmarkRead(b *testing.B) {
	_, l := startEmbedded(b, EmbeddedConfig{})
	b.ReportAllocs()
	for n := 0; n < b.N; n += 10_000 {
		if _, err := l.Append(context.Background(), benchRecords(10_000, n)...); err != nil {
			b.Fatal(err)
		}
	}
	b.ResetTimer()
	var wg sync.WaitGroup
	for p := range int32(l.Partitions()) {
		wg.Go(func() {
			first, next, err := l.Bounds(context.Background(), p)
			if err == nil {
				err = l.readRange(context.Background(), p, first, next, func(*Message) {})
			}
			if err != nil {
				b.Error(err)
			}
		})
	}
	wg.Wait()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "records/s")
}
