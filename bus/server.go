package bus

import (
	"context"
	"fmt"
	"maps"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/mailbell/mailbell/bus/routing"
	"github.com/mailbell/mailbell/schema/link"
)

type linkID = routing.LinkID

// links are those that are up. Readers look at an immutable map.
type links struct {
	byID atomic.Pointer[map[linkID]*linkConn]
	next atomic.Uint64

	mu sync.Mutex // held by those who change the map
}

func (l *links) change(fn func(m map[linkID]*linkConn)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	m := maps.Clone(*l.byID.Load())
	fn(m)
	l.byID.Store(&m)
}

func (n *Node) newServer() *grpc.Server {
	creds := insecure.NewCredentials()
	if n.cfg.LinkTLS != nil {
		creds = credentials.NewTLS(n.cfg.LinkTLS.Clone())
	}
	s := grpc.NewServer(
		grpc.Creds(creds),
		grpc.ForceServerCodecV2(newCodec(n.pool)),
		grpc.MaxRecvMsgSize(maxLinkMessage),
		grpc.MaxConcurrentStreams(4),
		grpc.WaitForHandlers(true),
		grpc.MaxHeaderListSize(16<<10),
		grpc.ConnectionTimeout(helloTimeout),
		grpc.InitialWindowSize(1<<20),
		grpc.InitialConnWindowSize(1<<20),
		grpc.WriteBufferSize(64<<10),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: 5 * time.Second, Timeout: 5 * time.Second}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: time.Second, PermitWithoutStream: true}),
	)
	link.RegisterLinkServer(s, &linkServer{node: n})
	return s
}

// linkServer is what gRPC calls.
type linkServer struct {
	link.UnimplementedLinkServer
	node *Node
}

// Connect serves one link.
func (s *linkServer) Connect(stream grpc.BidiStreamingServer[link.FromNotifier, link.FromBus]) error {
	return s.node.serveLink(stream)
}

func (n *Node) serveLink(stream grpc.BidiStreamingServer[link.FromNotifier, link.FromBus]) error {
	l := &linkConn{node: n, stream: stream, queue: newQueue(n.pool, n.cfg.LinkQueueBytes), cutC: make(chan struct{}),
		id: linkID(n.links.next.Add(1)), greeted: make(chan struct{})}
	ended := make(chan error, 2)
	// Both end when this function returns: gRPC ends the stream's context then.
	n.running.Go(func() {
		ended <- l.receive()
		// Nothing more is asked for this link from here on.
		n.forgetLink(l)
	})
	n.running.Go(func() { ended <- l.send() })
	hello := time.NewTimer(helloTimeout)
	defer hello.Stop()
	greeted := l.greeted
	for {
		select {
		case err := <-ended:
			return l.over(err)
		case <-l.cutC:
			return l.over(nil)
		case <-n.stopping:
			l.cut(CutShutdown)
		case <-greeted:
			greeted = nil
			hello.Stop()
			if n.cfg.ProbeInterval > 0 {
				n.running.Go(func() { n.probe(stream.Context(), l.notifier) })
			}
		case <-hello.C:
			l.cut(CutHelloTimeout)
		}
	}
}

// joinLink makes a link known, once its Hello was read: from here on it is told what is owned.
func (n *Node) joinLink(l *linkConn, notifier Notifier) error {
	var replaced *linkConn
	full := false
	n.announcing.Lock()
	defer n.announcing.Unlock()
	n.links.change(func(m map[linkID]*linkConn) {
		for _, other := range m {
			if other.notifier.Node == notifier.Node && other.notifier.Instance == notifier.Instance {
				replaced = other
			}
		}
		if full = len(m) >= n.cfg.MaxLinks && replaced == nil; !full {
			l.notifier = notifier
			m[l.id] = l
		}
	})
	if full {
		return status.Errorf(codes.ResourceExhausted, "link: this node has %d notifiers, its limit", n.cfg.MaxLinks)
	}
	if replaced != nil {
		replaced.cut(CutReplaced)
		n.fleet.leave(replaced.id)
	}
	if n.fleet.join(notifier) {
		n.log.Warn("two notifiers have one name; if this is no restart, give each its own", "notifier", notifier.Node)
	}
	id, public := n.tickets.Key()
	ok := l.push(&link.FromBus{Body: &link.FromBus_Welcome{Welcome: &link.Welcome{
		Node: n.cfg.NodeID, Partitions: uint32(len(n.partitions)), WindowMs: uint64(n.cfg.WindowAge.Milliseconds()),
		BeatMs:     uint64(tickEvery.Milliseconds()),
		TicketKeys: []*link.TicketKey{{Id: id, PublicKey: public}},
	}}}) && l.push(n.ownedMessage())
	if !ok {
		l.cut(CutQueueFull)
	}
	n.log.Info("link up", "notifier", notifier.Node, "instance", notifier.Instance, "url", notifier.URL, "link", l.id)
	return nil
}

