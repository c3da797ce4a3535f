package notifier

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"github.com/mailru/easygo/netpoll"
	"golang.org/x/sys/unix"
)

// shedEvery is how often half-open connections are given up at most, to let others in.
const shedEvery = 20 * time.Millisecond

// Why the notifier does not accept just now; a metric's label.
const (
	pauseRate       = "rate"
	pauseHandshakes = "handshakes"
	pauseFull       = "connections"
	pauseWorkers    = "workers"
	pauseFiles      = "files"
)

// overflow is how many connections beyond MaxConnections are accepted so that they can be told 503.
const overflow = 64

// admission decides when a connection may be accepted. What it does not let in waits in the kernel's queue,
// or goes to the next node.
type admission struct {
	// Static after construction.
	limits Limits
	late   func() bool // the workers have no room

	changed    chan struct{} // something has been given back
	handshakes atomic.Int64
	sockets    atomic.Int64
	free       atomic.Int64 // accepts a second beside those that come now, as last told to the bus
	turn       atomic.Int64 // of the last one turned away, in µs of Unix time: when there is room for it

	// Owned by the acceptor: the token bucket, as the moment from which on a connection would
	// have been due with an empty one.
	due time.Time
}

func newAdmission(l Limits, late func() bool) *admission {
	a := &admission{limits: l, late: late, changed: make(chan struct{}, 1)}
	a.free.Store(int64(l.AcceptRate))
	return a
}

// ask returns why a connection may not be accepted at now and when to ask again at the latest, or an empty reason.
func (a *admission) ask(now time.Time) (reason string, wait time.Duration) {
	step := time.Second / time.Duration(a.limits.AcceptRate)
	burst := max(time.Duration(max(1, a.limits.AcceptRate/4))*step, step)
	if floor := now.Add(-burst); a.due.Before(floor) {
		a.due = floor
	}
	switch {
	case a.late():
		return pauseWorkers, lateAfter
	case a.handshakes.Load() >= int64(a.limits.MaxHandshakes):
		return pauseHandshakes, time.Second
	case a.sockets.Load() >= int64(a.limits.MaxConnections)+overflow:
		return pauseFull, time.Second
	case a.due.After(now.Add(-step)):
		return pauseRate, a.due.Sub(now.Add(-step))
	}
	return "", 0
}

func (a *admission) accepted() {
	a.due = a.due.Add(time.Second / time.Duration(a.limits.AcceptRate))
	a.handshakes.Add(1)
	a.sockets.Add(1)
}

// ease is how much of the room for handshakes is free, from 0 to 1.
func (a *admission) ease() float64 {
	return max(0, 1-float64(a.handshakes.Load())/float64(a.limits.MaxHandshakes))
}

// longestRetry is what somebody who is turned away is told to wait at most, in seconds.
const longestRetry = 60

// answer is the whole answer to who is turned away. With a 503 each is told to come back when those before would be
// back, at the rate at which this node has room: then they don't all come at once, here or at the gateway.
func (a *admission) answer(r *refusal) []byte {
	if r.status != http.StatusServiceUnavailable {
		return r.response(r.retry)
	}
	return r.response(min(r.retry+a.takeTurn(time.Now()), longestRetry))
}

// takeTurn puts one more in line, and returns the seconds until its turn.
func (a *admission) takeTurn(now time.Time) int {
	step := time.Second.Microseconds() / a.free.Load()
	for {
		last := a.turn.Load()
		next := max(last, now.UnixMicro()) + step
		if a.turn.CompareAndSwap(last, next) {
			return int((next - now.UnixMicro()) / time.Second.Microseconds())
		}
	}
}

// done is the end of a handshake, closed that of a socket.
func (a *admission) done() {
	if a.handshakes.Add(-1) == int64(a.limits.MaxHandshakes)-1 {
		a.tell()
	}
}

func (a *admission) closed() {
	if a.sockets.Add(-1) == int64(a.limits.MaxConnections)+overflow-1 {
		a.tell()
	}
}

func (a *admission) tell() {
	select {
	case a.changed <- struct{}{}:
	default:
	}
}

// acceptor owns the listening descriptor. The poller tells once that somebody has come; it is asked
// again only when all have been accepted, so that neither a full house nor a lack of descriptors spins.
type acceptor struct {
	*shared
	// Static after construction.
	addr   net.Addr
	poll   poller
	shards []*shard
	ready  chan struct{}

	// Owned by run.
	next int // shard
	shed time.Time

	mu sync.Mutex
	// Guarded by mu.
	fd int // -1 when closed
}

