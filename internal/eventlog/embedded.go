package eventlog

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"
)

// EmbeddedConfig says what log `mailbell run` has. Only Dir is required.
type EmbeddedConfig struct {
	// Dir is the folder of the data. One process uses it at a time.
	Dir string
	// Topic is the topic of events; empty means DefaultTopic.
	Topic string
	// Partitions of the topic; 0 means 16. It cannot be changed later.
	Partitions int
	// Retention is how long events are kept; 0 means 24 h.
	Retention time.Duration
	// RetentionBytes bounds the log altogether; 0 means 1 GiB.
	RetentionBytes int64
	// Sync makes every write wait for the disk. Without it an acknowledged event survives the death of the process,
	// and the system writes it to the disk within seconds: a power cut may take the last of them, and then positions
	// change so that clients fetch anew.
	Sync bool
	// Port of the loopback interface; 0 means any.
	Port int
	// Logger takes the log lines; nil means slog.Default().
	Logger *slog.Logger
}

const (
	embeddedSegmentBytes = 16 << 20
	embeddedMinBytes     = 32 << 20
	retentionInterval    = time.Minute
	embeddedClusterID    = "mailbell-embedded"
)

func (c EmbeddedConfig) withDefaults() EmbeddedConfig {
	c.Topic = cmp.Or(c.Topic, DefaultTopic)
	c.Partitions = cmp.Or(c.Partitions, 16)
	c.Retention = cmp.Or(c.Retention, 24*time.Hour)
	c.RetentionBytes = cmp.Or(c.RetentionBytes, 1<<30)
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
	return c
}

// Validate returns what is wrong with c.
func (c EmbeddedConfig) Validate() error {
	c = c.withDefaults()
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf("embedded log: "+format, args...)) }
	if c.Dir == "" {
		bad("no folder: say where the data goes, such as ./mailbell-data/log")
	}
	if problem := topicProblem(c.Topic); problem != "" {
		bad("topic %q %s; mail-events is a good name", c.Topic, problem)
	}
	if c.Partitions < 1 || c.Partitions > 256 {
		bad("%d partitions: choose 1 to 256, 16 is a good number", c.Partitions)
	}
	if c.Retention < time.Minute {
		bad("a retention of %v is too short: at least 1m, 24h is a good value", c.Retention)
	}
	if c.RetentionBytes < embeddedMinBytes {
		bad("retention of %d bytes is too small: at least %d, 1 GiB is a good value", c.RetentionBytes, embeddedMinBytes)
	}
	if c.Port < 0 || c.Port > 65535 {
		bad("port %d is none: choose 0 for any, or 1 to 65535", c.Port)
	}
	return errors.Join(errs...)
}

// Embedded is a log in this process, for one machine: franz-go's kfake with a data folder, reached over the loopback
// interface like any Kafka, so that everything else is the same.
//
// kfake writes each batch to its file before it acknowledges it, so what is acknowledged survives the death of the
// process. These guards stand around it:
//   - The folder is locked: a second process is refused.
//   - A partition that retention has emptied would begin again at offset 0 after a restart. So each partition has a
//     beacon from the first moment on, and retention, which only runs here, never takes the newest beacon.
//   - After a crash of the machine the newest records may be missing, and their offsets would be used again for others.
//     A restart notices that the machine was started anew without a clean end (or that a partition is shorter than it
//     was known to be), and names a new epoch, so that no position of before means a record of now.
//   - The topic is never compacted.
type Embedded struct {
	// Static after construction.
	cfg     EmbeddedConfig
	log     *slog.Logger
	lock    *os.File
	cluster *kfake.Cluster
	events  *Log
	brokers []string
	stop    context.CancelFunc
	done    sync.WaitGroup
	closing sync.Once

	// Owned by StartEmbedded, then by whoever holds retaining.
	retaining sync.Mutex
	state     embeddedState
	beacons   []int64 // offset of the newest beacon that is known, by partition; -1 for none
}

// StartEmbedded opens the log in cfg.Dir and makes it if there is none.
func StartEmbedded(ctx context.Context, cfg EmbeddedConfig) (*Embedded, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	cfg = cfg.withDefaults()
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("embedded log: %w", err)
	}
	e := &Embedded{cfg: cfg, log: cfg.Logger.With("log", "embedded"), beacons: slices.Repeat([]int64{-1}, cfg.Partitions)}
	var err error
	if e.lock, err = lockDir(cfg.Dir); err != nil {
		return nil, fmt.Errorf("embedded log: %w", err)
	}
	if err := e.open(ctx); err != nil {
		e.release()
		return nil, fmt.Errorf("embedded log in %s: %w", cfg.Dir, err)
	}
	background, stop := context.WithCancel(context.Background())
	e.stop = stop
	e.done.Go(func() { e.retain(background) })
	return e, nil
}

