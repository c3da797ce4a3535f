package bus

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"

	"github.com/mailbell/mailbell/internal/auth"
	"github.com/mailbell/mailbell/internal/eventlog"
)

// Log is what a node needs of the log; *eventlog.Log is one.
type Log interface {
	Partitions() int
	Ping(ctx context.Context) error
	FindEpoch(ctx context.Context, partition int32) (uint64, error)
	WriteBeacon(ctx context.Context, partition int32, b eventlog.Beacon) (int64, error)
	Bounds(ctx context.Context, partition int32) (first, next int64, err error)
	OffsetAt(ctx context.Context, partition int32, t time.Time) (int64, error)
	Read(ctx context.Context, partition int32, from int64, fn func(batch []eventlog.Message) error) error
	Join(ctx context.Context, cfg eventlog.GroupConfig) error
}

// tickEvery is the pace of progress on quiet partitions, of expiry and of parked requests.
const tickEvery = time.Second

// Node is a bus node.
type Node struct {
	// Static after construction.
	cfg      Config
	log      *slog.Logger
	metrics  *metrics
	tickets  *auth.TicketSigner
	listener net.Listener
	server   *grpc.Server
	pool     *bufferPool
	fleet    *Fleet
	agent    net.Listener // nil unless Config.AgentAddr is set

	// Each place holds the partition while this node reads it. Written by the group's goroutine and by those that it starts.
	partitions []atomic.Pointer[partition]
	standIns   []atomic.Pointer[partition] // the same for those that it stands in for
	stoodIn    atomic.Uint64               // the latest generation of one
	checking   chan struct{}               // has one place: whose epoch is being checked
	inner      context.Context             // of all that Run started; set by Run before there are links
	generation uint64                      // the latest that this node was in; owned by the group's goroutine
	links      links
	owned      chan struct{} // has one place: something to announce
	fill       chan struct{} // has one place: an index may have to be filled

	joined  atomic.Bool  // the first generation has come
	share   atomic.Int64 // partitions of the latest generation
	running sync.WaitGroup

	// Links end when stopping is closed.
	stopping chan struct{}

	announcing sync.Mutex // one announcement at a time, and no link joins in between

	mu sync.Mutex
	// Guarded by mu.
	started bool
}

// New makes a node and opens its link's listener.
func New(cfg Config) (*Node, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	cfg = cfg.withDefaults()
	tickets, err := auth.NewTicketSigner(cfg.NodeID)
	if err != nil {
		return nil, fmt.Errorf("bus: %w", err)
	}
	listener, err := net.Listen("tcp", cfg.LinkAddr)
	if err != nil {
		return nil, fmt.Errorf("bus: listen for links: %w", err)
	}
	n := &Node{
		cfg:        cfg,
		log:        cfg.Logger.With("part", "bus", "node", cfg.NodeID),
		tickets:    tickets,
		listener:   listener,
		pool:       &bufferPool{},
		fleet:      newFleet(cfg.Placement, cfg.ProbeInterval > 0),
		partitions: make([]atomic.Pointer[partition], cfg.Log.Partitions()),
		standIns:   make([]atomic.Pointer[partition], cfg.Log.Partitions()),
		owned:      make(chan struct{}, 1),
		fill:       make(chan struct{}, 1),
		checking:   make(chan struct{}, 1),
		stopping:   make(chan struct{}),
	}
	if cfg.AgentAddr != "" {
		if n.agent, err = net.Listen("tcp", cfg.AgentAddr); err != nil {
			listener.Close()
			return nil, fmt.Errorf("bus: listen for load balancers: %w", err)
		}
	}
	n.links.byID.Store(&map[linkID]*linkConn{})
	n.metrics = newMetrics(cfg.Registerer, n)
	n.server = n.newServer()
	return n, nil
}

// LinkAddr returns the address on which notifiers are expected.
func (n *Node) LinkAddr() string { return n.listener.Addr().String() }

// AgentAddr returns the address on which load balancers ask, or nothing.
func (n *Node) AgentAddr() string {
	if n.agent == nil {
		return ""
	}
	return n.agent.Addr().String()
}

// Fleet returns the notifiers linked to this node.
func (n *Node) Fleet() *Fleet { return n.fleet }

