package eventlog

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	kafka "github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/protocol"
)

const (
	// fetchVersion is the newest version without flexible fields.
	fetchVersion = 11
	// fetchWait is how long a broker may hold a fetch that has nothing to answer. Data ends the wait at once, and one
	// fetch asks for all partitions of a broker, so a short wait costs next to nothing and finds a dead broker soon.
	fetchWait = 2 * time.Second
	// fetchWaitPaused is the wait when some partition is left out because its reader is slow.
	fetchWaitPaused = 20 * time.Millisecond
	// fetchTimeout is added to the wait before a broker counts as dead.
	fetchTimeout = 3 * time.Second
	// fetchPartitionBytes and fetchBytes bound an answer, for each partition and altogether.
	fetchPartitionBytes = 512 << 10
	fetchBytes          = 8 << 20
	// fetchPace is the least time between two fetches, and fetchPaceMuch that after one of fetchPaceBytes or more.
	fetchPace      = time.Millisecond
	fetchPaceMuch  = 2 * time.Millisecond
	fetchPaceBytes = 8 << 10
	// maxChunks bounds what waits for a reader, beside Config.ReadBuffer.
	maxChunks = 16
)

// chunk is what one fetch brought for one partition: whole batches, or why there will be no more.
type chunk struct {
	raw []byte
	err error
}

// feed is one reader's place in a fetcher.
type feed struct {
	partition int32
	limit     int64
	chunks    chan chunk   // of size maxChunks; only the fetcher sends, and never more than fits
	waiting   atomic.Int64 // bytes in chunks and with the reader
	answered  atomic.Bool  // the broker has the partition
	owner     *fetcher     // guarded by fetchers.mu; nil once detached
	next      int64        // owned by the fetcher
}

func newFeed(partition int32, next int64, limit int) *feed {
	return &feed{partition: partition, next: next, limit: int64(limit), chunks: make(chan chunk, maxChunks)}
}

// room reports whether more may be fetched for f. One place is kept for the chunk that says why it ends.
func (f *feed) room() bool { return f.waiting.Load() < f.limit && len(f.chunks) < maxChunks-1 }

// fetchers has a fetcher for each broker that someone reads from.
type fetchers struct {
	// Static after construction.
	cfg     Config
	cluster *cluster
	metrics *metrics
	log     *slog.Logger
	done    sync.WaitGroup

	mu      sync.Mutex
	running map[fetcherKey]*fetcher // guarded by mu
	closed  bool                    // guarded by mu
}

// fetcherKey tells fetchers apart. Those that search the past have a connection of their own, so that they do not hold
// up what is live.
type fetcherKey struct {
	broker int32
	past   bool
}

// fetcher reads all partitions that are read from one broker with one request at a time.
type fetcher struct {
	fs   *fetchers
	key  fetcherKey
	wake chan struct{} // of size 1: look at the feeds again

	// Guarded by fetchers.mu.
	feeds       []*feed
	attached    uint64 // counts the calls of attach
	seen        uint64 // attached when the feeds of the request under way were chosen
	parked      *conn  // waits for an answer that may take long
	interrupted bool

	// Owned by run.
	conn    *conn
	asked   []*feed // those in the request under way: at most one for each partition
	place   []*feed // the same, by partition
	offset  int     // where the next request begins, so that no partition is always last
	brought int     // bytes of the last answer
	behind  bool    // the last answer was full, there is more at once
}

func newFetchers(cfg Config, c *cluster, m *metrics, log *slog.Logger) *fetchers {
	return &fetchers{cfg: cfg, cluster: c, metrics: m, log: log, running: make(map[fetcherKey]*fetcher)}
}

// close waits for the fetchers, which end because the cluster is closed.
func (fs *fetchers) close() {
	fs.mu.Lock()
	fs.closed = true
	fs.mu.Unlock()
	fs.done.Wait()
}

// attach adds f to the fetcher with key, and interrupts a fetch that waits for data without it.
func (fs *fetchers) attach(key fetcherKey, f *feed) error {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	if fs.closed {
		return ErrClosed
	}
	ft := fs.running[key]
	if ft == nil {
		ft = &fetcher{fs: fs, key: key, wake: make(chan struct{}, 1), place: make([]*feed, fs.cluster.partitions())}
		fs.running[key] = ft
		fs.done.Go(ft.run)
	}
	f.owner = ft
	ft.feeds = append(ft.feeds, f)
	ft.attached++
	if ft.parked != nil {
		ft.interrupted = true
		_ = ft.parked.nc.SetReadDeadline(time.Unix(1, 0))
	}
	ft.kick()
	return nil
}