// forgetLink drops all that a link had.
func (n *Node) forgetLink(l *linkConn) {
	n.links.change(func(m map[linkID]*linkConn) { delete(m, l.id) })
	n.fleet.leave(l.id)
	n.served(func(p *partition) { p.linkDown(l.id) })
}

// announce sends the complete set of owned partitions to every link.
func (n *Node) announce() {
	n.announcing.Lock()
	defer n.announcing.Unlock()
	m := n.ownedMessage()
	for _, l := range *n.links.byID.Load() {
		if !l.push(m) {
			l.cut(CutQueueFull)
		}
	}
}

func (n *Node) ownedMessage() *link.FromBus {
	owned := &link.Owned{}
	for i := range n.partitions {
		o := n.partitions[i].Load().announced()
		if o == nil {
			o = n.standIns[i].Load().announced()
		}
		if o != nil {
			owned.Partitions = append(owned.Partitions, o)
		}
	}
	return &link.FromBus{Body: &link.FromBus_Owned{Owned: owned}}
}

// announced returns what is said of the partition in Owned; nil for nothing.
func (p *partition) announced() *link.OwnedPartition {
	if p == nil {
		return nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.core == nil || p.core.Generation() == 0 {
		return nil
	}
	head := p.core.Head()
	return &link.OwnedPartition{Partition: uint32(p.id), Generation: p.core.Generation(), StandIn: p.standIn,
		Head: &link.Offset{Epoch: head.Epoch, Offset: head.Offset}}
}

// beat says something on every link, so that a notifier can tell silence from a quiet log.
func (n *Node) beat() {
	m := &link.FromBus{Body: &link.FromBus_Positions{Positions: &link.Positions{}}}
	for _, l := range *n.links.byID.Load() {
		if !l.push(m) {
			l.cut(CutQueueFull)
		}
	}
}

// send puts the core's outputs on their links' queues. Callers hold the partition's mutex, which gives them their order.
func (n *Node) send(partition int32, outs []routing.Output) {
	if len(outs) == 0 {
		return
	}
	byID := *n.links.byID.Load()
	for i := range outs {
		o := &outs[i]
		l := byID[o.Link]
		if l == nil {
			continue
		}
		ok := false
		if o.Kind == routing.Subscribed {
			ok = l.push(subscribedMessage(partition, o))
		} else {
			ok = l.queue.add(partition, o)
		}
		if !ok {
			l.cut(CutQueueFull)
		}
	}
}

func subscribedMessage(partition int32, o *routing.Output) *link.FromBus {
	s := &link.Subscribed{Request: o.Request, Partition: uint32(partition), Generation: o.Generation, CatchUp: link.CatchUp(o.Answer), SpreadMs: o.SpreadMs}
	if o.Answer != routing.NotOwner {
		s.Head = &link.Offset{Epoch: o.Head.Epoch, Offset: o.Head.Offset}
	}
	return &link.FromBus{Body: &link.FromBus_Subscribed{Subscribed: s}}
}

// Tell sends a Drain or a Move to a notifier, by its name. It reports false when it is not linked here.
func (n *Node) Tell(notifier string, m *link.FromBus) (bool, error) {
	switch m.GetBody().(type) {
	case *link.FromBus_Drain, *link.FromBus_Move:
	default:
		return false, fmt.Errorf("tell %s: only Drain and Move are orders", notifier)
	}
	told := false
	for _, l := range *n.links.byID.Load() {
		if l.notifier.Node == notifier && l.push(m) {
			told = true
		}
	}
	return told, nil
}

// push encodes a message that is not hot.
func (l *linkConn) push(m *link.FromBus) bool {
	b, err := proto.Marshal(m)
	if err != nil {
		panic(fmt.Sprintf("marshal %T: %v", m.GetBody(), err)) // our own message: strings that are not UTF-8
	}
	return l.queue.addMessage(b)
}

// send writes what is queued until the stream ends.
func (l *linkConn) send() error {
	ctx := l.stream.Context()
	var frames []frame
	for {
		var err error
		if frames, err = l.queue.take(ctx, frames); err != nil {
			return context.Cause(ctx)
		}
		for i := range frames {
			size := len(*frames[i].body)
			if err := l.stream.SendMsg(&frames[i]); err != nil {
				return err
			}
			l.queue.sent(size)
			l.node.metrics.linkBytes.Add(float64(size))
		}
		clear(frames)
	}
}
