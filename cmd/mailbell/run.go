package main

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/mailbell/mailbell/bus"
	"github.com/mailbell/mailbell/internal/auth"
	"github.com/mailbell/mailbell/internal/eventlog"
	"github.com/mailbell/mailbell/internal/ops"
	"github.com/mailbell/mailbell/internal/trace"
	"github.com/mailbell/mailbell/notifier"
	"github.com/mailbell/mailbell/schema"
	"github.com/mailbell/mailbell/storageadapter/dovecot"
	"github.com/mailbell/mailbell/web/console"
	"github.com/mailbell/mailbell/web/demo"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/spf13/cobra"
)

const runLong = `Run everything in one process: the log, the bus, a notifier, the doors for mail
stores, and a demo page. Keys and the log are made in --data. It listens on
127.0.0.1 only, unless told otherwise.

This is for trying mailbell out, and for a site that fits on one machine: the log
of run is one copy of the data in one folder. Further notifiers can join with
"mailbell notifier --bus".

With --brokers it uses your Kafka. It then shares the topic's partitions with all
bus nodes there, so name them with --bus: its notifier must reach every one.`

// runFlags are the settings of `mailbell run`.
type runFlags struct {
	log       logFlags
	keys      keyFlags
	kafka     kafkaFlags
	sockets   socketFlags
	window    windowFlags
	fleet     fleetFlags
	dovecot   dovecotFlags
	retention time.Duration
	data      string
	link      string
	bus       []string // of other processes on the same Kafka
	http      string
	ops       string
	peers     []string
	trace     traceFlags
	demo      bool
}

func newRunCommand(t terminal) *cobra.Command {
	var f runFlags
	cmd := &cobra.Command{
		Use:   "run",
		Short: "Run everything in one process, with a demo page",
		Long:  runLong,
		Example: `  mailbell run
  mailbell run --data /var/lib/mailbell --dovecot
  mailbell run --http 127.0.0.1:0 --sockets 127.0.0.1:0 --link 127.0.0.1:0 --ops 127.0.0.1:0`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return f.run(cmd, t) },
	}
	const host = "127.0.0.1"
	fs := cmd.Flags()
	dataFlag(fs, &f.data)
	f.sockets.register(fs, host, time.Second)
	linkFlag(fs, &f.link, host)
	busFlag(fs, &f.bus)
	httpFlag(fs, &f.http, host, "gateway, ingest, Dovecot's agent, demo page")
	opsFlag(fs, &f.ops)
	peersFlag(fs, &f.peers)
	f.trace.register(fs)
	fs.BoolVar(&f.demo, "demo", true, "serve the demo page, where anybody may log in as anybody (default: only if --http is on loopback)")
	fs.Lookup("demo").DefValue = "" // what it says is more than true
	f.dovecot.register(fs)
	f.keys.registerJWT(fs)
	f.keys.registerServiceTokens(fs)
	f.keys.registerOrigins(fs)
	f.window.register(fs)
	f.fleet.register(fs)
	fs.DurationVar(&f.retention, "retention", 24*time.Hour, "`time` that the log of run keeps events")
	f.kafka.register(fs)
	f.kafka.registerCreate(fs, 16)
	f.log.register(fs)
	return cmd
}

// everything is a running `mailbell run`:
//
//	ingest ─┐                        ┌─► gateway
//	agent ──┼─► publisher ─► log ─► bus ─link─► notifier ─► sockets
//	demo ───┘
type everything struct {
	flags  *runFlags
	logger *slog.Logger
	opened closers
	// watchMetrics stands between the parts and their registry; nil outside of tests.
	watchMetrics func(prometheus.Registerer) prometheus.Registerer

	dev      auth.Dev
	tracer   *trace.Tracer
	port     *ops.Server
	keys     *auth.Keys
	tokens   *auth.ServiceTokens
	log      *eventlog.Log
	node     *bus.Node
	notifier *notifier.Server
	agent    *dovecot.Agent // nil without --dovecot
	server   *httpServer
	demo     bool
}

// embedded is the log of run's own, which it has without --brokers.
func (f *runFlags) embedded() eventlog.EmbeddedConfig {
	return eventlog.EmbeddedConfig{Dir: filepath.Join(f.data, "log"), Topic: f.kafka.topic, Partitions: f.kafka.partitions, Retention: f.retention}
}

func (f *runFlags) check(cmd *cobra.Command) error {
	validate := f.embedded().Validate
	if len(f.kafka.brokers) > 0 {
		validate = f.kafka.checkBrokers
	}
	if err := validate(); err != nil {
		return &usageError{command: cmd.CommandPath(), err: err}
	}
	return nil
}

