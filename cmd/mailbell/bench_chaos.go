package main

import (
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/mailbell/mailbell/bench"
	"github.com/spf13/cobra"
)

const benchChaosLong = `Break things, and prove that nobody missed anything.

Three Kafka brokers, three bus nodes, three notifiers, two adapters and some
thousands of clients run as processes, each in a network namespace where root
allows it, else all on loopback. Events are published steadily through the
adapters while faults are injected at random from the seed: kill -9, SIGSTOP,
links cut both ways and one way, slow links, a full disk under the spool,
clients that reconnect, nodes that join and leave as planned.

At the end every client accounts for every acknowledged event of its account:
it arrived, or the client was told of a later position; and in order. If not,
the exit code is 1. Needs Java, and fetches Kafka into a cache the first time.`

func newBenchChaosCommand(t terminal) *cobra.Command {
	cfg := bench.ChaosConfig{}
	asJSON, verbose := false, false
	cmd := &cobra.Command{
		Use:   "chaos",
		Short: "Faults at random, and a ledger that must balance",
		Long:  benchChaosLong,
		Example: `  mailbell bench chaos --minutes 2 --seed 1
  mailbell bench chaos --minutes 30 --seed 7 --json > chaos.json
  mailbell bench chaos --minutes 5 --only bus-kill --every 20s`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := cfg.Validate(); err != nil {
				return &usageError{command: cmd.CommandPath(), err: err}
			}
			cfg.Progress = benchProgress(t.err)
			if verbose {
				cfg.Progress = func(line string) { fmt.Fprintf(t.err, "%s %s\n", time.Now().Format("15:04:05.0"), line) }
			}
			report := bench.NewReport("chaos", os.Args[min(3, len(os.Args)):])
			result, err := bench.Chaos(cmd.Context(), cfg)
			if !verbose {
				endProgress(cfg.Progress)
			}
			if err != nil {
				return err
			}
			report.Result = result
			if err := printReport(t, asJSON, report, func(w io.Writer) { printChaos(w, result) }); err != nil {
				return err
			}
			return result.Broken()
		},
	}
	fs := cmd.Flags()
	fs.Float64Var(&cfg.Minutes, "minutes", 2, "`minutes` of publishing with faults")
	fs.Uint64Var(&cfg.Seed, "seed", 1, "seed of the faults and events")
	fs.IntVar(&cfg.Clients, "clients", 3000, "clients, in three processes")
	fs.Float64Var(&cfg.Rate, "rate", 200, "events a second")
	fs.DurationVar(&cfg.Every, "every", 4*time.Second, "mean `time` between faults")
	fs.StringSliceVar(&cfg.Only, "only", nil, "`kinds` of fault, such as "+strings.Join(bench.ChaosKinds()[:3], ",")+" (default: all)")
	fs.StringVar(&cfg.LogDir, "logs", "", "keep what the processes log in this `folder`")
	fs.BoolVar(&verbose, "verbose", false, "one line on standard error for each fault")
	jsonFlag(fs, &asJSON)
	return cmd
}

func printChaos(w io.Writer, r bench.ChaosResult) {
	fmt.Fprintf(w, "%d faults in %g minutes, %d clients, %s\n", r.Injected, r.Minutes, r.Clients, r.Network)
	for _, kind := range slices.Sorted(maps.Keys(r.Faults)) {
		fmt.Fprintf(w, "  %4d %s", r.Faults[kind], kind)
		if g, ok := r.Silences[kind]; ok {
			fmt.Fprintf(w, "   (silence p50 %d ms, max %d ms over %d alone)", g.P50Ms, g.MaxMs, g.Faults)
		}
		fmt.Fprintln(w)
	}
	for _, s := range r.Skipped {
		fmt.Fprintf(w, "  skipped %s\n", s)
	}
	fmt.Fprintf(w, "offered %d, acknowledged %d, delivered %d,\nduplicates %d, told %d, lost %d (%d not on the log), misordered %d\n",
		r.Offered, r.Acknowledged, r.Delivered, r.Duplicates, r.Told, r.Lost, r.NotOnLog, r.Misordered)
	fmt.Fprintf(w, "longest silence %d ms; %d reconnects, catch-up %v, %d missed frames, %d publisher calls made again\n",
		r.LongestSilenceMs, r.Reconnects, r.CatchUp, r.Missed, r.Retried)
	fmt.Fprintf(w, "due to socket       %v\n", r.LatencyMs)
	for _, list := range [][]string{r.Examples, r.Crashes, r.Slowest} {
		for _, line := range list {
			fmt.Fprintf(w, "- %s\n", line)
		}
	}
	if r.NotBack > 0 {
		fmt.Fprintf(w, "%d clients did not come back\n", r.NotBack)
	}
}
