package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/mailbell/mailbell/bus"
	"github.com/mailbell/mailbell/bus/placement"
	"github.com/mailbell/mailbell/internal/auth"
	"github.com/mailbell/mailbell/internal/eventlog"
	"github.com/mailbell/mailbell/internal/ops"
	"github.com/mailbell/mailbell/internal/trace"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

const busLong = `Read the log, and send each event to the notifiers that want it. Answer clients
that ask which notifier to use (the gateway, GET and POST /v1/connect).

Bus nodes share the topic's partitions among themselves; start two or more, so
that the others take over when one is gone. A node keeps no state on disk: what
it remembers of the recent past it reads again from the log.`

// windowFlags are how far back a bus node remembers, of `bus` and `run`.
type windowFlags struct {
	age        time.Duration
	bytes      int64
	fetches    float64
	sessionTTL time.Duration
}

func (w *windowFlags) register(fs *pflag.FlagSet) {
	fs.DurationVar(&w.age, "window", 15*time.Minute, "replay events that are at most this `time` old")
	fs.Int64Var(&w.bytes, "window-bytes", 512<<20, "memory for the events that can be replayed")
	fs.Float64Var(&w.fetches, "fetches-per-second", 2000, "what the mail store bears, when many clients must ask it at once")
	fs.DurationVar(&w.sessionTTL, "session-ttl", 24*time.Hour, "end connections that a service asked for after this `time`")
}

// fleetFlags are how the bus gives clients to notifiers, of `bus` and `run`.
type fleetFlags struct {
	placement string
	probe     time.Duration
	probeCA   string
	moves     float64
	agent     string
	proxies   []string
}

func (f *fleetFlags) register(fs *pflag.FlagSet) {
	fs.StringVar(&f.placement, "placement", placement.Default, "how the gateway picks a notifier: "+strings.Join(placement.Names(), ", "))
	fs.DurationVar(&f.probe, "probe-interval", time.Second, "try each notifier's public address with a connection each time this `time` has passed; -1s never")
	fs.StringVar(&f.probeCA, "probe-ca", "", "PEM `file` of the authorities that signed the certificates of notifiers' public wss addresses (default: the system's)")
	fs.Float64Var(&f.moves, "move-rate", 200, "connections moved a second from full notifiers to empty ones; 0 none")
	fs.StringVar(&f.agent, "agent", "", "listen on this `address` for load balancers that ask for a notifier's state (HAProxy's agent-check)")
	fs.StringSliceVar(&f.proxies, "trusted-proxies", nil, "`networks` of the proxies in front of the gateway whose X-Forwarded-For or Forwarded says who the client is, such as 10.0.0.0/8")
}

func (f *fleetFlags) apply(cfg *bus.Config) error {
	policy, err := placement.New(f.placement, rand.New(rand.NewPCG(rand.Uint64(), rand.Uint64())))
	if err != nil {
		return fmt.Errorf("--%w", err)
	}
	if cfg.TrustedProxies, err = parseNetworks("--trusted-proxies", f.proxies); err != nil {
		return err
	}
	if f.probeCA != "" {
		pool, err := authorities("--probe-ca", f.probeCA)
		if err != nil {
			return err
		}
		cfg.ProbeTLS = &tls.Config{RootCAs: pool}
	}
	cfg.Evenness = placement.EvennessOf(f.placement)
	cfg.Placement, cfg.ProbeInterval, cfg.MovesPerSecond, cfg.AgentAddr = policy, f.probe, f.moves, f.agent
	if f.moves == 0 {
		cfg.MovesPerSecond = -1
	}
	return nil
}

// busFlags are the settings of `mailbell bus`.
type busFlags struct {
	fleet  fleetFlags
	scale  autoscaleFlags
	log    logFlags
	keys   keyFlags
	kafka  kafkaFlags
	tls    linkTLSFlags
	window windowFlags
	group  string
	node   string
	link   string
	http   string
	ops    string
	peers  []string
	trace  traceFlags
	tracer *trace.Tracer // opened by run
}

func newBusCommand(_ terminal) *cobra.Command {
	var f busFlags
	cmd := &cobra.Command{
		Use:   "bus",
		Short: "Read the log, route events to notifiers, answer as gateway",
		Long:  busLong,
		Example: `  mailbell bus --brokers kafka1:9092,kafka2:9092 --jwt-keys https://id.example.com/jwks.json --service-tokens service-tokens
  mailbell bus --config /etc/mailbell.yaml`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return f.run(cmd) },
	}
	fs := cmd.Flags()
	f.kafka.register(fs)
	f.kafka.registerCreate(fs, defaultPartitions)
	fs.StringVar(&f.group, "group", "", "Kafka consumer `group` of the bus nodes (default: mailbell-bus)")
	f.keys.registerJWT(fs)
	f.keys.registerServiceTokens(fs)
	f.keys.registerOrigins(fs)
	f.tls.register(fs)
	f.window.register(fs)
	f.fleet.register(fs)
	f.scale.register(fs)
	nodeFlag(fs, &f.node)
	linkFlag(fs, &f.link, "")
	httpFlag(fs, &f.http, "", "gateway")
	opsFlag(fs, &f.ops)
	peersFlag(fs, &f.peers)
	f.trace.register(fs)
	f.log.register(fs)
	return cmd
}