func (e *Embedded) open(ctx context.Context) error {
	if err := e.state.load(e.cfg.Dir); err != nil {
		return err
	}
	if err := e.state.check(e.cfg); err != nil {
		return err
	}
	if err := e.startCluster(); err != nil {
		return err
	}
	info := e.cluster.TopicInfo(e.cfg.Topic)
	if info == nil {
		return fmt.Errorf("it has no topic %q: it was made for another one, or is damaged", e.cfg.Topic)
	}
	e.brokers = e.cluster.ListenAddrs()
	var err error
	if e.events, err = Open(ctx, Config{Brokers: e.brokers, Topic: e.cfg.Topic, Partitions: e.cfg.Partitions, Logger: e.cfg.Logger}); err != nil {
		return err
	}
	if err := e.events.cluster.set(ctx, "retention.ms", strconv.FormatInt(e.cfg.Retention.Milliseconds(), 10)); err != nil {
		return err
	}
	if err := e.nameEpochs(ctx); err != nil {
		return err
	}
	return e.remember(false)
}

func (e *Embedded) startCluster() error {
	opts := []kfake.Opt{
		kfake.NumBrokers(1),
		kfake.ClusterID(embeddedClusterID),
		kfake.DataDir(filepath.Join(e.cfg.Dir, "kafka")),
		kfake.SeedTopics(int32(e.cfg.Partitions), e.cfg.Topic),
		kfake.WithLogger(kfakeLogger{e.log}),
		kfake.BrokerConfigs(map[string]string{
			"log.segment.bytes":   strconv.Itoa(embeddedSegmentBytes),
			"log.retention.ms":    "-1", // retention is called here
			"log.retention.bytes": "-1",
			// The topic says its retention to whoever asks; kfake would look every hour and take beacons too. Ten years is never.
			"log.cleaner.backoff.ms": strconv.FormatInt((10 * 365 * 24 * time.Hour).Milliseconds(), 10),
		}),
	}
	if e.cfg.Port != 0 {
		opts = append(opts, kfake.Ports(e.cfg.Port))
	}
	if e.cfg.Sync {
		opts = append(opts, kfake.SyncWrites())
	}
	var err error
	e.cluster, err = kfake.NewCluster(opts...)
	return err
}

// nameEpochs makes sure that each partition has a beacon, and a new epoch if records may have been lost.
func (e *Embedded) nameEpochs(ctx context.Context) error {
	rebooted := e.state.crashedWithMachine()
	for p := range int32(e.cfg.Partitions) {
		_, next, err := e.events.Bounds(ctx, p)
		if err != nil {
			return err
		}
		if known := e.state.next(p); !rebooted && next >= known {
			if _, err := e.events.Epoch(ctx, p); err != nil {
				return err
			}
			continue
		}
		e.log.Warn("the newest events may be lost: the machine or its disk failed; clients will fetch anew", "partition", p,
			"next", next, "before", e.state.next(p))
		if err := e.writeBeacon(ctx, p, Beacon{Epoch: NewEpoch(), After: next - 1}); err != nil {
			return err
		}
	}
	return nil
}

func (e *Embedded) writeBeacon(ctx context.Context, partition int32, b Beacon) error {
	at, err := e.events.WriteBeacon(ctx, partition, b)
	if err != nil {
		return err
	}
	e.beacons[partition] = at
	e.events.epochs.set(partition, b.Epoch)
	return nil
}

// Brokers returns the address of the log, for Config.Brokers.
func (e *Embedded) Brokers() []string { return e.brokers }

// Partitions returns the number of partitions.
func (e *Embedded) Partitions() int { return e.cfg.Partitions }

// Close ends the log. Everything acknowledged is in the folder.
func (e *Embedded) Close() error {
	var err error
	e.closing.Do(func() {
		e.stop()
		e.done.Wait()
		if err = e.remember(true); err != nil {
			err = fmt.Errorf("close embedded log: %w", err)
		}
		e.release()
	})
	return err
}

func (e *Embedded) release() {
	if e.events != nil {
		e.events.Close()
	}
	if e.cluster != nil {
		e.cluster.Close()
	}
	e.lock.Close() // and with it the lock
}

// kfakeLogger hands kfake's warnings on.
type kfakeLogger struct{ log *slog.Logger }

func (l kfakeLogger) Logf(level kfake.LogLevel, format string, args ...any) {
	switch level {
	case kfake.LogLevelError:
		l.log.Error(fmt.Sprintf(format, args...))
	case kfake.LogLevelWarn:
		l.log.Warn(fmt.Sprintf(format, args...))
	}
}
