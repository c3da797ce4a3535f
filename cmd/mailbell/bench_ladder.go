package main

import (
	"fmt"
	"io"
	"os"
	"text/tabwriter"

	"github.com/mailbell/mailbell/bench"
	"github.com/spf13/cobra"
)

const benchLadderLong = `Measure what an idle connection costs on each step from "two goroutines and
net/http" to mailbell's notifier, as the article "A Million WebSockets and Go" took
them, and extrapolate to 3,000,000. Memory is the process's own, after less before;
every server is asked to give back what it can. Every rung but mailbell's is an echo
server without tokens, and has the same simple clients; mailbell's are those of
bench hold, each with a token and a subscription, and it is a whole notifier, linked
to a bus, that gives memory back by itself.

--rivals names a program with further servers, which the same clients measure in
the same run: make compare-servers.`

func newBenchLadderCommand(t terminal) *cobra.Command {
	cfg := bench.LadderConfig{}
	svg, asJSON := "", false
	cmd := &cobra.Command{
		Use:   "ladder",
		Short: "The steps from two goroutines a connection to mailbell",
		Long:  benchLadderLong,
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := cfg.Validate(); err != nil {
				return &usageError{command: cmd.CommandPath(), err: err}
			}
			cfg.Progress = benchProgress(t.err)
			report := bench.NewReport("ladder", os.Args[min(3, len(os.Args)):])
			result, err := bench.Ladder(cmd.Context(), cfg)
			endProgress(cfg.Progress)
			if err != nil {
				return err
			}
			report.Result = result
			if svg != "" {
				if err := os.WriteFile(svg, bench.LadderSVG(result), 0o644); err != nil {
					return fmt.Errorf("write the chart: %w", err)
				}
			}
			return printReport(t, asJSON, report, func(w io.Writer) { printLadder(w, result) })
		},
	}
	fs := cmd.Flags()
	fs.IntVar(&cfg.Connections, "connections", 0, "connections to each server (default 15000)")
	fs.StringVar(&cfg.Rivals, "rivals", "", "`program` with further servers to measure")
	fs.StringVar(&svg, "svg", "", "write a chart to this `file`")
	jsonFlag(fs, &asJSON)
	return cmd
}

func printLadder(w io.Writer, r bench.LadderResult) {
	tw := tabwriter.NewWriter(w, 0, 4, 2, ' ', 0)
	fmt.Fprintln(tw, "rung\tbytes per connection\tat 3,000,000\twhat")
	fmt.Fprintf(tw, "the article's first\t\t%.1f GB\t\n", float64(r.ArticleBytesAt3Million)/1e9)
	for _, list := range [][]bench.LadderRung{r.Rungs, r.Rivals} {
		for _, k := range list {
			fmt.Fprintf(tw, "%s\t%.0f\t%.1f GB\t%s\n", k.Name, k.BytesPerConnection, float64(k.BytesAt3Million)/1e9, k.What)
		}
	}
	tw.Flush()
}
