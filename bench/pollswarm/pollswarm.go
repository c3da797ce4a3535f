// Package pollswarm is the clients of `bench compare`: thousands of users in one process, who either poll, each over an HTTP
// connection of its own that is kept alive, or hold a WebSocket and fetch once an event has told them to.
// A bench starts it as a process of its own (see Serve), so that what clients cost never counts.
//
// Swarm is the HTTP side: one epoll descriptor, one goroutine, a few dozen bytes a user. It speaks
// just enough of HTTP/1.1 for a server that answers with Content-Length or 304. The WebSockets are package swarm's.
package pollswarm

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"sync"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
	"golang.org/x/sys/unix"

	"github.com/mailbell/mailbell/bench/swarm"
)

// Config says who asks what.
type Config struct {
	Target      string        `json:"target"`      // host:port of the poll server
	Connections int           `json:"connections"` // users in this process
	First       uint32        `json:"first"`       // account number of the first
	Seed        uint64        `json:"seed"`
	Interval    time.Duration `json:"interval,omitempty"` // between a user's polls; 0 = nobody polls
	Jitter      float64       `json:"jitter,omitempty"`   // each interval is longer or shorter by up to this part of it

	// Push makes the users hold WebSockets; they fetch when they hear of something.
	Push *swarm.Config `json:"push,omitempty"`
}

// Validate says what is wrong with the configuration.
func (c *Config) Validate() error {
	switch {
	case c.Connections <= 0:
		return errors.New("poll swarm: connections must be positive")
	case c.Interval < 0 || c.Jitter < 0 || c.Jitter > 1:
		return errors.New("poll swarm: the interval must not be negative, and the jitter from 0 to 1")
	case c.Interval > 0 && c.Push != nil:
		return errors.New("poll swarm: users either poll or are pushed to")
	}
	if _, err := netip.ParseAddrPort(c.Target); err != nil {
		return fmt.Errorf("poll swarm: target %q: want an IP address and a port", c.Target)
	}
	return nil
}

// Counts is what the users have seen so far. Counters only grow, but for Users at a recount.
type Counts struct {
	Users       int   `json:"users"`    // that have had an answer, since the start or the last recount
	Requests    int   `json:"requests"` // answered
	NotModified int   `json:"notModified"`
	Failed      int   `json:"failed"`  // no connection, or no answer
	Skipped     int   `json:"skipped"` // polls that fell due while one was under way
	Stale       int   `json:"stale"`   // fetches that came before the change they were for
	Connects    int   `json:"connects"`
	BytesIn     int64 `json:"bytesIn"`  // read from sockets
	BytesOut    int64 `json:"bytesOut"` // written to sockets
}

// Known says that from a time on a user knew of all changes up to one.
type Known struct {
	Account uint32 `json:"a"`
	Seq     uint32 `json:"s"`
	At      int64  `json:"t"` // Unix time in nanoseconds
}

type state uint8

const (
	closed     state = iota
	connecting       // connect(2) is under way; a request follows
	waiting          // for an answer
	open             // kept alive
)

// user is one client.
type user struct {
	fd     int32
	state  state
	tries  uint8
	known  bool   // has had an answer; guarded by mu
	seq    uint32 // changes that it knows of
	want   uint32 // changes that it was told of and has to fetch
	again  bool   // to be fetched once the answer under way is there
	due    int64  // Unix nanoseconds of the next poll or try; 0 = none
	sentAt int64
	etag   etag
}

// Swarm is the users of one process. Run owns everything but what mu guards.
type Swarm struct {
	// Static after New.
	cfg    Config
	target unix.SockaddrInet4
	epoll  int
	wake   int // eventfd: something to fetch, or the end

	// Owned by Run.
	users   []user
	byFD    map[int32]int32
	partial map[int32][]byte
	timers  timers
	random  *rand.Rand
	buf     []byte
	out     []byte

	mu     sync.Mutex // guards the rest
	asked  []request
	counts Counts
	news   []Known
	hist   *hdrhistogram.Histogram // microseconds from request to answer
}

// request is a fetch that is asked for from outside.
type request struct {
	user int32
	seq  uint32
}

