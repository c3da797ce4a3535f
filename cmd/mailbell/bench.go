package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/mailbell/mailbell/bench"
	"github.com/mailbell/mailbell/bench/attack"
	"github.com/mailbell/mailbell/bench/pollserver"
	"github.com/mailbell/mailbell/bench/pollswarm"
	"github.com/mailbell/mailbell/bench/publisher"
	"github.com/mailbell/mailbell/bench/rungs"
	"github.com/mailbell/mailbell/bench/swarm"
	"github.com/spf13/cobra"
	"golang.org/x/term"
)

const benchLong = `Measure mailbell on this machine.

Each bench starts the servers that it needs as processes of their own, on
loopback and with ports of their own, drives them from other processes, prints
one report and stops everything. Progress goes to standard error. With --json
the report is one JSON object that names the machine and the commit. A bench
whose promise is broken (an event lost) exits 1 after printing.`

func newBenchCommand(t terminal) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "bench",
		Short:   "Measure mailbell on this machine",
		Long:    benchLong,
		Example: "  mailbell bench pipeline --rate 200 --duration 10s\n  mailbell bench pipeline --rate max --brokers 127.0.0.1:9092 --json",
		Args:    cobra.NoArgs,
		RunE:    func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newBenchPipelineCommand(t))
	cmd.AddCommand(newBenchChaosCommand(t))
	cmd.AddCommand(newBenchCompareCommand(t))
	cmd.AddCommand(newBenchReportCommand(t))
	cmd.AddCommand(newBenchHoldCommand(t))
	cmd.AddCommand(newBenchPlacementCommand(t))
	cmd.AddCommand(newBenchStormCommand(t))
	cmd.AddCommand(newBenchAbuseCommand(t))
	cmd.AddCommand(newBenchLadderCommand(t))
	cmd.AddCommand(newBenchPushCommand(t))
	cmd.AddCommand(newBenchUpgradeCommand(t))
	// The processes that a bench drives the servers from.
	cmd.AddCommand(&cobra.Command{Use: "swarm", Hidden: true, Args: cobra.NoArgs, RunE: func(cmd *cobra.Command, _ []string) error {
		return swarm.Serve(cmd.Context(), t.in, t.out)
	}})
	cmd.AddCommand(&cobra.Command{Use: "packets", Hidden: true, Args: cobra.NoArgs, RunE: func(cmd *cobra.Command, _ []string) error {
		return swarm.ServePackets(cmd.Context(), t.in, t.out)
	}})
	cmd.AddCommand(&cobra.Command{Use: "rung", Hidden: true, Args: cobra.NoArgs, RunE: func(cmd *cobra.Command, _ []string) error {
		return rungs.Serve(cmd.Context(), t.in, t.out)
	}})
	cmd.AddCommand(&cobra.Command{Use: "attack", Hidden: true, Args: cobra.NoArgs, RunE: func(cmd *cobra.Command, _ []string) error {
		return attack.Serve(cmd.Context(), t.in, t.out)
	}})
	cmd.AddCommand(&cobra.Command{Use: "restore", Hidden: true, Args: cobra.NoArgs, RunE: func(*cobra.Command, []string) error {
		return bench.ServeRestore(t.in)
	}})
	cmd.AddCommand(&cobra.Command{Use: "sink", Hidden: true, Args: cobra.NoArgs, RunE: func(cmd *cobra.Command, _ []string) error {
		return swarm.ServeSink(cmd.Context(), t.in, t.out)
	}})
	cmd.AddCommand(&cobra.Command{Use: "log", Hidden: true, Args: cobra.NoArgs, RunE: func(cmd *cobra.Command, _ []string) error {
		return bench.ServeLog(cmd.Context(), t.in, t.out)
	}})
	cmd.AddCommand(&cobra.Command{Use: "publisher", Hidden: true, Args: cobra.NoArgs, RunE: func(cmd *cobra.Command, _ []string) error {
		return publisher.Serve(cmd.Context(), t.in, t.out)
	}})
	cmd.AddCommand(&cobra.Command{Use: "pollserver", Hidden: true, Args: cobra.NoArgs, RunE: func(cmd *cobra.Command, _ []string) error {
		return pollserver.Serve(cmd.Context(), t.in, t.out)
	}})
	cmd.AddCommand(&cobra.Command{Use: "pollswarm", Hidden: true, Args: cobra.NoArgs, RunE: func(cmd *cobra.Command, _ []string) error {
		return pollswarm.Serve(cmd.Context(), t.in, t.out)
	}})
	for _, sub := range cmd.Commands() {
		sub.RunE = interruptible(sub.RunE)
	}
	return cmd
}

// interruptible says of a bench that a signal ended just that, whatever the step was that it ended in.
func interruptible(run func(*cobra.Command, []string) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		err := run(cmd, args)
		if err != nil && cmd.Context().Err() != nil {
			return errors.New("interrupted")
		}
		return err
	}
}

// benchProgress shows what a bench is doing on a terminal, and nothing in a pipe.
func benchProgress(err io.Writer) bench.Progress {
	f, ok := err.(*os.File)
	if !ok || !term.IsTerminal(int(f.Fd())) {
		return nil
	}
	return func(line string) {
		width, _, sizeErr := term.GetSize(int(f.Fd()))
		if sizeErr == nil && width > 1 && len(line) >= width {
			line = line[:width-1]
		}
		fmt.Fprintf(f, "\r\x1b[K%s", line)
	}
}

// endProgress takes the progress line away.
func endProgress(p bench.Progress) {
	if p != nil {
		p("")
	}
}

// printReport prints a bench's report, as JSON or by the bench's own words.
func printReport(t terminal, asJSON bool, r bench.Report, text func(io.Writer)) error {
	if asJSON {
		return r.WriteJSON(t.out)
	}
	fmt.Fprintf(t.out, "bench %s  %s\n", r.Bench, strings.Join(r.Args, " "))
	fmt.Fprintf(t.out, "machine   %d CPUs (%s), %d MiB, Linux %s,\n          %s\n", r.Machine.CPUs, r.Machine.CPU, r.Machine.MemoryBytes>>20, r.Machine.Kernel, r.Machine.Go)
	fmt.Fprintf(t.out, "commit    %s, %s\n\n", r.Commit, r.StartedAt.Format(time.RFC3339))
	text(t.out)
	return nil
}

// rateValue is the --rate of a bench: a number, or "max", which is 0.
type rateValue float64

func (r *rateValue) String() string {
	if *r == 0 {
		return "max"
	}
	return strconv.FormatFloat(float64(*r), 'f', -1, 64)
}

func (r *rateValue) Type() string { return "rate" }

func (r *rateValue) Set(s string) error {
	if s == "max" {
		*r = 0
		return nil
	}
	n, err := strconv.ParseFloat(s, 64)
	if err != nil || n <= 0 {
		return fmt.Errorf("must be events a second, such as 200, or max")
	}
	*r = rateValue(n)
	return nil
}
