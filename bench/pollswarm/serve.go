package pollswarm

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"

	"github.com/mailbell/mailbell/bench/swarm"
)

// Report is one line that a swarm's process prints, a few times a second.
type Report struct {
	Counts Counts        `json:"counts"`
	Known  []Known       `json:"known,omitempty"`  // by an answer of the poll server, since the last report
	Push   *swarm.Counts `json:"push,omitempty"`   // of the WebSockets
	Heard  []Known       `json:"heard,omitempty"`  // by events, since the last report
	Mark   int           `json:"mark,omitempty"`   // how many marks have been asked for
	Answer *Answer       `json:"answer,omitempty"` // the last report
}

// Answer is a swarm's last word.
type Answer struct {
	Latencies *hdrhistogram.Snapshot `json:"latencies"` // of requests, in microseconds
}

// Lines that Serve takes after the configuration.
const (
	CommandMark    = "mark"    // report now, counting the mark
	CommandRecount = "recount" // count users that have had an answer from 0 on again
	CommandFinish  = "finish"  // close, print the last report, end
)

const reportEvery = 200 * time.Millisecond

// clients are the two kinds of connections of one process.
type clients struct {
	polls *Swarm
	push  *swarm.Swarm // nil when users poll

	mu    sync.Mutex // guards the rest
	heard []Known
	enc   *json.Encoder
	marks int
}

// Serve runs one swarm for a parent process: the configuration is the first line of in, commands follow,
// reports go to out. The end of in ends it.
func Serve(ctx context.Context, in io.Reader, out io.Writer) error {
	lines := bufio.NewReader(in)
	first, err := lines.ReadBytes('\n')
	if err != nil {
		return fmt.Errorf("poll swarm: read configuration: %w", err)
	}
	var cfg Config
	if err := json.Unmarshal(first, &cfg); err != nil {
		return fmt.Errorf("poll swarm: read configuration: %w", err)
	}
	c, err := newClients(cfg, out)
	if err != nil {
		return err
	}
	return c.serve(ctx, lines)
}

func newClients(cfg Config, out io.Writer) (*clients, error) {
	c := &clients{enc: json.NewEncoder(out)}
	var err error
	if c.polls, err = New(cfg); err != nil {
		return nil, err
	}
	if cfg.Push == nil {
		return c, nil
	}
	if c.push, err = swarm.New(*cfg.Push); err != nil {
		c.polls.close()
		return nil, err
	}
	c.push.OnNews(c.hear)
	return c, nil
}

// hear is called by the WebSockets: seq 0 says that there may be something, without saying what.
func (c *clients) hear(conn int, account, seq uint32, at time.Time) {
	c.polls.Fetch(conn, seq)
	if seq > 0 {
		c.mu.Lock()
		c.heard = append(c.heard, Known{Account: account, Seq: seq, At: at.UnixNano()})
		c.mu.Unlock()
	}
}

func (c *clients) serve(ctx context.Context, lines *bufio.Reader) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	finish := make(chan bool, 1)
	go func() { // ends with its input; the process ends right after Serve
		finish <- c.obey(lines)
		cancel()
	}()
	var wg sync.WaitGroup
	errs := make(chan error, 2)
	run := func(fn func(context.Context) error) {
		wg.Go(func() {
			if err := fn(ctx); err != nil {
				errs <- err
				cancel()
			}
		})
	}
	run(c.polls.Run)
	if c.push != nil {
		run(c.push.Run)
	}
	tick := time.NewTicker(reportEvery)
	defer tick.Stop()
	for ctx.Err() == nil {
		select {
		case <-ctx.Done():
		case <-tick.C:
			c.report(nil)
		}
	}
	wg.Wait()
	select {
	case err := <-errs:
		return err
	case asked := <-finish:
		if asked {
			c.report(&Answer{Latencies: c.polls.latencies()})
		}
	default:
	}
	return nil
}

// obey follows the commands; true says that the parent asked to finish.
func (c *clients) obey(lines *bufio.Reader) bool {
	for {
		line, err := lines.ReadString('\n')
		if err != nil {
			return false
		}
		switch strings.TrimSpace(line) {
		case CommandMark:
			c.mu.Lock()
			c.marks++
			c.mu.Unlock()
			c.report(nil)
		case CommandRecount:
			c.polls.recount()
		case CommandFinish:
			return true
		}
	}
}

// report prints one line. A parent that has gone away is seen at the input's end, so errors are not looked at.
func (c *clients) report(a *Answer) {
	var r Report
	if c.push != nil {
		counts, _ := c.push.Snapshot()
		r.Push = &counts
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	r.Counts, r.Known = c.polls.Snapshot()
	r.Heard, c.heard = c.heard, nil
	r.Mark, r.Answer = c.marks, a
	_ = c.enc.Encode(r)
}
