package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"text/tabwriter"
	"time"

	"github.com/mailbell/mailbell/cmd/mailbell/doctor"
	"github.com/spf13/cobra"
)

const doctorLong = `Look at a site and say what to change.

It asks Kafka for the topic's settings (replication, min.insync.replicas,
retention against the window, cleanup policy, partitions) and each broker for an
answer; each bus, notifier and adapter at its ops address for readiness, clock and
open files; and each link address for a connection. What is not named is not looked
at. It changes nothing.

The exit code is 0 when all is well or could be better, and 1 when something breaks
a promise.`

func newDoctorCommand(t terminal) *cobra.Command {
	var (
		kafka   kafkaFlags
		where   doctor.Where
		wants   doctor.Wants
		asJSON  bool
		timeout time.Duration
	)
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Look at a site, say what to change",
		Long:  doctorLong,
		Example: `  mailbell doctor --brokers kafka1:9092,kafka2:9092
  mailbell doctor --brokers kafka1:9092 --bus bus1:7481,bus2:7481 --nodes bus1:7489,n1:7489 --json
  mailbell doctor --bus bus1:7481,bus2:7481 --nodes bus1:7489,n1:7489`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if len(kafka.brokers)+len(where.Links)+len(where.Nodes) == 0 {
				return wrong(cmd, "name something to look at: --brokers, --bus or --nodes")
			}
			where.Log = kafka.config()
			where.Log.Create, where.Log.Logger = false, slog.New(slog.DiscardHandler)
			if len(kafka.brokers) > 0 {
				if err := where.Log.Validate(); err != nil {
					return &usageError{command: cmd.CommandPath(), err: err}
				}
			}
			wants.Topic = kafka.topic
			ctx, cancel := context.WithTimeout(cmd.Context(), timeout)
			defer cancel()
			findings := doctor.Judge(doctor.Gather(ctx, where), wants)
			if err := printFindings(t.out, asJSON, findings); err != nil {
				return err
			}
			if doctor.Worst(findings) == doctor.Bad {
				return errReported
			}
			return nil
		},
	}
	fs := cmd.Flags()
	kafka.register(fs)
	busFlag(fs, &where.Links)
	fs.StringSliceVar(&where.Nodes, "nodes", nil, "ops `addresses` of bus nodes, notifiers and adapters, such as bus1:7489,n1:7489")
	fs.DurationVar(&wants.Window, "window", 15*time.Minute, "replay events that are at most this `time` old")
	fs.DurationVar(&wants.Index, "index-reach", 72*time.Hour, "`time` for which a bus node knows when an account had its last event")
	fs.DurationVar(&timeout, "timeout", 20*time.Second, "give up after this `time`")
	jsonFlag(fs, &asJSON)
	return cmd
}

func printFindings(w io.Writer, asJSON bool, findings []doctor.Finding) error {
	if asJSON {
		return json.NewEncoder(w).Encode(map[string]any{"worst": doctor.Worst(findings), "findings": findings})
	}
	tw := tabwriter.NewWriter(w, 0, 4, 2, ' ', 0)
	for _, f := range findings {
		fmt.Fprintf(tw, "%s\t%s\t%s\n", f.Level, f.Check, f.Found)
		if f.Change != "" {
			fmt.Fprintf(tw, "\t\t→ %s\n", f.Change)
		}
	}
	return tw.Flush()
}
