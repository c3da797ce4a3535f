package main

import (
	"fmt"
	"io"
	"maps"
	"os"
	"slices"

	"github.com/mailbell/mailbell/bench"
	"github.com/spf13/cobra"
)

const benchHoldLong = `Hold many connections and publish to random ones of them.

Starts a bus on an embedded log, --nodes notifiers, and as many processes of
clients, on loopback addresses 127.x.y.z. Every connection is authenticated and
subscribed to an account of its own. Memory is measured before and after, idling
while nothing is published, and latency and losses while events go to random
accounts.

It checks the limits first and says what to raise. --tune, as root, raises what it
can for as long as it runs, and uses a network namespace of its own.

A client's socket costs the kernel as much as the notifier's, some 4 KB. With
--clients packets, as root, the clients are TCP in their own process's memory, on
a tun device: the same connections for the notifiers, at half the memory.`

func newBenchHoldCommand(t terminal) *cobra.Command {
	cfg := bench.HoldConfig{}
	asJSON := false
	cmd := &cobra.Command{
		Use:   "hold",
		Short: "Hold many connections: memory, connect rate, idle CPU, and a ledger of events",
		Long:  benchHoldLong,
		Example: `  mailbell bench hold --connections 15000
  mailbell bench hold --connections 1000000 --tune --json
  mailbell bench hold --connections 3000000 --tune --clients packets`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := cfg.Validate(); err != nil {
				return &usageError{command: cmd.CommandPath(), err: err}
			}
			cfg.Progress = benchProgress(t.err)
			report := bench.NewReport("hold", os.Args[min(3, len(os.Args)):])
			result, err := bench.Hold(cmd.Context(), cfg)
			endProgress(cfg.Progress)
			if err != nil {
				return err
			}
			report.Result = result
			if err := printReport(t, asJSON, report, func(w io.Writer) { printHold(w, result) }); err != nil {
				return err
			}
			return result.Broken()
		},
	}
	fs := cmd.Flags()
	fs.IntVar(&cfg.Connections, "connections", 0, "connections to hold (default 15000)")
	fs.IntVar(&cfg.Nodes, "nodes", 0, "notifier processes (default: one for each 19500 connections)")
	fs.Float64Var(&cfg.Rate, "rate", 0, "events a second while holding (default 1000)")
	fs.DurationVar(&cfg.Duration, "duration", 0, "`time` of publishing (default 30s)")
	fs.DurationVar(&cfg.Quiet, "quiet", 0, "`time` without events, to measure what idling costs (default 1m)")
	fs.StringVar(&cfg.Clients, "clients", bench.ClientsSockets, "`kind` of clients: sockets of the kernel, or packets (TCP in user space, root only)")
	fs.BoolVar(&cfg.Tickets, "tickets", false, "connect through the gateway, with a ticket each")
	fs.BoolVar(&cfg.Tune, "tune", false, "raise what root may while the bench runs")
	fs.DurationVar(&cfg.Ping, "ping-interval", 0, "the notifiers' --ping-interval; -1s never (default: theirs)")
	fs.Uint64Var(&cfg.Seed, "seed", 1, "seed of the order of accounts")
	jsonFlag(fs, &asJSON)
	return cmd
}

func printHold(w io.Writer, r bench.HoldResult) {
	const mib = 1 << 20
	fmt.Fprintf(w, "%d connections on %d notifiers, up at %.0f a second\n", r.Connections, r.Notifiers, r.ConnectsPerSecond)
	for _, name := range slices.Sorted(maps.Keys(r.ConnectCPUSeconds)) {
		fmt.Fprintf(w, "while connecting     %s %.1f CPU seconds\n", name, r.ConnectCPUSeconds[name])
	}
	fmt.Fprintf(w, "notifiers' memory    %.0f bytes per connection\n", r.UserBytesPerConnection)
	fmt.Fprintf(w, "kernel's memory      %.0f bytes per socket (%s)\n", r.KernelBytesPerSocket, r.KernelMemoryFrom)
	fmt.Fprintf(w, "memory of both ends  %d MiB:", r.TotalMemoryBytes/mib)
	for _, name := range slices.Sorted(maps.Keys(r.Memory)) {
		if name != "sockets" && name != "notifiersBefore" {
			fmt.Fprintf(w, " %s %d", name, r.Memory[name]/mib)
		}
	}
	fmt.Fprintf(w, "\nidle                 %.4f cores, %.4f before anybody had connected, %.3f µs/s per connection\n", r.IdleCores, r.IdleCoresBefore, r.IdleMicrosPerSecond)
	fmt.Fprintf(w, "publish to socket    %v\n", r.LatencyMs)
	fmt.Fprintf(w, "events               %.0f/s, expected %d, received %d, told %d, lost %d, duplicates %d, misordered %d\n",
		r.EventsPerSecond, r.EventsExpected, r.EventsReceived, r.Told, r.Lost, r.Duplicates, r.Misordered)
	for _, name := range slices.Sorted(maps.Keys(r.BusyCores)) {
		fmt.Fprintf(w, "while publishing     %s %.3f cores\n", name, r.BusyCores[name])
	}
	for _, kind := range slices.Sorted(maps.Keys(r.Failures)) {
		fmt.Fprintf(w, "failures             %s: %d\n", kind, r.Failures[kind])
	}
	if r.Closed > 0 {
		fmt.Fprintf(w, "connections lost     %d\n", r.Closed)
	}
	for _, e := range r.Examples {
		fmt.Fprintf(w, "lost: %s\n", e)
	}
}
