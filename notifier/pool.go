package notifier

import (
	"context"
	"sync"
	"time"
)

// job is a handshake whose token's key has to be fetched.
type job struct {
	shard      *shard
	h          handle
	head, rest []byte
	since      time.Time
}

// lateAfter is how long a job may wait for a worker before the notifier stops accepting.
const lateAfter = time.Millisecond

// pool runs jobs that may wait on a bounded number of workers. Its queue is bounded by
// MaxHandshakes; while the oldest job in it has waited for more than 1 ms, no connection is accepted.
type pool struct {
	gate    *gate
	workers int
	wake    chan struct{}
	relief  func() // a job has been taken from the queue

	mu sync.Mutex
	// Guarded by mu.
	queue []job
}

func newPool(g *gate, workers int) *pool {
	return &pool{gate: g, workers: workers, wake: make(chan struct{}, workers), relief: func() {}}
}

func (p *pool) submit(j job) {
	j.since = time.Now()
	p.mu.Lock()
	p.queue = append(p.queue, j)
	p.mu.Unlock()
	select {
	case p.wake <- struct{}{}:
	default: // as many wakes as workers are under way
	}
}

// late reports whether a job waits for longer than it may.
func (p *pool) late() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.queue) > 0 && time.Since(p.queue[0].since) > lateAfter
}

func (p *pool) next() (job, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.queue) == 0 {
		p.queue = nil
		return job{}, false
	}
	j := p.queue[0]
	p.queue[0] = job{}
	p.queue = p.queue[1:]
	return j, true
}

// run works until ctx ends, and returns when all workers have.
func (p *pool) run(ctx context.Context) {
	var wg sync.WaitGroup
	for range p.workers {
		wg.Go(func() { p.work(ctx) })
	}
	wg.Wait()
}

func (p *pool) work(ctx context.Context) {
	up := newUpgrader(p.gate)
	for {
		select {
		case <-ctx.Done():
			return
		case <-p.wake:
		}
		for ctx.Err() == nil {
			j, ok := p.next()
			if !ok {
				break
			}
			p.relief()
			response, access, err := up.upgradeWaiting(ctx, j.head)
			j.shard.finishJob(j, response, access, err)
		}
	}
}
