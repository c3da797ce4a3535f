package main

import (
	"fmt"
	"io"
	"os"
	"text/tabwriter"

	"github.com/mailbell/mailbell/bench"
	"github.com/spf13/cobra"
)

const benchAbuseLong = `Attack a notifier in every way we know, one after the other, while honest
clients keep receiving events.

An attack is ok when it did take place, as the notifier's own metrics show; when no
honest client was disconnected, none lost an event, and one more could come meanwhile;
and when the p99 of publish to socket at most doubled against the moments before (or
rose by at most 5 ms). The attackers are a process of their own, with the least claim to the
CPUs, and attack nothing but the notifier that the bench has started on loopback.
When one is not ok the bench exits 1.`

func newBenchAbuseCommand(t terminal) *cobra.Command {
	cfg := bench.AbuseConfig{}
	asJSON := false
	cmd := &cobra.Command{
		Use:     "abuse",
		Short:   "Attacks, and what honest clients notice of them",
		Long:    benchAbuseLong,
		Example: "  mailbell bench abuse\n  mailbell bench abuse --attacks drip,deaf --duration 20s",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := cfg.Validate(); err != nil {
				return &usageError{command: cmd.CommandPath(), err: err}
			}
			cfg.Progress = benchProgress(t.err)
			report := bench.NewReport("abuse", os.Args[min(3, len(os.Args)):])
			result, err := bench.Abuse(cmd.Context(), cfg)
			endProgress(cfg.Progress)
			if err != nil {
				return err
			}
			report.Result = result
			if err := printReport(t, asJSON, report, func(w io.Writer) { printAbuse(w, result) }); err != nil {
				return err
			}
			return result.Broken()
		},
	}
	fs := cmd.Flags()
	fs.IntVar(&cfg.Honest, "honest", 0, "honest clients (default 5000)")
	fs.Float64Var(&cfg.Rate, "rate", 0, "events a second for them (default 500)")
	fs.DurationVar(&cfg.Duration, "duration", 0, "`time` of each attack (default 10s)")
	fs.StringSliceVar(&cfg.Attacks, "attacks", nil, "`names` of attacks (default: all)")
	fs.Float64Var(&cfg.Scale, "scale", 0, "part of each attack's connections, up to 1 (default 1)")
	jsonFlag(fs, &asJSON)
	return cmd
}

func printAbuse(w io.Writer, r bench.AbuseResult) {
	fmt.Fprintf(w, "%d honest clients\n\n", r.Honest)
	tw := tabwriter.NewWriter(w, 0, 4, 2, ' ', 0)
	fmt.Fprintln(tw, "attack\tattempts\tp99 ms before\tp99 ms\tdisconnected\tlost\tcores\tMiB\tok\twhat")
	for _, a := range r.Attacks {
		fmt.Fprintf(tw, "%s\t%d\t%.2f\t%.2f\t%d\t%d\t%.2f\t%d\t%v\t%s\n", a.Name, a.Attempts, a.BaselineP99Ms, a.HonestP99Ms,
			a.HonestDisconnected, a.HonestLost, a.NotifierCores, a.NotifierMiB, a.OK, a.What)
	}
	tw.Flush()
	for _, a := range r.Attacks {
		if a.Problem != "" {
			fmt.Fprintf(w, "%s: %s\n", a.Name, a.Problem)
		}
	}
}