// New checks the configuration and makes what Run needs.
func New(cfg Config) (*Swarm, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	target := netip.MustParseAddrPort(cfg.Target)
	if !target.Addr().Is4() {
		return nil, fmt.Errorf("poll swarm: target %s is no IPv4 address", cfg.Target)
	}
	s := &Swarm{
		cfg: cfg, target: unix.SockaddrInet4{Port: int(target.Port()), Addr: target.Addr().As4()},
		users: make([]user, cfg.Connections), byFD: make(map[int32]int32, cfg.Connections), partial: make(map[int32][]byte),
		random: rand.New(rand.NewPCG(cfg.Seed, uint64(cfg.First))), buf: make([]byte, 64<<10), hist: hdrhistogram.New(1, 600_000_000, 2),
	}
	var err error
	if s.epoll, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
		return nil, fmt.Errorf("poll swarm: epoll: %w", err)
	}
	if s.wake, err = unix.Eventfd(0, unix.EFD_NONBLOCK|unix.EFD_CLOEXEC); err != nil {
		unix.Close(s.epoll)
		return nil, fmt.Errorf("poll swarm: eventfd: %w", err)
	}
	if err := unix.EpollCtl(s.epoll, unix.EPOLL_CTL_ADD, s.wake, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(s.wake)}); err != nil {
		s.close()
		return nil, fmt.Errorf("poll swarm: epoll: %w", err)
	}
	return s, nil
}

func (s *Swarm) close() {
	for i := range s.users {
		s.hangUp(&s.users[i])
	}
	unix.Close(s.wake)
	unix.Close(s.epoll)
}

// Fetch has a user ask for its mailboxes, because it was told of a change. Fetches while one is under way are one.
func (s *Swarm) Fetch(user int, seq uint32) {
	s.mu.Lock()
	s.asked = append(s.asked, request{user: int32(user), seq: seq})
	first := len(s.asked) == 1
	s.mu.Unlock()
	if first {
		s.rouse()
	}
}

func (s *Swarm) rouse() { _, _ = unix.Write(s.wake, []byte{1, 0, 0, 0, 0, 0, 0, 0}) }

// Snapshot returns the counts so far, and what users have come to know since the last time.
func (s *Swarm) Snapshot() (Counts, []Known) {
	s.mu.Lock()
	defer s.mu.Unlock()
	news := s.news
	s.news = nil
	return s.counts, news
}

// recount forgets who has had an answer.
func (s *Swarm) recount() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := range s.users {
		s.users[i].known = false
	}
	s.counts.Users = 0
}

// latencies returns how long answers took, in microseconds.
func (s *Swarm) latencies() *hdrhistogram.Snapshot {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.hist.Export()
}

// Run asks until ctx ends, then closes every connection. Users that poll begin within one interval, spread evenly.
func (s *Swarm) Run(ctx context.Context) error {
	defer s.close()
	stop := context.AfterFunc(ctx, s.rouse)
	defer stop()
	now := time.Now().UnixNano()
	if s.cfg.Interval > 0 {
		for i := range s.users {
			s.setDue(int32(i), now+s.random.Int64N(int64(s.cfg.Interval)))
		}
	}
	events := make([]unix.EpollEvent, 1024)
	for ctx.Err() == nil {
		n, err := unix.EpollWait(s.epoll, events, s.work(time.Now().UnixNano()))
		if err != nil && err != unix.EINTR {
			return fmt.Errorf("poll swarm: epoll wait: %w", err)
		}
		s.mu.Lock()
		now := time.Now().UnixNano()
		for _, ev := range events[:max(n, 0)] {
			if ev.Fd == int32(s.wake) {
				var b [8]byte
				_, _ = unix.Read(s.wake, b[:])
			} else if i, ok := s.byFD[ev.Fd]; ok {
				s.ready(i, now)
			}
		}
		s.mu.Unlock()
	}
	return nil
}

// work does what is due or asked for, and returns how long, in milliseconds, epoll may wait.
func (s *Swarm) work(now int64) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, r := range s.asked {
		if u := &s.users[r.user]; r.seq == 0 || r.seq > u.seq {
			u.want = max(u.want, r.seq)
			s.ask(r.user, now)
		}
	}
	s.asked = s.asked[:0]
	for len(s.timers) > 0 && s.timers[0].at <= now {
		t := s.timers.pop()
		u := &s.users[t.user]
		if u.due != t.at {
			continue
		}
		u.due = 0
		if s.cfg.Interval > 0 {
			s.setDue(t.user, t.at+s.nextIn())
			if u.state == connecting || u.state == waiting {
				s.counts.Skipped++
				continue
			}
		}
		s.ask(t.user, now)
	}
	if len(s.timers) == 0 {
		return 1000
	}
	return int(min(1000, (s.timers[0].at-now)/int64(time.Millisecond)+1))
}

func (s *Swarm) nextIn() int64 {
	return int64(float64(s.cfg.Interval) * (1 + s.cfg.Jitter*(2*s.random.Float64()-1)))
}

func (s *Swarm) setDue(i int32, at int64) {
	s.users[i].due = at
	s.timers.push(timer{at: at, user: i})
}

// retry tries a fetch again after a while, as mailbell.js spreads its returns.
func (s *Swarm) retry(i int32, now int64) {
	const base, most = int64(250 * time.Millisecond), int64(8 * time.Second)
	u := &s.users[i]
	limit := min(base<<min(u.tries, 10), most)
	u.tries++
	s.setDue(i, now+s.random.Int64N(limit)+1)
}
