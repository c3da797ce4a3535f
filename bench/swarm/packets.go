package swarm

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"sync"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
	"golang.org/x/sys/unix"

	"github.com/mailbell/mailbell/bench/ledger"
	"github.com/mailbell/mailbell/schema"
)

// PacketsConfig says what clients in user space connect to. Connection i belongs to the account i and
// goes to the target i modulo their number.
type PacketsConfig struct {
	Run         uint32   `json:"run"`
	Connections int      `json:"connections"`
	Targets     []string `json:"targets"`           // host:port; the host is ignored: it is the device's
	KeyFile     string   `json:"keyFile"`           // to mint tokens with
	Pending     int      `json:"pending,omitempty"` // connections coming up at once; 0 = 512
	ReportMs    int      `json:"reportMs,omitempty"`
}

// The device's network. Clients are 10.1.0.0 and up, with 2^14 ports each.
const (
	deviceName    = "mailbell0"
	deviceNetwork = "10.0.0.1/8"
	hostAddr      = 10<<24 | 1
	firstClient   = 10<<24 | 1<<16
	portBits      = 14
	firstPort     = 1 << portBits
	maxPackets    = 254 << (16 + portBits - 8) // far more than fit anywhere
)

const retransmit = time.Second

// packetConn is a client whose TCP is ours: 72 bytes, without buffers. What it sends is small and
// can be made again when it is lost.
type packetConn struct {
	snd, una uint32 // next to send, oldest that is not acknowledged
	rcv      uint32 // next expected
	state    state
	tries    uint8
	due      uint32 // ms since the start: when to send again
	since    int64
	observer ledger.Observer
}

// Packets is thousands to millions of clients in one process that has one descriptor: their TCP is here
// and their packets go through a tun device, so that the kernel keeps no socket of theirs. It is
// enough TCP for a path that loses little and reorders nothing: it acknowledges at once, throws away what is out of
// order, and sends again by a timer.
type Packets struct {
	// Static after newPackets.
	cfg    PacketsConfig
	ports  []uint16 // of the targets
	device *device
	minter *Minter // used by run only

	// Owned by run.
	conns   []packetConn
	next    int               // connection to begin with next
	upNow   int               // connections coming up
	sweepAt int               // where sweep goes on
	partial map[uint32][]byte // half frames
	in, out []byte
	frame   []byte
	start   time.Time

	mu     sync.Mutex // guards the rest
	counts Counts
	hist   *hdrhistogram.Histogram
}

func newPackets(cfg PacketsConfig) (*Packets, error) {
	if cfg.Connections <= 0 || cfg.Connections > maxPackets || len(cfg.Targets) == 0 {
		return nil, errors.New("packets: connections and targets are needed")
	}
	if cfg.Pending <= 0 {
		cfg.Pending = 512
	}
	p := &Packets{cfg: cfg, conns: make([]packetConn, cfg.Connections), partial: make(map[uint32][]byte),
		in: make([]byte, 64<<10), hist: hdrhistogram.New(1, 600_000_000, 2)}
	for _, t := range cfg.Targets {
		addr, err := netip.ParseAddrPort(t)
		if err != nil {
			return nil, fmt.Errorf("packets: target %q: %w", t, err)
		}
		p.ports = append(p.ports, addr.Port())
	}
	for i := range p.conns {
		p.conns[i].observer, p.conns[i].since = ledger.NewObserver(), -1
	}
	var err error
	if p.minter, err = NewMinter(cfg.KeyFile); err != nil {
		return nil, fmt.Errorf("packets: %w", err)
	}
	p.device, err = openDevice(deviceName, netip.MustParsePrefix(deviceNetwork))
	return p, err
}

// Run connects and answers until ctx ends.
func (p *Packets) Run(ctx context.Context) error {
	defer p.device.close()
	p.start = time.Now()
	fds := []unix.PollFd{{Fd: int32(p.device.fd), Events: unix.POLLIN}}
	swept := p.start
	for ctx.Err() == nil {
		p.mu.Lock()
		n, err := p.receive(256)
		if err == nil {
			p.begin(n)
		}
		if now := time.Now(); now.Sub(swept) > 10*time.Millisecond {
			swept = now
			p.sweep()
		}
		p.mu.Unlock()
		if err != nil {
			return fmt.Errorf("packets: %w", err)
		}
		if n == 0 {
			_, _ = unix.Poll(fds, 10)
		}
	}
	return nil
}

func (p *Packets) receive(most int) (n int, err error) {
	for ; n < most; n++ {
		size, err := p.device.read(p.in)
		if err != nil || size == 0 {
			return n, err
		}
		if s, ok := parseSegment(p.in[:size]); ok {
			p.segment(&s)
		}
	}
	return n, nil
}

