package roundcube

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"time"

	"github.com/mailbell/mailbell/bench/cputime"
	"github.com/mailbell/mailbell/schema"
)

// measure takes the side's figures, with mail and without.
func (s *side) measure(ctx context.Context, r *Result) error {
	if s.push {
		r.MailbellIdleCores = s.idleCores
		if err := s.measureKeepAlive(ctx, r); err != nil {
			return err
		}
	} else if err := s.measureDelivery(ctx, r); err != nil {
		return err
	}
	for _, of := range []struct {
		pair            *Pair
		rate, elsewhere float64
	}{{&r.Busy, s.cfg.ChangeRate, 0}, {&r.Mixed, s.cfg.ChangeRate, mixedElsewhere}, {&r.Idle, 0, 0}} {
		if s.push && of.pair == &r.Idle {
			if err := s.signIn(ctx, s.cfg.IdlePushUsers); err != nil {
				return err
			}
		}
		f, err := s.hours(ctx, of.rate, of.elsewhere, r.DeliveryCPUMs)
		if err != nil {
			return err
		}
		if s.push {
			of.pair.Push = f
		} else {
			of.pair.Poll = f
		}
	}
	return nil
}

// measureDelivery delivers to users whose pages don't ask.
func (s *side) measureDelivery(ctx context.Context, r *Result) error {
	seconds, err := cputime.PerCall(s.roots["dovecot"], deliveries, func(i int) error {
		u := s.users[i%len(s.users)]
		u.changes()
		return s.deliver(ctx, u.name)
	})
	if err != nil {
		return err
	}
	r.DeliveryCPUMs = 1000 * seconds
	for _, u := range s.users {
		u.forget()
		if err := u.ask(ctx, "refresh"); err != nil { // the next one has nothing to catch up with
			return err
		}
	}
	return nil
}

// measureIdling measures what mailbell uses while nobody is connected.
func (s *side) measureIdling(ctx context.Context) error {
	before, err := treeCPU(s.roots["mailbell"])
	if err != nil {
		return err
	}
	if err := sleep(ctx, idleTime); err != nil {
		return err
	}
	after, err := treeCPU(s.roots["mailbell"])
	if err != nil {
		return err
	}
	s.idleCores = (after - before) / idleTime.Seconds()
	return nil
}

// measureKeepAlive measures what one keep-alive costs, by which other lifetimes of a session are reckoned.
func (s *side) measureKeepAlive(ctx context.Context, r *Result) error {
	before, err := s.cpu()
	if err != nil {
		return err
	}
	for i := range keepAlives {
		if err := s.users[i%len(s.users)].ask(ctx, "keep-alive"); err != nil {
			return err
		}
	}
	after, err := s.cpu()
	if err != nil {
		return err
	}
	r.KeepAliveCPUMs = 1000 * (after["php-fpm"] + after["nginx"] - before["php-fpm"] - before["nginx"]) / keepAlives
	return nil
}

// socketBytes returns what went over the pages' sockets so far: frames and the handshake, as nginx sees them.
func (s *side) socketBytes() (in, out int64, err error) {
	for _, u := range s.users {
		if u.traffic == nil {
			continue
		}
		sent, received, err := u.traffic()
		if err != nil {
			return 0, 0, fmt.Errorf("socket of %s: %w", u.name, err)
		}
		in, out = in+sent, out+received
	}
	return in, out, nil
}

// hours lets the users be for the span, and measures. Of their changes a part is elsewhere.
func (s *side) hours(ctx context.Context, rate, elsewhere, deliveryMs float64) (Figures, error) {
	s.cfg.Say("%s: %v with %g changes a user-hour, %.0f %% of them elsewhere", s.name(), s.cfg.Span, rate, 100*elsewhere)
	s.failures = failures{}
	before, err := s.cpu()
	if err != nil {
		return Figures{}, err
	}
	in, out, err := s.socketBytes()
	if err != nil {
		return Figures{}, err
	}
	start := time.Now()
	s.elsewhere.Store(0)
	s.drive(ctx, rate, elsewhere)
	if ctx.Err() != nil {
		return Figures{}, ctx.Err()
	}
	took := time.Since(start)
	after, err := s.cpu()
	if err != nil {
		return Figures{}, err
	}
	f := Figures{ByProcess: make(map[string]float64), RequestsByAction: make(map[string]int), Failed: s.failures.count, Elsewhere: int(s.elsewhere.Load())}
	s.book(&f)
	if f.SocketBytesIn, f.SocketBytesOut, err = s.socketBytes(); err != nil {
		return f, err
	}
	f.SocketBytesIn, f.SocketBytesOut = f.SocketBytesIn-in, f.SocketBytesOut-out
	for name := range after {
		used := after[name] - before[name]
		switch name {
		case "mailbell":
			used -= s.idleCores * took.Seconds()
		case "dovecot":
			used -= deliveryMs / 1000 * float64(f.Changes+f.Elsewhere)
		}
		f.ByProcess[name] = used
		f.CPUSeconds += used
	}
	f.CPUMsPerUserHour = 1000 * f.CPUSeconds / float64(len(s.users)) / s.cfg.Span.Hours()
	requests, err := s.web.Requests(start)
	if err != nil {
		return f, err
	}
	for _, q := range requests {
		if !q.Dynamic() {
			continue
		}
		f.Requests++
		f.RequestsByAction[q.Action]++
		f.BytesIn += q.Received
		f.BytesOut += q.Sent
	}
	if s.failures.first != nil {
		s.cfg.Say("%s: %d requests failed, the first: %v", s.name(), s.failures.count, s.failures.first)
	}
	return f, nil
}

