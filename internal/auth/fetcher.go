package auth

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"sync"
	"time"
)

const (
	// minFetchInterval is the least time between fetches that unknown kids ask for.
	minFetchInterval = 10 * time.Second
	fetchTimeout     = 5 * time.Second
	retryInterval    = 15 * time.Second
	// maxFetchWaiters bounds who waits for a fetch: tokens with invented kids must not
	// fill the callers' workers. Who comes when it is full is refused at once.
	maxFetchWaiters = 16
)

// fetcher keeps the keys of a URL fresh.
type fetcher struct {
	// Static after construction.
	keys   *Keys
	kick   chan struct{} // room for one
	cancel context.CancelFunc
	ctx    context.Context
	done   sync.WaitGroup

	mu sync.Mutex
	// Guarded by mu.
	started time.Time  // of the last fetch
	round   *fetchWait // of the next or running fetch that someone asked for
	waiting int
}

type fetchWait struct {
	done chan struct{}
	err  error // valid once done is closed
}

type refreshResult int

const (
	refreshDenied refreshResult = iota // too soon, or too many wait
	refreshDone
	refreshFailed
)

func newFetcher(k *Keys) *fetcher {
	f := &fetcher{keys: k, kick: make(chan struct{}, 1)}
	f.ctx, f.cancel = context.WithCancel(context.Background())
	return f
}

func (f *fetcher) start() {
	f.done.Add(1)
	go func() {
		defer f.done.Done()
		f.run()
	}()
}

func (f *fetcher) stop() {
	f.cancel()
	f.done.Wait()
}

func (f *fetcher) run() {
	timer := time.NewTimer(spread(f.keys.cfg.Refresh))
	defer timer.Stop()
	for {
		select {
		case <-f.ctx.Done():
			return
		case <-timer.C:
		case <-f.kick:
		}
		err := f.fetch(f.ctx)
		f.settle(err)
		if f.ctx.Err() != nil {
			return
		}
		f.keys.countReload(err)
		next := f.keys.cfg.Refresh
		if err != nil {
			next = min(next, retryInterval)
		}
		timer.Reset(spread(next))
	}
}

// spread keeps a fleet from fetching all at once.
func spread(d time.Duration) time.Duration {
	return time.Duration(float64(d) * (0.9 + 0.2*rand.Float64()))
}

// fetch gets the keys once and puts them in force.
func (f *fetcher) fetch(ctx context.Context) error {
	f.mu.Lock()
	f.started = time.Now()
	f.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, fetchTimeout)
	defer cancel()
	source := f.keys.cfg.Source
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, source, nil)
	if err != nil {
		return fmt.Errorf("fetch %s: %w", source, err)
	}
	req.Header.Set("Accept", "application/jwk-set+json, application/json")
	resp, err := f.keys.cfg.HTTPClient.Do(req)
	if err != nil {
		return fmt.Errorf("fetch: %w", err) // names the URL
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("fetch %s: answered %s", source, resp.Status)
	}
	b, err := readAtMost(resp.Body, maxSourceBytes)
	if err != nil {
		return fmt.Errorf("fetch %s: %w", source, err)
	}
	s, err := parseKeys(b, false)
	if err != nil {
		return fmt.Errorf("fetch %s: the answer %w", source, err)
	}
	f.keys.install(s)
	return nil
}

// refresh waits for a fetch that starts now, or runs, unless there was one just before.
func (f *fetcher) refresh(ctx context.Context) refreshResult {
	w := f.join()
	if w == nil {
		return refreshDenied
	}
	defer f.leave()
	timeout := time.NewTimer(fetchTimeout)
	defer timeout.Stop()
	select {
	case <-w.done:
	case <-f.ctx.Done():
		return refreshDenied
	case <-ctx.Done():
		return refreshFailed
	case <-timeout.C:
		return refreshFailed
	}
	if w.err != nil && !errors.Is(w.err, context.Canceled) {
		return refreshFailed
	}
	return refreshDone
}

func (f *fetcher) join() *fetchWait {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.waiting >= maxFetchWaiters {
		return nil
	}
	if f.round == nil {
		if time.Since(f.started) < minFetchInterval {
			return nil
		}
		f.round = &fetchWait{done: make(chan struct{})}
		select {
		case f.kick <- struct{}{}:
		default: // one is on its way
		}
	}
	f.waiting++
	return f.round
}

func (f *fetcher) leave() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.waiting--
}

func (f *fetcher) settle(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.round != nil {
		f.round.err = err
		close(f.round.done)
		f.round = nil
	}
}
