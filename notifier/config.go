package notifier

import (
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net"
	"net/netip"
	"net/url"
	"os"
	"runtime"
	"time"

	"github.com/mailbell/mailbell/internal/auth"
	"github.com/mailbell/mailbell/internal/trace"
	"github.com/mailbell/mailbell/schema"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sys/unix"
)

// Config says what a notifier is. Only Bus and Keys have no useful zero value.
type Config struct {
	// NodeID is the node's name, unique in the fleet; tickets name it. Empty means the host's name and the port.
	NodeID string
	// Addr is where the clients' WebSockets are accepted; empty means ":7480".
	Addr string
	// PublicURL is what clients are told, such as "wss://n1.example.com/v1/ws"; empty means ws:// and Addr.
	PublicURL string
	// Version and Zone (the failure domain) are told to the bus.
	Version, Zone string
	// Weight of the node in placement; 0 means 1.
	Weight float64

	// Bus names the bus nodes: host:port, where a host name that stands for several
	// addresses means all of them, and is asked again every Resolve (0: 5 s).
	Bus     []string
	Resolve time.Duration
	// LinkTLS is for the links to the bus; nil means plain text.
	LinkTLS *tls.Config

	// Keys verify users' tokens. Tickets are verified with the keys that the bus tells.
	Keys *auth.Keys
	// Origins may open sockets from a page; the zero value allows the same host.
	Origins auth.Origins
	// Cookie is the name of the cookie that may hold the token; empty means "mailbell_token".
	Cookie string

	// Takeover is a Unix socket's path. A notifier that listens there hands all its connections over to this
	// one, and this one listens there for its own successor. Empty means neither.
	Takeover string

	// Shards that the connections are spread over; 0 means one per CPU, at most 64.
	Shards int
	// Workers verify tokens whose key has to be fetched, half of them at a time; 0 means 8.
	Workers int

	Limits

	// PingInterval is how long a connection may be silent before it is pinged; 0 means 50 s, -1 never.
	PingInterval time.Duration
	// PollInterval is how often a client would poll the store; it only scales mailbell_polls_avoided_total. 0 means 1 min.
	PollInterval time.Duration
	// PongTimeout is how long a pinged connection has for any sign of life; 0 means 20 s.
	PongTimeout time.Duration
	// HandshakeTimeout is how long a request's head may take; 0 means 5 s.
	HandshakeTimeout time.Duration
	// FrameTimeout is how long a half-sent frame or message may take; 0 means 10 s.
	FrameTimeout time.Duration
	// WriteTimeout is how long a client may take nothing of what is parked for it; 0 means 60 s.
	WriteTimeout time.Duration
	// CloseTimeout is how long a closing handshake may take; 0 means 2 s.
	CloseTimeout time.Duration
	// MaxAge is how long a connection lasts before its client is asked to come back, less up to a fifth so
	// that those who came together leave apart; 0 means for ever.
	MaxAge time.Duration
	// MoveAge is how old a connection must be to be moved when the bus makes the fleet even; 0 means 1 minute, -1 any.
	MoveAge time.Duration
	// ProxyProtocol is the networks of the proxies in front, each connection from which begins with a header of
	// PROXY protocol version 2 that says who the client is. Nobody else may send one.
	ProxyProtocol []netip.Prefix
	// CustomLoad is told to the bus, for placement by a metric of one's own; nil tells 0.
	CustomLoad func() float64
	// OwnerTimeout is how long a subscribe waits for an owner of its partition; 0 means 10 s.
	OwnerTimeout time.Duration

	// Logger; nil means slog.Default().
	Logger *slog.Logger
	// Tracer follows sampled events; nil means none.
	Tracer *trace.Tracer
	// Registerer for the metrics; nil means none.
	Registerer prometheus.Registerer
}

// Limits bound what clients can make the notifier spend. What is beyond one is refused or closed
// with a reason, which is also a metric's label. Of the node's connections, handshakes, accepts and backlog, and of those of
// an address or an account, -1 means no limit; what one connection may do always has one.
type Limits struct {
	// Connections of the node; 0 means what the process's limit of open files leaves, less 256.
	MaxConnections int
	// MaxPerAddress is connections of one peer's address (IPv6: of its /64); 0 means
	// 16,384. Behind a proxy every client has the proxy's address: then -1.
	MaxPerAddress int
	// MaxPerAccount is connections authenticated as one account; 0 means 100.
	MaxPerAccount int
	// MaxHandshakes is requests being read at a time; 0 means 4,096. A further connection waits in the kernel's queue.
	MaxHandshakes int
	// AcceptRate is connections a second, with a burst of a quarter of it; 0 means 20,000.
	AcceptRate int
	// MaxSubscriptions of one connection, at most 200; 0 means 32, -1 all 200.
	MaxSubscriptions int
	// MaxFrame is the bytes of a client's message, however fragmented; 0 means 4,096.
	MaxFrame int
	// FrameRate is frames a second that a connection may send, at most 1,000, FrameBurst how many at once; 0 means 10 and 100.
	FrameRate, FrameBurst int
	// Backlog is the bytes of events parked for one slow client, TotalBacklog of anything for all; 0 means 64 KiB and 64 MiB.
	// The rest of one frame that its socket has taken a part of may come on top of Backlog.
	Backlog, TotalBacklog int
}

