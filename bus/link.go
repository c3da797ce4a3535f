package bus

import (
	"errors"
	"io"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/mailbell/mailbell/bus/routing"
	"github.com/mailbell/mailbell/schema"
	"github.com/mailbell/mailbell/schema/link"
)

// Limits of what a notifier may send.
const (
	MaxSubscribeAccounts = 4096
	MaxResumeItems       = 1 << 17 // all that may wait at a notifier
	maxLinkMessage       = 64 << 20
	helloTimeout         = 10 * time.Second
)

// CutReason is why the node ended a link; it is a metric's label and begins the stream's status message.
type CutReason string

// The reasons.
const (
	CutQueueFull    CutReason = "queue_full"    // the notifier did not keep up
	CutHelloTimeout CutReason = "hello_timeout" // it never said who it is
	CutReplaced     CutReason = "replaced"      // the same process came again
	CutShutdown     CutReason = "shutdown"      // this node ends
	CutBadMessage   CutReason = "bad_message"   // what it sent is against the contract
	cutByPeer       CutReason = "peer"          // the notifier, or the network, ended it
)

var cutStatus = map[CutReason]struct {
	code codes.Code
	text string
}{
	CutQueueFull:    {codes.ResourceExhausted, "the notifier does not read fast enough; come back and resume by position"},
	CutHelloTimeout: {codes.DeadlineExceeded, "no hello came within 10 s"},
	CutReplaced:     {codes.Aborted, "the same instance has opened another link"},
	CutShutdown:     {codes.Unavailable, "the node shuts down"},
}

// linkConn is one link. Its reader handles what the notifier sends; its writer sends what is queued.
type linkConn struct {
	// Static after construction.
	node    *Node
	id      linkID
	stream  grpc.BidiStreamingServer[link.FromNotifier, link.FromBus]
	queue   *queue
	cutC    chan struct{}
	greeted chan struct{} // closed by the reader after Hello

	notifier Notifier // set once, by joinLink, before the link is in the node's map

	once   sync.Once
	reason CutReason // set before cutC is closed
}

// cut ends the link. The first reason counts.
func (l *linkConn) cut(r CutReason) {
	l.once.Do(func() {
		l.reason = r
		close(l.cutC)
	})
}

// over returns the status with which the stream ends.
func (l *linkConn) over(err error) error {
	if status.Code(err) == codes.InvalidArgument || status.Code(err) == codes.ResourceExhausted {
		l.cut(CutBadMessage)
	}
	l.cut(cutByPeer)
	l.node.metrics.cuts.WithLabelValues(string(l.reason)).Inc()
	if s, ok := cutStatus[l.reason]; ok {
		err = status.Errorf(s.code, "%s: %s", l.reason, s.text)
	}
	if errors.Is(err, io.EOF) {
		err = nil
	}
	attrs := []any{"notifier", l.notifierName(), "link", l.id, "reason", l.reason}
	if ordered := l.reason == CutShutdown || l.reason == cutByPeer && status.Code(err) == codes.Canceled; err != nil && !ordered {
		attrs = append(attrs, "err", err)
	}
	l.node.log.Info("link down", attrs...)
	return err
}

func (l *linkConn) notifierName() string {
	select {
	case <-l.greeted:
		return l.notifier.Node
	default:
		return ""
	}
}

func bad(format string, args ...any) error {
	return status.Errorf(codes.InvalidArgument, "bad_message: "+format, args...)
}

// receive reads and handles messages until the stream ends or one is against the contract.
func (l *linkConn) receive() error {
	first, err := l.stream.Recv()
	if err != nil {
		return err
	}
	hello := first.GetHello()
	if hello == nil {
		return bad("the first message of a link must be hello")
	}
	notifier, err := notifierOf(hello, l.id, time.Now())
	if err != nil {
		return bad("%v", err)
	}
	if err := l.node.joinLink(l, notifier); err != nil {
		return err
	}
	close(l.greeted)
	for {
		m, err := l.stream.Recv()
		if err != nil {
			return err
		}
		if err := l.handle(m); err != nil {
			return err
		}
	}
}

func (l *linkConn) handle(m *link.FromNotifier) error {
	switch body := m.GetBody().(type) {
	case *link.FromNotifier_Load:
		l.node.fleet.load(l.id, loadOf(body.Load), time.Now())
		return nil
	case *link.FromNotifier_Subscribe:
		return l.subscribe(body.Subscribe)
	case *link.FromNotifier_Unsubscribe:
		return l.unsubscribe(body.Unsubscribe)
	case *link.FromNotifier_Resume:
		return l.resume(body.Resume)
	case *link.FromNotifier_StandIn:
		return l.standIn(body.StandIn)
	case *link.FromNotifier_Hello:
		return bad("hello came twice")
	}
	return nil // a later version's message: not for this node
}