// listen opens the clients' port. The options of the listening socket are inherited by each
// accepted one, which saves system calls.
func listen(cfg Config) (fd int, addr net.Addr, err error) {
	lc := net.ListenConfig{}
	lc.SetMultipathTCP(false)
	l, err := lc.Listen(context.Background(), "tcp", cfg.Addr)
	if err != nil {
		return -1, nil, fmt.Errorf("listen for sockets: %w", err)
	}
	defer l.Close()
	raw, err := l.(*net.TCPListener).SyscallConn()
	if err != nil {
		return -1, nil, fmt.Errorf("listen for sockets: %w", err)
	}
	fd = -1
	controlErr := raw.Control(func(orig uintptr) {
		if fd, err = unix.FcntlInt(orig, unix.F_DUPFD_CLOEXEC, 0); err == nil {
			err = setOptions(fd, cfg)
		}
	})
	if err = errors.Join(controlErr, err); err != nil {
		if fd >= 0 {
			unix.Close(fd)
		}
		return -1, nil, fmt.Errorf("listen for sockets: %w", err)
	}
	return fd, l.Addr(), nil
}

// TCP's keepalive, for peers that have gone without a word while pings are off or seldom: a probe after so long without any
// packet, and the connection's end when none of three was answered.
const (
	keepIdle     = 2 * time.Minute
	keepInterval = 30 * time.Second
	keepProbes   = 3
)

// userTimeout is how long what was sent may wait for the peer's acknowledgement (RFC 5482). Linux also ends a connection
// by it that has been silent for as long and has one probe unanswered, however many are to be sent: it must not be shorter
// than they take together, or one lost packet would be the end of a sleeping client.
func userTimeout(cfg Config) time.Duration {
	return max(cfg.WriteTimeout, keepIdle+keepProbes*keepInterval)
}

// notSent is how many bytes a client that does not read may have waiting in the kernel, beyond what is on its way to it: by
// itself the kernel keeps 2.5 MB and more for each, which no limit here counts. It is the longest event's size.
const notSent = 64 << 10

func setOptions(fd int, cfg Config) error {
	options := []struct{ level, name, value int }{
		{unix.IPPROTO_TCP, unix.TCP_NODELAY, 1},
		{unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1},
		{unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, int(keepIdle / time.Second)},
		{unix.IPPROTO_TCP, unix.TCP_KEEPINTVL, int(keepInterval / time.Second)},
		{unix.IPPROTO_TCP, unix.TCP_KEEPCNT, keepProbes},
		{unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(userTimeout(cfg) / time.Millisecond)},
		{unix.IPPROTO_TCP, unix.TCP_NOTSENT_LOWAT, notSent},
	}
	for _, o := range options {
		if err := unix.SetsockoptInt(fd, o.level, o.name, o.value); err != nil {
			return fmt.Errorf("set socket option %d: %w", o.name, err)
		}
	}
	return nil
}

// run accepts until ctx ends.
func (a *acceptor) run(ctx context.Context) error {
	if err := a.register(); err != nil {
		return err
	}
	defer a.close()
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-a.ready:
		}
		for {
			reason, wait := a.acceptSome()
			if wait == 0 {
				break
			}
			if reason != "" {
				a.metrics.pauses.WithLabelValues(reason).Inc()
			}
			if reason == pauseHandshakes {
				if wait = a.makeRoom(); wait == 0 {
					continue
				}
			}
			timer.Reset(wait)
			select {
			case <-ctx.Done():
				return nil
			case <-timer.C:
			case <-a.admit.changed:
			}
		}
		a.rearm()
	}
}

// makeRoom gives up the half-open connections that have been silent for longest, or returns when to ask again: who
// connects and says nothing must not keep out who has something to say.
func (a *acceptor) makeRoom() (wait time.Duration) {
	if since := time.Since(a.shed); since < shedEvery {
		return shedEvery - since
	}
	a.shed = time.Now()
	shed := 0
	for _, sh := range a.shards {
		shed += sh.shed()
	}
	if shed == 0 {
		return shedEvery
	}
	return 0
}

