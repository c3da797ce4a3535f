package bench

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/mailbell/mailbell/bench/ledger"
	"github.com/mailbell/mailbell/bench/swarm"
	"github.com/mailbell/mailbell/notifier"
	"github.com/mailbell/mailbell/schema"
)

// PushConfig says how `mailbell bench push` compares the notifier's way of an event to a socket with the least that it
// could cost.
type PushConfig struct {
	Sockets  int           // 0 = 15,000
	Rounds   int           // of each kind, in turn; 0 = 10
	Round    time.Duration // 0 = 1 s
	Progress Progress
}

// Validate says what is wrong with the configuration.
func (c PushConfig) Validate() error {
	switch {
	case c.Sockets < 0 || c.Sockets > 19_000:
		return errors.New("bench push: --sockets must be from 1 to 19000, what one process holds")
	case c.Rounds < 0 || c.Rounds > 1000 || c.Round < 0 || c.Round > time.Minute:
		return errors.New("bench push: --rounds must be at most 1000, --round at most 1m")
	}
	return nil
}

func (c PushConfig) withDefaults() PushConfig {
	if c.Sockets == 0 {
		c.Sockets = 15_000
	}
	if c.Rounds == 0 {
		c.Rounds = 10
	}
	if c.Round == 0 {
		c.Round = time.Second
	}
	return c
}

// PushResult is what the push bench found. The rates are of the middle round of each kind.
type PushResult struct {
	Sockets           int       `json:"sockets"`
	FrameBytes        int       `json:"frameBytes"`
	NotifierPerSecond float64   `json:"notifierPerSecond"`
	BareSendPerSecond float64   `json:"bareSendPerSecond"`
	Ratio             float64   `json:"ratio"` // the middle of the rounds' ratios, each of two neighbours
	NotifierRounds    []float64 `json:"notifierRounds"`
	BareSendRounds    []float64 `json:"bareSendRounds"`
}

// leastPush is the share of a bare loop's rate that is promised.
const leastPush = 0.9

// Broken says whether the promise was broken.
func (r PushResult) Broken() error {
	if r.Ratio < leastPush {
		return fmt.Errorf("bench push: %.3f of the bare loop's rate, %.1f is promised", r.Ratio, leastPush)
	}
	return nil
}

// push is a running bench.
type push struct {
	cfg   PushConfig
	sink  *process
	rig   *notifier.Rig
	fds   []int
	event []byte
	frame []byte
	next  int
	seq   int64
}

// Push runs the bench. Each event goes to one socket, as in a mail system it does: the notifier looks the account
// up, builds the frame, finds who subscribed, and sends; the bare loop sends a frame that was made before.
func Push(ctx context.Context, cfg PushConfig) (r PushResult, err error) {
	if err := cfg.Validate(); err != nil {
		return r, err
	}
	cfg = cfg.withDefaults()
	n := needs{perProcess: cfg.Sockets + 100, files: int64(2*cfg.Sockets + 200), watches: int64(2 * cfg.Sockets), ports: cfg.Sockets,
		processes: 2, memory: int64(cfg.Sockets) * 10_000, smaller: "fewer --sockets"}
	if err := n.check(); err != nil {
		return r, fmt.Errorf("bench push: %w", err)
	}
	p := &push{cfg: cfg}
	defer p.close()
	if err := p.open(ctx); err != nil {
		return r, fmt.Errorf("bench push: %w", err)
	}
	r, err = p.measure(ctx)
	if err != nil {
		return r, fmt.Errorf("bench push: %w", err)
	}
	return r, nil
}

func (p *push) close() {
	if p.rig != nil {
		_ = p.rig.Close()
	}
	for _, fd := range p.fds {
		unix.Close(fd)
	}
	if p.sink != nil {
		p.sink.stop()
	}
}

// open connects the sockets with their readers, in a process of their own.
func (p *push) open(ctx context.Context) error {
	listener, port, err := listenRaw()
	if err != nil {
		return err
	}
	defer unix.Close(listener)
	ps, err := newProcesses()
	if err != nil {
		return err
	}
	if p.sink, err = ps.start("sink", "bench", "sink"); err != nil {
		return err
	}
	if err := p.sink.say(swarm.SinkConfig{Target: fmt.Sprintf("127.0.0.1:%d", port), Connections: p.cfg.Sockets}); err != nil {
		return err
	}
	if p.rig, err = notifier.NewRig(runtime.GOMAXPROCS(0)); err != nil {
		return err
	}
	for i := range p.cfg.Sockets {
		p.cfg.Progress.say("connecting: %d of %d", i, p.cfg.Sockets)
		if err := p.accept(ctx, listener); err != nil {
			return err
		}
		if _, err := p.rig.Add(p.fds[i], schema.Account(ledger.AccountName(uint32(i)))); err != nil {
			return err
		}
	}
	if _, err := p.sink.next(ctx); err != nil {
		return err
	}
	name := schema.Account(ledger.AccountName(0))
	messages := uint32(12)
	e := schema.Event{ID: schema.NewID(), Event: schema.MessageNew, Account: name, Mailbox: "INBOX", UIDValidity: 1424683682, UIDSet: "5", UIDNext: 6,
		ModSeq: "715194045007", Messages: &messages, Unseen: &messages, User: string(name), Service: "lmtp", Timestamp: time.Now().UTC()}
	p.event = e.AppendJSON(nil)
	p.frame = serverFrame(schema.AppendEvent(nil, name, schema.Position{Epoch: 1, Partition: 3, Offset: 1_000_000}, p.event))
	return nil
}