const (
	maxHead          = 8 << 10 // bytes of a request's head
	maxSubscriptions = 200
	maxFrameRate     = 1000 // rates are counted in milliseconds
	maxFrameBurst    = 1 << 20
)

// Validate tells what is wrong with c, if anything.
func (c Config) Validate() error {
	c = c.withDefaults()
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf("notifier: "+format, args...)) }
	if len(c.Bus) == 0 {
		bad("no bus node is named: give --bus host:port")
	}
	for _, b := range c.Bus {
		if host, port, err := net.SplitHostPort(b); err != nil || host == "" || port == "" {
			bad("--bus %q is not host:port, such as bus.example.com:7481", b)
		}
	}
	if c.Keys == nil {
		bad("no keys to verify tokens with: give --jwt-keys a file or URL")
	}
	if c.PublicURL != "" {
		if u, err := url.Parse(c.PublicURL); err != nil || u.Host == "" || u.Scheme != "ws" && u.Scheme != "wss" {
			bad("--public-url %q is not a WebSocket's URL, such as wss://n1.example.com%s", c.PublicURL, schema.SocketPath)
		}
	}
	if len(c.Takeover) > maxHandPath {
		bad("--takeover has %d bytes: a Unix socket's path has %d at most here", len(c.Takeover), maxHandPath)
	}
	if c.Shards < 1 || c.Shards > 64 {
		bad("%d shards: 1 to 64 are possible", c.Shards)
	}
	if c.MaxSubscriptions > maxSubscriptions {
		bad("%d subscriptions per connection: at most %d are possible", c.MaxSubscriptions, maxSubscriptions)
	}
	if c.MaxAge != 0 && c.MaxAge < time.Second {
		bad("a maximum age of %v: at least 1s is needed, or 0 for none", c.MaxAge)
	}
	if c.MaxFrame < 512 || c.MaxFrame > 64<<10 {
		bad("a frame limit of %d bytes: 512 to 65536 are possible", c.MaxFrame)
	}
	if c.Backlog < 1<<10 {
		bad("a backlog of %d bytes: at least 1024 are needed", c.Backlog)
	}
	if c.MaxConnections < 1 || c.MaxHandshakes < 1 || c.AcceptRate < 1 || c.FrameRate < 1 || c.FrameBurst < 1 || c.Workers < 1 {
		bad("limits of connections, handshakes, accepts, frames and workers must be positive")
	}
	if c.FrameRate > maxFrameRate || c.FrameBurst > maxFrameBurst {
		bad("%d frames a second, %d at once: at most %d and %d are possible", c.FrameRate, c.FrameBurst, maxFrameRate, maxFrameBurst)
	}
	for _, d := range []struct {
		name string
		is   time.Duration
	}{{"handshake", c.HandshakeTimeout}, {"frame", c.FrameTimeout}, {"write", c.WriteTimeout}, {"close", c.CloseTimeout}, {"pong", c.PongTimeout}} {
		if d.is < 100*time.Millisecond {
			bad("a %s timeout of %v: at least 100ms is needed", d.name, d.is)
		}
	}
	return errors.Join(errs...)
}

func (c Config) withDefaults() Config {
	set(&c.Addr, ":7480")
	set(&c.Cookie, "mailbell_token")
	set(&c.Weight, 1)
	set(&c.Resolve, 5*time.Second)
	set(&c.Shards, min(runtime.GOMAXPROCS(0), 64))
	set(&c.Workers, 8)
	set(&c.PingInterval, 50*time.Second)
	set(&c.PongTimeout, 20*time.Second)
	set(&c.PollInterval, time.Minute)
	set(&c.HandshakeTimeout, 5*time.Second)
	set(&c.FrameTimeout, 10*time.Second)
	set(&c.WriteTimeout, time.Minute)
	set(&c.CloseTimeout, 2*time.Second)
	set(&c.OwnerTimeout, 10*time.Second)
	set(&c.MoveAge, time.Minute)
	c.Limits = c.Limits.withDefaults()
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
	return c
}

func (l Limits) withDefaults() Limits {
	set(&l.MaxConnections, openFiles()-256)
	set(&l.MaxPerAddress, 16384)
	set(&l.MaxPerAccount, 100)
	set(&l.MaxHandshakes, 4096)
	set(&l.AcceptRate, 20000)
	set(&l.MaxSubscriptions, 32)
	set(&l.MaxFrame, 4096)
	set(&l.FrameRate, 10)
	set(&l.FrameBurst, 100)
	set(&l.Backlog, 64<<10)
	set(&l.TotalBacklog, 64<<20)
	for _, n := range []*int{&l.MaxConnections, &l.MaxHandshakes, &l.AcceptRate, &l.TotalBacklog} {
		if *n == -1 {
			*n = math.MaxInt32
		}
	}
	if l.MaxSubscriptions == -1 {
		l.MaxSubscriptions = maxSubscriptions
	}
	return l
}

func set[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}

// openFiles is how many descriptors the process may have.
func openFiles() int {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil || limit.Cur > maxSlots {
		return maxSlots
	}
	return max(512, int(limit.Cur))
}

// nodeID is the name of a node that was given none.
func nodeID(addr string) string {
	host, err := os.Hostname()
	if err != nil || host == "" {
		host = "notifier"
	}
	if _, port, err := net.SplitHostPort(addr); err == nil {
		return host + ":" + port
	}
	return host
}
