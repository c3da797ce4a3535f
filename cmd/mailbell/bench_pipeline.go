package main

import (
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"text/tabwriter"

	"github.com/mailbell/mailbell/bench"
	"github.com/spf13/cobra"
)

const benchPipelineLong = `Publish at a steady rate through the Go API and receive on real sockets.

One process publishes, one holds the subscribers, and the servers run between
them: a mailbell run on the embedded log, or with --brokers a bus and notifiers
on that Kafka, in a topic of the bench's own named mailbell-bench-…, which is left
behind. A ledger of what was acknowledged is compared with what arrived; it counts
the warm-up too, a second or more before what is measured.

--rate max looks for the highest rate that is held for the whole duration with
p99 at most 100 ms and nothing lost.`

func newBenchPipelineCommand(t terminal) *cobra.Command {
	cfg := bench.PipelineConfig{}
	rate := rateValue(200)
	asJSON := false
	cmd := &cobra.Command{
		Use:   "pipeline",
		Short: "Publish to socket: latency, rate, and a ledger of what arrived",
		Long:  benchPipelineLong,
		Example: `  mailbell bench pipeline --rate 200 --duration 10s --subscribers 1000
  mailbell bench pipeline --rate max --duration 30s --brokers 127.0.0.1:9092 --json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg.Rate = float64(rate)
			if err := cfg.Validate(); err != nil {
				return &usageError{command: cmd.CommandPath(), err: err}
			}
			cfg.Progress = benchProgress(t.err)
			report := bench.NewReport("pipeline", os.Args[min(3, len(os.Args)):])
			result, err := bench.Pipeline(cmd.Context(), cfg)
			endProgress(cfg.Progress)
			if err != nil {
				return err
			}
			report.Result = result
			if err := printReport(t, asJSON, report, func(w io.Writer) { printPipeline(w, result) }); err != nil {
				return err
			}
			return result.Broken()
		},
	}
	fs := cmd.Flags()
	fs.Var(&rate, "rate", "events a second, or max to find the highest that is held")
	fs.DurationVar(&cfg.Duration, "duration", 0, "`time` of steady publishing (default 10s)")
	fs.IntVar(&cfg.Subscribers, "subscribers", 0, "connections, each subscribed to an account of its own (default 1000)")
	fs.StringSliceVar(&cfg.Brokers, "brokers", nil, "Kafka's bootstrap servers (default: the embedded log)")
	fs.IntVar(&cfg.Notifiers, "notifiers", 0, "notifier processes, with --brokers (default 1)")
	fs.Uint64Var(&cfg.Seed, "seed", 1, "seed of the order of accounts")
	fs.StringVar(&cfg.ProfileDir, "profile", "", "`folder` for a CPU profile of each server during the stretch that is reported, for go tool pprof")
	jsonFlag(fs, &asJSON)
	return cmd
}

func printPipeline(w io.Writer, r bench.PipelineResult) {
	fmt.Fprintf(w, "%.0f events/s to %d subscribers\n", r.PerSecond, r.Subscribers)
	fmt.Fprintf(w, "publish to socket   %v\n", r.LatencyMs)
	fmt.Fprintf(w, "publish to ack      %v\n", r.AckLatencyMs)
	fmt.Fprintf(w, "offered %d, acknowledged %d, delivered %d, with the warm-up;\ntold %d, lost %d, duplicates %d, misordered %d\n",
		r.Offered, r.Acknowledged, r.Delivered, r.Told, r.Lost, r.Duplicates, r.Misordered)
	for _, name := range slices.Sorted(maps.Keys(r.CPUSeconds)) {
		fmt.Fprintf(w, "CPU %-14s %.2f s\n", name, r.CPUSeconds[name])
	}
	if len(r.Trials) > 1 {
		fmt.Fprintln(w)
		tw := tabwriter.NewWriter(w, 0, 4, 2, ' ', tabwriter.AlignRight)
		fmt.Fprintln(tw, "rate\tper second\tp50 ms\tp99 ms\tlate\theld\t")
		for _, t := range r.Trials {
			fmt.Fprintf(tw, "%.0f\t%.0f\t%.2f\t%.2f\t%d\t%v\t\n", t.Rate, t.PerSecond, t.LatencyMs.P50, t.LatencyMs.P99, t.Late, t.Held)
		}
		tw.Flush()
	}
	for _, e := range r.Examples {
		fmt.Fprintf(w, "lost: %s\n", e)
	}
}
