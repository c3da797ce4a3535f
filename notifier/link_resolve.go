package notifier

import (
	"context"
	"math/rand/v2"
	"net"
	"sync"
	"time"
)

// target is one bus node's address; host is what its certificate must name.
type target struct{ addr, host string }

func jitter(d time.Duration) time.Duration { return time.Duration(rand.Int64N(int64(d) + 1)) }

// run keeps a link to every address that the configured names stand for, and asks for these again
// and again. An address that is gone is left after a while of not being answered for.
func (l *linker) run(ctx context.Context) {
	var wg sync.WaitGroup
	defer wg.Wait()
	running := make(map[target]*linkTo)
	ticker := time.NewTicker(l.cfg.Resolve)
	defer ticker.Stop()
	for {
		now := l.resolve(ctx)
		for t := range now {
			if running[t] == nil {
				sub, cancel := context.WithCancel(ctx)
				running[t] = &linkTo{stop: cancel}
				wg.Go(func() { l.keep(sub, t) })
			}
			running[t].absent = 0
		}
		for t, r := range running {
			if now[t] {
				continue
			}
			// A name server that stumbles must not cost the links.
			if r.absent++; r.absent > absentLimit {
				r.stop()
				delete(running, t)
			}
		}
		select {
		case <-ctx.Done():
			for _, r := range running {
				r.stop()
			}
			return
		case <-ticker.C:
		}
	}
}

type linkTo struct {
	stop   context.CancelFunc
	absent int // answers in a row that did not name it
}

const absentLimit = 6

// resolve returns all addresses of the configured names.
func (l *linker) resolve(ctx context.Context) map[target]bool {
	all := make(map[target]bool)
	ctx, cancel := context.WithTimeout(ctx, l.cfg.Resolve)
	defer cancel()
	for _, b := range l.cfg.Bus {
		host, port, err := net.SplitHostPort(b)
		if err != nil {
			continue // Validate has refused it
		}
		if net.ParseIP(host) != nil {
			all[target{addr: b, host: host}] = true
			continue
		}
		ips, err := net.DefaultResolver.LookupHost(ctx, host)
		if err != nil {
			l.cfg.Logger.Warn("a bus node's name can't be resolved", "name", host, "error", err)
		}
		for _, ip := range ips {
			all[target{addr: net.JoinHostPort(ip, port), host: host}] = true
		}
	}
	return all
}
