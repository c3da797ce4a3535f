package eventlog

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
)

// BeaconHeader is the key of the record header that marks a beacon. Consumers skip such records.
const BeaconHeader = "mailbell-beacon"

const (
	// BeaconReach is how many records from the end of a partition are searched for a beacon.
	BeaconReach = 100_000
	// BeaconEvery is the number of records after which an owner repeats the beacon, so that one is always in reach.
	BeaconEvery = BeaconReach / 2
)

// Beacon is a record that names the epoch of its partition: a number made up once for each incarnation of the topic,
// so that a position from before the topic was recreated is not mistaken for one of now. Its owner repeats it every
// hour and every BeaconEvery records.
type Beacon struct {
	Epoch      uint64 `json:"epoch,string"`
	Partitions int    `json:"partitions"` // of the topic when the beacon was written
	After      int64  `json:"after"`      // the last offset that the writer had read, -1 for none
}

// EpochTracker decides which epoch a partition is in from its beacons, fed in log order. It is a plain value: every
// reader of the same records comes to the same answer.
//
//   - A beacon with After at or past its own offset was written by someone who had read another incarnation of the
//     topic; it is ignored.
//   - A beacon with another epoch counts only if its writer had read the beacon before it. So of two writers who both
//     found no beacon the first one names the epoch, and a deliberate change is still possible.
type EpochTracker struct {
	epoch  uint64
	offset int64
	known  bool
}

// Observe takes in the beacon at offset and reports whether the epoch is now another one, or known for the first time.
func (t *EpochTracker) Observe(offset int64, b Beacon) (changed bool) {
	if b.After >= offset || b.Epoch == 0 {
		return false
	}
	if t.known && b.Epoch != t.epoch && b.After < t.offset {
		return false
	}
	changed = !t.known || b.Epoch != t.epoch
	t.epoch, t.offset, t.known = b.Epoch, offset, true
	return changed
}

// Epoch returns the epoch, and false if no beacon was seen.
func (t *EpochTracker) Epoch() (uint64, bool) { return t.epoch, t.known }

// epochs remembers the epoch of each partition.
type epochs struct {
	mu    sync.Mutex
	known []uint64     // guarded by mu; 0 is unknown
	busy  []sync.Mutex // one search for each partition at a time
}

func newEpochs(partitions int) *epochs {
	return &epochs{known: make([]uint64, partitions), busy: make([]sync.Mutex, partitions)}
}

func (e *epochs) forget(partition int32) { e.set(partition, 0) }

// saw forgets the epoch of partition when another one is met on the log.
func (e *epochs) saw(partition int32, epoch uint64) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.known[partition] != epoch {
		e.known[partition] = 0
	}
}

func (e *epochs) set(partition int32, epoch uint64) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.known[partition] = epoch
}

func (e *epochs) get(partition int32) uint64 {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.known[partition]
}

// Epoch returns the epoch of partition, from memory if it is known there: as of the last time that this Log searched for
// it. It is for those whose positions need not be of now; FindEpoch is for the others.
func (l *Log) Epoch(ctx context.Context, partition int32) (uint64, error) {
	return l.epoch(ctx, partition, true)
}

// FindEpoch returns the epoch of partition: it searches the end of the partition for the latest beacon, and writes one if
// there is none within reach. The topic may have been recreated since it was searched last.
func (l *Log) FindEpoch(ctx context.Context, partition int32) (uint64, error) {
	return l.epoch(ctx, partition, false)
}

func (l *Log) epoch(ctx context.Context, partition int32, remembered bool) (uint64, error) {
	if err := l.checkPartition(partition); err != nil {
		return 0, fmt.Errorf("epoch: %w", err)
	}
	if epoch := l.epochs.get(partition); remembered && epoch != 0 {
		return epoch, nil
	}
	l.epochs.busy[partition].Lock()
	defer l.epochs.busy[partition].Unlock()
	if epoch := l.epochs.get(partition); remembered && epoch != 0 {
		return epoch, nil
	}
	epoch, err := l.findEpoch(ctx, partition)
	if err != nil {
		return 0, fmt.Errorf("epoch of partition %d: %w", partition, err)
	}
	l.epochs.set(partition, epoch)
	return epoch, nil
}