func (f *busFlags) check(cmd *cobra.Command) error {
	if err := errors.Join(f.kafka.checkBrokers(), f.keys.checkJWT(), f.keys.checkServiceTokens()); err != nil {
		return &usageError{command: cmd.CommandPath(), err: err}
	}
	return nil
}

// run wires
//
//	Kafka ──► bus ──link──► notifiers
//	           ├──► gateway on --http ──► clients
//	           └──► ops
func (f *busFlags) run(cmd *cobra.Command) error {
	if err := f.check(cmd); err != nil {
		return err
	}
	logger, err := f.log.logger(cmd)
	if err != nil {
		return err
	}
	ctx := cmd.Context()
	var opened closers
	defer func() { opened.close() }()

	port, err := ops.New(ops.Config{Addr: f.ops, Version: version, Logger: logger})
	if err != nil {
		return err
	}
	opened.add(port.Close)
	keys, err := f.keys.openJWT(ctx, logger, port.Registry())
	if err != nil {
		return err
	}
	opened.add(func() error { keys.Close(); return nil })
	tokens, err := auth.LoadServiceTokens(f.keys.serviceTokens)
	if err != nil {
		return err
	}
	log, err := f.kafka.openLog(ctx, logger, port.Registry())
	if err != nil {
		return interrupted(ctx, err)
	}
	opened.add(log.Close)
	if f.tracer, err = f.trace.open(ctx, "bus", f.node); err != nil {
		return err
	}
	opened.add(f.tracer.Close)
	node, err := f.newNode(log, keys, tokens, logger, port.Registry())
	if err != nil {
		return err
	}
	opened.add(node.Close)
	port.Ready("bus", node.Ready)
	if err := mountConsole(port, consoleParts{part: "bus", node: f.node, peers: f.peers, bus: node, partitions: log.Partitions()}, logger); err != nil {
		return err
	}
	mux := http.NewServeMux()
	mux.Handle(gatewayPath, node.Gateway())
	mountFleet(port, node)
	scaler, err := f.scale.scaler(node, log, f.group, f.name(), logger, port.Registry())
	if err != nil {
		return err
	}
	server, err := listenHTTP(f.http, mux, logger)
	if err != nil {
		return err
	}

	var parts actors
	parts.add("http", server.Run)
	parts.add("bus", node.Run)
	if scaler != nil {
		parts.add("autoscale", scaler.Run)
	}
	parts.add("ops", port.Run)
	parts.add("ready", func(ctx context.Context) error {
		return announce(ctx, logger, func() {
			logger.Info("ready", "link", node.LinkAddr(), "http", server.Addr(), "ops", port.Addr())
		}, node.Ready)
	})
	logger.Info("starting", "link", node.LinkAddr(), "http", server.Addr(), "ops", port.Addr(), "agent", node.AgentAddr())
	return parts.run(ctx, logger)
}

func (f *busFlags) newNode(log *eventlog.Log, keys *auth.Keys, tokens *auth.ServiceTokens, logger *slog.Logger, reg prometheus.Registerer) (*bus.Node, error) {
	origins, err := auth.ParseOrigins(f.keys.origins)
	if err != nil {
		return nil, fmt.Errorf("--origins: %w", err)
	}
	linkTLS, err := f.tls.server()
	if err != nil {
		return nil, err
	}
	cfg := bus.Config{
		NodeID: f.name(), Log: log, Group: f.group,
		LinkAddr: f.link, LinkTLS: linkTLS,
		WindowAge: f.window.age, WindowBytes: f.window.bytes, FetchesPerSecond: f.window.fetches, SessionTTL: f.window.sessionTTL,
		Keys: keys, ServiceTokens: tokens, Origins: origins, CookieName: f.keys.cookie,
		Logger: logger, Registerer: reg, Tracer: f.tracer,
	}
	if err := f.fleet.apply(&cfg); err != nil {
		return nil, err
	}
	return bus.New(cfg)
}

// name is the node's.
func (f *busFlags) name() string {
	if f.node != "" {
		return f.node
	}
	return nodeName(f.link)
}

// mountFleet serves what operators ask about the fleet and order of it.
func mountFleet(port *ops.Server, node *bus.Node) {
	h := node.FleetHandler()
	port.Handle("/fleet", h)
	port.Handle("/fleet/", h)
}

// nodeName is the name of a node that was given none: the same after a restart,
// and another one for each node of a machine.
func nodeName(addr string) string {
	host, err := os.Hostname()
	if err != nil || host == "" {
		host = "localhost"
	}
	_, port, err := net.SplitHostPort(addr)
	if err != nil || port == "0" {
		port = fmt.Sprintf("pid%d", os.Getpid())
	}
	return host + ":" + port
}
