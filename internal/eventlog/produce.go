package eventlog

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/semaphore"

	"github.com/mailbell/mailbell/schema"
)

const (
	// maxRecordBytes bounds one record; Kafka's own default bound on a batch is a little more.
	maxRecordBytes = 1 << 20
	// maxBatchBytes bounds one batch of several records, below Kafka's default message.max.bytes.
	maxBatchBytes = 960 << 10
	// maxRequestBytes bounds the batches of one produce request together.
	maxRequestBytes = 8 << 20
	// maxPooledBytes bounds the buffers that are kept for further calls.
	maxPooledBytes = 1 << 20
)

// Appended is where a record stands.
type Appended struct {
	Partition int32
	Offset    int64
}

// Append writes recs and returns where each of them stands, after every in-sync replica has them. Records of one key
// go to one partition, in the order given. Several calls at a time share requests.
//
// It waits while the log cannot be reached, as long as ctx (or Config.AppendTimeout) lasts. When only some records
// failed the error is an *AppendError; a record whose append timed out may still reach the log later.
func (l *Log) Append(ctx context.Context, recs ...Record) ([]Appended, error) {
	return l.producer.append(ctx, recs, func(r *Record) int32 {
		return schema.PartitionOf(schema.Account(r.Key), l.partitions)
	})
}

// producer collects the records of concurrent calls in a queue for each partition, and hands the queues to the sender
// of the broker that leads them. A partition has at most one batch under way, which keeps its order across retries.
type producer struct {
	// Static after construction.
	cfg     Config
	cluster *cluster
	metrics *metrics
	log     *slog.Logger
	room    *semaphore.Weighted // bytes that may wait
	rewound func(partition int32)
	buffers sync.Pool // of *[]byte
	done    sync.WaitGroup

	mu        sync.Mutex
	queues    []queue           // by partition; guarded by mu
	senders   map[int32]*sender // by broker; guarded by mu
	stranded  []int32           // partitions without a leader; guarded by mu
	repairing bool              // guarded by mu
	closed    bool              // guarded by mu
}

// queue holds the records of a partition that wait to be sent. Guarded by producer.mu.
type queue struct {
	items     []item
	scheduled bool  // in a sender's list, under way, or stranded
	limit     int   // bytes of a batch, less than maxBatchBytes when the broker found one too large
	last      int64 // the last offset acknowledged, -1 for none
}

// item is one record that waits.
type item struct {
	call  *call
	index int32 // into the call's records
	start int   // of the record's body in the call's buffer
	size  int
}

// call is one Append. Its fields are guarded by producer.mu, except body, which never changes while live is not 0.
type call struct {
	body   *[]byte
	ms     int64 // the records' time
	at     []Appended
	failed map[int]error
	left   int  // records without an answer
	live   int  // items that senders still hold
	gone   bool // nobody waits any more
	done   chan struct{}
}

func newProducer(cfg Config, c *cluster, m *metrics, log *slog.Logger) *producer {
	p := &producer{cfg: cfg, cluster: c, metrics: m, log: log,
		room: semaphore.NewWeighted(cfg.AppendBuffer), rewound: func(int32) {},
		queues: make([]queue, c.partitions()), senders: make(map[int32]*sender)}
	p.buffers.New = func() any { return new([]byte) }
	for i := range p.queues {
		p.queues[i].limit, p.queues[i].last = maxBatchBytes, -1
	}
	return p
}

func (p *producer) append(ctx context.Context, recs []Record, partitionOf func(*Record) int32) ([]Appended, error) {
	if len(recs) == 0 {
		return nil, nil
	}
	started := time.Now()
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, p.cfg.AppendTimeout)
		defer cancel()
	}
	size := 0
	for i := range recs {
		n := bodyBytes(&recs[i])
		if n > maxRecordBytes {
			return nil, fmt.Errorf("append: record %d has %d bytes, more than %d: %w", i, n, maxRecordBytes, ErrTooLarge)
		}
		size += n
	}
	weight := min(int64(size), p.cfg.AppendBuffer)
	if err := p.room.Acquire(ctx, weight); err != nil {
		p.metrics.appendFailures.WithLabelValues("full").Add(float64(len(recs)))
		return nil, fmt.Errorf("append: %d bytes wait already: %w: %w", p.cfg.AppendBuffer, ErrUnavailable, err)
	}
	defer p.room.Release(weight)
	p.metrics.appendWaiting.Add(float64(size))
	defer p.metrics.appendWaiting.Sub(float64(size))

	c, items := p.newCall(recs, size)
	if err := p.enqueue(c, items, recs, partitionOf); err != nil {
		return nil, fmt.Errorf("append: %w", err)
	}
	select {
	case <-c.done:
	case <-ctx.Done():
	}
	at, err := p.settle(ctx, c)
	p.metrics.appendSeconds.Observe(time.Since(started).Seconds())
	return at, err
}