// Run works until ctx ends, then leaves the group, serves for Config.Linger what
// others have to take over, and returns nil. It returns an error when the
// log can never be used. It is called once.
func (n *Node) Run(ctx context.Context) error {
	n.mu.Lock()
	again := n.started
	n.started = true
	n.mu.Unlock()
	if again {
		return errors.New("bus: Run was called twice")
	}
	inner, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	n.inner = inner
	failed := make(chan error, 1)
	n.running.Go(func() {
		if err := n.server.Serve(n.listener); err != nil && !errors.Is(err, grpc.ErrServerStopped) {
			failed <- fmt.Errorf("bus: serve links: %w", err)
		}
	})
	n.running.Go(func() { n.tickLoop(inner) })
	n.running.Go(func() { n.announceLoop(inner) })
	n.running.Go(func() { n.beaconLoop(inner) })
	n.running.Go(func() { n.backfillLoop(inner) })
	n.running.Go(func() { n.evenLoop(inner) })
	if n.agent != nil {
		n.running.Go(func() { n.serveAgent(inner) })
	}

	joinCtx, leave := context.WithCancel(ctx)
	defer leave()
	joined := make(chan error, 1)
	n.running.Go(func() {
		joined <- n.cfg.Log.Join(joinCtx, eventlog.GroupConfig{Group: n.cfg.Group, NodeID: n.cfg.NodeID,
			OnAssigned: func(_ context.Context, generation int64, partitions []int32) {
				n.assigned(inner, generation, partitions)
			}})
	})
	var err error
	select {
	case err = <-failed:
		leave()
		<-joined
	case err = <-joined:
		if err != nil {
			err = fmt.Errorf("bus: %w", err)
		}
	}
	if err == nil {
		n.linger()
	}
	close(n.stopping)
	stop()
	n.stopServer()
	n.running.Wait()
	return err
}

// stopServer lets the links' last words out, for a second at most.
func (n *Node) stopServer() {
	done := make(chan struct{})
	go func() {
		defer close(done)
		n.server.GracefulStop()
	}()
	select {
	case <-done:
	case <-time.After(time.Second):
	}
	n.server.Stop()
	<-done
}

// linger gives the other nodes time to take over, as long as there are links to serve.
func (n *Node) linger() {
	over := time.After(max(0, n.cfg.Linger))
	look := time.NewTicker(20 * time.Millisecond)
	defer look.Stop()
	for len(*n.links.byID.Load()) > 0 && n.ownedCount() > 0 {
		select {
		case <-over:
			return
		case <-look.C:
		}
	}
}

// Close gives up a node that was not run. After Run it does nothing.
func (n *Node) Close() error {
	n.server.Stop()
	if n.agent != nil {
		_ = n.agent.Close()
	}
	if err := n.listener.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
		return fmt.Errorf("bus: close: %w", err)
	}
	return nil
}

// Ready returns nil when the node takes part in the group, has read each of its
// partitions up to now, and reaches the log.
func (n *Node) Ready(ctx context.Context) error {
	if !n.joined.Load() {
		return errors.New("bus: not yet in the group")
	}
	behind := n.share.Load()
	for i := range n.partitions {
		if p := n.partitions[i].Load(); p != nil && p.isOwned() && !p.lingers() {
			behind--
		}
	}
	if behind > 0 {
		return fmt.Errorf("bus: %d partitions are still being read", behind)
	}
	if err := n.cfg.Log.Ping(ctx); err != nil {
		return fmt.Errorf("bus: %w", err)
	}
	return nil
}

func (n *Node) ownedCount() int {
	count := 0
	for i := range n.partitions {
		if p := n.partitions[i].Load(); p != nil && p.isOwned() {
			count++
		}
	}
	return count
}

// tickLoop lets each partition expire, answer what has waited, and tell its progress.
func (n *Node) tickLoop(ctx context.Context) {
	t := time.NewTicker(tickEvery)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-t.C:
			for i := range n.partitions {
				if p := n.partitions[i].Load(); p != nil {
					p.tick(now)
				}
			}
			n.tickStandIns(now)
			n.beat()
		}
	}
}

// announceLoop tells the links what is owned when partitions have become ready:
// many at a start, few messages.
func (n *Node) announceLoop(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-n.owned:
			n.announce()
		}
	}
}

func (n *Node) announceSoon() {
	for _, c := range []chan struct{}{n.owned, n.fill} {
		select {
		case c <- struct{}{}:
		default:
		}
	}
}
