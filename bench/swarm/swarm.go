package swarm

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"net/url"
	"strconv"
	"sync"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
	"golang.org/x/sys/unix"

	"github.com/mailbell/mailbell/bench/ledger"
	"github.com/mailbell/mailbell/schema"
)

// Swarm is the connections of one process. Run owns everything but what mu guards.
type Swarm struct {
	// Static after New.
	cfg     Config
	source  unix.Sockaddr
	epoll   int
	wake    int // eventfd: a lookup is answered, or the swarm is told to stop
	lookups chan int
	answers chan answer
	onNews  func(conn int, account, seq uint32, at time.Time) // nil: nobody listens

	// Owned by Run.
	minter  *Minter // nil with gateways
	conns   []conn
	byFD    map[int32]int32
	partial map[int32][]byte
	planned map[int]string // by connection: where it goes when its turn has come
	buf     []byte
	out     []byte
	waiting []int32 // connections to bring up, in order
	next    time.Time
	upNow   int
	start   time.Time
	swept   time.Time
	late    []Late

	mu     sync.Mutex // guards the rest, for Snapshot
	counts Counts
	hist   *hdrhistogram.Histogram // microseconds from publish to here
}

type answer struct {
	conn   int
	url    string
	wait   time.Duration
	failed string
}

// New checks the configuration and makes what Run needs.
func New(cfg Config) (*Swarm, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	s := &Swarm{
		cfg: cfg, conns: make([]conn, cfg.Connections), byFD: make(map[int32]int32, cfg.Connections),
		partial: make(map[int32][]byte), planned: make(map[int]string), buf: make([]byte, 256<<10),
		lookups: make(chan int, cfg.pending()), answers: make(chan answer, cfg.pending()),
		hist: hdrhistogram.New(1, 600_000_000, 2),
	}
	for i := range s.conns {
		s.conns[i] = conn{fd: -1, observer: ledger.NewObserver(), since: -1}
		s.waiting = append(s.waiting, int32(i))
	}
	if cfg.SourceIP != "" {
		ip, err := netip.ParseAddr(cfg.SourceIP)
		if err != nil || !ip.Is4() || !ip.IsLoopback() {
			return nil, fmt.Errorf("swarm: source address %q is not an IPv4 loopback address", cfg.SourceIP)
		}
		s.source = &unix.SockaddrInet4{Addr: ip.As4()}
	}
	var err error
	if cfg.KeyFile != "" {
		if s.minter, err = NewMinter(cfg.KeyFile); err != nil {
			return nil, fmt.Errorf("swarm: %w", err)
		}
	}
	if s.epoll, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
		return nil, fmt.Errorf("swarm: epoll: %w", err)
	}
	if s.wake, err = unix.Eventfd(0, unix.EFD_NONBLOCK|unix.EFD_CLOEXEC); err != nil {
		unix.Close(s.epoll)
		return nil, fmt.Errorf("swarm: eventfd: %w", err)
	}
	if err := unix.EpollCtl(s.epoll, unix.EPOLL_CTL_ADD, s.wake, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(s.wake)}); err != nil {
		return nil, fmt.Errorf("swarm: epoll: %w", err)
	}
	return s, nil
}

// OnNews has fn called for each event that arrives first, with its sequence number, and with 0 when a client has to ask
// the store because it was told nothing better. Call it before Run, which calls fn and waits for it.
func (s *Swarm) OnNews(fn func(conn int, account, seq uint32, at time.Time)) { s.onNews = fn }

func (s *Swarm) news(conn int, seq uint32, at time.Time) {
	if s.onNews != nil {
		s.onNews(conn, s.cfg.account(conn), seq, at)
	}
}

// Snapshot returns the counts and the latencies so far, in microseconds. It may be called while Run runs.
func (s *Swarm) Snapshot() (Counts, *hdrhistogram.Snapshot) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.snapshot()
}

func (s *Swarm) snapshot() (Counts, *hdrhistogram.Snapshot) {
	c := s.counts
	c.CatchUp, c.Failures = cloneMap(c.CatchUp), cloneMap(c.Failures)
	return c, s.hist.Export()
}

// takeLatencies is Snapshot, and forgets the latencies.
func (s *Swarm) takeLatencies() (Counts, *hdrhistogram.Snapshot) {
	s.mu.Lock()
	defer s.mu.Unlock()
	counts, hist := s.snapshot()
	s.hist.Reset()
	return counts, hist
}

