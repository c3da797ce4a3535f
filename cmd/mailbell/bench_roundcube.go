package main

import (
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/mailbell/mailbell/bench"
	"github.com/mailbell/mailbell/bench/roundcube"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// storeRoundcube makes `bench compare` measure a real webmail.
const storeRoundcube = "roundcube"

// webmailFlags are what only --store roundcube knows.
type webmailFlags struct {
	span     time.Duration
	squeeze  float64
	lifetime time.Duration
	users    int // of the pushing side
	idle     int // of the pushing side, while nothing changes
}

func (f *webmailFlags) register(fs *pflag.FlagSet) {
	fs.DurationVar(&f.span, "span", 0, "with --store roundcube: `time` of users that is measured (default 1h)")
	fs.Float64Var(&f.squeeze, "squeeze", 0, "with --store roundcube: users' time over the machine's (default 50, which is the most)")
	fs.IntVar(&f.users, "push-users", 0, "with --store roundcube: users of the pushing side, so many that the servers are as busy as with polling (default: those of --users)")
	fs.IntVar(&f.idle, "idle-push-users", 0, "with --store roundcube: the same, while nothing changes (default: those of --push-users)")
	fs.DurationVar(&f.lifetime, "session-lifetime", 0, "with --store roundcube: `time` that a session lives without requests (default 1h)")
}

// checkStoreFlags refuses flags that a store does not know, rather than measure something else than was asked for.
func checkStoreFlags(cmd *cobra.Command, store string) error {
	only := []string{"span", "squeeze", "session-lifetime", "push-users", "idle-push-users"}
	both := []string{"store", "users", "poll-interval", "change-rate", "seed", "json"}
	var refused []string
	cmd.LocalNonPersistentFlags().VisitAll(func(f *pflag.Flag) {
		known := !slices.Contains(only, f.Name)
		if store == storeRoundcube {
			known = !known || slices.Contains(both, f.Name)
		}
		if f.Changed && !known {
			refused = append(refused, "--"+f.Name)
		}
	})
	if len(refused) == 0 {
		return nil
	}
	format := "bench compare: %s: only with --store " + storeRoundcube
	if store == storeRoundcube {
		format = "bench compare: %s: not with --store " + storeRoundcube
	}
	return &usageError{command: cmd.CommandPath(), err: fmt.Errorf(format, strings.Join(refused, ", "))}
}

// run is `bench compare --store roundcube`.
func (f *webmailFlags) run(cmd *cobra.Command, t terminal, c bench.CompareConfig, asJSON bool) error {
	binary, err := os.Executable()
	if err != nil {
		return err
	}
	cfg := roundcube.Config{
		Users: c.Users, PushUsers: f.users, IdlePushUsers: f.idle, Interval: c.Interval, ChangeRate: c.ChangeRate, Seed: c.Seed, Span: f.span, Squeeze: f.squeeze, SessionLifetime: f.lifetime, Binary: binary,
	}
	if err := cfg.Validate(); err != nil {
		return &usageError{command: cmd.CommandPath(), err: err}
	}
	progress := benchProgress(t.err)
	cfg.Say = func(format string, args ...any) {
		if progress != nil {
			progress(fmt.Sprintf(format, args...))
		}
	}
	report := bench.NewReport("compare", os.Args[min(3, len(os.Args)):])
	result, err := roundcube.Compare(cmd.Context(), cfg)
	endProgress(progress)
	if err != nil {
		return err
	}
	report.Result = result
	if err := printReport(t, asJSON, report, func(w io.Writer) { printRoundcube(w, result) }); err != nil {
		return err
	}
	return result.Broken()
}

func printRoundcube(w io.Writer, r roundcube.Result) {
	fmt.Fprintf(w, "%d users of Roundcube (%d pushing, %d when idle), a refresh every %gs, %g messages a user-hour, sessions of %gs; %gs of their time\n\n", r.Settings.Users,
		r.Settings.PushUsers, r.Settings.IdlePushUsers, r.Settings.IntervalSeconds, r.Settings.ChangesPerHour, r.Settings.SessionLifetimeSeconds, r.Settings.SpanSeconds)
	tw := tabwriter.NewWriter(w, 0, 4, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(tw, "\tpoll\tpush\tmixed poll\tmixed push\tidle poll\tidle push\t")
	sides := []roundcube.Figures{r.Busy.Poll, r.Busy.Push, r.Mixed.Poll, r.Mixed.Push, r.Idle.Poll, r.Idle.Push}
	row := func(name, format string, value func(roundcube.Figures) any) {
		fmt.Fprintf(tw, "%s\t", name)
		for _, s := range sides {
			fmt.Fprintf(tw, format+"\t", value(s))
		}
		fmt.Fprintln(tw)
	}
	row("CPU s", "%.2f", func(f roundcube.Figures) any { return f.CPUSeconds })
	for _, part := range []string{"php-fpm", "nginx", "dovecot", "mailbell"} {
		row(part, "%.2f", func(f roundcube.Figures) any { return f.ByProcess[part] })
	}
	row("CPU ms a user-hour", "%.1f", func(f roundcube.Figures) any { return f.CPUMsPerUserHour })
	row("requests", "%d", func(f roundcube.Figures) any { return f.Requests })
	row("kB", "%d", func(f roundcube.Figures) any { return (f.BytesIn + f.BytesOut) / 1000 })
	row("kB on sockets", "%.1f", func(f roundcube.Figures) any { return float64(f.SocketBytesIn+f.SocketBytesOut) / 1000 })
	row("changes", "%d", func(f roundcube.Figures) any { return f.Changes })
	row("changes elsewhere", "%d", func(f roundcube.Figures) any { return f.Elsewhere })
	row("s to know, mean", "%.2f", func(f roundcube.Figures) any { return f.SecondsToKnowMean })
	row("s to know, worst", "%.2f", func(f roundcube.Figures) any { return f.SecondsToKnowWorst })
	tw.Flush()
	fmt.Fprintf(w, "\nA delivery costs %.1f ms of CPU, which is in neither side.\n", r.DeliveryCPUMs)
	fmt.Fprintf(w, "poll over push, for a user: CPU %.3g, mixed %.3g, idle %.3g; requests %.3g, %.3g, %.3g; bytes %.3g, %.3g, %.3g. mailbell idles at %.4f cores, which is in none of these but the following:\n",
		r.Busy.Ratio.CPU, r.Mixed.Ratio.CPU, r.Idle.Ratio.CPU, r.Busy.Ratio.Requests, r.Mixed.Ratio.Requests, r.Idle.Ratio.Requests,
		r.Busy.Ratio.Bytes, r.Mixed.Ratio.Bytes, r.Idle.Ratio.Bytes, r.MailbellIdleCores)
	for _, s := range r.Sites {
		fmt.Fprintf(w, "%d users: %.3g cores by polling, %.3g by pushing: %.3g times; idle %.3g and %.3g: %.3g times\n",
			s.Users, s.PollCores, s.PushCores, s.Ratio, s.IdlePollCores, s.IdlePushCores, s.IdleRatio)
	}
	fmt.Fprintf(w, "A keep-alive costs %.1f ms.", r.KeepAliveCPUMs)
	for _, l := range r.Lifetimes {
		fmt.Fprintf(w, " With sessions of %v: CPU %.3g times, idle %.3g times.", time.Duration(l.Seconds)*time.Second, l.Busy, l.Idle)
	}
	fmt.Fprintln(w)
}
