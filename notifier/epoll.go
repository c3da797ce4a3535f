package notifier

import (
	"errors"
	"fmt"
	"time"

	"github.com/mailru/easygo/netpoll"
	"golang.org/x/sys/unix"
)

// poller is what we need of netpoll.Epoll.
type poller interface {
	Add(fd int, events netpoll.EpollEvent, cb func(netpoll.EpollEvent)) error
	Mod(fd int, events netpoll.EpollEvent) error
	Del(fd int) error
	Close() error
}

// watcher is what a shard needs of its epoll; the benchmark of a million slots has one that knows no descriptors.
type watcher interface {
	add(fd int32, events netpoll.EpollEvent, h handle) error
	mod(fd int32, events netpoll.EpollEvent, h handle)
	del(fd int32)
}

const (
	pollIn   = netpoll.EPOLLIN | netpoll.EPOLLRDHUP
	pollOut  = pollIn | netpoll.EPOLLOUT
	pollGone = netpoll.EPOLLHUP | netpoll.EPOLLERR
)

// readyAtOnce is how many connections are asked for in one system call.
const readyAtOnce = 128

// turn is how long those that are ready are served before a nap: a handshake takes some 50 µs.
const turn = time.Millisecond

// nap is how long a goroutine that accepts clients, or serves what they send, leaves the CPU to others when it has served
// some, however many wait. A thread is then not woken for each of the pongs of a round of pings; and under an onslaught
// events still come through, since Go looks for what the links have brought only when a goroutine has nothing to do.
const nap = time.Millisecond

// epoll watches a shard's connections. The kernel keeps a handle with each, and netpoll watches the one descriptor
// that tells whether any of them is ready: a callback and a place in netpoll's map for every connection would be two
// pointers each, through which the collector would have to go in every cycle (BenchmarkGC).
type epoll struct {
	fd    int
	outer poller

	// Owned by the outer poller's goroutine.
	ready []unix.EpollEvent
	done  time.Time // when those who were ready had been served
}

// openEpoll returns an epoll that calls back, from one goroutine, until it is closed. What is told of a handle may be
// about a connection that has gone.
func openEpoll(outer poller, event func(handle, netpoll.EpollEvent)) (*epoll, error) {
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("open epoll: %w", err)
	}
	e := &epoll{fd: fd, outer: outer, ready: make([]unix.EpollEvent, readyAtOnce)}
	if err := outer.Add(fd, netpoll.EPOLLIN, func(netpoll.EpollEvent) { e.dispatch(event) }); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("open epoll: %w", err)
	}
	return e, nil
}

// dispatch tells of those that are ready, once: the outer poller is level-triggered, and can be closed in between.
// After a quiet moment it does so at once, else after a nap.
func (e *epoll) dispatch(event func(handle, netpoll.EpollEvent)) {
	if wait := nap - time.Since(e.done); wait > 0 {
		time.Sleep(wait)
	}
	n, err := unix.EpollWait(e.fd, e.ready, 0)
	if err != nil {
		return
	}
	start := time.Now()
	e.done = start
	for i := range e.ready[:n] {
		ev := &e.ready[i]
		event(handle(uint32(ev.Fd))|handle(uint32(ev.Pad))<<32, netpoll.EpollEvent(ev.Events))
		if e.done = time.Now(); e.done.Sub(start) > turn {
			return // the kernel tells of the others again, before those that have had their turn
		}
	}
}

func (e *epoll) control(op int, fd int32, events netpoll.EpollEvent, h handle) error {
	return unix.EpollCtl(e.fd, op, int(fd), &unix.EpollEvent{Events: uint32(events), Fd: int32(h), Pad: int32(h >> 32)})
}

func (e *epoll) add(fd int32, events netpoll.EpollEvent, h handle) error {
	return e.control(unix.EPOLL_CTL_ADD, fd, events, h)
}

// mod and del can fail only for a descriptor that could not be added; that connection ends anyway.
func (e *epoll) mod(fd int32, events netpoll.EpollEvent, h handle) {
	_ = e.control(unix.EPOLL_CTL_MOD, fd, events, h)
}

func (e *epoll) del(fd int32) { _ = e.control(unix.EPOLL_CTL_DEL, fd, 0, 0) }

// close ends the outer poller as well.
func (e *epoll) close() error { return errors.Join(e.outer.Close(), unix.Close(e.fd)) }

// polls are a notifier's pollers: an epoll for each shard, and netpoll's own for the acceptor.
type polls struct {
	shards   []*epoll
	acceptor poller
}

// open gives each shard an epoll, in order.
func (p *polls) open(shards []*shard, onError func(error)) error {
	for _, sh := range shards {
		outer, err := netpoll.EpollCreate(&netpoll.EpollConfig{OnWaitError: onError})
		if err != nil {
			return fmt.Errorf("open epoll: %w", err)
		}
		e, err := openEpoll(outer, sh.event)
		if err != nil {
			return errors.Join(err, outer.Close())
		}
		p.shards = append(p.shards, e)
		sh.poll = e
	}
	return nil
}

func (p *polls) close() error {
	var errs []error
	for _, e := range p.shards {
		errs = append(errs, e.close())
	}
	if p.acceptor != nil {
		errs = append(errs, p.acceptor.Close())
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("close epoll: %w", err)
	}
	return nil
}
