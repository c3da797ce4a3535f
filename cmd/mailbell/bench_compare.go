package main

import (
	"fmt"
	"io"
	"os"
	"text/tabwriter"
	"time"

	"github.com/mailbell/mailbell/bench"
	"github.com/mailbell/mailbell/bench/mailstore"
	drawn "github.com/mailbell/mailbell/bench/report"
	"github.com/spf13/cobra"
)

const benchCompareLong = `Make the same users hear of the same changes, once by polling a server with
If-None-Match, once by pushing through the ingest, the log, the bus and a
notifier, after which each client fetches what the event told it of.

Both sides are measured in the same way: CPU of the server processes, bytes on
the clients' sockets, memory, reads of the mail store, the time until a user
knows, and what an outage of all servers does. Clients run in processes of their
own and never count. The changes are a Poisson process for each account, drawn
from --seed: both sides get the same.

Polling gets every fair advantage; the report lists them.

With --store roundcube it is Debian's Roundcube, signed in and polling as its page
does, against the same with mailbell's plugin, for --span of the users' time run
--squeeze times as fast. Of the flags it takes --users (default 20), --poll-interval
(default 1m), --change-rate (default 6), --seed, --span, --squeeze,
--session-lifetime and --json.`

func newBenchCompareCommand(t terminal) *cobra.Command {
	cfg := bench.CompareConfig{}
	asJSON := false
	var out reportFiles
	var webmail webmailFlags
	cmd := &cobra.Command{
		Use:   "compare",
		Short: "Poll against push: CPU, bytes, memory, store reads, latency",
		Long:  benchCompareLong,
		Example: `  mailbell bench compare --users 5000 --poll-interval 10s
  mailbell bench compare --users 2000 --change-rate 20 --store sqlite --json
  mailbell bench compare --users 2000 --sweep 2s,5s,10s,30s,60s --report compare.html --svg slides`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := checkStoreFlags(cmd, cfg.Store); err != nil {
				return err
			}
			if cfg.Store == storeRoundcube {
				return webmail.run(cmd, t, cfg, asJSON)
			}
			if err := cfg.Validate(); err != nil {
				return &usageError{command: cmd.CommandPath(), err: err}
			}
			cfg.Progress = benchProgress(t.err)
			report := bench.NewReport("compare", os.Args[min(3, len(os.Args)):])
			result, err := bench.Compare(cmd.Context(), cfg)
			endProgress(cfg.Progress)
			if err != nil {
				return err
			}
			report.Result = result
			if err := printReport(t, asJSON, report, func(w io.Writer) { printCompare(w, result) }); err != nil {
				return err
			}
			if err := out.write(t, drawn.Of(report, result)); err != nil {
				return err
			}
			return result.Broken()
		},
	}
	fs := cmd.Flags()
	fs.IntVar(&cfg.Users, "users", 0, "users, each with an account and a connection of its own (default 1000)")
	fs.DurationVar(&cfg.Interval, "poll-interval", 0, "`time` between two polls of one user (default 10s)")
	fs.Float64Var(&cfg.Jitter, "jitter", 0, "part of the interval by which each poll is early or late; -1 none (default 0.1)")
	fs.Float64Var(&cfg.ChangeRate, "change-rate", 0, "changes that one account sees in an hour (default: what --not-modified asks for)")
	fs.Float64Var(&cfg.NotModified, "not-modified", 0, "share of the polls at --poll-interval that find nothing new (default 0.6)")
	fs.Float64Var(&cfg.Burst, "burst", 0, "changes come in bursts of this many on average (default: each alone)")
	fs.BoolVar(&cfg.Diurnal, "diurnal", false, "squeeze a day's curve of load into the duration")
	fs.DurationVar(&cfg.Duration, "duration", 0, "`time` that is measured, for each side; at least two of the longest interval (default 1m)")
	fs.DurationVar(&cfg.Quiet, "quiet", 0, "`time` without changes before it, with nobody connected (at most 20s) and again with everybody (default 1m)")
	fs.DurationVar(&cfg.Outage, "outage", 0, "`time` for which all servers are down afterwards; -1s none (default 1m)")
	fs.StringVar(&cfg.Store, "store", "", "what is polled: "+mailstore.Memory+", "+mailstore.SQLite+" or "+mailstore.Dovecot+", or Debian's "+storeRoundcube+" (default "+mailstore.Memory+")")
	fs.IntVar(&cfg.Mailboxes, "mailboxes", 0, "mailboxes of an account (default 5)")
	fs.DurationSliceVar(&cfg.Sweep, "sweep", nil, "poll again at these `intervals`, such as 2s,5s,30s, with the same changes")
	fs.DurationVar(&cfg.KeepAlive, "keep-alive", 0, "`time` after which the pushing side's idle HTTP connections are closed (default 75s; a poll's are always kept)")
	fs.StringSliceVar(&cfg.Brokers, "brokers", nil, "Kafka's bootstrap servers, whose CPU is not counted (default: the embedded log)")
	fs.IntVar(&cfg.Notifiers, "notifiers", 0, "notifier processes, with --brokers (default 1)")
	fs.Uint64Var(&cfg.Seed, "seed", 1, "seed of the changes")
	webmail.register(fs)
	out.register(fs)
	jsonFlag(fs, &asJSON)
	return cmd
}

