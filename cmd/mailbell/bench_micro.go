package main

import (
	"fmt"
	"io"
	"os"

	"github.com/mailbell/mailbell/bench"
	"github.com/spf13/cobra"
)

const benchPushLong = `Send events to many sockets, one each in turn: by the notifier's own path (look
the account up, build the frame, find who subscribed, send), and by a bare loop of
send(2) with a frame made before. Both take turns over the same sockets, which a
process of its own reads. With less than 0.9 of the bare loop's rate the bench exits 1.`

func newBenchPushCommand(t terminal) *cobra.Command {
	cfg := bench.PushConfig{}
	asJSON := false
	cmd := &cobra.Command{
		Use:     "push",
		Short:   "The notifier's push against a bare loop of send(2)",
		Long:    benchPushLong,
		Example: "  mailbell bench push --sockets 15000",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := cfg.Validate(); err != nil {
				return &usageError{command: cmd.CommandPath(), err: err}
			}
			cfg.Progress = benchProgress(t.err)
			report := bench.NewReport("push", os.Args[min(3, len(os.Args)):])
			r, err := bench.Push(cmd.Context(), cfg)
			endProgress(cfg.Progress)
			if err != nil {
				return err
			}
			report.Result = r
			err = printReport(t, asJSON, report, func(w io.Writer) {
				fmt.Fprintf(w, "%d sockets, frames of %d bytes\n", r.Sockets, r.FrameBytes)
				fmt.Fprintf(w, "notifier   %.0f events/s\nbare send  %.0f events/s\nratio      %.3f\n", r.NotifierPerSecond, r.BareSendPerSecond, r.Ratio)
			})
			if err != nil {
				return err
			}
			return r.Broken()
		},
	}
	fs := cmd.Flags()
	fs.IntVar(&cfg.Sockets, "sockets", 0, "sockets to send to (default 15000)")
	fs.IntVar(&cfg.Rounds, "rounds", 0, "rounds of each kind (default 10)")
	fs.DurationVar(&cfg.Round, "round", 0, "`time` of a round (default 1s)")
	jsonFlag(fs, &asJSON)
	return cmd
}

const benchUpgradeLong = `Answer the same WebSocket handshake again and again, over memory: by the
notifier's code, and by net/http's parser with the HTTPUpgrader of gobwas/ws.
Neither checks a token. Below 5.3 times net/http's speed, or with more than one
allocation, the bench exits 1.`

func newBenchUpgradeCommand(t terminal) *cobra.Command {
	cfg := bench.UpgradeConfig{}
	asJSON := false
	cmd := &cobra.Command{
		Use:   "upgrade",
		Short: "The notifier's handshake against net/http's",
		Long:  benchUpgradeLong,
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := cfg.Validate(); err != nil {
				return &usageError{command: cmd.CommandPath(), err: err}
			}
			cfg.Progress = benchProgress(t.err)
			report := bench.NewReport("upgrade", os.Args[min(3, len(os.Args)):])
			r, err := bench.Upgrade(cmd.Context(), cfg)
			endProgress(cfg.Progress)
			if err != nil {
				return err
			}
			report.Result = r
			err = printReport(t, asJSON, report, func(w io.Writer) {
				fmt.Fprintf(w, "ours      %8.0f ns %5.1f allocations %6.0f bytes\n", r.Ours.NsPerOp, r.Ours.AllocsPerOp, r.Ours.BytesPerOp)
				fmt.Fprintf(w, "net/http  %8.0f ns %5.1f allocations %6.0f bytes\n", r.NetHTTP.NsPerOp, r.NetHTTP.AllocsPerOp, r.NetHTTP.BytesPerOp)
				fmt.Fprintf(w, "ratio     %8.1f\n", r.Ratio)
			})
			if err != nil {
				return err
			}
			return r.Broken()
		},
	}
	fs := cmd.Flags()
	fs.IntVar(&cfg.Rounds, "rounds", 0, "rounds of each kind (default 10)")
	fs.DurationVar(&cfg.Round, "round", 0, "`time` of a round (default 500ms)")
	jsonFlag(fs, &asJSON)
	return cmd
}
