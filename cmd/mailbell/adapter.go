package main

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"path/filepath"

	"github.com/mailbell/mailbell/internal/auth"
	"github.com/mailbell/mailbell/internal/ops"
	"github.com/mailbell/mailbell/internal/trace"
	"github.com/mailbell/mailbell/storageadapter"
	"github.com/mailbell/mailbell/storageadapter/dovecot"
	"github.com/mailbell/mailbell/storageadapter/spool"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

const adapterLong = `Take what mail stores report, and put it on the log.

POST /v1/events takes events as JSON and answers when Kafka has them. With
--dovecot it is also the agent that a Dovecot server on the same machine reports
to; that one answers at once, and keeps what Kafka does not take in a spool on
disk. deploy/dovecot has what to paste into Dovecot's configuration.`

// adapterFlags are the settings of `mailbell adapter`.
type adapterFlags struct {
	log     logFlags
	keys    keyFlags
	kafka   kafkaFlags
	dovecot dovecotFlags
	data    string
	http    string
	ops     string
	peers   []string
	trace   traceFlags
}

func newAdapterCommand(_ terminal) *cobra.Command {
	var f adapterFlags
	cmd := &cobra.Command{
		Use:   "adapter",
		Short: "Take mail stores' reports, put them on the log",
		Long:  adapterLong,
		Example: `  mailbell adapter --brokers kafka1:9092 --service-tokens service-tokens
  mailbell adapter --brokers kafka1:9092 --service-tokens service-tokens --dovecot --http 127.0.0.1:8480`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return f.run(cmd) },
	}
	fs := cmd.Flags()
	f.kafka.register(fs)
	f.kafka.registerCreate(fs, defaultPartitions)
	f.keys.registerServiceTokens(fs)
	f.dovecot.register(fs)
	dataFlag(fs, &f.data)
	httpFlag(fs, &f.http, "", "ingest, Dovecot's agent")
	opsFlag(fs, &f.ops)
	peersFlag(fs, &f.peers)
	f.trace.register(fs)
	f.log.register(fs)
	return cmd
}

func (f *adapterFlags) check(cmd *cobra.Command) error {
	if err := errors.Join(f.kafka.checkBrokers(), f.keys.checkServiceTokens()); err != nil {
		return &usageError{command: cmd.CommandPath(), err: err}
	}
	return nil
}

// run wires
//
//	mail store ──HTTP──► ingest ─────────────► publisher ──► Kafka
//	Dovecot ────HTTP──► agent ──► spool ──────────┘
//	                      └──► ops
func (f *adapterFlags) run(cmd *cobra.Command) error {
	if err := f.check(cmd); err != nil {
		return err
	}
	logger, err := f.log.logger(cmd)
	if err != nil {
		return err
	}
	var opened closers
	defer func() { opened.close() }()

	port, err := ops.New(ops.Config{Addr: f.ops, Version: version, Logger: logger})
	if err != nil {
		return err
	}
	opened.add(port.Close)
	tokens, err := auth.LoadServiceTokens(f.keys.serviceTokens)
	if err != nil {
		return err
	}
	// The doors open before Kafka is reached: what Dovecot reports until then waits in the spool.
	log := f.kafka.deferLog(logger, port.Registry())
	port.Ready("log", log.Ping)
	if err := mountConsole(port, consoleParts{part: "adapter", peers: f.peers}, logger); err != nil {
		return err
	}
	tracer, err := f.trace.open(cmd.Context(), "adapter", "")
	if err != nil {
		return err
	}
	opened.add(tracer.Close)
	door := store{log: log, tokens: tokens, logger: logger, reg: port.Registry(), tracer: tracer}
	mux := http.NewServeMux()
	agent, err := door.mount(mux, f.dovecot, f.data)
	if err != nil {
		return err
	}
	if agent != nil {
		opened.add(agent.Close)
	}
	server, err := listenHTTP(f.http, mux, logger)
	if err != nil {
		return err
	}

	var parts actors
	parts.add("http", server.Run)
	if agent != nil {
		parts.add("dovecot", agent.Run)
	}
	parts.add("log", log.Run)
	parts.add("ops", port.Run)
	// systemd is told when the doors listen: it would stop an adapter that Kafka keeps waiting, and with it
	// what Dovecot reports into the spool meanwhile. /readyz tells of Kafka.
	parts.add("systemd", func(ctx context.Context) error {
		return announce(ctx, logger, func() {
			logger.Info("starting", "http", server.Addr(), "ops", port.Addr())
		})
	})
	parts.add("ready", func(ctx context.Context) error {
		if waitReady(ctx, log.Ping) == nil {
			logger.Info("ready", "http", server.Addr(), "dovecot", agent != nil, "ops", port.Addr())
			<-ctx.Done()
		}
		return nil
	})
	return parts.run(cmd.Context(), logger)
}

// dovecotFlags are the agent's, of `adapter` and `run`.
type dovecotFlags struct {
	enabled    bool
	shared     []string
	spoolBytes int64
}

func (d *dovecotFlags) register(fs *pflag.FlagSet) {
	fs.BoolVar(&d.enabled, "dovecot", false, "take reports of a Dovecot server on this machine")
	fs.StringSliceVar(&d.shared, "dovecot-shared", nil, "`prefixes` of Dovecot's shared namespaces, such as shared/%u/")
	fs.Int64Var(&d.spoolBytes, "spool-bytes", spool.DefaultMaxBytes, "bytes of disk for what Kafka has not taken yet; what does not fit is refused")
}

// store is the mail stores' side of mailbell: from their reports to the log.
type store struct {
	log    storageadapter.Log
	tokens *auth.ServiceTokens
	logger *slog.Logger
	reg    prometheus.Registerer
	tracer *trace.Tracer // nil: off

	publisher *storageadapter.Publisher // made by mount
}

// mount adds the doors for mail stores to mux. The agent is nil unless it is enabled.
func (s *store) mount(mux *http.ServeMux, d dovecotFlags, data string) (*dovecot.Agent, error) {
	var err error
	s.publisher, err = storageadapter.New(storageadapter.Config{Log: s.log, Registerer: s.reg, Tracer: s.tracer})
	if err != nil {
		return nil, err
	}
	ingest, err := storageadapter.NewIngest(storageadapter.IngestConfig{
		Publisher: s.publisher, Tokens: s.tokens, Logger: s.logger, Registerer: s.reg,
	})
	if err != nil {
		return nil, err
	}
	mux.Handle(storageadapter.EventsPath, ingest)
	if !d.enabled {
		return nil, nil
	}
	agent, err := dovecot.NewAgent(dovecot.Config{
		Publisher: s.publisher,
		Spool:     spool.Config{Dir: filepath.Join(data, "spool"), MaxBytes: d.spoolBytes},
		Tokens:    s.tokens, TrustLoopback: true, Shared: d.shared,
		Logger: s.logger, Registerer: s.reg,
	})
	if err != nil {
		return nil, err
	}
	mux.Handle(dovecot.NotifyPath, agent)
	mux.Handle(dovecot.EventsPath, agent)
	return agent, nil
}

// interrupted turns the error of a start that a signal ended into a clean end.
func interrupted(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return nil
	}
	return err
}
