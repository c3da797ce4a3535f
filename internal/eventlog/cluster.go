package eventlog

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	kafka "github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/protocol"
	"github.com/segmentio/kafka-go/protocol/createtopics"
	"github.com/segmentio/kafka-go/protocol/metadata"
)

const (
	// watchInterval is how often the topic is looked at when nothing goes wrong.
	watchInterval = 5 * time.Second
	// askTimeout bounds one question to one broker.
	askTimeout = 5 * time.Second
	// askPatience is how long one broker may think before another is asked as well, where any can answer.
	askPatience = time.Second
	// maxIdleConns is how many connections for questions are kept, per broker.
	maxIdleConns = 2
)

// layout is what the brokers last said of the topic. It is never changed, only replaced.
type layout struct {
	at       time.Time // when the question was sent
	brokers  map[int32]string
	leaders  []int32       // by partition; -1 for none
	replicas int           // of the first partition
	moved    chan struct{} // closed when leaders have moved since
}

// cluster knows the brokers and who leads which partition, and asks them questions.
type cluster struct {
	// Static after construction.
	cfg    Config
	dialer *dialer
	log    *slog.Logger
	ctx    context.Context // ends on close, and when the log can no longer be used
	cancel context.CancelFunc

	current atomic.Pointer[layout]
	failure atomic.Pointer[error] // not nil once the log can no longer be used

	refreshing sync.Mutex // one refresh at a time

	mu     sync.Mutex
	idle   map[string][]*conn // guarded by mu
	closed bool               // guarded by mu
}

func newCluster(cfg Config, d *dialer, log *slog.Logger) *cluster {
	c := &cluster{cfg: cfg, dialer: d, log: log, idle: make(map[string][]*conn)}
	c.ctx, c.cancel = context.WithCancel(context.Background())
	return c
}

func (c *cluster) close() {
	c.cancel()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed = true
	for _, conns := range c.idle {
		for _, conn := range conns {
			conn.close()
		}
	}
	clear(c.idle)
}

// within returns a ctx that also ends when c is closed.
func (c *cluster) within(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	stop := context.AfterFunc(c.ctx, func() { cancel(ErrClosed) })
	return ctx, func() { stop(); cancel(nil) }
}

// err returns why nothing works any more, or nil.
func (c *cluster) err() error {
	if p := c.failure.Load(); p != nil {
		return *p
	}
	if c.ctx.Err() != nil {
		return ErrClosed
	}
	return nil
}

// open waits for the topic and pins its partition count.
func (c *cluster) open(ctx context.Context) error {
	ctx, cancel := c.within(ctx)
	defer cancel()
	waiting := false
	for wait := (backoff{}); ; {
		err := c.refresh(ctx, time.Now())
		if errors.Is(err, kafka.UnknownTopicOrPartition) {
			if !c.cfg.Create {
				return fmt.Errorf("topic %q does not exist: create it (256 partitions and 3 replicas are good numbers), or let mailbell do it", c.cfg.Topic)
			}
			err = c.create(ctx)
		}
		if err == nil && c.current.Load() != nil {
			return c.checkWanted()
		}
		if err != nil && !retriable(err) && !errors.Is(err, ErrUnavailable) {
			return err
		}
		if err != nil && !waiting {
			waiting = true
			c.log.Warn("waiting for the brokers; if none comes, ask mailbell doctor --brokers", "brokers", c.cfg.Brokers, "err", err)
		}
		if !wait.sleep(ctx) {
			if err == nil {
				err = ctx.Err()
			}
			return unavailable(err)
		}
	}
}

func (c *cluster) checkWanted() error {
	if have := c.partitions(); !c.cfg.Create && c.cfg.Partitions != 0 && have != c.cfg.Partitions {
		return fmt.Errorf("topic %q has %d partitions and is configured to have %d: %w", c.cfg.Topic, have, c.cfg.Partitions, ErrPartitionsChanged)
	}
	return nil
}

func (c *cluster) create(ctx context.Context) error {
	replicas := c.cfg.ReplicationFactor
	brokers, err := c.brokerCount(ctx)
	if err != nil {
		return err
	}
	if replicas == 0 {
		replicas = min(3, brokers)
	}
	partitions := c.cfg.Partitions
	if partitions == 0 {
		partitions = defaultPartitions
	}
	topic := createtopics.RequestTopic{Name: c.cfg.Topic, NumPartitions: int32(partitions), ReplicationFactor: int16(replicas)}
	if replicas >= 3 {
		topic.Configs = []createtopics.RequestConfig{{Name: "min.insync.replicas", Value: "2"}}
	}
	answer, err := c.askAny(ctx, &createtopics.Request{Topics: []createtopics.RequestTopic{topic}, TimeoutMs: int32(askTimeout.Milliseconds())})
	if err != nil {
		return err
	}
	for _, t := range answer.(*createtopics.Response).Topics {
		if code := kafka.Error(t.ErrorCode); code != 0 && code != kafka.TopicAlreadyExists {
			return fmt.Errorf("create topic %q with %d partitions and %d replicas: %s: %w", c.cfg.Topic, partitions, replicas, t.ErrorMessage, code)
		}
	}
	c.log.Info("created the topic", "partitions", partitions, "replicas", replicas)
	return nil
}

