package notifier

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/mailbell/mailbell/internal/auth"
	"github.com/mailbell/mailbell/schema/link"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
)

// Why a link ended; a metric's label.
const (
	linkStop    = "stop"    // we end, or its address is gone
	linkFailed  = "failed"  // the other side or the network ended it
	linkRefused = "refused" // it does not keep to the contract
	linkSlow    = "slow"    // it does not take what we send
	linkMute    = "silent"  // it says nothing, though it should each second: stopped, or cut off
)

const (
	linkQueue   = 4096             // messages to a bus node that wait; one more, and the link is cut
	linkMessage = 64 << 20         // bytes of a message at most
	linkGreet   = 10 * time.Second // for connecting and the Welcome
	linkDead    = 6 * time.Second  // what we send each second must be acknowledged within this
	maxBeatMs   = 60_000
	linkBeats   = 3 // that a bus node may be silent for
)

// linkEvent is what happened on a link, in order: welcome, messages, down.
type linkEvent struct {
	conn    *linkConn
	welcome *link.Welcome
	msg     *link.FromBus
	down    bool
}

// linkConn is one link. Its reader and its writer are goroutines of their own; the hub owns what it means.
type linkConn struct {
	// Static after construction.
	id     linkID
	name   string
	out    chan *link.FromNotifier
	cancel context.CancelCauseFunc

	ticketKey string // the bus node's; owned by the hub
}

// send queues a message. The queue's bound is also what a bus node may be behind: past it the link is cut, and
// the next one begins with what is wanted then.
func (c *linkConn) send(m *link.FromNotifier) {
	select {
	case c.out <- m:
	default:
		c.end(linkSlow)
	}
}

// end ends the link; the reason is counted.
func (c *linkConn) end(reason string) { c.cancel(endReason(reason)) }

type endReason string

func (r endReason) Error() string { return "link: " + string(r) }

// linker keeps a link to every bus node.
type linker struct {
	*shared
	hello  *link.Hello
	events chan<- linkEvent
	keys   ticketKeys
	ids    atomic.Uint64
	up     atomic.Int64 // links that have been welcomed
}

func newLinker(s *shared, publicURL string, events chan<- linkEvent) *linker {
	return &linker{shared: s, events: events, keys: ticketKeys{set: s.gate.tickets, logger: s.cfg.Logger}, hello: &link.Hello{
		Node: s.cfg.NodeID, Instance: rand.Text(), PublicUrl: publicURL, Version: s.cfg.Version, Zone: s.cfg.Zone,
		Capacity: uint64(s.cfg.MaxConnections), Weight: s.cfg.Weight,
	}}
}

// keep links to one address until ctx ends, with a pause that grows and is random, so that a bus node that
// comes back is not stormed.
func (l *linker) keep(ctx context.Context, t target) {
	const least, most = 100 * time.Millisecond, 5 * time.Second
	pause := least
	for ctx.Err() == nil {
		began := time.Now()
		err := l.connect(ctx, t)
		if ctx.Err() != nil {
			return
		}
		if time.Since(began) > most {
			pause = least
		}
		l.cfg.Logger.Warn("link to a bus node ended", "address", t.addr, "error", err, "again", pause)
		select {
		case <-ctx.Done():
		case <-time.After(pause/2 + jitter(pause/2)):
		}
		pause = min(2*pause, most)
	}
}

// connect opens a link and serves it to its end.
func (l *linker) connect(parent context.Context, t target) (err error) {
	ctx, cancel := context.WithCancelCause(parent)
	conn := &linkConn{id: linkID(l.ids.Add(1)), name: t.addr, out: make(chan *link.FromNotifier, linkQueue), cancel: cancel}
	defer func() {
		cancel(endReason(linkFailed))
		reason := linkFailed
		if r, ok := errors.AsType[endReason](context.Cause(ctx)); ok {
			reason = string(r)
		}
		if parent.Err() != nil {
			reason = linkStop
		}
		l.metrics.linkEnds.WithLabelValues(reason).Inc()
	}()
	client, err := grpc.NewClient("passthrough:///"+t.addr, l.options(t)...)
	if err != nil {
		return fmt.Errorf("link to %s: %w", t.addr, err)
	}
	defer client.Close()
	greet := time.AfterFunc(linkGreet, func() { cancel(fmt.Errorf("no welcome within %v", linkGreet)) })
	defer greet.Stop()
	stream, err := link.NewLinkClient(client).Connect(ctx)
	if err != nil {
		return fmt.Errorf("link to %s: %w", t.addr, err)
	}
	if err := stream.Send(&link.FromNotifier{Body: &link.FromNotifier_Hello{Hello: l.hello}}); err != nil && err != io.EOF {
		return fmt.Errorf("link to %s: %w", t.addr, err)
	}
	first, err := stream.Recv()
	if err != nil {
		return fmt.Errorf("link to %s: %w", t.addr, err)
	}
	welcome := first.GetWelcome()
	if welcome == nil {
		return fmt.Errorf("link to %s: its first message is no welcome", t.addr)
	}
	greet.Stop()
	return l.serve(ctx, conn, stream, welcome)
}

