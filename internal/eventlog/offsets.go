package eventlog

import (
	"context"
	"fmt"
	"time"

	kafka "github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/protocol/listoffsets"
)

// Bounds returns the oldest offset that partition still has and the one that its next record will get. They are equal
// when the partition is empty.
func (l *Log) Bounds(ctx context.Context, partition int32) (first, next int64, err error) {
	if err := l.checkPartition(partition); err != nil {
		return 0, 0, fmt.Errorf("bounds: %w", err)
	}
	if first, err = l.cluster.offset(ctx, partition, kafka.FirstOffset); err != nil {
		return 0, 0, fmt.Errorf("bounds of partition %d: %w", partition, err)
	}
	if next, err = l.cluster.offset(ctx, partition, kafka.LastOffset); err != nil {
		return 0, 0, fmt.Errorf("bounds of partition %d: %w", partition, err)
	}
	return first, max(first, next), nil
}

// OffsetAt returns the oldest offset whose record was published at t or later, or the next offset if there is none.
func (l *Log) OffsetAt(ctx context.Context, partition int32, t time.Time) (int64, error) {
	if err := l.checkPartition(partition); err != nil {
		return 0, fmt.Errorf("offset at %v: %w", t, err)
	}
	offset, err := l.cluster.offset(ctx, partition, max(0, t.UnixMilli()))
	if err == nil && offset < 0 {
		offset, err = l.cluster.offset(ctx, partition, kafka.LastOffset)
	}
	if err != nil {
		return 0, fmt.Errorf("offset of partition %d at %v: %w", partition, t, err)
	}
	return offset, nil
}

// offset asks the leader of partition for the offset of a time, waiting for a leader as long as ctx lasts.
func (c *cluster) offset(ctx context.Context, partition int32, ms int64) (int64, error) {
	ctx, cancel := c.within(ctx)
	defer cancel()
	for wait := (backoff{}); ; {
		asked := time.Now()
		offset, err := c.offsetNow(ctx, partition, ms)
		if err == nil {
			return offset, nil
		}
		if failure := c.err(); failure != nil {
			return 0, failure
		}
		if refused(err) {
			return 0, err
		}
		if !wait.sleep(ctx) {
			return 0, unavailable(err)
		}
		_ = c.refresh(ctx, asked) // what is wrong with it shows in the next round
	}
}

func (c *cluster) offsetNow(ctx context.Context, partition int32, ms int64) (int64, error) {
	_, address, ok := c.leader(partition)
	if !ok {
		return 0, kafka.LeaderNotAvailable
	}
	answer, err := c.ask(ctx, address, &listoffsets.Request{ReplicaID: -1, Topics: []listoffsets.RequestTopic{{
		Topic:      c.cfg.Topic,
		Partitions: []listoffsets.RequestPartition{{Partition: partition, CurrentLeaderEpoch: -1, Timestamp: ms}},
	}}})
	if err != nil {
		return 0, err
	}
	for _, t := range answer.(*listoffsets.Response).Topics {
		for _, p := range t.Partitions {
			if t.Topic != c.cfg.Topic || p.Partition != partition {
				continue
			}
			if p.ErrorCode != 0 {
				return 0, kafka.Error(p.ErrorCode)
			}
			return p.Offset, nil
		}
	}
	return 0, fmt.Errorf("%s did not answer for partition %d", address, partition)
}