// detach takes f out; its fetcher ends when it was the last.
func (fs *fetchers) detach(f *feed) {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	if ft := f.owner; ft != nil {
		ft.remove(f)
		ft.kick()
	}
}

// consumed takes back n bytes that f's reader is done with.
func (fs *fetchers) consumed(f *feed, n int) {
	before := f.waiting.Add(-int64(n)) + int64(n)
	if before >= f.limit || len(f.chunks) >= maxChunks-2 {
		fs.mu.Lock()
		if f.owner != nil {
			f.owner.kick()
		}
		fs.mu.Unlock()
	}
}

func (ft *fetcher) kick() {
	select {
	case ft.wake <- struct{}{}:
	default:
	}
}

// remove takes f out of the list. The caller holds fetchers.mu.
func (ft *fetcher) remove(f *feed) {
	f.owner = nil
	for i, other := range ft.feeds {
		if other == f {
			ft.feeds[i] = ft.feeds[len(ft.feeds)-1]
			ft.feeds = ft.feeds[:len(ft.feeds)-1]
			return
		}
	}
}

func (ft *fetcher) run() {
	ctx := ft.fs.cluster.ctx
	defer ft.disconnect()
	for {
		wait, more := ft.choose()
		if !more {
			return
		}
		if len(ft.asked) == 0 {
			select {
			case <-ft.wake:
			case <-ctx.Done():
				return
			}
			continue
		}
		asked := time.Now()
		if err := ft.fetch(ctx, wait); err != nil {
			ft.disconnect()
			if !ft.wasInterrupted() {
				ft.drop(err)
			}
		}
		ft.pace(asked)
		if ctx.Err() != nil {
			return
		}
	}
}

func (ft *fetcher) disconnect() {
	if ft.conn != nil {
		ft.conn.close()
		ft.conn = nil
	}
}

// pace puts off the next fetch a little when the last one was answered at once, and longer when it brought much:
// waiting for the next records too costs the broker and us far less than asking for each few of them. A quiet log is
// never put off, and neither is a reader that is behind.
func (ft *fetcher) pace(asked time.Time) {
	least := fetchPace
	if ft.brought >= fetchPaceBytes {
		least = fetchPaceMuch
	}
	if ft.brought > 0 && !ft.behind {
		time.Sleep(least - time.Since(asked))
	}
	ft.brought, ft.behind = 0, false
}

// choose lists the feeds that have room. It reports false when nobody reads any more, and then ft is out of use.
func (ft *fetcher) choose() (wait time.Duration, more bool) {
	fs := ft.fs
	fs.mu.Lock()
	defer fs.mu.Unlock()
	ft.asked = ft.asked[:0]
	clear(ft.place)
	if len(ft.feeds) == 0 || fs.closed {
		if fs.running[ft.key] == ft {
			delete(fs.running, ft.key)
		}
		return 0, false
	}
	wait, ft.seen = fetchWait, ft.attached
	ft.offset++
	for i := range ft.feeds {
		f := ft.feeds[(i+ft.offset)%len(ft.feeds)]
		if !f.room() || ft.find(f.partition) != nil {
			wait = fetchWaitPaused
			continue
		}
		ft.asked = append(ft.asked, f)
		ft.place[f.partition] = f
	}
	return wait, true
}

func (ft *fetcher) wasInterrupted() bool {
	ft.fs.mu.Lock()
	defer ft.fs.mu.Unlock()
	was := ft.interrupted
	ft.interrupted = false
	return was
}

// drop tells all readers that they have to look for the leader again.
func (ft *fetcher) drop(err error) {
	ft.fs.mu.Lock()
	defer ft.fs.mu.Unlock()
	for len(ft.feeds) > 0 {
		ft.end(ft.feeds[0], unavailable(err))
	}
}

// end takes f out with its last chunk. The caller holds fetchers.mu.
func (ft *fetcher) end(f *feed, err error) {
	ft.remove(f)
	f.chunks <- chunk{err: err} // room keeps a place for it
}

