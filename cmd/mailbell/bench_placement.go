package main

import (
	"fmt"
	"io"
	"os"
	"text/tabwriter"

	"github.com/mailbell/mailbell/bench"
	"github.com/spf13/cobra"
)

const benchPlacementLong = `Simulate a fleet of notifiers of uneven size under each placement policy.

The policies and the arithmetic of moves are the real ones; machines, clients and
time are simulated. Several bus nodes hand out places, each by reports that are up
to a second old and by what it has handed out itself. All connect, a tenth more
nodes join, some are drained, some crash.

Imbalance is the fullest node, for its weight, over the mean. Even is when every
node is within 5 % of the mean.`

func newBenchPlacementCommand(t terminal) *cobra.Command {
	cfg := bench.PlacementConfig{}
	asJSON, chart := false, ""
	cmd := &cobra.Command{
		Use:   "placement",
		Short: "Simulate the policies that pick a notifier",
		Long:  benchPlacementLong,
		Example: `  mailbell bench placement --connections 1000000
  mailbell bench placement --json --chart placement.svg`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := cfg.Validate(); err != nil {
				return &usageError{command: cmd.CommandPath(), err: err}
			}
			cfg.Progress = benchProgress(t.err)
			report := bench.NewReport("placement", os.Args[min(3, len(os.Args)):])
			result, err := bench.Placement(cmd.Context(), cfg)
			endProgress(cfg.Progress)
			if err != nil {
				return err
			}
			if chart != "" {
				if err := os.WriteFile(chart, result.Chart(), 0o644); err != nil {
					return fmt.Errorf("bench placement: --chart: %w", err)
				}
			}
			report.Result = result
			return printReport(t, asJSON, report, func(w io.Writer) { printPlacement(w, result) })
		},
	}
	fs := cmd.Flags()
	fs.IntVar(&cfg.Nodes, "nodes", 0, "notifiers (default 100)")
	fs.IntVar(&cfg.Connections, "connections", 0, "connections (default 10000000)")
	fs.IntVar(&cfg.Gateways, "gateways", 0, "bus nodes that hand out places (default 4)")
	fs.StringSliceVar(&cfg.Policies, "policies", nil, "policies to simulate (default: all)")
	fs.Uint64Var(&cfg.Seed, "seed", 1, "seed of everything that is drawn")
	fs.StringVar(&chart, "chart", "", "write a chart to this SVG `file`")
	jsonFlag(fs, &asJSON)
	return cmd
}

func printPlacement(w io.Writer, r bench.PlacementResult) {
	fmt.Fprintf(w, "%d connections on %d notifiers, %d bus nodes; the default is %s\n\n", r.Connections, r.Nodes, r.Gateways, r.Default)
	tw := tabwriter.NewWriter(w, 0, 4, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(tw, "policy\timbalance\tmoved\teven after s\tfill\tjoin\tleave\tcrash\tsame node\t")
	for _, p := range r.Policies {
		fmt.Fprintf(tw, "%s\t%.3f\t%d\t%s\t", p.Name, p.Imbalance, p.Moved, secondsOrNever(p.SecondsToEven))
		for _, s := range p.Scenes {
			fmt.Fprintf(tw, "%.3f %s\t", s.Peak, secondsOrNever(s.SecondsToEven))
		}
		fmt.Fprintf(tw, "%.0f %%\t\n", 100*p.SameNode)
	}
	tw.Flush()
	fmt.Fprintln(w, "\nfill, join, leave, crash: the highest imbalance of the nodes that were not just begun, and seconds until all were even")
}

func secondsOrNever(s float64) string {
	if s < 0 {
		return "never"
	}
	return fmt.Sprintf("%.0f s", s)
}
