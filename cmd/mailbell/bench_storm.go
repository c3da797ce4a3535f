package main

import (
	"fmt"
	"io"
	"os"

	"github.com/mailbell/mailbell/bench"
	"github.com/spf13/cobra"
)

const benchStormLong = `Shake a fleet of notifiers while events flow.

A log, two bus nodes, notifiers and clients run as processes of their own. One
notifier is killed, and all its clients come back through the gateway; one more
joins and gets its share; then all notifiers and bus nodes are restarted in turn. A
ledger of what was acknowledged is compared with what arrived. The death is played
twice, once without admission: notifiers that accept without limit.`

func newBenchStormCommand(t terminal) *cobra.Command {
	cfg := bench.StormConfig{}
	asJSON := false
	cmd := &cobra.Command{
		Use:     "storm",
		Short:   "Everybody comes back at once; one joins; all restart",
		Long:    benchStormLong,
		Example: "  mailbell bench storm --json\n  mailbell bench storm --connections 2000 --calm",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := cfg.Validate(); err != nil {
				return &usageError{command: cmd.CommandPath(), err: err}
			}
			cfg.Progress = benchProgress(t.err)
			report := bench.NewReport("storm", os.Args[min(3, len(os.Args)):])
			result, err := bench.RunStorm(cmd.Context(), cfg)
			endProgress(cfg.Progress)
			if err != nil {
				return err
			}
			report.Result = result
			if err := printReport(t, asJSON, report, func(w io.Writer) { printStorm(w, result) }); err != nil {
				return err
			}
			return result.Broken()
		},
	}
	fs := cmd.Flags()
	fs.IntVar(&cfg.Connections, "connections", 0, "connections (default 20000)")
	fs.IntVar(&cfg.Notifiers, "notifiers", 0, "notifiers at first (default 4)")
	fs.IntVar(&cfg.AcceptRate, "accept-rate", 0, "connections that each notifier accepts a second (default 500)")
	fs.Float64Var(&cfg.Rate, "rate", 0, "events a second (default 200)")
	fs.BoolVar(&cfg.Calm, "calm", false, "only the death of a notifier, with and without admission")
	fs.Uint64Var(&cfg.Seed, "seed", 1, "seed of the order of accounts")
	jsonFlag(fs, &asJSON)
	return cmd
}

func printStorm(w io.Writer, r bench.StormResult) {
	for _, s := range []struct {
		name string
		bench.Storm
	}{{"with admission", r.Storm}, {"without admission", r.WithoutAdmission}} {
		fmt.Fprintf(w, "%s: %d came back in %d ms", s.name, s.Returned, s.RecoveredMs)
		if s.ExpectedMs > 0 {
			fmt.Fprintf(w, " (by the accept rate: %d ms)", s.ExpectedMs)
		}
		fmt.Fprintf(w, ", peak %.0f accepts/s, %.2f cores, gateway answers %v, %d told to wait, %d refused, %d events lost\n",
			s.PeakAcceptsPerSecond, s.PeakCores, s.GatewayAnswers, s.Waited, s.Refused, s.Lost)
	}
	if r.Restart.Nodes > 0 {
		fmt.Fprintf(w, "one more joined: %v after %.1f s, %d moved, %.1f %% off the mean\n", r.Join.Connections, r.Join.SecondsTo, r.Join.Moved, 100*r.Join.OffTheMean)
		fmt.Fprintf(w, "restart of %d nodes in %.1f s\n", r.Restart.Nodes, r.Restart.Seconds)
	}
	fmt.Fprintf(w, "events expected %d, told %d, lost %d, duplicates %d, misordered %d; %v\n", r.EventsExpected, r.Told, r.Lost, r.Duplicates, r.Misordered, r.LatencyMs)
	for _, e := range r.Examples {
		fmt.Fprintf(w, "lost: %s\n", e)
	}
}
