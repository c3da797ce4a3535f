package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"runtime"
	"runtime/debug"
	"time"

	"github.com/mailbell/mailbell/internal/auth"
	"github.com/mailbell/mailbell/internal/ops"
	"github.com/mailbell/mailbell/internal/trace"
	"github.com/mailbell/mailbell/notifier"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

const notifierLong = `Hold the clients' WebSockets, and write each event to those that subscribed.

A notifier connects to every bus node, over the link. Start as many as you need
connections for: each tells the bus its load, and the gateway sends new clients
to the emptiest one. It keeps no state on disk.`

const noBus = `--bus is missing: name the bus nodes' link addresses, such as --bus bus1:7481,bus2:7481.
  A notifier can also join a mailbell run on the same machine: --bus 127.0.0.1:7481`

// socketFlags are how a notifier treats its clients, of `notifier` and `run`.
type socketFlags struct {
	sockets   string
	publicURL string
	limits    notifier.Limits
	ping      time.Duration
	pong      time.Duration
	handshake time.Duration
	frame     time.Duration
	write     time.Duration
	close     time.Duration
	poll      time.Duration
	drain     time.Duration
	shards    int
	maxAge    time.Duration
	moveAge   time.Duration
	proxies   []string
	metric    string
}

func (s *socketFlags) register(fs *pflag.FlagSet, host string, drain time.Duration) {
	drainFlag(fs, &s.drain, drain)
	socketsFlag(fs, &s.sockets, host)
	publicURLFlag(fs, &s.publicURL)
	fs.DurationVar(&s.ping, "ping-interval", 50*time.Second, "ping a connection that was silent for this `time`; -1s never")
	fs.DurationVar(&s.pong, "pong-timeout", 20*time.Second, "close a pinged connection that gives no sign of life for this `time`")
	fs.DurationVar(&s.handshake, "handshake-timeout", 5*time.Second, "refuse a request whose head is not whole after this `time`")
	fs.DurationVar(&s.frame, "frame-timeout", 10*time.Second, "close a connection whose frame or message is not whole after this `time`")
	fs.DurationVar(&s.write, "write-timeout", time.Minute, "close a connection that takes nothing of what is parked for it for this `time`")
	fs.DurationVar(&s.close, "close-timeout", 2*time.Second, "drop a connection that does not finish its closing handshake in this `time`")
	fs.DurationVar(&s.poll, "poll-interval", time.Minute, "`time` between two polls of a client without mailbell; for the metric of polls avoided")
	fs.IntVar(&s.shards, "shards", 0, "shards that the connections are spread over (default: one a CPU)")
	fs.DurationVar(&s.maxAge, "max-age", 0, "ask clients to come back after this `time`, less up to a fifth; 0 never")
	fs.DurationVar(&s.moveAge, "move-age", time.Minute, "`time` that a connection has lived at least when it is moved so that the notifiers are even")
	fs.StringSliceVar(&s.proxies, "proxy-protocol", nil, "`networks` of the proxies in front whose connections begin with a header of PROXY protocol v2, such as 10.0.0.0/8")
	fs.StringVar(&s.metric, "load-metric", "", "`metric` of this process that --placement custom-load goes by, such as mailbell_notifier_backlog_bytes; less is better")
	fs.IntVar(&s.limits.MaxConnections, "max-connections", 0, "connections of this node (default: what the limit of open files leaves)")
	fs.IntVar(&s.limits.MaxPerAddress, "max-per-address", 16384, "connections of one peer address; -1 no limit, as behind a proxy")
	fs.IntVar(&s.limits.MaxPerAccount, "max-per-account", 100, "connections of one user; -1 no limit")
	fs.IntVar(&s.limits.MaxHandshakes, "max-handshakes", 4096, "requests being read at a time")
	fs.IntVar(&s.limits.AcceptRate, "accept-rate", 20000, "connections accepted a second")
	fs.IntVar(&s.limits.MaxSubscriptions, "max-subscriptions", 32, "accounts that one connection may subscribe to, at most 200")
	fs.IntVar(&s.limits.MaxFrame, "max-frame", 4096, "bytes of a client's frame")
	fs.IntVar(&s.limits.FrameRate, "frame-rate", 10, "frames a second that one connection may send, at most 1000")
	fs.IntVar(&s.limits.FrameBurst, "frame-burst", 100, "frames that one connection may send at once")
	fs.IntVar(&s.limits.Backlog, "backlog", 64<<10, "bytes parked for one slow client before it is told that it missed them")
	fs.IntVar(&s.limits.TotalBacklog, "total-backlog", 64<<20, "bytes parked for all slow clients together")
}