func (f *runFlags) run(cmd *cobra.Command, t terminal) error {
	if err := f.check(cmd); err != nil {
		return err
	}
	logger, err := f.log.logger(cmd)
	if err != nil {
		return err
	}
	if !cmd.Flags().Changed("demo") {
		f.demo = isLoopback(f.http)
	}
	ctx := cmd.Context()
	e := &everything{flags: f, logger: logger}
	defer func() { e.opened.close() }()
	if err := e.open(ctx); err != nil {
		return interrupted(ctx, err)
	}
	return e.run(ctx, func() { e.greet(t) })
}

func (e *everything) registry() prometheus.Registerer {
	if e.watchMetrics != nil {
		return e.watchMetrics(e.port.Registry())
	}
	return e.port.Registry()
}

// open makes all parts, each on the one before. Nothing runs yet.
func (e *everything) open(ctx context.Context) error {
	for _, step := range []func(context.Context) error{
		e.openOps, e.openKeys, e.openLog, e.openBus, e.openNotifier, e.openHTTP,
	} {
		if err := step(ctx); err != nil {
			return err
		}
	}
	return nil
}

func (e *everything) openOps(ctx context.Context) error {
	var err error
	if e.tracer, err = e.flags.trace.open(ctx, "run", ""); err != nil {
		return err
	}
	e.opened.add(e.tracer.Close)
	if e.port, err = ops.New(ops.Config{Addr: e.flags.ops, Version: version, Logger: e.logger}); err != nil {
		return err
	}
	e.opened.add(e.port.Close)
	return nil
}

func (e *everything) openKeys(ctx context.Context) error {
	keys := &e.flags.keys
	var err error
	if e.dev, err = auth.DevKeys(keysDir(e.flags.data)); err != nil {
		return err
	}
	if keys.jwtKeys == "" {
		keys.jwtKeys = e.dev.PublicKeyFile
	} else {
		e.dev.PrivateKeyFile = keys.jwtKeys // signs too, if it is a secret
	}
	if keys.serviceTokens == "" {
		keys.serviceTokens = e.dev.ServiceTokensFile
	}
	if e.keys, err = keys.openJWT(ctx, e.logger, e.registry()); err != nil {
		return err
	}
	e.opened.add(func() error { e.keys.Close(); return nil })
	e.tokens, err = auth.LoadServiceTokens(keys.serviceTokens)
	return err
}

func (e *everything) openLog(ctx context.Context) error {
	kafka := e.flags.kafka
	if len(kafka.brokers) == 0 {
		cfg := e.flags.embedded()
		cfg.Logger = e.logger
		embedded, err := eventlog.StartEmbedded(ctx, cfg)
		if err != nil {
			return err
		}
		e.opened.add(embedded.Close)
		kafka.brokers, kafka.create = embedded.Brokers(), false
	}
	var err error
	if e.log, err = kafka.openLog(ctx, e.logger, e.registry()); err != nil {
		return err
	}
	e.opened.add(e.log.Close)
	e.port.Ready("log", e.log.Ping)
	return nil
}

func (e *everything) openBus(context.Context) error {
	f := busFlags{keys: e.flags.keys, window: e.flags.window, fleet: e.flags.fleet, link: e.flags.link, tracer: e.tracer}
	var err error
	if e.node, err = f.newNode(e.log, e.keys, e.tokens, e.logger, e.registry()); err != nil {
		return err
	}
	e.opened.add(e.node.Close)
	e.port.Ready("bus", e.node.Ready)
	mountFleet(e.port, e.node)
	return nil
}

func (e *everything) openNotifier(context.Context) error {
	f := notifierFlags{
		tracer: e.tracer, keys: e.flags.keys, sockets: e.flags.sockets, weight: 1, metrics: e.port.Registry(),
		bus: append([]string{reachable(e.node.LinkAddr())}, e.flags.bus...),
	}
	var err error
	if e.notifier, err = f.newServer(e.logger, e.registry(), e.keys); err != nil {
		return err
	}
	e.port.Ready("notifier", e.notifier.Ready)
	return mountConsole(e.port, consoleParts{part: "run", peers: e.flags.peers, bus: e.node, notifier: e.notifier, partitions: e.log.Partitions()}, e.logger)
}

func (e *everything) openHTTP(context.Context) error {
	mux := http.NewServeMux()
	mux.Handle(gatewayPath, e.node.Gateway())
	events := &observedLog{Log: e.log}
	door := store{log: events, tokens: e.tokens, logger: e.logger, reg: e.registry(), tracer: e.tracer}
	var err error
	if e.agent, err = door.mount(mux, e.flags.dovecot, e.flags.data); err != nil {
		return err
	}
	if e.agent != nil {
		e.opened.add(e.agent.Close)
	}
	if err := e.mountDemo(mux, &door, events); err != nil {
		return err
	}
	e.server, err = listenHTTP(e.flags.http, mux, e.logger)
	return err
}