func (c *cluster) brokerCount(ctx context.Context) (int, error) {
	answer, err := c.askAny(ctx, &metadata.Request{TopicNames: []string{}})
	if err != nil {
		return 0, err
	}
	return len(answer.(*metadata.Response).Brokers), nil
}

// refresh makes sure that the layout was asked for after since.
func (c *cluster) refresh(ctx context.Context, since time.Time) error {
	c.refreshing.Lock()
	defer c.refreshing.Unlock()
	if l := c.current.Load(); l != nil && l.at.After(since) {
		return nil
	}
	at := time.Now()
	answer, err := c.askAny(ctx, &metadata.Request{TopicNames: []string{c.cfg.Topic}})
	if err != nil {
		return err
	}
	l, err := c.layoutOf(answer.(*metadata.Response))
	if err != nil {
		return err
	}
	l.at = at
	if old := c.current.Load(); old != nil && len(old.leaders) != len(l.leaders) {
		return c.fail(len(old.leaders), len(l.leaders))
	}
	c.put(l)
	return nil
}

// put makes l the layout, and says so where leaders have moved. Callers hold refreshing.
func (c *cluster) put(l *layout) {
	old := c.current.Load()
	if old != nil && slices.Equal(old.leaders, l.leaders) {
		l.moved = old.moved
	} else {
		l.moved = make(chan struct{})
	}
	c.current.Store(l)
	if old != nil && old.moved != l.moved {
		close(old.moved)
	}
}

// moved is closed when leaders have moved since.
func (c *cluster) moved() <-chan struct{} { return c.current.Load().moved }

// fail ends the use of the log because its partitions are others now.
func (c *cluster) fail(before, now int) error {
	err := fmt.Errorf("topic %q had %d partitions and now has %d: %w; stop every mailbell process and publisher, "+
		"and recreate the topic or use another one", c.cfg.Topic, before, now, ErrPartitionsChanged)
	if c.failure.CompareAndSwap(nil, &err) {
		c.log.Error("the log is no longer used", "err", err)
		c.cancel() // ends every read, append and group under way
	}
	return c.err()
}

func (c *cluster) layoutOf(m *metadata.Response) (*layout, error) {
	l := &layout{brokers: make(map[int32]string, len(m.Brokers))}
	for _, b := range m.Brokers {
		l.brokers[b.NodeID] = net.JoinHostPort(b.Host, strconv.Itoa(int(b.Port)))
	}
	for _, t := range m.Topics {
		if t.Name != c.cfg.Topic {
			continue
		}
		if t.ErrorCode != 0 {
			return nil, fmt.Errorf("topic %q: %w", c.cfg.Topic, kafka.Error(t.ErrorCode))
		}
		l.leaders = make([]int32, len(t.Partitions))
		for i := range l.leaders {
			l.leaders[i] = -1
		}
		for _, p := range t.Partitions {
			if int(p.PartitionIndex) >= len(l.leaders) || p.PartitionIndex < 0 {
				return nil, unavailable(fmt.Errorf("topic %q: partition %d of %d", c.cfg.Topic, p.PartitionIndex, len(l.leaders)))
			}
			if _, known := l.brokers[p.LeaderID]; known {
				l.leaders[p.PartitionIndex] = p.LeaderID
			}
			l.replicas = len(p.ReplicaNodes)
		}
		return l, nil
	}
	return nil, fmt.Errorf("topic %q: %w", c.cfg.Topic, kafka.UnknownTopicOrPartition)
}

// watch looks at the topic now and then, so that a changed partition count is found on a quiet system too.
func (c *cluster) watch(ctx context.Context) {
	t := time.NewTicker(watchInterval)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		if err := c.refresh(ctx, time.Now().Add(-watchInterval/2)); err != nil && ctx.Err() == nil && c.failure.Load() == nil {
			c.log.Debug("look at the topic", "err", err)
		}
	}
}

func (c *cluster) partitions() int { return len(c.current.Load().leaders) }

// leader returns the broker that leads partition, and false if there is none.
func (c *cluster) leader(partition int32) (id int32, address string, ok bool) {
	l := c.current.Load()
	id = l.leaders[partition]
	address, ok = l.brokers[id]
	return id, address, ok
}

