package swarm

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

	"github.com/mailbell/mailbell/bench/ledger"
)

// Report is one line that a swarm's process prints: the counts a few times a second, and
// everything once it is told to finish.
type Report struct {
	Counts    Counts                 `json:"counts"`
	Latencies *hdrhistogram.Snapshot `json:"latencies,omitempty"` // microseconds; in answer to CommandLatencies and at the end
	Final     *Final                 `json:"final,omitempty"`
}

// Final is a swarm's last word.
type Final struct {
	Observations []ledger.Observation `json:"observations"`
	Since        []int64              `json:"since"` // the offset at which each first subscribed
	Late         []Late               `json:"late,omitempty"`
}

// Commands that Serve takes, a line each.
const (
	CommandLatencies = "latencies" // print them, then forget them
	CommandReturn    = "return"    // a third of the connections close and come back
	CommandFinish    = "finish"    // close, print the final report, end
)

// Serve runs one swarm for a parent process: the configuration is the first line of in, commands follow,
// reports go to out. The end of in ends it.
func Serve(ctx context.Context, in io.Reader, out io.Writer) error {
	lines := bufio.NewReader(in)
	var cfg Config
	if err := readConfig(lines, &cfg); err != nil {
		return fmt.Errorf("swarm: %w", err)
	}
	s, err := New(cfg)
	if err != nil {
		return err
	}
	return serve(ctx, lines, out, cfg.report(), s)
}

// ServePackets is Serve for clients in user space: PacketsConfig is the first line of in. Its final report is
// sparse, and CommandFinish is all that it obeys.
func ServePackets(ctx context.Context, in io.Reader, out io.Writer) error {
	lines := bufio.NewReader(in)
	var cfg PacketsConfig
	if err := readConfig(lines, &cfg); err != nil {
		return fmt.Errorf("packets: %w", err)
	}
	p, err := newPackets(cfg)
	if err != nil {
		return err
	}
	return serve(ctx, lines, out, time.Duration(max(cfg.ReportMs, 50))*time.Millisecond, p)
}

func readConfig(lines *bufio.Reader, cfg any) error {
	first, err := lines.ReadBytes('\n')
	if err == nil {
		err = json.Unmarshal(first, cfg)
	}
	if err != nil {
		return fmt.Errorf("read configuration: %w", err)
	}
	return nil
}

// clients are what a parent process starts, watches and ends.
type clients interface {
	Run(ctx context.Context) error // until ctx ends
	report() Report
	obey(command string, enc *encoder)
	final() Report // after Run has returned
}

func serve(ctx context.Context, lines *bufio.Reader, out io.Writer, every time.Duration, c clients) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	enc := &encoder{enc: json.NewEncoder(out)}
	finish := make(chan bool, 1)
	go func() { // ends with its input; the process ends right after serve
		finish <- obey(lines, c, enc)
		cancel()
	}()
	var printing sync.WaitGroup
	printing.Go(func() {
		tick := time.NewTicker(every)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
				enc.print(c.report())
			}
		}
	})
	err := c.Run(ctx)
	cancel()
	printing.Wait()
	if err != nil {
		return err
	}
	select {
	case asked := <-finish:
		if asked {
			enc.print(c.final())
		}
	default:
	}
	return nil
}

func (s *Swarm) report() Report {
	counts, _ := s.Snapshot()
	return Report{Counts: counts}
}

func (s *Swarm) final() Report {
	counts, hist := s.Snapshot()
	observations, since := s.Observations()
	if s.cfg.Sparse {
		observations, since = onlyHeard(observations, since)
	}
	return Report{Counts: counts, Latencies: hist, Final: &Final{Observations: observations, Since: since, Late: s.Late()}}
}

func (s *Swarm) obey(command string, enc *encoder) {
	switch command {
	case CommandLatencies:
		counts, hist := s.takeLatencies()
		enc.print(Report{Counts: counts, Latencies: hist})
	case CommandReturn:
		s.Return(1.0 / 3)
	}
}

// onlyHeard leaves out the connections that heard nothing.
func onlyHeard(all []ledger.Observation, since []int64) (heard []ledger.Observation, heardSince []int64) {
	for i, o := range all {
		if o.Last > 0 || o.Told > since[i] {
			heard, heardSince = append(heard, o), append(heardSince, since[i])
		}
	}
	return heard, heardSince
}

// encoder prints whole lines from several goroutines. A parent that has gone away is seen at
// the input's end, so errors are not looked at.
type encoder struct {
	mu  sync.Mutex // guards enc
	enc *json.Encoder
}

func (e *encoder) print(r Report) {
	e.mu.Lock()
	defer e.mu.Unlock()
	_ = e.enc.Encode(r)
}

// obey follows the commands; true says that the parent asked to finish.
func obey(lines *bufio.Reader, c clients, enc *encoder) bool {
	for {
		line, err := lines.ReadString('\n')
		if err != nil {
			return false
		}
		command := strings.TrimSpace(line)
		if command == CommandFinish {
			return true
		}
		c.obey(command, enc)
	}
}