// observedLog shows the demo page's store what is published through this process, by whichever door.
type observedLog struct {
	*eventlog.Log
	observe func(schema.Event) // nil: nobody looks
}

func (l *observedLog) Append(ctx context.Context, recs ...eventlog.Record) ([]eventlog.Appended, error) {
	done, err := l.Log.Append(ctx, recs...)
	if err == nil && l.observe != nil {
		for _, r := range recs {
			if event, err := schema.DecodeEvent(r.Value); err == nil {
				l.observe(event)
			}
		}
	}
	return done, err
}

func (e *everything) mountDemo(mux *http.ServeMux, door *store, events *observedLog) error {
	mint := func(account string, ttl time.Duration) (string, error) {
		return auth.MintToken(e.dev.PrivateKeyFile, auth.Claims{
			Account: schema.Account(account), TTL: ttl, Issuer: e.flags.keys.issuer, Audience: e.flags.keys.audience,
		})
	}
	if !e.flags.demo {
		return nil
	}
	if _, err := mint("alice@example.com", time.Minute); err != nil {
		e.logger.Info("no demo page: users' tokens are made elsewhere", "reason", err)
		return nil
	}
	page, err := demo.NewHandler(demo.Config{Publish: door.publisher.Publish, MintToken: mint, Logger: e.logger})
	if err != nil {
		return err
	}
	events.observe = page.Observe
	mux.Handle("/", page)
	e.demo = true
	return nil
}

// run starts all parts. They stop from the doors inwards, so that what was
// accepted is still published and delivered.
func (e *everything) run(ctx context.Context, ready func()) error {
	var parts actors
	parts.add("http", e.server.Run)
	if e.agent != nil {
		parts.add("dovecot", e.agent.Run)
	}
	parts.add("notifier", e.flags.sockets.serve(e.notifier))
	parts.add("bus", e.node.Run)
	parts.add("ops", e.port.Run)
	parts.add("ready", func(ctx context.Context) error {
		return announce(ctx, e.logger, ready, e.node.Ready, e.notifier.Ready)
	})
	return parts.run(ctx, e.logger)
}

// greet says where everything is and what to try next.
func (e *everything) greet(t terminal) {
	e.logger.Info("ready", "sockets", e.notifier.Addr(), "link", e.node.LinkAddr(), "http", e.server.Addr(),
		"ops", e.port.Addr(), "log", strings.Join(e.log.Brokers(), ","))
	web := "http://" + reachable(e.server.Addr())
	var b strings.Builder
	fmt.Fprintf(&b, "\nmailbell is running.\n\n")
	if e.demo {
		fmt.Fprintf(&b, "  demo page   %s/\n", web)
	}
	fmt.Fprintf(&b, "  ingest      %s/v1/events\n", web)
	fmt.Fprintf(&b, "  gateway     %s%s\n", web, gatewayPath)
	fmt.Fprintf(&b, "  sockets     ws://%s%s\n", reachable(e.notifier.Addr()), schema.SocketPath)
	fmt.Fprintf(&b, "  console     http://%s%s\n", reachable(e.port.Addr()), console.Path)
	fmt.Fprintf(&b, "  operations  http://%s/metrics\n", reachable(e.port.Addr()))
	fmt.Fprintf(&b, "  keys        %s\n", keysDir(e.flags.data))
	options := ""
	if e.server.Addr() != "127.0.0.1:"+portHTTP {
		options += " --server " + web
	}
	if e.flags.data != "./mailbell-data" {
		options += " --data " + e.flags.data
	}
	fmt.Fprintf(&b, "\nNext, in two other terminals:\n\n")
	fmt.Fprintf(&b, "  %s watch --account alice@example.com%s\n", os.Args[0], options)
	fmt.Fprintf(&b, "  %s publish --account alice@example.com --mailbox INBOX --uidvalidity 1 --uid 1 --unseen 1%s\n\n", os.Args[0], options)
	fmt.Fprint(t.out, b.String())
}

// reachable is where programs of this machine find a listener.
func reachable(addr string) string {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return addr
	}
	if ip, err := netip.ParseAddr(host); host == "" || err == nil && ip.IsUnspecified() {
		host = "127.0.0.1"
	}
	return net.JoinHostPort(host, port)
}

func isLoopback(addr string) bool {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return false
	}
	ip, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && ip.IsLoopback()
}
