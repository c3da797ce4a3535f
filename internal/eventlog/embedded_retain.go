package eventlog

import (
	"context"
	"time"
)

// retain drops old events every minute and writes down what is on the log, until ctx ends.
func (e *Embedded) retain(ctx context.Context) {
	t := time.NewTicker(retentionInterval)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		if err := e.Retain(ctx, time.Now()); err != nil && ctx.Err() == nil {
			e.log.Warn("drop old events", "err", err)
		}
		if err := e.remember(false); err != nil {
			e.log.Warn("write the state of the log", "err", err)
		}
	}
}

// Retain drops what is older than the retention at now, and the oldest events beyond RetentionBytes. It runs every
// minute by itself. The newest beacon of a partition always stays, so no partition is ever empty.
func (e *Embedded) Retain(ctx context.Context, now time.Time) error {
	e.retaining.Lock()
	defer e.retaining.Unlock()
	infos := e.cluster.PartitionInfos(e.cfg.Topic)
	total := int64(0)
	for _, p := range infos {
		total += p.NumBytes
	}
	for _, p := range infos {
		cut, err := e.events.OffsetAt(ctx, p.Partition, now.Add(-e.cfg.Retention))
		if err != nil {
			return err
		}
		if excess := total - e.cfg.RetentionBytes; excess > 0 {
			part := float64(excess) / float64(total)
			cut = max(cut, p.LogStartOffset+int64(part*float64(p.HighWatermark-p.LogStartOffset))+1)
		}
		if cut <= p.LogStartOffset {
			continue
		}
		kept, err := e.beaconAtOrAfter(ctx, p.Partition, cut)
		if err != nil {
			return err
		}
		if cut = min(cut, kept); cut <= p.LogStartOffset {
			continue
		}
		if err := e.cluster.DeleteRecords(e.cfg.Topic, p.Partition, cut); err != nil {
			return err
		}
		e.log.Debug("dropped old events", "partition", p.Partition, "first", cut, "before", p.LogStartOffset)
	}
	return nil
}

// beaconAtOrAfter returns the offset of a beacon that dropping everything before cut leaves on the log, and writes one
// if the newest that is known is older.
func (e *Embedded) beaconAtOrAfter(ctx context.Context, partition int32, cut int64) (int64, error) {
	if at := e.beacons[partition]; at >= cut {
		return at, nil
	}
	epoch, err := e.events.Epoch(ctx, partition)
	if err != nil {
		return 0, err
	}
	_, next, err := e.events.Bounds(ctx, partition)
	if err != nil {
		return 0, err
	}
	if err := e.writeBeacon(ctx, partition, Beacon{Epoch: epoch, After: next - 1}); err != nil {
		return 0, err
	}
	return e.beacons[partition], nil
}