func cloneMap(m map[string]int) map[string]int {
	c := make(map[string]int, len(m))
	for k, v := range m {
		c[k] = v
	}
	return c
}

// Observations returns what each connection saw, with the offset at which it first subscribed. Call it
// after Run has returned.
func (s *Swarm) Observations() (observations []ledger.Observation, since []int64) {
	for i := range s.conns {
		observations = append(observations, s.conns[i].observer.Observation(s.cfg.account(i)))
		since = append(since, s.conns[i].since)
	}
	return observations, since
}

// Late returns the events that took longer than Config.LateMs, at most 262,144. Call it after Run has returned.
func (s *Swarm) Late() []Late { return s.late }

// Run connects and listens until ctx ends, then closes every connection.
func (s *Swarm) Run(ctx context.Context) error {
	var workers sync.WaitGroup
	defer func() {
		close(s.lookups)
		workers.Wait()
		for i := range s.conns {
			s.hangUp(&s.conns[i])
		}
		unix.Close(s.wake)
		unix.Close(s.epoll)
	}()
	if len(s.cfg.Gateways) > 0 {
		g := newGateway(s.cfg)
		for range 8 {
			workers.Go(func() {
				for i := range s.lookups {
					s.answers <- g.lookUp(ctx, i, s.cfg.account(i))
					s.rouse()
				}
			})
		}
	}
	stop := context.AfterFunc(ctx, s.rouse)
	defer stop()
	s.start = time.Now()
	s.next = s.start
	events := make([]unix.EpollEvent, 1024)
	for ctx.Err() == nil {
		timeout := s.bringUp()
		n, err := unix.EpollWait(s.epoll, events, timeout)
		if err != nil && err != unix.EINTR {
			return fmt.Errorf("swarm: epoll wait: %w", err)
		}
		s.mu.Lock()
		for _, ev := range events[:max(n, 0)] {
			if ev.Fd == int32(s.wake) {
				var b [8]byte
				_, _ = unix.Read(s.wake, b[:])
				continue
			}
			if i, ok := s.byFD[ev.Fd]; ok {
				s.ready(int(i), ev.Events)
			}
		}
		s.mu.Unlock()
	}
	return nil
}

func (s *Swarm) rouse() { _, _ = unix.Write(s.wake, []byte{1, 0, 0, 0, 0, 0, 0, 0}) }

// bringUp starts what may start now and returns how long, in milliseconds, epoll may wait.
func (s *Swarm) bringUp() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	s.sweep(now)
	for {
		select {
		case a := <-s.answers:
			s.looked(a, now)
			continue
		default:
		}
		break
	}
	waiting := s.waiting
	s.waiting = nil // begin may put back what fails at once
	kept := waiting[:0]
	wait := 500 * time.Millisecond
	for k, i := range waiting {
		c := &s.conns[i]
		if s.upNow >= s.cfg.pending() {
			kept = rest(kept, waiting, k)
			break
		}
		if s.cfg.PerSecond > 0 && now.Before(s.next) {
			wait = min(wait, s.next.Sub(now))
			kept = rest(kept, waiting, k)
			break
		}
		if c.deadline > now.UnixNano() { // backs off
			wait = min(wait, time.Duration(c.deadline-now.UnixNano()))
			kept = append(kept, i)
			continue
		}
		if s.cfg.PerSecond > 0 {
			s.next = s.next.Add(time.Duration(float64(time.Second) / s.cfg.PerSecond))
			if now.Sub(s.next) > time.Second { // no burst after a pause
				s.next = now
			}
		}
		s.begin(int(i), now)
	}
	s.waiting = append(kept, s.waiting...)
	return int(wait/time.Millisecond) + 1
}

// rest is kept with what follows from k on, in place and without copying a long line where that can be helped.
func rest(kept, waiting []int32, k int) []int32 {
	switch len(kept) {
	case 0:
		return waiting[k:]
	case k:
		return waiting
	}
	return append(kept, waiting[k:]...)
}

// begin brings one connection up: by the gateway, or straight to a target with a token of its own.
func (s *Swarm) begin(i int, now time.Time) {
	c := &s.conns[i]
	c.deadline = now.Add(connectTimeout).UnixNano()
	s.upNow++
	if where := s.planned[i]; where != "" {
		delete(s.planned, i)
		s.visit(i, where, now)
		return
	}
	if len(s.cfg.Gateways) > 0 {
		c.state = looking
		s.counts.Lookups++
		s.lookups <- i // never blocks: at most pending() are under way
		return
	}
	s.connect(i, s.cfg.Targets[i%len(s.cfg.Targets)])
}