// accounts checks what a message names: each is of the partition.
func (l *linkConn) accounts(what string, partition uint32, accounts []string) error {
	if int64(partition) >= int64(len(l.node.partitions)) {
		return bad("%s: partition %d is not one of 0 to %d", what, partition, len(l.node.partitions)-1)
	}
	if len(accounts) > MaxSubscribeAccounts {
		return bad("%s: %d accounts, at most %d are allowed in a message", what, len(accounts), MaxSubscribeAccounts)
	}
	for i, a := range accounts {
		if err := schema.Account(a).Validate(); err != nil {
			return bad("%s: account %d %v", what, i, err)
		}
		if p := schema.PartitionOf(schema.Account(a), len(l.node.partitions)); uint32(p) != partition {
			return bad("%s: account %d is of partition %d, not %d", what, i, p, partition)
		}
	}
	return nil
}

func (l *linkConn) subscribe(s *link.Subscribe) error {
	if err := l.accounts("subscribe", s.GetPartition(), s.GetAccounts()); err != nil {
		return err
	}
	if err := l.queue.waitRoom(l.stream.Context()); err != nil {
		return err
	}
	ask := routing.Subscribe{Request: s.GetRequest(), Generation: s.GetGeneration(), Accounts: s.GetAccounts(), After: position(s.GetAfter())}
	p := l.node.serving(s.GetPartition(), ask.Generation)
	if p == nil || !p.ask(func(c *routing.Partition) []routing.Output { return c.Subscribe(time.Now(), l.id, ask) }) {
		l.node.send(int32(s.GetPartition()), []routing.Output{{Kind: routing.Subscribed, Link: l.id, Request: ask.Request, Generation: ask.Generation, Answer: routing.NotOwner}})
	}
	return nil
}

func (l *linkConn) unsubscribe(u *link.Unsubscribe) error {
	if err := l.accounts("unsubscribe", u.GetPartition(), u.GetAccounts()); err != nil {
		return err
	}
	for _, p := range []*partition{l.node.partitions[u.GetPartition()].Load(), l.node.standIns[u.GetPartition()].Load()} {
		if p == nil {
			continue
		}
		p.ask(func(c *routing.Partition) []routing.Output { return c.Unsubscribe(time.Now(), l.id, u.GetAccounts()) })
	}
	return nil
}

func (l *linkConn) resume(r *link.Resume) error {
	if len(r.GetItems()) > MaxResumeItems {
		return bad("resume: %d items, at most %d are allowed in a message", len(r.GetItems()), MaxResumeItems)
	}
	for i, item := range r.GetItems() {
		if err := l.accounts("resume", item.GetPartition(), []string{item.GetAccount()}); err != nil {
			return err
		}
		if len(item.GetMailboxes()) > schema.MaxSubscribeMailboxes {
			return bad("resume: item %d names %d mailboxes, at most %d are allowed", i, len(item.GetMailboxes()), schema.MaxSubscribeMailboxes)
		}
		if err := l.queue.waitRoom(l.stream.Context()); err != nil {
			return err
		}
		ask := routing.Resume{Request: item.GetRequest(), Generation: item.GetGeneration(), Account: item.GetAccount(),
			Mailboxes: item.GetMailboxes(), Since: position(item.GetSince())}
		p := l.node.serving(item.GetPartition(), ask.Generation)
		if p == nil || !p.ask(func(c *routing.Partition) []routing.Output { return c.Resume(time.Now(), l.id, ask) }) {
			l.node.send(int32(item.GetPartition()), []routing.Output{{Kind: routing.Resumed, Link: l.id, Request: ask.Request, Generation: ask.Generation, Answer: routing.NotOwner}})
		}
	}
	return nil
}

func position(o *link.Offset) *routing.Position {
	if o == nil {
		return nil
	}
	return &routing.Position{Epoch: o.GetEpoch(), Offset: o.GetOffset()}
}

// ask lets the core answer. It reports false when there is no core yet.
func (p *partition) ask(fn func(*routing.Partition) []routing.Output) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.core == nil {
		return false
	}
	p.node.send(p.id, fn(p.core))
	return true
}

func (p *partition) linkDown(id linkID) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.core != nil {
		p.core.LinkDown(id)
	}
}