// config is the part of the notifier's Config that the flags decide.
func (s *socketFlags) config(metrics prometheus.Gatherer) (notifier.Config, error) {
	if s.ping < 0 {
		s.ping = -1
	}
	cfg := notifier.Config{
		Addr: s.sockets, PublicURL: s.publicURL, Limits: s.limits,
		PingInterval: s.ping, PongTimeout: s.pong, HandshakeTimeout: s.handshake, FrameTimeout: s.frame, WriteTimeout: s.write, CloseTimeout: s.close, PollInterval: s.poll, Shards: s.shards, MaxAge: s.maxAge, MoveAge: s.moveAge,
	}
	var err error
	if cfg.ProxyProtocol, err = parseNetworks("--proxy-protocol", s.proxies); err != nil {
		return cfg, err
	}
	if s.metric != "" {
		cfg.CustomLoad = func() float64 { return metricSum(metrics, s.metric) }
	}
	return cfg, nil
}

// metricSum is a metric's value, summed over its labels; 0 while there is none of that name.
func metricSum(metrics prometheus.Gatherer, name string) (sum float64) {
	families, _ := metrics.Gather() // what could be gathered
	for _, family := range families {
		if family.GetName() != name {
			continue
		}
		for _, m := range family.GetMetric() {
			sum += m.GetGauge().GetValue() + m.GetCounter().GetValue() + m.GetUntyped().GetValue()
		}
	}
	return sum
}

// serve runs a notifier until ctx ends, and then until its clients have gone
// elsewhere, for --drain at most.
func (s *socketFlags) serve(server *notifier.Server) func(context.Context) error {
	return func(ctx context.Context) error {
		running, stop := context.WithCancel(context.WithoutCancel(ctx))
		defer stop()
		drained := make(chan struct{})
		go func() {
			defer close(drained)
			defer stop()
			select {
			case <-ctx.Done():
				if s.drain > 0 {
					_ = server.Drain(running, s.drain)
				}
			case <-running.Done():
			}
		}()
		err := server.Run(running)
		stop()
		<-drained
		return err
	}
}

// notifierFlags are the settings of `mailbell notifier`.
type notifierFlags struct {
	log     logFlags
	keys    keyFlags
	sockets socketFlags
	link    linkTLSFlags
	bus     []string
	ops     string
	peers   []string
	trace   traceFlags
	tracer  *trace.Tracer // opened by run
	node    string
	zone    string
	weight  float64
	metrics prometheus.Gatherer // of this process

	takeover string
	send     string
}

func newNotifierCommand(t terminal) *cobra.Command {
	var f notifierFlags
	cmd := &cobra.Command{
		Use:   "notifier",
		Short: "Hold the clients' WebSockets",
		Long:  notifierLong,
		Example: `  mailbell notifier --bus bus1:7481,bus2:7481 --jwt-keys https://id.example.com/jwks.json --public-url wss://n1.example.com/v1/ws
  mailbell notifier --bus 127.0.0.1:7481 --jwt-keys mailbell-data/keys/jwt-public.pem --sockets :7580 --ops 127.0.0.1:0`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return f.run(cmd) },
	}
	fs := cmd.Flags()
	busFlag(fs, &f.bus)
	f.sockets.register(fs, "", 10*time.Second)
	f.keys.registerJWT(fs)
	f.keys.registerOrigins(fs)
	f.link.register(fs)
	nodeFlag(fs, &f.node)
	fs.StringVar(&f.zone, "zone", "", "failure domain of this node, such as a rack or a data centre")
	fs.Float64Var(&f.weight, "weight", 1, "share of the clients that this node should get, beside others")
	fs.StringVar(&f.takeover, "takeover", "", "Unix socket at this `path`: take all connections over from the notifier that listens there, if one does, and listen there for the next one")
	fs.StringVar(&f.send, "send", "auto", "how events are written: auto or send, which are the same, a system call each; uring was measured and is not kept")
	opsFlag(fs, &f.ops)
	peersFlag(fs, &f.peers)
	f.trace.register(fs)
	f.log.register(fs)
	return cmd
}