// listenRaw listens on a loopback port with a descriptor that Go's poller does not know.
func listenRaw() (fd, port int, err error) {
	fd, err = unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, 0, fmt.Errorf("listen: %w", err)
	}
	err = unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}})
	if err == nil {
		err = unix.Listen(fd, 4096)
	}
	var addr unix.Sockaddr
	if err == nil {
		addr, err = unix.Getsockname(fd)
	}
	in4, ok := addr.(*unix.SockaddrInet4)
	if err != nil || !ok {
		unix.Close(fd)
		return -1, 0, fmt.Errorf("listen: %w", err)
	}
	return fd, in4.Port, nil
}

func (p *push) accept(ctx context.Context, listener int) error {
	for {
		fd, _, err := unix.Accept4(listener, unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC)
		switch err {
		case nil:
			p.fds = append(p.fds, fd)
			return unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
		case unix.EAGAIN:
			_, _ = unix.Poll([]unix.PollFd{{Fd: int32(listener), Events: unix.POLLIN}}, 100)
			select {
			case <-p.sink.done:
				return p.sink.failure(errors.New("it ended while connecting"))
			default:
			}
			if err := ctx.Err(); err != nil {
				return err
			}
		case unix.EINTR:
		default:
			return fmt.Errorf("accept: %w", err)
		}
	}
}

// serverFrame is an unmasked text frame (RFC 6455, section 5.2).
func serverFrame(payload []byte) []byte {
	if len(payload) < 126 {
		return append([]byte{0x81, byte(len(payload))}, payload...)
	}
	return append([]byte{0x81, 126, byte(len(payload) >> 8), byte(len(payload))}, payload...)
}

// measure has both take turns, so that what else happens on the machine hits both.
func (p *push) measure(ctx context.Context) (PushResult, error) {
	r := PushResult{Sockets: p.cfg.Sockets, FrameBytes: len(p.frame)}
	var ratios []float64
	for round := -1; round < p.cfg.Rounds; round++ { // the first warms up
		p.cfg.Progress.say("round %d of %d", max(round, 0)+1, p.cfg.Rounds)
		kinds := []func() (int, error){p.pushSome, p.sendSome}
		rates := make([]float64, 2)
		for k := range kinds {
			which := (k + round + 2) % 2 // neither is always the first
			rate, err := p.round(ctx, kinds[which])
			if err != nil {
				return r, err
			}
			rates[which] = rate
		}
		if round >= 0 {
			r.NotifierRounds, r.BareSendRounds = append(r.NotifierRounds, round1(rates[0])), append(r.BareSendRounds, round1(rates[1]))
			ratios = append(ratios, rates[0]/rates[1])
		}
	}
	r.NotifierPerSecond, r.BareSendPerSecond, r.Ratio = middle(r.NotifierRounds), middle(r.BareSendRounds), round3(middle(ratios))
	return r, nil
}

func middle(values []float64) float64 {
	sorted := slices.Sorted(slices.Values(values))
	return sorted[len(sorted)/2]
}

// round sends for a while, then waits until the readers have heard all.
func (p *push) round(ctx context.Context, some func() (int, error)) (perSecond float64, err error) {
	start, count := time.Now(), 0
	for time.Since(start) < p.cfg.Round {
		n, err := some()
		if err != nil {
			return 0, err
		}
		count += n
	}
	took := time.Since(start)
	return float64(count) / took.Seconds(), p.heard(ctx)
}

const pushBatch = 256 // as many as the notifier takes from its link at a time

// pushSome sends a batch by the notifier's own path.
func (p *push) pushSome() (int, error) {
	for range pushBatch {
		p.seq++
		p.rig.Push(p.next, schema.Position{Epoch: 1, Partition: 3, Offset: 1_000_000 + p.seq}, p.event)
		p.next = (p.next + 1) % len(p.fds)
	}
	p.rig.Flush()
	return pushBatch, nil
}

// sendSome sends a batch by nothing but system calls.
func (p *push) sendSome() (int, error) {
	for range pushBatch {
		n, _, e := unix.RawSyscall6(unix.SYS_SENDTO, uintptr(p.fds[p.next]), uintptr(unsafe.Pointer(unsafe.SliceData(p.frame))), uintptr(len(p.frame)),
			unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL, 0, 0)
		if e != 0 || int(n) != len(p.frame) {
			return 0, fmt.Errorf("send: the socket takes no more: %w", e)
		}
		p.next = (p.next + 1) % len(p.fds)
	}
	return pushBatch, nil
}

// heard waits until what the readers have heard no longer grows and nothing is parked.
func (p *push) heard(ctx context.Context) error {
	last := int64(-1)
	for {
		if err := p.sink.tell("bytes"); err != nil {
			return err
		}
		line, err := p.sink.next(ctx)
		if err != nil {
			return err
		}
		var report swarm.SinkReport
		if err := json.Unmarshal(line, &report); err != nil {
			return err
		}
		if report.Bytes == last && p.rig.Backlog() == 0 {
			return nil
		}
		last = report.Bytes
		if err := pause(ctx, 20*time.Millisecond); err != nil {
			return err
		}
	}
}