// findEpoch searches for the latest beacon and writes one if there is none.
func (l *Log) findEpoch(ctx context.Context, partition int32) (uint64, error) {
	for {
		tracker, next, err := l.searchBeacon(ctx, partition)
		if err != nil {
			return 0, err
		}
		if epoch, ok := tracker.Epoch(); ok {
			return epoch, nil
		}
		b := Beacon{Epoch: NewEpoch(), Partitions: l.partitions, After: next - 1}
		offset, err := l.WriteBeacon(ctx, partition, b)
		if err != nil {
			return 0, err
		}
		// Someone else may have been quicker: what stands in the log decides.
		err = l.readRange(ctx, partition, next, offset+1, func(m *Message) {
			if m.Beacon != nil {
				tracker.Observe(m.Offset, *m.Beacon)
			}
		})
		var gap *GapError
		if errors.As(err, &gap) {
			continue
		}
		if err != nil {
			return 0, err
		}
		epoch, _ := tracker.Epoch()
		return epoch, nil
	}
}

// searchBeacon looks further and further back from the end of partition, as far as BeaconReach.
func (l *Log) searchBeacon(ctx context.Context, partition int32) (tracker EpochTracker, next int64, err error) {
	for back := int64(1000); ; back *= 10 {
		first, end, err := l.Bounds(ctx, partition)
		if err != nil {
			return tracker, 0, err
		}
		tracker, next = EpochTracker{}, end
		var changed error
		err = l.readRange(ctx, partition, max(first, end-back), end, func(m *Message) {
			if m.Beacon == nil {
				return
			}
			if m.Beacon.Partitions != l.partitions && m.Beacon.After < m.Offset {
				changed = l.partitionsChanged(m.Beacon.Partitions)
				return
			}
			tracker.Observe(m.Offset, *m.Beacon)
		})
		var gap *GapError
		if errors.As(err, &gap) { // trimmed meanwhile
			back /= 10
			continue
		}
		if err == nil {
			err = changed
		}
		if _, ok := tracker.Epoch(); ok || err != nil || end-back <= first || back >= BeaconReach {
			return tracker, next, err
		}
	}
}

func (l *Log) partitionsChanged(before int) error {
	return fmt.Errorf("topic %q has %d partitions and had %d when its events were written: %w; stop every mailbell process and publisher, "+
		"and recreate the topic or use another one", l.cfg.Topic, l.partitions, before, ErrPartitionsChanged)
}

// checkBeaconPartitions compares the topic's partition count with the one that its newest beacon was written with.
func (l *Log) checkBeaconPartitions(ctx context.Context) error {
	first, next, err := l.Bounds(ctx, 0)
	if err != nil || first == next {
		return err
	}
	tracker, _, err := l.searchBeacon(ctx, 0)
	if err != nil {
		return err
	}
	if epoch, ok := tracker.Epoch(); ok {
		l.epochs.set(0, epoch)
	}
	return nil
}

// WriteBeacon appends b to partition and returns its offset. A Beacon without Partitions gets those of l.
func (l *Log) WriteBeacon(ctx context.Context, partition int32, b Beacon) (int64, error) {
	if err := l.checkPartition(partition); err != nil {
		return 0, fmt.Errorf("write beacon: %w", err)
	}
	if b.Epoch == 0 {
		return 0, errors.New("write beacon: it has no epoch")
	}
	if b.Partitions == 0 {
		b.Partitions = l.partitions
	}
	value, err := json.Marshal(b)
	if err != nil {
		return 0, fmt.Errorf("write beacon: %w", err)
	}
	rec := Record{Value: value, Headers: []Header{{Key: BeaconHeader, Value: []byte("1")}}}
	at, err := l.producer.append(ctx, []Record{rec}, func(*Record) int32 { return partition })
	if err != nil {
		return 0, fmt.Errorf("write beacon: %w", err)
	}
	l.epochs.saw(partition, b.Epoch)
	return at[0].Offset, nil
}

// NewEpoch makes up an epoch.
func NewEpoch() uint64 {
	var b [8]byte
	for {
		_, _ = rand.Read(b[:]) // never fails
		if epoch := binary.BigEndian.Uint64(b[:]); epoch != 0 {
			return epoch
		}
	}
}

// decodeBeacon returns the beacon in value, or nil if it is none that this version understands.
func decodeBeacon(value []byte) *Beacon {
	var b Beacon
	if err := json.Unmarshal(value, &b); err != nil || b.Epoch == 0 {
		return nil
	}
	return &b
}
