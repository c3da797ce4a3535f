package bench

import (
	"context"
	"errors"
	"time"

	"github.com/mailbell/mailbell/bench/schedule"
)

// outage kills every server, lets the mail store go on for a while, starts them again, and watches.
func (s *side) outage(ctx context.Context) error {
	if s.cfg.Outage == 0 {
		return nil
	}
	recovery := max(5*time.Second, 2*s.cfg.Interval)
	changes := schedule.Changes(s.cfg.outageSchedule(s.cfg.Outage + recovery))
	start := time.Now()
	s.series.enter("outage")
	s.say("all servers are down for %v", s.cfg.Outage)
	before := s.clients.now()
	if s.site != nil {
		s.site.kill()
	}
	s.webmail.kill()
	s.setUp(s.servers()) // what was not killed
	done := make(chan error, 1)
	go func() { done <- s.driver.run(ctx, changes, start) }() // awaited below
	err := s.clients.recount(ctx)
	if err == nil {
		err = sleep(ctx, time.Until(start.Add(s.cfg.Outage)))
	}
	if err == nil {
		err = s.recover(ctx, start, before, recovery)
	}
	return errors.Join(err, <-done)
}

// restart starts the servers again.
func (s *side) restart(ctx context.Context) error {
	if err := s.webmail.start(ctx); err != nil {
		return err
	}
	if s.site != nil {
		return s.site.restart(ctx)
	}
	return nil
}

func (s *side) recover(ctx context.Context, start time.Time, before totals, recovery time.Duration) error {
	s.series.enter("recovery")
	down, err := s.reading(ctx, false) // of what was never killed: Dovecot
	if err != nil {
		return err
	}
	restarted := time.Now()
	if err := s.restart(ctx); err != nil {
		return err
	}
	back := time.Now()
	s.setUp(s.servers())
	s.say("servers are back after %.1f s of starting", back.Sub(restarted).Seconds())
	o := &CompareOutage{Seconds: significant(back.Sub(start).Seconds(), 4)}
	s.result.Outage = o
	if err := s.watchRecovery(ctx, o, back, start.Add(s.cfg.Outage+recovery)); err != nil {
		return err
	}
	end := time.Now()
	after, err := s.reading(ctx, false)
	if err != nil {
		return err
	}
	used, _ := cpuBetween(down, after)
	o.CPUSeconds = roundCPU(used.Sum())
	now := after.totals
	o.BytesIn, o.BytesOut, o.Failed = now.bytesOut()-before.bytesOut(), now.bytesIn()-before.bytesIn(), now.failed()-before.failed()
	if err := s.settle(ctx, end); err != nil {
		return err
	}
	sorted, made, lost := s.books.delays(start, end, false)
	o.Changes, o.Lost, o.LatencyMs = made, lost, latencyOf(sorted)
	o.PeakRequests, o.PeakCores = s.series.peaks("recovery")
	return nil
}

// watchRecovery books when everybody is served again and when everybody knows of what changed in the outage. It lasts at least to a
// moment, and then until both have come or have had their time.
func (s *side) watchRecovery(ctx context.Context, o *CompareOutage, back, atLeast time.Time) error {
	watch, cancel := context.WithDeadline(ctx, atLeast.Add(settleTimeout+2*s.cfg.Interval))
	defer cancel()
	err := s.clients.until(watch, func(t totals) bool {
		after := float64(time.Since(back).Milliseconds())
		if o.EveryoneBackMs == nil && s.everyoneBack(t) {
			o.EveryoneBackMs = &after
		}
		if o.CaughtUpMs == nil && s.books.behind(back) == 0 {
			o.CaughtUpMs = &after
		}
		return o.EveryoneBackMs != nil && o.CaughtUpMs != nil && time.Now().After(atLeast)
	})
	o.WatchedSeconds = significant(time.Since(back).Seconds(), 4)
	if errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil {
		return nil // what has not come is null
	}
	return err
}

// everyoneBack tells whether all users are served again: have had an answer since the servers were killed, or hold a subscribed socket.
func (s *side) everyoneBack(t totals) bool {
	if s.kind == pushing {
		return t.push.Live >= s.cfg.Users
	}
	return t.polls.Users >= s.cfg.Users
}