func (s *Swarm) looked(a answer, now time.Time) {
	c := &s.conns[a.conn]
	if c.state != looking {
		return
	}
	if a.failed != "" {
		s.counts.fail("gateway: %s", a.failed)
		s.again(a.conn, now, a.wait)
		return
	}
	if a.wait > 0 {
		s.counts.Waited++
		s.planned[a.conn] = a.url
		s.again(a.conn, now, a.wait)
		return
	}
	s.visit(a.conn, a.url, now)
}

// visit goes where the gateway said.
func (s *Swarm) visit(i int, where string, now time.Time) {
	u, err := url.Parse(where)
	if err != nil {
		s.counts.fail("gateway: bad url")
		s.again(i, now, 0)
		return
	}
	s.out = appendHandshake(s.out[:0], u.RequestURI(), u.Host, "")
	s.dial(i, u.Host)
}

func (s *Swarm) connect(i int, target string) {
	name := ledger.AccountName(s.cfg.account(i))
	token, err := s.minter.Mint(name)
	if err != nil {
		s.counts.fail("mint: %v", err)
		s.again(i, time.Now(), 0)
		return
	}
	s.out = appendHandshake(s.out[:0], schema.SocketPath, target, token)
	s.dial(i, target)
}

// dial begins a connect; the handshake in s.out follows once it is up.
func (s *Swarm) dial(i int, target string) {
	c := &s.conns[i]
	host, portText, err := net.SplitHostPort(target)
	port, err2 := strconv.Atoi(portText)
	ip, err3 := netip.ParseAddr(host)
	if err != nil || err2 != nil || err3 != nil || !ip.Is4() {
		s.counts.fail("target %s is no IPv4 address and port", target)
		s.again(i, time.Now(), 0)
		return
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		s.counts.fail("socket: %v", err)
		s.again(i, time.Now(), 0)
		return
	}
	_ = unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
	if s.source != nil {
		_ = unix.SetsockoptInt(fd, unix.SOL_IP, unix.IP_BIND_ADDRESS_NO_PORT, 1)
		if err := unix.Bind(fd, s.source); err != nil {
			s.counts.fail("bind: %v", err)
		}
	}
	c.fd, c.state = int32(fd), connecting
	s.byFD[c.fd] = int32(i)
	s.partial[c.fd] = append([]byte(nil), s.out...) // what to send
	err = unix.Connect(fd, &unix.SockaddrInet4{Port: port, Addr: ip.As4()})
	if err != nil && err != unix.EINPROGRESS {
		s.counts.fail("connect: %v", err)
		s.drop(i, time.Now(), 0)
		return
	}
	if err := unix.EpollCtl(s.epoll, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: unix.EPOLLOUT | unix.EPOLLRDHUP, Fd: c.fd}); err != nil {
		s.counts.fail("epoll: %v", err)
		s.drop(i, time.Now(), 0)
	}
}

// hangUp closes the descriptor, if any.
func (s *Swarm) hangUp(c *conn) {
	if c.fd < 0 {
		return
	}
	delete(s.byFD, c.fd)
	delete(s.partial, c.fd)
	unix.Close(int(c.fd))
	c.fd = -1
}

// drop ends a connection that was coming up or live.
func (s *Swarm) drop(i int, now time.Time, wait time.Duration) {
	c := &s.conns[i]
	wasLive := c.state == live
	s.hangUp(c)
	if wasLive {
		s.counts.Live--
		s.counts.Closed++
		s.upNow++ // again takes it off
	}
	s.again(i, now, wait)
}

// again puts a connection back in line, or ends it when it should not come back.
func (s *Swarm) again(i int, now time.Time, wait time.Duration) {
	c := &s.conns[i]
	s.upNow--
	if !s.cfg.Reconnect && c.since >= 0 {
		c.state = over
		return
	}
	c.state = idle
	if wait <= 0 { // full jitter
		limit := min(retryBase<<min(c.tries, 10), retryMax)
		wait = time.Duration(rand.Int64N(int64(limit)))
		c.tries++
	}
	c.deadline = now.Add(wait).UnixNano()
	s.waiting = append(s.waiting, int32(i))
}
