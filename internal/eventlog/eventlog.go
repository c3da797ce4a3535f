// Package eventlog is the one place of mailbell that knows Kafka: it appends records to the topic of events, reads
// them back partition by partition, shares the partitions among the nodes of a group, and runs the embedded log of
// `mailbell run`.
//
// Invariants:
//   - Append reports success for a record only after every in-sync replica has it (acks=all); a deadline that passes
//     is an error, never a success.
//   - Records of one partition keep the order in which Append was called by one goroutine, across retries too.
//   - Read hands on every record from the asked offset on, in order, or ends with a *GapError: it never skips
//     silently what retention has taken.
//   - The partition count is fixed for the life of a Log. When the topic's count changes, everything fails with
//     ErrPartitionsChanged, because accounts would move to other partitions.
//   - No queue is unbounded: Append waits for room, and a slow reader pauses the fetch of its partition only.
//
// Connections, logins, metadata, topics, offsets and groups are kafka-go's. Produce and fetch requests are made here,
// because kafka-go's Writer and Reader make one for each partition: with 256 partitions, Kafka on the same two cores
// and 64 callers, its Writer reached 36,000 to 56,000 records of 350 bytes a second and one request for all partitions
// of a broker 390,000 to 500,000; at 50,000 a second its Readers were 230 ms behind at p99, one fetch for all 21 ms.
// BenchmarkAppendKafka compares them.
//
// Goroutines: one watch of the topic for each Log, one sender for each broker that is written to, one fetcher for each
// broker that is read from. They start on first use, and Close waits for them.
package eventlog

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"
)

// Log is a connection to the topic of events. Its methods are safe for concurrent use.
type Log struct {
	// Static after construction.
	cfg        Config
	log        *slog.Logger
	metrics    *metrics
	partitions int
	cluster    *cluster
	producer   *producer
	fetchers   *fetchers
	epochs     *epochs
	stop       context.CancelFunc
	done       sync.WaitGroup
}

// Open connects to the brokers, checks the topic, and creates it when the Config says so. It tries again until ctx
// ends while no broker can be reached.
func Open(ctx context.Context, cfg Config) (*Log, error) {
	cfg = cfg.withDefaults()
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	dialer, err := newDialer(cfg)
	if err != nil {
		return nil, err
	}
	l := &Log{cfg: cfg, log: cfg.Logger.With("topic", cfg.Topic), metrics: newMetrics(cfg.Registerer)}
	l.cluster = newCluster(cfg, dialer, l.log)
	if err := l.cluster.open(ctx); err != nil {
		l.cluster.close()
		return nil, fmt.Errorf("open log: %w", err)
	}
	l.partitions = l.cluster.partitions()
	l.producer = newProducer(cfg, l.cluster, l.metrics, l.log)
	l.fetchers = newFetchers(cfg, l.cluster, l.metrics, l.log)
	l.epochs = newEpochs(l.partitions)
	l.producer.rewound = l.epochs.forget
	background, stop := context.WithCancel(context.Background())
	l.stop = stop
	l.done.Go(func() { l.cluster.watch(background) })
	if err := l.checkBeaconPartitions(ctx); err != nil {
		l.Close()
		return nil, fmt.Errorf("open log: %w", err)
	}
	return l, nil
}

// Partitions returns the number of partitions, which never changes during the life of l.
func (l *Log) Partitions() int { return l.partitions }

// Topic returns the name of the topic.
func (l *Log) Topic() string { return l.cfg.Topic }

// Brokers returns the addresses that l was opened with.
func (l *Log) Brokers() []string { return l.cfg.Brokers }

// Ping asks a broker for the state of the topic, and returns nil if every partition has a leader.
func (l *Log) Ping(ctx context.Context) error {
	if err := l.cluster.refresh(ctx, time.Now()); err != nil {
		return fmt.Errorf("ping log: %w", err)
	}
	if p, ok := l.cluster.leaderless(); ok {
		return fmt.Errorf("ping log: partition %d of topic %q has no leader: %w", p, l.cfg.Topic, ErrUnavailable)
	}
	return nil
}

// Wait blocks until ctx ends, and then returns nil, or until the log can never be used again: it returns
// [ErrPartitionsChanged], wrapped, or [ErrClosed].
func (l *Log) Wait(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return nil
	case <-l.cluster.ctx.Done():
		return l.cluster.err()
	}
}

// Close ends every Append and Read under way with an error and waits for l's goroutines.
func (l *Log) Close() error {
	l.stop()
	l.cluster.close()
	l.producer.close()
	l.fetchers.close()
	l.done.Wait()
	return nil
}

func (l *Log) checkPartition(partition int32) error {
	if partition < 0 || int(partition) >= l.partitions {
		return fmt.Errorf("partition %d is not one of topic %q, which has 0 to %d", partition, l.cfg.Topic, l.partitions-1)
	}
	return nil
}