// book adds how long users waited to know, in their own time.
func (s *side) book(f *Figures) {
	told, sum := 0, 0.0
	for _, u := range s.users {
		for _, k := range u.forget() {
			f.Changes++
			if k.shown.IsZero() {
				f.Unseen++
				continue
			}
			took := k.shown.Sub(k.at).Seconds()
			if s.push {
				// Only the plugin's own half second was squeezed.
				took += window.Seconds() - s.cfg.real(window).Seconds()
			} else {
				took *= s.cfg.Squeeze
			}
			told++
			sum += took
			f.SecondsToKnowWorst = max(f.SecondsToKnowWorst, took)
		}
	}
	if told > 0 {
		f.SecondsToKnowMean = sum / float64(told)
	}
}

// drive delivers mail and asks what the pages ask, until the span is over and what was begun has ended.
func (s *side) drive(ctx context.Context, rate, elsewhere float64) {
	ctx, cancel := context.WithTimeout(ctx, s.cfg.real(s.cfg.Span))
	defer cancel()
	var all sync.WaitGroup
	for i, u := range s.users {
		phase := (float64(i) + 0.5) / float64(len(s.users))
		if s.push {
			all.Go(func() { s.every(ctx, u, "refresh", s.cfg.SlowRefresh, phase) })
			all.Go(func() { s.every(ctx, u, "keep-alive", time.Duration(keepAlive*float64(s.cfg.SessionLifetime)), phase) })
		} else {
			all.Go(func() { s.every(ctx, u, "refresh", s.cfg.Interval, phase) })
		}
		all.Go(func() { s.receive(ctx, u, rate, elsewhere, rand.New(rand.NewPCG(s.cfg.Seed, uint64(i)))) })
	}
	all.Wait()
}

// every asks in an interval of users' time, the first time after a part of it. A request that was begun ends.
func (s *side) every(ctx context.Context, u *user, action string, interval time.Duration, phase float64) {
	next := time.Now().Add(time.Duration(phase * float64(s.cfg.real(interval))))
	for sleep(ctx, time.Until(next)) == nil {
		if err := u.ask(context.WithoutCancel(ctx), action); err != nil {
			s.failures.add(err)
		}
		next = next.Add(s.cfg.real(interval))
	}
}

// receive delivers a user's messages: a Poisson process. The last twentieth of the span is left for pages to show them.
// Those that come into another folder than the open one are not booked: the page has nothing to fetch.
func (s *side) receive(ctx context.Context, u *user, rate, elsewhere float64, random *rand.Rand) {
	end := time.Now().Add(s.cfg.real(s.cfg.Span * 19 / 20))
	for rate > 0 {
		gap := time.Duration(random.ExpFloat64() / rate * float64(time.Hour))
		next := time.Now().Add(s.cfg.real(gap))
		if next.After(end) || sleep(ctx, time.Until(next)) != nil {
			return
		}
		to := u.name
		if random.Float64() < elsewhere {
			to = strings.Replace(to, "@", "+"+otherFolder+"@", 1)
			s.elsewhere.Add(1)
		} else {
			u.changes()
		}
		if err := s.deliver(context.WithoutCancel(ctx), to); err != nil {
			s.failures.add(fmt.Errorf("deliver: %w", err))
		}
	}
}

// listen opens a user's socket. Each event of the open folder makes a request after the plugin's half second, and several
// one; another folder's count comes with the event.
func (s *side) listen(ctx context.Context, u *user) error {
	ring := make(chan struct{}, 1)
	closeSocket, err := u.listen(ctx, func(event []byte) {
		if mailbox, _ := schema.EventMailboxes(event); mailbox != openFolder {
			return
		}
		select {
		case ring <- struct{}{}:
		default: // the request that is about to go out covers this one
		}
	})
	if err != nil {
		return err
	}
	following, cancel := context.WithCancel(context.WithoutCancel(ctx))
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.follow(following, u, ring)
	}()
	s.sockets = append(s.sockets, func() {
		closeSocket()
		cancel()
		<-done
	})
	return nil
}

func (s *side) follow(ctx context.Context, u *user, ring <-chan struct{}) {
	for {
		select {
		case <-ring:
		case <-ctx.Done():
			return
		}
		if sleep(ctx, s.cfg.real(window)) != nil {
			return
		}
		select {
		case <-ring:
		default:
		}
		if err := u.ask(context.WithoutCancel(ctx), "check-recent"); err != nil {
			s.failures.add(err)
		}
	}
}

func sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