func (c *cluster) leaderless() (int32, bool) {
	i := slices.Index(c.current.Load().leaders, -1)
	return int32(i), i >= 0
}

// addresses returns every broker that is known, the configured ones first.
func (c *cluster) addresses() []string {
	all := slices.Clone(c.cfg.Brokers)
	if l := c.current.Load(); l != nil {
		for _, a := range l.brokers {
			if !slices.Contains(all, a) {
				all = append(all, a)
			}
		}
	}
	return all
}

// askAny asks one broker after the other, starting anywhere, until one answers. The next one is asked as well when one
// takes long: a broker that hangs accepts connections and says nothing.
func (c *cluster) askAny(ctx context.Context, m protocol.Message) (protocol.Message, error) {
	all := c.addresses()
	start := rand.IntN(len(all))
	type result struct {
		answer protocol.Message
		err    error
	}
	results := make(chan result, len(all))
	var asking sync.WaitGroup
	defer asking.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	asked, ended := 0, 0
	askNext := func() {
		if asked == len(all) || ctx.Err() != nil {
			return
		}
		address := all[(start+asked)%len(all)]
		asked++
		asking.Go(func() {
			answer, err := c.ask(ctx, address, m)
			results <- result{answer, err}
		})
	}
	impatient := time.NewTicker(askPatience)
	defer impatient.Stop()
	var errs []error
	for askNext(); ended < asked; {
		select {
		case r := <-results:
			if r.err == nil {
				return r.answer, nil
			}
			ended++
			errs = append(errs, r.err)
			askNext()
		case <-impatient.C:
			askNext()
		}
	}
	if asked == 0 {
		errs = append(errs, ctx.Err())
	}
	err := errors.Join(errs...)
	if refused(err) {
		return nil, err
	}
	return nil, unavailable(err)
}

// ask asks one broker, over a connection from before if there is one.
func (c *cluster) ask(ctx context.Context, address string, m protocol.Message) (protocol.Message, error) {
	if err := c.err(); err != nil {
		return nil, err
	}
	ctx, cancel := c.within(ctx)
	defer cancel()
	for {
		conn := c.takeIdle(address)
		reused := conn != nil
		if conn == nil {
			var err error
			if conn, err = c.dialer.connect(ctx, address); err != nil {
				return nil, err
			}
		}
		asking, done := context.WithTimeout(ctx, askTimeout)
		answer, err := conn.roundTrip(asking, m)
		hangs := asking.Err() != nil
		done()
		if err == nil {
			c.putIdle(address, conn)
			return answer, nil
		}
		conn.close()
		if !reused || hangs || ctx.Err() != nil {
			return nil, fmt.Errorf("ask %s: %w", address, err)
		}
	}
}

func (c *cluster) takeIdle(address string) *conn {
	c.mu.Lock()
	defer c.mu.Unlock()
	conns := c.idle[address]
	if len(conns) == 0 {
		return nil
	}
	conn := conns[len(conns)-1]
	c.idle[address] = conns[:len(conns)-1]
	return conn
}

func (c *cluster) putIdle(address string, conn *conn) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed || len(c.idle[address]) >= maxIdleConns {
		conn.close()
		return
	}
	c.idle[address] = append(c.idle[address], conn)
}

// backoff waits longer each time, 50 ms to 1 s, with jitter.
type backoff struct{ step time.Duration }

// sleep reports false when ctx ended.
func (b *backoff) sleep(ctx context.Context) bool {
	b.step = min(max(2*b.step, 50*time.Millisecond), time.Second)
	t := time.NewTimer(b.step/2 + rand.N(b.step/2))
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}

// retriable reports whether the same may work later without anyone doing anything.
func retriable(err error) bool {
	var code kafka.Error
	if errors.As(err, &code) {
		return code.Temporary() || code == kafka.UnknownTopicOrPartition || code == kafka.Unknown || code == kafka.NotEnoughReplicasAfterAppend
	}
	var netErr net.Error
	return errors.As(err, &netErr) || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, net.ErrClosed)
}

// refused reports whether a broker answered, with a no that waiting does not change.
func refused(err error) bool {
	var code kafka.Error
	var cert *tls.CertificateVerificationError
	return errors.As(err, &code) && !retriable(code) || errors.As(err, &cert)
}

// unavailable wraps err so that errors.Is finds ErrUnavailable.
func unavailable(err error) error {
	if err == nil || errors.Is(err, ErrUnavailable) || errors.Is(err, ErrPartitionsChanged) || errors.Is(err, ErrClosed) {
		return err
	}
	return fmt.Errorf("%w: %w", ErrUnavailable, err)
}
