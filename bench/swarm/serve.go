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
	first, err := lines.ReadBytes('\n')
	if err != nil {
		return fmt.Errorf("swarm: read configuration: %w", err)
	}
	var cfg Config
	if err := json.Unmarshal(first, &cfg); err != nil {
		return fmt.Errorf("swarm: read configuration: %w", err)
	}
	s, err := New(cfg)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	enc := &encoder{enc: json.NewEncoder(out)}
	finish := make(chan bool, 1)
	go func() { // ends with its input; the process ends right after Serve
		finish <- obey(lines, s, enc)
		cancel()
	}()

	var printing sync.WaitGroup
	printing.Go(func() {
		tick := time.NewTicker(cfg.report())
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
				counts, _ := s.Snapshot()
				enc.print(Report{Counts: counts})
			}
		}
	})
	err = s.Run(ctx)
	cancel()
	printing.Wait()
	if err != nil {
		return err
	}
	select {
	case asked := <-finish:
		if !asked {
			return nil
		}
	default:
		return nil
	}
	counts, hist := s.Snapshot()
	observations, since := s.Observations()
	if cfg.Sparse {
		observations, since = onlyHeard(observations, since)
	}
	enc.print(Report{Counts: counts, Latencies: hist, Final: &Final{Observations: observations, Since: since, Late: s.Late()}})
	return nil
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
func obey(lines *bufio.Reader, s *Swarm, enc *encoder) bool {
	for {
		line, err := lines.ReadString('\n')
		if err != nil {
			return false
		}
		switch strings.TrimSpace(line) {
		case CommandLatencies:
			counts, hist := s.takeLatencies()
			enc.print(Report{Counts: counts, Latencies: hist})
		case CommandReturn:
			s.Return(1.0 / 3)
		case CommandFinish:
			return true
		}
	}
}
