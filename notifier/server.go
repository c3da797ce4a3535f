package notifier

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"time"

	"github.com/mailbell/mailbell/internal/auth"
	"github.com/mailbell/mailbell/schema"
	"github.com/mailru/easygo/netpoll"
)

// Server is a notifier node.
type Server struct {
	*shared
	// Static after construction.
	shards   []*shard
	hub      *hub
	linker   *linker
	acceptor *acceptor
	former   *former // to be taken over; nil: there is none
	fatal    chan error
}

// New opens the clients' port; Run accepts from it, and closes it. If another notifier listens on cfg.Takeover, it
// lends its port instead, and Run takes its connections over.
func New(cfg Config) (*Server, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	cfg = cfg.withDefaults()
	f, err := callFormer(cfg)
	if err != nil {
		return nil, err
	}
	fd, addr, err := f.listen(cfg)
	if err != nil {
		return nil, err
	}
	if cfg.NodeID == "" {
		cfg.NodeID = nodeID(addr.String())
	}
	s := &Server{shared: newShared(cfg), former: f, fatal: make(chan error, cfg.Shards+1)}
	s.waiting.Store(f != nil)
	for i := range cfg.Shards {
		s.shards = append(s.shards, newShard(s.shared, uint8(i)))
	}
	s.hub = newHub(s.shared, s.shards)
	s.linker = newLinker(s.shared, publicURL(cfg, addr), s.hub.events)
	s.acceptor = &acceptor{shared: s.shared, addr: addr, shards: s.shards, ready: make(chan struct{}, 1), fd: fd}
	return s, nil
}

func newShared(cfg Config) *shared {
	s := &shared{cfg: cfg, born: time.Now().Add(-headStart), accounts: newNames(), addrs: newNames(), inbox: newInbox()}
	s.gate = &gate{node: cfg.NodeID, cookie: cfg.Cookie, keys: cfg.Keys, tickets: new(auth.TicketKeys),
		origins: cfg.Origins, now: time.Now, admit: s.room, waits: make(chan struct{}, max(1, cfg.Workers/2))}
	s.pool = newPool(s.gate, cfg.Workers)
	s.admit = newAdmission(cfg.Limits, s.pool.late)
	s.pool.relief = s.admit.tell
	s.metrics = newMetrics(cfg.Registerer, s)
	return s
}

// room returns why a handshake must be refused, or nil; finish has the last word.
func (s *shared) room() *refusal {
	switch {
	case s.draining.Load():
		return refuseDrain
	case s.open.Load() >= int64(s.cfg.MaxConnections):
		return refuseFull
	}
	return nil
}

// Addr is where the clients' WebSockets are accepted.
func (s *Server) Addr() string { return s.acceptor.addr.String() }

// Connections is how many WebSockets are open.
func (s *Server) Connections() int { return int(s.open.Load()) }

// Ready returns an error unless clients can be served: not while the node is drained, nor
// without any bus node.
func (s *Server) Ready(context.Context) error {
	if s.draining.Load() {
		return errors.New("notifier: is being drained")
	}
	if s.waiting.Load() {
		return errors.New("notifier: waits for the connections of the process before it")
	}
	if s.linker.up.Load() == 0 {
		return fmt.Errorf("notifier: no bus node of %v is linked", s.cfg.Bus)
	}
	return nil
}

// publicURL is what clients are told.
func publicURL(cfg Config, addr net.Addr) string {
	if cfg.PublicURL != "" {
		return cfg.PublicURL
	}
	host, port, err := net.SplitHostPort(addr.String())
	if err != nil {
		return "ws://" + addr.String() + schema.SocketPath
	}
	if ip := net.ParseIP(host); ip == nil || ip.IsUnspecified() {
		if name, err := os.Hostname(); err == nil {
			host = name
		}
	}
	return "ws://" + net.JoinHostPort(host, port) + schema.SocketPath
}

// Pollers is how many goroutines of Run wait in the kernel, each keeping one of Go's processors for up to 10 ms.
func (s *Server) Pollers() int { return len(s.shards) + 1 }

// Run serves until ctx ends; then it closes every connection with 1001, without spreading them: that is what
// Drain is for. The error is what made it impossible to go on, or ErrTakenOver.
func (s *Server) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	polls, err := s.openPollers()
	if err != nil {
		s.acceptor.close()
		return err
	}
	var wg, links sync.WaitGroup
	hubCtx, stopHub := context.WithCancel(context.WithoutCancel(ctx))
	defer stopHub()
	wg.Go(func() { s.fail(s.serveClients(ctx)) })
	wg.Go(func() { s.pool.run(ctx) })
	wg.Go(func() { s.runOrders(ctx) })
	wg.Go(func() { s.hub.run(hubCtx) })
	links.Go(func() { s.linker.run(ctx) })
	for _, sh := range s.shards {
		wg.Go(func() { sh.runSweeper(ctx) })
	}
	select {
	case <-ctx.Done():
	case err = <-s.fatal:
	}
	cancel()
	s.acceptor.close()
	links.Wait() // their ends are told to the hub, which ends after them
	stopHub()
	wg.Wait()
	for _, sh := range s.shards {
		sh.stop()
	}
	return errors.Join(err, polls.close())
}

// serveClients takes over from the process before it, if there is one; then it accepts until ctx ends, or
// until a successor has taken over.
func (s *Server) serveClients(ctx context.Context) error {
	if s.former != nil {
		if err := s.takeOver(ctx); err != nil {
			return err
		}
	}
	s.waiting.Store(false)
	var wg sync.WaitGroup
	defer wg.Wait()
	if s.cfg.Takeover != "" {
		wg.Go(func() { s.fail(s.standBy(ctx)) })
	}
	return s.acceptor.run(ctx)
}

func (s *Server) fail(err error) {
	if err == nil {
		return
	}
	select {
	case s.fatal <- err:
	default:
	}
}

// openPollers opens one for each shard, then the acceptor's.
func (s *Server) openPollers() (*polls, error) {
	p := new(polls)
	onError := func(err error) { s.fail(fmt.Errorf("wait for sockets: %w", err)) }
	if err := p.open(s.shards, onError); err != nil {
		return nil, errors.Join(err, p.close())
	}
	accepts, err := netpoll.EpollCreate(&netpoll.EpollConfig{OnWaitError: onError})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open epoll: %w", err), p.close())
	}
	p.acceptor = accepts
	s.acceptor.setPoll(accepts)
	return p, nil
}