// fetch asks for the chosen feeds and hands the answer to them.
func (ft *fetcher) fetch(ctx context.Context, wait time.Duration) error {
	if ft.conn == nil {
		address, ok := ft.fs.cluster.current.Load().brokers[ft.key.broker]
		if !ok {
			return fmt.Errorf("broker %d has left: %w", ft.key.broker, kafka.LeaderNotAvailable)
		}
		var err error
		if ft.conn, err = ft.fs.cluster.dialer.connect(ctx, address); err != nil {
			return err
		}
		ft.wasInterrupted()
		return nil // choose again: others may have come meanwhile
	}
	ctx, cancel := context.WithTimeout(ctx, wait+fetchTimeout)
	defer cancel()
	defer ft.conn.abortOn(ctx)()
	ft.fs.metrics.fetchRequests.Inc()
	if err := ft.conn.send(ft.encode(wait)); err != nil {
		return err
	}
	if err := ft.park(); err != nil {
		return err
	}
	r, err := ft.conn.response()
	if err != nil {
		return err
	}
	return ft.deliver(r)
}

// park waits for the first byte of the answer; attach may interrupt it.
func (ft *fetcher) park() error {
	fs := ft.fs
	fs.mu.Lock()
	if ft.attached != ft.seen { // someone came while the request was sent
		ft.interrupted = true
		fs.mu.Unlock()
		return context.Canceled
	}
	ft.parked = ft.conn
	fs.mu.Unlock()
	_, err := ft.conn.r.Peek(1)
	fs.mu.Lock()
	defer fs.mu.Unlock()
	ft.parked = nil
	if err == nil && ft.interrupted { // the answer was quicker
		ft.interrupted = false
		_ = ft.conn.nc.SetReadDeadline(time.Now().Add(fetchTimeout))
	}
	return err
}

// encode writes a fetch request without a session: with sessions (KIP-227) neither side gained measurably, at 256
// partitions and any rate.
func (ft *fetcher) encode(wait time.Duration) []byte {
	b := ft.conn.begin(protocol.Fetch, fetchVersion)
	b = appendInt32(b, -1) // not a replica
	b = appendInt32(b, int32(wait.Milliseconds()))
	b = appendInt32(b, 1) // any data will do
	b = appendInt32(b, fetchBytes)
	b = append(b, 0)       // uncommitted
	b = appendInt32(b, 0)  // no session,
	b = appendInt32(b, -1) // and none wanted
	b = appendInt32(b, 1)
	b = appendString(b, ft.fs.cfg.Topic)
	b = appendInt32(b, int32(len(ft.asked)))
	for _, f := range ft.asked {
		b = appendInt32(b, f.partition)
		b = appendInt32(b, -1) // any leader epoch
		b = appendInt64(b, f.next)
		b = appendInt64(b, -1) // log start: a follower's
		b = appendInt32(b, fetchPartitionBytes)
	}
	b = appendInt32(b, 0)      // nothing forgotten
	return appendString(b, "") // no rack
}

// deliver reads the answer and hands each partition's part to its feed.
func (ft *fetcher) deliver(r *wireReader) error {
	r.skip(4) // throttled
	if code := r.int16(); code != 0 && r.err == nil {
		return kafka.Error(code)
	}
	r.skip(4) // session
	for range r.count(6) {
		r.skip(int(r.int16())) // the topic's name
		for range r.count(30) {
			partition, code := r.int32(), r.int16()
			r.skip(24) // high watermark, last stable offset, log start
			r.skip(16 * r.count(16))
			r.skip(4) // preferred replica
			raw := r.bytes()
			if r.err != nil {
				return r.err
			}
			ft.brought += len(raw)
			ft.behind = ft.behind || len(raw) > fetchPartitionBytes/2
			if f := ft.find(partition); f != nil {
				ft.hand(f, code, raw)
			}
		}
	}
	return r.end()
}

// find returns the feed of partition in the request under way.
func (ft *fetcher) find(partition int32) *feed {
	if partition < 0 || int(partition) >= len(ft.place) {
		return nil
	}
	return ft.place[partition]
}

// hand gives one partition's part to its feed, if that still wants it.
func (ft *fetcher) hand(f *feed, code int16, raw []byte) {
	n, next, err := 0, int64(0), error(nil)
	if code != 0 {
		err = kafka.Error(code)
	} else if n, next, err = spanBatches(raw); err == nil && n == 0 && len(raw) > 0 {
		err = fmt.Errorf("a record batch is larger than %d bytes: %w", len(raw), errBatch)
	}
	fs := ft.fs
	fs.mu.Lock()
	defer fs.mu.Unlock()
	switch {
	case f.owner != ft:
	case err != nil:
		ft.end(f, err)
		return
	case n > 0:
		f.next = max(f.next, next)
		f.waiting.Add(int64(n))
		f.chunks <- chunk{raw: raw[:n:n]}
	}
	f.answered.Store(true)
}
