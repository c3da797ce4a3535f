package eventlog

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"time"

	kafka "github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/protocol"
)

const (
	// produceVersion is the newest version without flexible fields that says what is needed here.
	produceVersion = 7
	// ackTimeout is how long the leader may wait for the other replicas.
	ackTimeout = 5 * time.Second
	// produceTimeout bounds a request; after it nobody knows what of it was written.
	produceTimeout = ackTimeout + 3*time.Second
)

// sender writes the queues that one broker leads, one request at a time: what arrives during a request goes into the
// next one, so requests grow as the load does.
type sender struct {
	p       *producer
	broker  int32
	wake    chan struct{} // of size 1; closed by producer.close
	ready   []int32       // partitions with records; guarded by producer.mu
	batches []batch       // owned by run
	conn    *conn         // owned by run
}

// batch is what goes to one partition in one request.
type batch struct {
	partition int32
	items     []item
	size      int
}

// schedule puts partition, whose queue is not empty, into the list of its leader's sender. The caller holds p.mu.
func (p *producer) schedule(partition int32) {
	if p.closed {
		return
	}
	p.queues[partition].scheduled = true
	broker, _, ok := p.cluster.leader(partition)
	if !ok {
		p.strand(partition)
		return
	}
	s := p.senders[broker]
	if s == nil {
		s = &sender{p: p, broker: broker, wake: make(chan struct{}, 1)}
		p.senders[broker] = s
		p.done.Go(s.run)
	}
	s.ready = append(s.ready, partition)
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// strand keeps partition until the topic was looked at again. The caller holds p.mu.
func (p *producer) strand(partition int32) {
	p.stranded = append(p.stranded, partition)
	if !p.repairing {
		p.repairing = true
		p.done.Go(p.repair)
	}
}

// repair looks at the topic until every stranded partition has a leader again.
func (p *producer) repair() {
	for wait := (backoff{}); ; {
		asked := time.Now()
		var err error = context.Canceled
		if wait.sleep(p.cluster.ctx) {
			err = p.cluster.refresh(p.cluster.ctx, asked)
		}
		if p.rescue(err) {
			return
		}
	}
}

// rescue schedules the stranded partitions that have a leader now, and reports whether none is left. When the log can
// no longer be used it fails what waits.
func (p *producer) rescue(refreshed error) (done bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	waiting := p.stranded
	p.stranded = nil
	failure := p.cluster.err()
	for _, partition := range waiting {
		q := &p.queues[partition]
		if failure != nil {
			p.failAll(q, failure)
		}
		switch _, _, ok := p.cluster.leader(partition); {
		case len(q.items) == 0:
			q.scheduled = false
		case refreshed != nil || !ok:
			p.stranded = append(p.stranded, partition)
		default:
			p.schedule(partition)
		}
	}
	p.repairing = len(p.stranded) > 0
	return !p.repairing
}

func (s *sender) run() {
	defer func() {
		if s.conn != nil {
			s.conn.close()
		}
	}()
	for range s.wake {
		for s.take() {
			s.finish(s.exchange())
		}
	}
}

// take moves records from the ready queues into batches, and reports whether there are any.
func (s *sender) take() bool {
	p := s.p
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return false
	}
	s.batches = s.batches[:0]
	total, taken := 0, 0
	for ; taken < len(s.ready) && total < maxRequestBytes; taken++ {
		partition := s.ready[taken]
		q := &p.queues[partition]
		if len(q.items) == 0 { // given up meanwhile
			q.scheduled = false
			continue
		}
		b := batch{partition: partition}
		n := 0
		for ; n < len(q.items) && (n == 0 || b.size+q.items[n].size <= q.limit); n++ {
			b.size += q.items[n].size + 16
		}
		b.items, q.items = q.items[:n:n], q.items[n:]
		total += b.size
		s.batches = append(s.batches, b)
	}
	s.ready = slices.Delete(s.ready, 0, taken)
	return len(s.batches) > 0
}

// outcome is the answer for one batch.
type outcome struct {
	base int64
	err  error
}

// exchange sends the batches and returns the answers, one for each.
func (s *sender) exchange() []outcome {
	answers := make([]outcome, len(s.batches))
	err := s.try(answers)
	if err == nil {
		return answers
	}
	if s.conn != nil {
		s.conn.close()
		s.conn = nil
	}
	for i := range answers {
		answers[i] = outcome{err: unavailable(err)}
	}
	return answers
}

func (s *sender) try(answers []outcome) error {
	ctx, cancel := context.WithTimeout(s.p.cluster.ctx, produceTimeout)
	defer cancel()
	if s.conn == nil {
		address, ok := s.p.cluster.current.Load().brokers[s.broker]
		if !ok {
			return fmt.Errorf("broker %d has left: %w", s.broker, kafka.LeaderNotAvailable)
		}
		var err error
		if s.conn, err = s.p.cluster.dialer.connect(ctx, address); err != nil {
			return err
		}
	}
	defer s.conn.abortOn(ctx)()
	s.p.metrics.appendRequests.Inc()
	if err := s.conn.send(s.encode()); err != nil {
		return fmt.Errorf("send records: %w", err)
	}
	r, err := s.conn.response()
	if err != nil {
		return fmt.Errorf("wait for records to be written: %w", err)
	}
	return s.decode(r, answers)
}