func (l *linker) serve(ctx context.Context, conn *linkConn, stream grpc.BidiStreamingClient[link.FromNotifier, link.FromBus], welcome *link.Welcome) error {
	if welcome.Node != "" {
		conn.name = welcome.Node
	}
	l.keys.use(conn.name, welcome.TicketKeys)
	l.cfg.Logger.Info("linked to a bus node", "node", conn.name)
	if !l.tell(ctx, linkEvent{conn: conn, welcome: welcome}) {
		return ctx.Err()
	}
	l.up.Add(1)
	defer l.up.Add(-1)
	var writer sync.WaitGroup
	writer.Go(func() { l.write(ctx, conn, stream) })
	err := l.read(ctx, conn, stream, linkBeats*time.Duration(min(welcome.BeatMs, maxBeatMs))*time.Millisecond)
	conn.end(linkFailed)
	writer.Wait()
	// The hub must hear of the end even when the process does not: it takes events until it ends itself.
	l.tell(context.WithoutCancel(ctx), linkEvent{conn: conn, down: true})
	return err
}

// tell passes an event to the hub, which holds the link up as long as it is behind.
func (l *linker) tell(ctx context.Context, e linkEvent) bool {
	select {
	case l.events <- e:
		return true
	case <-ctx.Done():
		return false
	}
}

// read passes on what the node says, and ends the link when that is nothing for too long. The time that the hub takes does
// not count as the node's silence.
func (l *linker) read(ctx context.Context, conn *linkConn, stream grpc.BidiStreamingClient[link.FromNotifier, link.FromBus], silence time.Duration) error {
	mute := time.AfterFunc(time.Hour, func() { conn.end(linkMute) })
	mute.Stop()
	defer mute.Stop()
	for {
		if silence > 0 {
			mute.Reset(silence)
		}
		m, err := stream.Recv()
		mute.Stop()
		if err != nil {
			return errors.Join(err, context.Cause(ctx))
		}
		if !l.tell(ctx, linkEvent{conn: conn, msg: m}) {
			return context.Cause(ctx)
		}
	}
}

func (l *linker) write(ctx context.Context, conn *linkConn, stream grpc.BidiStreamingClient[link.FromNotifier, link.FromBus]) {
	for {
		select {
		case <-ctx.Done():
			return
		case m := <-conn.out:
			if err := stream.Send(m); err != nil {
				conn.end(linkFailed)
				return
			}
		}
	}
}

func (l *linker) options(t target) []grpc.DialOption {
	creds := insecure.NewCredentials()
	if l.cfg.LinkTLS != nil {
		cfg := l.cfg.LinkTLS.Clone()
		if cfg.ServerName == "" {
			cfg.ServerName = t.host
		}
		creds = credentials.NewTLS(cfg)
	}
	return []grpc.DialOption{
		grpc.WithTransportCredentials(creds),
		grpc.WithContextDialer(dialLink),
		grpc.WithDisableServiceConfig(),
		grpc.WithInitialWindowSize(1 << 20),
		grpc.WithInitialConnWindowSize(4 << 20),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(linkMessage), grpc.MaxCallSendMsgSize(linkMessage)),
	}
}

// dialLink connects so that a dead bus node is found by the kernel: the load goes up each second, and must be
// acknowledged within linkDead.
func dialLink(ctx context.Context, addr string) (net.Conn, error) {
	d := net.Dialer{
		Timeout: linkGreet,
		Control: func(_, _ string, raw syscall.RawConn) error {
			var err error
			controlErr := raw.Control(func(fd uintptr) {
				err = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(linkDead/time.Millisecond))
			})
			return errors.Join(controlErr, err)
		},
	}
	return d.DialContext(ctx, "tcp", addr)
}

// ticketKeys tells the gate which keys sign tickets. A node's former key stays for a while: its last tickets
// are on their way.
type ticketKeys struct {
	// Static after construction.
	set    *auth.TicketKeys
	logger logger

	mu sync.Mutex
	// Guarded by mu.
	of map[string][]string // ids by node: the keys of its last welcomes, the newest last
}

type logger interface{ Warn(string, ...any) }

// keptWelcomes is of how many starts of a node the keys are known.
const keptWelcomes = 4

func (k *ticketKeys) use(node string, keys []*link.TicketKey) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.of == nil {
		k.of = make(map[string][]string)
	}
	for _, key := range keys {
		if err := k.set.Add(key.Id, ed25519.PublicKey(key.PublicKey)); err != nil {
			k.logger.Warn("a bus node's ticket key can't be used", "node", node, "error", err)
			continue
		}
		ids := k.of[node]
		for i, id := range ids {
			if id == key.Id {
				ids = append(ids[:i], ids[i+1:]...)
				break
			}
		}
		ids = append(ids, key.Id)
		for len(ids) > keptWelcomes {
			k.set.Remove(ids[0])
			ids = ids[1:]
		}
		k.of[node] = ids
	}
}

// nodeOf is the bus node whose key that is, or empty.
func (k *ticketKeys) nodeOf(id string) string {
	k.mu.Lock()
	defer k.mu.Unlock()
	for node, ids := range k.of {
		if slices.Contains(ids, id) {
			return node
		}
	}
	return ""
}

// inherit makes a key known that the process before this one knew, with the tickets used there.
func (k *ticketKeys) inherit(node, id string, state []byte) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if err := k.set.Restore(state); err != nil {
		return err
	}
	if ids := k.of[node]; node != "" && !slices.Contains(ids, id) {
		if k.of == nil {
			k.of = make(map[string][]string)
		}
		k.of[node] = append([]string{id}, ids...) // the newest are last
	}
	return nil
}