// newCall copies the records' bytes.
func (p *producer) newCall(recs []Record, size int) (*call, []item) {
	body := p.buffers.Get().(*[]byte)
	if cap(*body) < size {
		*body = make([]byte, 0, size)
	}
	b := (*body)[:0]
	c := &call{ms: time.Now().UnixMilli(), at: make([]Appended, len(recs)), left: len(recs), live: len(recs), done: make(chan struct{})}
	items := make([]item, len(recs))
	for i := range recs {
		start := len(b)
		b = appendRecordBody(b, &recs[i])
		items[i] = item{call: c, index: int32(i), start: start, size: len(b) - start}
	}
	*body = b
	c.body = body
	return c, items
}

func (p *producer) enqueue(c *call, items []item, recs []Record, partitionOf func(*Record) int32) error {
	for i := range recs {
		c.at[i] = Appended{Partition: partitionOf(&recs[i]), Offset: -1}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return ErrClosed
	}
	if err := p.cluster.err(); err != nil {
		return err
	}
	for i := range items {
		partition := c.at[i].Partition
		q := &p.queues[partition]
		q.items = append(q.items, items[i])
		if !q.scheduled {
			p.schedule(partition)
		}
	}
	return nil
}

// settle takes the answer of a call that is done, or gives it up.
func (p *producer) settle(ctx context.Context, c *call) ([]Appended, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if c.left > 0 {
		p.giveUp(c, unavailable(fmt.Errorf("no answer in time: %w", context.Cause(ctx))))
	}
	if len(c.failed) == 0 {
		return c.at, nil
	}
	if len(c.failed) == len(c.at) && sameErrors(c.failed) {
		return nil, fmt.Errorf("append: %w", c.failed[0])
	}
	return c.at, &AppendError{Failed: c.failed}
}

// giveUp fails what has no answer yet and takes it out of the queues. What is under way stays with its sender.
func (p *producer) giveUp(c *call, err error) {
	p.metrics.appendFailures.WithLabelValues("timeout").Add(float64(c.left))
	c.gone, c.left = true, 0
	for i := range c.at {
		if _, failed := c.failed[i]; c.at[i].Offset >= 0 || failed {
			continue
		}
		c.fail(i, err)
		q := &p.queues[c.at[i].Partition]
		kept := slices.DeleteFunc(q.items, func(it item) bool { return it.call == c })
		p.release(c, len(q.items)-len(kept))
		q.items = kept
	}
}

// release takes back n items of c that no queue and no sender holds any more.
func (p *producer) release(c *call, n int) {
	if c.live -= n; c.live == 0 && n > 0 {
		if cap(*c.body) <= maxPooledBytes {
			p.buffers.Put(c.body)
		}
		c.body = nil
	}
}

// answer tells c that one of its records stands at offset, or failed.
func (p *producer) answer(it item, offset int64, err error) {
	c := it.call
	p.release(c, 1)
	if c.gone {
		return
	}
	if err != nil {
		c.fail(int(it.index), err)
	} else {
		c.at[it.index].Offset = offset
	}
	if c.left--; c.left == 0 {
		close(c.done)
	}
}

func (c *call) fail(i int, err error) {
	if c.failed == nil {
		c.failed = make(map[int]error)
	}
	c.failed[i] = err
}

func sameErrors(errs map[int]error) bool {
	for _, err := range errs {
		if !errors.Is(err, errs[0]) {
			return false
		}
	}
	return true
}

// failAll gives up all records of q.
func (p *producer) failAll(q *queue, err error) {
	for _, it := range q.items {
		p.answer(it, 0, err)
	}
	q.items = nil
}

// close fails what waits and waits for the senders.
func (p *producer) close() {
	p.mu.Lock()
	p.closed = true
	for i := range p.queues {
		p.failAll(&p.queues[i], ErrClosed)
	}
	for _, s := range p.senders {
		close(s.wake)
	}
	p.mu.Unlock()
	p.done.Wait()
}