// register asks the poller for the listening descriptor, unless a Drain has closed it already.
func (a *acceptor) register() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.fd < 0 {
		return nil
	}
	err := a.poll.Add(a.fd, netpoll.EPOLLIN|netpoll.EPOLLONESHOT, func(netpoll.EpollEvent) {
		select {
		case a.ready <- struct{}{}:
		default:
		}
	})
	if err != nil {
		return fmt.Errorf("accept: %w", err)
	}
	return nil
}

// acceptsAtOnce is how many connections are accepted before a nap.
const acceptsAtOnce = 64

// acceptSome accepts those that wait, and returns when to go on if there may be more, and why if it had to stop.
func (a *acceptor) acceptSome() (reason string, wait time.Duration) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.fd < 0 {
		return "", 0
	}
	for range acceptsAtOnce {
		if reason, wait := a.admit.ask(time.Now()); reason != "" {
			return reason, wait
		}
		fd, addr, err := accept(a.fd)
		switch err {
		case nil:
			a.take(fd, addr)
		case unix.EAGAIN:
			return "", 0
		case unix.EMFILE, unix.ENFILE, unix.ENOBUFS, unix.ENOMEM:
			return pauseFiles, 100 * time.Millisecond
		case unix.EINTR, unix.ECONNABORTED, unix.EPROTO:
		default:
			return pauseFiles, 100 * time.Millisecond
		}
	}
	return "", nap
}

// take gives an accepted descriptor to a shard.
func (a *acceptor) take(fd int, peer netip.Addr) {
	a.metrics.accepts.Inc()
	a.admit.accepted()
	limit, flags := max(0, a.cfg.MaxPerAddress), uint8(0)
	if a.cfg.trusts(peer) {
		limit, flags = 0, flagProxied // its clients' addresses count, not its own
	}
	addr, ok := a.addrs.hold(addressName(peer), limit)
	if !ok {
		addr, _ = a.addrs.hold(turnedAway, 0)
		a.shards[a.next].adopt(fd, addr, 0, refuseAddress)
	} else {
		a.shards[a.next].adopt(fd, addr, flags, nil)
	}
	a.next = (a.next + 1) % len(a.shards)
}

func (a *acceptor) rearm() {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.fd >= 0 {
		a.poll.Mod(a.fd, netpoll.EPOLLIN|netpoll.EPOLLONESHOT)
	}
}

// setPoll gives the acceptor its poller, after every shard has its own: a Drain at any moment, also
// before Run, finds all of them or none.
func (a *acceptor) setPoll(p poller) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.poll = p
}

// close stops accepting for good.
func (a *acceptor) close() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.shut()
}

// shut is close for who holds mu.
func (a *acceptor) shut() {
	if a.fd < 0 {
		return
	}
	if a.poll != nil {
		a.poll.Del(a.fd)
	}
	unix.Close(a.fd)
	a.fd = -1
}

// turnedAway counts who is over the limit of an address, until it has read that.
const turnedAway = "\x01"

// accept takes one connection from the kernel's queue.
func accept(listener int) (fd int, peer netip.Addr, err error) {
	var sa unix.RawSockaddrAny
	size := uint32(unsafe.Sizeof(sa))
	n, _, e := unix.RawSyscall6(unix.SYS_ACCEPT4, uintptr(listener), uintptr(unsafe.Pointer(&sa)), uintptr(unsafe.Pointer(&size)), unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0, 0)
	if e != 0 {
		return -1, netip.Addr{}, e
	}
	switch sa.Addr.Family {
	case unix.AF_INET:
		v4 := (*unix.RawSockaddrInet4)(unsafe.Pointer(&sa))
		return int(n), netip.AddrFrom4(v4.Addr), nil
	case unix.AF_INET6:
		v6 := (*unix.RawSockaddrInet6)(unsafe.Pointer(&sa))
		return int(n), netip.AddrFrom16(v6.Addr).Unmap(), nil
	}
	return int(n), netip.Addr{}, nil
}

// addressName is the name by which an address's connections are counted: 4 bytes of IPv4, or the first 8
// of IPv6, since whoever has one has the whole /64.
func addressName(a netip.Addr) string {
	switch {
	case a.Is4():
		v4 := a.As4()
		return string(v4[:])
	case a.Is6():
		v6 := a.As16()
		return string(v6[:8])
	}
	return "\x00" // a peer without an address
}
