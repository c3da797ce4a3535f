package bench

import (
	"context"
	"encoding/json"
	"fmt"
	"sync"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"

	"github.com/mailbell/mailbell/bench/pollswarm"
	"github.com/mailbell/mailbell/bench/swarm"
)

// usersPerProcess leaves each of a process's users two descriptors under a limit of 20,000.
const usersPerProcess = 7500

// compareClients are the users' processes. Each has a goroutine that follows its reports and ends with it.
type compareClients struct {
	procs  []*process
	books  *compareBooks
	follow sync.WaitGroup

	mu      sync.Mutex // guards the rest
	last    []pollswarm.Report
	err     error
	changed chan struct{} // closed and replaced at each report
}

// totals are the counts of all users.
type totals struct {
	polls pollswarm.Counts
	push  swarm.Counts
	isWS  bool
	marks int // the fewest of a process
}

func (t totals) users() int {
	if t.isWS {
		return min(t.push.Subscribed, t.polls.Users)
	}
	return t.polls.Users
}

func (t totals) bytesIn() int64  { return t.polls.BytesIn + t.push.BytesIn }
func (t totals) bytesOut() int64 { return t.polls.BytesOut + t.push.BytesOut }

func (t totals) failed() int {
	n := t.polls.Failed
	for _, v := range t.push.Failures {
		n += v
	}
	return n
}

// startCompareClients starts the users' processes. site is nil for users that poll.
func startCompareClients(ps *processes, cfg CompareConfig, site *site, target string, b *compareBooks) (*compareClients, error) {
	c := &compareClients{books: b, changed: make(chan struct{})}
	for first := 0; first < cfg.Users; first += usersPerProcess {
		n := min(usersPerProcess, cfg.Users-first)
		conf := pollswarm.Config{Target: target, Connections: n, First: uint32(first), Seed: cfg.Seed, Jitter: cfg.Jitter}
		if site == nil {
			conf.Interval = cfg.Interval
		} else {
			conf.Push = &swarm.Config{Run: site.run, Connections: n, First: uint32(first), Targets: site.sockets, KeyFile: site.keyFile, Reconnect: true}
		}
		p, err := ps.start(fmt.Sprintf("clients-%d", len(c.procs)+1), "bench", "pollswarm")
		if err != nil {
			return nil, err
		}
		if err := p.say(conf); err != nil {
			return nil, err
		}
		c.procs = append(c.procs, p)
		c.last = append(c.last, pollswarm.Report{})
	}
	for i := range c.procs {
		c.follow.Go(func() { c.read(i) })
	}
	return c, nil
}

// read follows one process until its end.
func (c *compareClients) read(i int) {
	for {
		line, err := c.procs[i].next(context.Background())
		var r pollswarm.Report
		if err == nil {
			err = json.Unmarshal(line, &r)
		}
		if err == nil {
			c.books.learn(r.Known, r.Heard)
			r.Known, r.Heard = nil, nil
		}
		c.mu.Lock()
		if err == nil {
			c.last[i] = r
		} else if c.last[i].Answer == nil && c.err == nil {
			c.err = err
		}
		close(c.changed)
		c.changed = make(chan struct{})
		c.mu.Unlock()
		if err != nil {
			return
		}
	}
}

// now returns the counts as last reported.
func (c *compareClients) now() totals {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.sum()
}

// sum is called with mu held.
func (c *compareClients) sum() totals {
	t := totals{marks: c.last[0].Mark}
	for _, r := range c.last {
		p := r.Counts
		t.polls.Users += p.Users
		t.polls.Requests += p.Requests
		t.polls.NotModified += p.NotModified
		t.polls.Failed += p.Failed
		t.polls.Skipped += p.Skipped
		t.polls.Stale += p.Stale
		t.polls.Connects += p.Connects
		t.polls.BytesIn += p.BytesIn
		t.polls.BytesOut += p.BytesOut
		t.marks = min(t.marks, r.Mark)
		if w := r.Push; w != nil {
			t.isWS = true
			t.push.Live += w.Live
			t.push.Subscribed += w.Subscribed
			t.push.Events += w.Events
			t.push.Missed += w.Missed
			t.push.BytesIn += w.BytesIn
			t.push.BytesOut += w.BytesOut
			for k, v := range w.Failures {
				if t.push.Failures == nil {
					t.push.Failures = make(map[string]int)
				}
				t.push.Failures[k] += v
			}
		}
	}
	return t
}

// until waits for a condition, which is looked at after each report.
func (c *compareClients) until(ctx context.Context, met func(totals) bool) error {
	for {
		c.mu.Lock()
		t, err, changed := c.sum(), c.err, c.changed
		c.mu.Unlock()
		if err != nil {
			return err
		}
		if met(t) {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("%w; clients say %+v", ctx.Err(), t)
		}
	}
}

// mark returns the counts as they are at this moment.
func (c *compareClients) mark(ctx context.Context) (totals, error) {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	want := c.now().marks + 1
	for _, p := range c.procs {
		if err := p.tell(pollswarm.CommandMark); err != nil {
			return totals{}, err
		}
	}
	var at totals
	err := c.until(ctx, func(t totals) bool { at = t; return t.marks >= want })
	return at, err
}

// recount forgets who has had an answer, so that totals' users are those that have had one since.
func (c *compareClients) recount(ctx context.Context) error {
	for _, p := range c.procs {
		if err := p.tell(pollswarm.CommandRecount); err != nil {
			return err
		}
	}
	_, err := c.mark(ctx) // older counts are none
	return err
}

// finish ends the users and returns how long answers took.
func (c *compareClients) finish(ctx context.Context) ([]*hdrhistogram.Snapshot, error) {
	for _, p := range c.procs {
		if err := p.tell(pollswarm.CommandFinish); err != nil {
			return nil, err
		}
	}
	var all []*hdrhistogram.Snapshot
	err := c.until(ctx, func(totals) bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		all = all[:0]
		for _, r := range c.last {
			if r.Answer == nil {
				return false
			}
			all = append(all, r.Answer.Latencies)
		}
		return true
	})
	return all, err
}

// stop ends the processes, and waits for who reads them.
func (c *compareClients) stop() {
	for _, p := range c.procs {
		p.kill()
	}
	c.follow.Wait()
}
