package swarm

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"time"
)

// ServePackets is Serve for clients in user space: PacketsConfig is the first line of in. Its final report is
// sparse.
func ServePackets(ctx context.Context, in io.Reader, out io.Writer) error {
	lines := bufio.NewReader(in)
	first, err := lines.ReadBytes('\n')
	if err != nil {
		return fmt.Errorf("packets: read configuration: %w", err)
	}
	var cfg PacketsConfig
	if err := json.Unmarshal(first, &cfg); err != nil {
		return fmt.Errorf("packets: read configuration: %w", err)
	}
	p, err := newPackets(cfg)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	finish := make(chan bool, 1)
	go func() { // ends with its input; the process ends right after ServePackets
		asked := false
		for !asked {
			line, err := lines.ReadString('\n')
			if err != nil {
				break
			}
			asked = strings.TrimSpace(line) == CommandFinish
		}
		finish <- asked
		cancel()
	}()
	enc := &encoder{enc: json.NewEncoder(out)}
	every := time.Duration(max(cfg.ReportMs, 50)) * time.Millisecond
	printing := make(chan struct{})
	go func() {
		defer close(printing)
		p.reportUntil(ctx, enc, every)
	}()
	err = p.run(ctx)
	cancel()
	<-printing
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
	enc.print(p.final())
	return nil
}

func (p *Packets) reportUntil(ctx context.Context, enc *encoder, every time.Duration) {
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			p.mu.Lock()
			c := p.counts
			c.Failures = cloneMap(c.Failures)
			p.mu.Unlock()
			enc.print(Report{Counts: c})
		}
	}
}

// final is the last report. Call it after run has returned.
func (p *Packets) final() Report {
	var f Final
	for i := range p.conns {
		c := &p.conns[i]
		if o := c.observer.Observation(uint32(i)); o.Last > 0 || o.Told > c.since {
			f.Observations, f.Since = append(f.Observations, o), append(f.Since, c.since)
		}
	}
	return Report{Counts: p.counts, Latencies: p.hist.Export(), Final: &f}
}