// begin starts a few connections.
func (p *Packets) begin(most int) {
	for k := 0; k <= most/2 && p.next < len(p.conns) && p.upNow < p.cfg.Pending; k++ {
		i := p.next
		p.next++
		p.upNow++
		c := &p.conns[i]
		c.state = connecting
		c.una = uint32(i)*2654435761 + 1 // the initial sequence number
		p.resend(i)
	}
}

func (p *Packets) now() uint32 { return uint32(time.Since(p.start) / time.Millisecond) }

// sweep looks at a part of all connections, so that each has its turn a few times a second.
func (p *Packets) sweep() {
	now := p.now()
	end := min(p.sweepAt+len(p.conns)/50+1, len(p.conns), p.next)
	for i := p.sweepAt; i < end; i++ {
		c := &p.conns[i]
		if c.state != live && c.state != over || c.una != c.snd && c.state == live {
			if int32(now-c.due) >= 0 {
				p.counts.fail("sent again while %s", stateNames[c.state])
				p.resend(i)
			}
		}
	}
	if p.sweepAt = end; end >= min(len(p.conns), p.next) {
		p.sweepAt = 0
	}
}

var stateNames = map[state]string{connecting: "connecting", shaking: "shaking hands", subscribing: "subscribing", live: "live"}

// resend sends all that is not acknowledged, made anew.
func (p *Packets) resend(i int) {
	c := &p.conns[i]
	wait := retransmit << min(c.tries, 4)
	c.tries++
	c.due = p.now() + uint32(wait/time.Millisecond)
	switch c.state {
	case connecting:
		p.send(i, c.una, tcpSYN, nil)
		c.snd = c.una + 1
	case shaking, subscribing:
		if c.una != c.snd || c.tries == 1 {
			p.greet(i)
		} else {
			p.send(i, c.snd, tcpACK, nil)
		}
	case live:
		var pongs []byte
		for uint32(len(pongs)) < c.snd-c.una {
			pongs = appendClientFrame(pongs, opPong, nil)
		}
		p.send(i, c.una, tcpACK|tcpPSH, pongs)
	}
}

// greet sends the handshake and the subscribe in one packet.
func (p *Packets) greet(i int) {
	c := &p.conns[i]
	name := ledger.AccountName(uint32(i))
	token, err := p.minter.Mint(name)
	if err != nil {
		p.counts.fail("mint: %v", err)
		return
	}
	p.frame = appendHandshake(p.frame[:0], schema.SocketPath, "10.0.0.1:"+strconv.Itoa(int(p.target(i))), token)
	p.frame = appendSubscribe(p.frame, name, &conn{})
	p.send(i, c.una, tcpACK|tcpPSH, p.frame)
	c.snd = c.una + uint32(len(p.frame))
}

func (p *Packets) target(i int) uint16 { return p.ports[i%len(p.ports)] }

func (p *Packets) send(i int, seq uint32, flags byte, payload []byte) {
	s := segment{
		src: firstClient + uint32(i>>portBits), dst: hostAddr, srcPort: uint16(firstPort + i&(1<<portBits-1)), dstPort: p.target(i),
		seq: seq, flags: flags, window: 65535, payload: payload,
	}
	if flags&tcpACK != 0 {
		s.ack = p.conns[i].rcv
	}
	p.out = s.append(p.out[:0])
	p.device.write(p.out)
	p.counts.BytesOut += int64(len(payload))
}

// index tells the connection that a packet is for.
func (p *Packets) index(s *segment) (int, bool) {
	if s.dst < firstClient || s.dstPort < firstPort || s.dstPort >= 2*firstPort {
		return 0, false
	}
	i := int(s.dst-firstClient)<<portBits | int(s.dstPort-firstPort)
	return i, i < p.next && s.srcPort == p.target(i)
}