func printCompare(w io.Writer, r bench.CompareResult) {
	fmt.Fprintf(w, "%d users, a poll every %v, %.4g changes a user-hour, %s store, %d mailboxes, %.0f s measured\n\n", r.Settings.Users,
		time.Duration(r.Settings.PollIntervalMs)*time.Millisecond, r.Settings.ChangesPerHour, r.Settings.Store, r.Settings.Mailboxes, r.Settings.DurationSeconds)
	tw := tabwriter.NewWriter(w, 0, 4, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(tw, "\tpoll\tpush\twithout fetch\t")
	sides := []bench.CompareFigures{r.Poll.CompareFigures, r.Push.CompareFigures}
	if r.Push.WithoutFetch != nil {
		sides = append(sides, *r.Push.WithoutFetch)
	}
	row := func(name, format string, value func(bench.CompareFigures) any) {
		fmt.Fprintf(tw, "%s\t", name)
		for _, s := range sides {
			fmt.Fprintf(tw, format+"\t", value(s))
		}
		fmt.Fprintln(tw)
	}
	row("requests/s", "%.1f", func(f bench.CompareFigures) any { return f.RequestsPerSecond })
	row("events/s", "%.1f", func(f bench.CompareFigures) any { return f.EventsPerSecond })
	row("share of 304", "%.3f", func(f bench.CompareFigures) any { return f.NotModifiedShare })
	row("CPU s", "%.3f", func(f bench.CompareFigures) any { return f.CPUSeconds })
	row("kB to servers", "%d", func(f bench.CompareFigures) any { return f.BytesIn / 1000 })
	row("kB to clients", "%d", func(f bench.CompareFigures) any { return f.BytesOut / 1000 })
	row("resident MiB", "%d", func(f bench.CompareFigures) any { return f.ResidentBytes >> 20 })
	row("sockets MiB", "%.1f", func(f bench.CompareFigures) any { return float64(f.KernelBytes) / (1 << 20) })
	row("store reads", "%d", func(f bench.CompareFigures) any { return f.StoreReads })
	row("known p50 ms", "%.1f", func(f bench.CompareFigures) any { return f.LatencyMs.P50 })
	row("known p99 ms", "%.1f", func(f bench.CompareFigures) any { return f.LatencyMs.P99 })
	row("never known", "%d", func(f bench.CompareFigures) any { return f.Unknown })
	row("polls late", "%d", func(f bench.CompareFigures) any { return f.Late })
	row("other programs' cores", "%s", func(f bench.CompareFigures) any { return coresOf(f) })
	tw.Flush()
	fmt.Fprintf(w, "\npoll over push: CPU %.3g (%.3g without fetch), bytes %.3g (%.3g), store reads %.3g\n",
		r.Ratio.CPU, r.Ratio.CPUWithoutFetch, r.Ratio.Bytes, r.Ratio.BytesWithoutFetch, r.Ratio.StoreReads)
	for i, o := range []*bench.CompareOutage{r.Poll.Outage, r.Push.Outage} {
		if o != nil {
			fmt.Fprintf(w, "outage of %.0f s, %s: everyone back after %s, caught up after %s, %.3f s of CPU, %d lost\n", o.Seconds,
				[]string{"poll", "push"}[i], o.After(o.EveryoneBackMs), o.After(o.CaughtUpMs), o.CPUSeconds, o.Lost)
		}
	}
	for _, p := range r.Sweep {
		fmt.Fprintf(w, "every %gs: %.1f requests/s, %.3f of 304, CPU %.3f s, known p50 %.0f ms, %d late, other programs' cores %s\n", p.IntervalSeconds,
			p.Poll.RequestsPerSecond, p.Poll.NotModifiedShare, p.Poll.CPUSeconds, p.Poll.LatencyMs.P50, p.Poll.Late, coresOf(p.Poll))
	}
	if c := r.Crossing; c != nil && c.CPUSeconds > 0 {
		fmt.Fprintf(w, "polling costs less CPU than pushing at intervals over %.3g s\n", c.CPUSeconds)
	}
}

func coresOf(f bench.CompareFigures) string {
	if f.OtherCores == nil {
		return "unknown"
	}
	return fmt.Sprintf("%.2f", *f.OtherCores)
}