func (s *sender) encode() []byte {
	b := s.conn.begin(protocol.Produce, produceVersion)
	b = append(b, 0xff, 0xff) // no transaction
	b = append(b, 0xff, 0xff) // acks=all
	b = appendInt32(b, int32(ackTimeout.Milliseconds()))
	b = appendInt32(b, 1)
	b = appendString(b, s.p.cfg.Topic)
	b = appendInt32(b, int32(len(s.batches)))
	for i := range s.batches {
		b = appendInt32(b, s.batches[i].partition)
		at := len(b)
		b = appendInt32(b, 0)
		var e batchEncoder
		b = e.begin(b)
		for _, it := range s.batches[i].items {
			b = e.add(b, (*it.call.body)[it.start:it.start+it.size], it.call.ms)
		}
		binary.BigEndian.PutUint32(b[at:], uint32(e.finish(b)))
	}
	return b
}

func (s *sender) decode(r *wireReader, answers []outcome) error {
	for i := range answers {
		answers[i].err = errors.New("the broker did not answer for this partition")
	}
	for range r.count(6) {
		r.skip(int(r.int16())) // the topic's name
		for range r.count(22) {
			partition, code, base := r.int32(), r.int16(), r.int64()
			r.skip(16) // append time, log start
			i := slices.IndexFunc(s.batches, func(b batch) bool { return b.partition == partition })
			if i < 0 {
				continue
			}
			answers[i] = outcome{base: base}
			if code != 0 {
				answers[i].err = kafka.Error(code)
			}
		}
	}
	return r.end()
}

// finish gives the answers to the calls, and puts back what is to be sent again.
func (s *sender) finish(answers []outcome) {
	p := s.p
	p.mu.Lock()
	defer p.mu.Unlock()
	failure := p.cluster.err()
	for i, b := range s.batches {
		q := &p.queues[b.partition]
		err := answers[i].err
		if failure != nil && err != nil {
			err = failure
		}
		switch {
		case err == nil:
			s.acknowledge(q, b, answers[i].base)
		case p.shrink(q, b, err):
			p.putBack(q, b)
		case failure == nil && !p.closed && (retriable(err) || errors.Is(err, ErrUnavailable)) && !refused(err):
			p.metrics.appendRetries.Inc()
			p.log.Debug("append again", "partition", b.partition, "records", len(b.items), "err", err)
			if p.putBack(q, b); len(q.items) > 0 {
				p.strand(b.partition)
				continue
			}
		default:
			s.reject(b, err)
		}
		if q.scheduled = false; len(q.items) > 0 {
			p.schedule(b.partition)
		}
	}
}

func (s *sender) acknowledge(q *queue, b batch, base int64) {
	if base <= q.last { // the topic was recreated: what was known of its epoch is old
		s.p.rewound(b.partition)
	}
	for i, it := range b.items {
		s.p.answer(it, base+int64(i), nil)
	}
	q.last = base + int64(len(b.items)) - 1
	s.p.metrics.appendedRecords.Add(float64(len(b.items)))
	s.p.metrics.appendedBytes.Add(float64(b.size))
}

func (s *sender) reject(b batch, err error) {
	reason := "refused"
	switch {
	case errors.Is(err, kafka.MessageSizeTooLarge), errors.Is(err, kafka.RecordListTooLarge):
		reason, err = "tooLarge", fmt.Errorf("%w: %w", ErrTooLarge, err)
	case errors.Is(err, ErrClosed), errors.Is(err, ErrPartitionsChanged):
		reason = "closed"
	}
	for _, it := range b.items {
		s.p.answer(it, 0, err)
	}
	s.p.metrics.appendFailures.WithLabelValues(reason).Add(float64(len(b.items)))
}

// shrink reports whether b was too large as a whole and may fit in parts.
func (p *producer) shrink(q *queue, b batch, err error) bool {
	if !errors.Is(err, kafka.MessageSizeTooLarge) && !errors.Is(err, kafka.RecordListTooLarge) || len(b.items) == 1 {
		return false
	}
	q.limit = max(1, b.size/2)
	return true
}

// putBack returns the records of b that someone still waits for to the front of their queue.
func (p *producer) putBack(q *queue, b batch) {
	kept := b.items[:0]
	for _, it := range b.items {
		if it.call.gone || p.closed {
			p.answer(it, 0, ErrClosed)
			continue
		}
		kept = append(kept, it)
	}
	q.items = slices.Insert(q.items, 0, kept...)
}