// segment handles one packet of the server's (RFC 9293, section 3.10.7, as far as it goes).
func (p *Packets) segment(s *segment) {
	i, ok := p.index(s)
	if !ok {
		return
	}
	c := &p.conns[i]
	if c.state == over || c.state == idle {
		return
	}
	if s.flags&tcpRST != 0 {
		p.end(i, "reset")
		return
	}
	if c.state == connecting {
		if s.flags&(tcpSYN|tcpACK) == tcpSYN|tcpACK && s.ack == c.snd {
			c.rcv, c.una, c.state, c.tries = s.seq+1, s.ack, shaking, 0
			p.resend(i)
		}
		return
	}
	if s.flags&tcpACK != 0 && int32(s.ack-c.una) > 0 && int32(s.ack-c.snd) <= 0 {
		c.una, c.tries = s.ack, 1
	}
	if len(s.payload) > 0 && s.seq == c.rcv {
		c.rcv += uint32(len(s.payload))
		p.counts.BytesIn += int64(len(s.payload))
		before := c.snd
		p.data(i, s.payload)
		if c.state != over && c.snd == before {
			p.send(i, c.snd, tcpACK, nil)
		}
	} else if len(s.payload) > 0 || int32(s.seq-c.rcv) < 0 || s.flags&tcpSYN != 0 {
		p.send(i, c.snd, tcpACK, nil) // a duplicate, or a probe
	}
	if s.flags&tcpFIN != 0 && s.seq+uint32(len(s.payload)) == c.rcv && c.state != over {
		c.rcv++
		p.send(i, c.snd, tcpACK|tcpFIN, nil)
		p.end(i, "closed")
	}
}

func (p *Packets) end(i int, how string) {
	c := &p.conns[i]
	if c.state == live {
		p.counts.Live--
		p.counts.Closed++
	} else {
		p.upNow--
	}
	p.counts.fail("%s while %s", how, stateNames[c.state])
	c.state = over
	delete(p.partial, uint32(i))
}

// data handles bytes that came in order.
func (p *Packets) data(i int, b []byte) {
	c := &p.conns[i]
	if held := p.partial[uint32(i)]; held != nil {
		b = append(held, b...)
		delete(p.partial, uint32(i))
	}
	if c.state == shaking {
		end, status := handshakeEnd(b)
		if end == 0 {
			p.partial[uint32(i)] = append([]byte(nil), b...)
			return
		}
		if status != 101 {
			p.end(i, "refused with "+strconv.Itoa(status))
			return
		}
		c.state = subscribing
		b = b[end:]
	}
	now := time.Now()
	for len(b) > 0 {
		opcode, payload, used := nextFrame(b)
		if used == 0 {
			p.partial[uint32(i)] = append([]byte(nil), b...)
			return
		}
		b = b[used:]
		if p.oneFrame(i, opcode, payload, now); c.state == over {
			return
		}
	}
}

func (p *Packets) oneFrame(i int, opcode byte, payload []byte, now time.Time) {
	c := &p.conns[i]
	switch opcode {
	case opPing:
		pong := appendClientFrame(p.frame[:0], opPong, nil) // the notifier's pings are empty
		if c.una == c.snd {
			c.tries, c.due = 0, p.now()+uint32(retransmit/time.Millisecond)
		}
		p.send(i, c.snd, tcpACK|tcpPSH, pong)
		c.snd += uint32(len(pong))
	case opClose:
		p.end(i, "close frame")
	case opText:
		if id, _, ok := parseEvent(payload); ok {
			p.counts.Events++
			if id.Run == p.cfg.Run && id.Seq > 0 && c.observer.Event(id.Seq) {
				_ = p.hist.RecordValue(max(1, (now.UnixNano()-id.SentAt)/1000))
			}
			return
		}
		p.other(i, payload, now)
	}
}

// other handles what is no event.
func (p *Packets) other(i int, payload []byte, now time.Time) {
	c := &p.conns[i]
	f, err := schema.DecodeServerFrame(payload)
	if err != nil {
		p.counts.fail("frame: %v", err)
		return
	}
	switch f.Type {
	case schema.FrameSubscribed:
		c.since = f.Position.Offset
		c.observer.Covered(f.Position.Offset)
		if c.state != live {
			c.state = live
			p.upNow--
			p.counts.Live++
			p.counts.Subscribed++
			p.counts.Peak = max(p.counts.Peak, p.counts.Live)
			p.counts.ConnectNanos = int64(now.Sub(p.start))
		}
	case schema.FrameMissed:
		p.counts.Missed++
		c.observer.Covered(f.Position.Offset)
	default:
		p.counts.fail("frame %s %s %s", f.Type, f.Code, f.Message)
	}
}

func (p *Packets) report() Report {
	p.mu.Lock()
	defer p.mu.Unlock()
	c := p.counts
	c.Failures = cloneMap(c.Failures)
	return Report{Counts: c}
}

func (p *Packets) obey(string, *encoder) {}

func (p *Packets) final() Report {
	var f Final
	for i := range p.conns {
		c := &p.conns[i]
		if o := c.observer.Observation(uint32(i)); o.Last > 0 || o.Told > c.since {
			f.Observations, f.Since = append(f.Observations, o), append(f.Since, c.since)
		}
	}
	return Report{Counts: p.counts, Latencies: p.hist.Export(), Final: &f}
}