func (f *notifierFlags) check(cmd *cobra.Command) error {
	var errs []error
	if len(f.bus) == 0 {
		errs = append(errs, errors.New(noBus))
	}
	errs = append(errs, f.keys.checkJWT(), checkSend(f.send))
	if err := errors.Join(errs...); err != nil {
		return &usageError{command: cmd.CommandPath(), err: err}
	}
	return nil
}

func checkSend(how string) error {
	switch how {
	case "auto", "send":
		return nil
	case "uring":
		return errors.New("--send=uring: io_uring gained less than 20 % over send(2) when it was measured (docs/performance.md), so it is not built in; use --send=auto")
	}
	return fmt.Errorf("--send %q: auto and send are possible", how)
}

// run wires
//
//	bus nodes ──link──► notifier ──WebSockets──► clients
//	                       └──► ops
func (f *notifierFlags) run(cmd *cobra.Command) error {
	if err := f.check(cmd); err != nil {
		return err
	}
	logger, err := f.log.logger(cmd)
	if err != nil {
		return err
	}
	ctx := cmd.Context()
	collectEarly()
	var opened closers
	defer func() { opened.close() }()

	// The one that takes over has the port of the one that still serves.
	port, err := ops.New(ops.Config{Addr: f.ops, Share: f.takeover != "", Version: version, Logger: logger})
	if err != nil {
		return err
	}
	opened.add(port.Close)
	keys, err := f.keys.openJWT(ctx, logger, port.Registry())
	if err != nil {
		return err
	}
	opened.add(func() error { keys.Close(); return nil })
	f.metrics = port.Registry()
	if f.tracer, err = f.trace.open(ctx, "notifier", f.node); err != nil {
		return err
	}
	opened.add(f.tracer.Close)
	server, err := f.newServer(logger, port.Registry(), keys)
	if err != nil {
		return err
	}
	port.Ready("notifier", server.Ready)
	if err := mountConsole(port, consoleParts{part: "notifier", node: f.node, peers: f.peers, notifier: server}, logger); err != nil {
		return err
	}

	var parts actors
	parts.add("notifier", f.sockets.serve(server))
	parts.add("ops", port.Run)
	parts.add("ready", func(ctx context.Context) error {
		return announce(ctx, logger, func() {
			logger.Info("ready", "sockets", server.Addr(), "ops", port.Addr())
		}, server.Ready)
	})
	logger.Info("starting", "sockets", server.Addr(), "bus", f.bus, "ops", port.Addr())
	if err := parts.run(ctx, logger); !errors.Is(err, notifier.ErrTakenOver) {
		return err
	}
	return nil
}

// notifierGCPercent makes the garbage of handshakes and events worth a quarter of what is held: a collection
// over slots costs next to nothing, memory per connection is what counts.
const notifierGCPercent = 25

// collectEarly sets the collector's pace, unless GOGC says otherwise.
func collectEarly() {
	if _, set := os.LookupEnv("GOGC"); !set {
		debug.SetGCPercent(notifierGCPercent)
	}
}

func (f *notifierFlags) newServer(logger *slog.Logger, reg prometheus.Registerer, keys *auth.Keys) (*notifier.Server, error) {
	tlsConfig, err := f.link.client()
	if err != nil {
		return nil, err
	}
	origins, err := auth.ParseOrigins(f.keys.origins)
	if err != nil {
		return nil, fmt.Errorf("--origins: %w", err)
	}
	cfg, err := f.sockets.config(f.metrics)
	if err != nil {
		return nil, err
	}
	cfg.NodeID, cfg.Zone, cfg.Weight, cfg.Version = f.node, f.zone, f.weight, version
	cfg.Bus, cfg.LinkTLS, cfg.Takeover = f.bus, tlsConfig, f.takeover
	cfg.Keys, cfg.Origins, cfg.Cookie = keys, origins, f.keys.cookie
	cfg.Logger, cfg.Registerer, cfg.Tracer = logger, reg, f.tracer
	server, err := notifier.New(cfg)
	if err == nil {
		moreProcessors(server.Pollers())
	}
	return server, err
}

// moreProcessors lets Go use as many processors more as there are pollers, unless GOMAXPROCS is set. A goroutine that waits
// in the kernel keeps the processor that it ran on until the runtime takes it away, up to 10 ms later. With all of them kept
// so, events that had come waited for as long.
func moreProcessors(pollers int) {
	if _, set := os.LookupEnv("GOMAXPROCS"); !set {
		runtime.GOMAXPROCS(cpus + pollers)
	}
}

// cpus is what Go found.
var cpus = runtime.GOMAXPROCS(0)
