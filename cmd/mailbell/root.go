package main

import (
	"errors"
	"fmt"
	"log/slog"
	"regexp"
	"strings"

	"github.com/mailbell/mailbell/internal/ops"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

const rootLong = `mailbell rings when mail changes.

A mail store publishes what happened to a mailbox; every browser that watches
the mailbox hears it within milliseconds, on a socket that otherwise costs
nothing. It replaces webmail polling.

Start with everything in one process, then publish and watch:

  mailbell run
  mailbell watch --account alice@example.com
  mailbell publish --account alice@example.com --event MessageNew --mailbox INBOX --uidvalidity 1 --uid 1 --unseen 1

For a site, the parts run as processes of their own on Kafka: adapter, bus and
notifier. Each flag is also a key of the YAML file that --config names and a
variable: --public-url is public-url: and MAILBELL_PUBLIC_URL. A flag wins over
the variable, the variable over the file, the file over the default.`

// usageError is a mistake in how a command was called.
type usageError struct {
	command string
	err     error
}

func (e *usageError) Error() string { return e.err.Error() }
func (e *usageError) Unwrap() error { return e.err }

// newRoot makes the whole command tree. t is what the commands see of the outside.
func newRoot(t terminal) *cobra.Command {
	root := &cobra.Command{
		Use:           "mailbell",
		Short:         "Rings when mail changes",
		Long:          rootLong,
		SilenceUsage:  true,
		SilenceErrors: true,
		Args:          cobra.NoArgs,
		RunE:          func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.SetIn(t.in)
	root.SetOut(t.out)
	root.SetErr(t.err)
	root.CompletionOptions.HiddenDefaultCmd = false
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return &usageError{command: cmd.CommandPath(), err: flagError(cmd, err)}
	})
	root.PersistentFlags().String("config", "", "read settings from this YAML `file`")
	root.PersistentPreRunE = func(cmd *cobra.Command, _ []string) error {
		if isCobras(cmd) {
			return nil
		}
		if err := applySettings(cmd, t.environ); err != nil {
			return &usageError{command: cmd.CommandPath(), err: err}
		}
		return nil
	}
	root.AddGroup(
		&cobra.Group{ID: "parts", Title: "The parts:"},
		&cobra.Group{ID: "tools", Title: "Tools:"},
	)
	root.SetHelpCommandGroupID("tools")
	root.SetCompletionCommandGroupID("tools")
	for _, cmd := range []*cobra.Command{newRunCommand(t), newBusCommand(t), newNotifierCommand(t), newAdapterCommand(t)} {
		cmd.GroupID = "parts"
		root.AddCommand(cmd)
	}
	for _, cmd := range []*cobra.Command{newPublishCommand(t), newWatchCommand(t), newTokenCommand(t), newDoctorCommand(t), newBenchCommand(t), newVersionCommand(t)} {
		cmd.GroupID = "tools"
		root.AddCommand(cmd)
	}
	wrapArgs(root)
	return root
}

// isCobras tells the commands that cobra brings along; they take no settings.
func isCobras(cmd *cobra.Command) bool {
	for c := cmd; c != nil; c = c.Parent() {
		if c.Name() == "completion" || c.Name() == "help" || strings.HasPrefix(c.Name(), "__complete") {
			return true
		}
	}
	return false
}

// wrapArgs makes a wrong argument a usage error.
func wrapArgs(cmd *cobra.Command) {
	if check := cmd.Args; check != nil {
		cmd.Args = func(cmd *cobra.Command, args []string) error {
			if err := check(cmd, args); err != nil {
				return &usageError{command: cmd.CommandPath(), err: argError(cmd, args, err)}
			}
			return nil
		}
	}
	for _, sub := range cmd.Commands() {
		wrapArgs(sub)
	}
}

func argError(cmd *cobra.Command, args []string, err error) error {
	if !cmd.HasSubCommands() || len(args) == 0 {
		return err
	}
	var names []string
	for _, sub := range cmd.Commands() {
		if !sub.Hidden {
			names = append(names, sub.Name())
		}
	}
	return fmt.Errorf("unknown command %q%s", args[0], orNearest(args[0], names, "%q"))
}

var unknownFlag = regexp.MustCompile(`^unknown flag: --(\S+)$`)

// flagError adds to pflag's message what to do about it.
func flagError(cmd *cobra.Command, err error) error {
	if m := unknownFlag.FindStringSubmatch(err.Error()); m != nil {
		var names []string
		cmd.Flags().VisitAll(func(f *pflag.Flag) { names = append(names, f.Name) })
		return fmt.Errorf("unknown flag --%s%s", m[1], orNearest(m[1], names, "--%s"))
	}
	var invalid *pflag.InvalidValueError
	if errors.As(err, &invalid) {
		f := invalid.GetFlag()
		return fmt.Errorf("--%s %q: %s (%s)", f.Name, invalid.GetValue(), shortProblem(err), wants(f))
	}
	return err
}

// wrong is a usage error found by the command itself.
func wrong(cmd *cobra.Command, format string, args ...any) error {
	return &usageError{command: cmd.CommandPath(), err: fmt.Errorf(format, args...)}
}

// logFlags are the log settings that every long-running command has.
type logFlags struct {
	format, level string
}

func (l *logFlags) register(fs *pflag.FlagSet) {
	fs.StringVar(&l.format, "log-format", "text", "log as text or json")
	fs.StringVar(&l.level, "log-level", "info", "least level to log: debug, info, warn or error")
}

func (l *logFlags) logger(cmd *cobra.Command) (*slog.Logger, error) {
	level, err := ops.ParseLevel(l.level)
	if err != nil {
		return nil, wrong(cmd, "--log-level: %w", err)
	}
	logger, err := ops.NewLogger(cmd.ErrOrStderr(), l.format, level)
	if err != nil {
		return nil, wrong(cmd, "--log-format: %w", err)
	}
	return logger, nil
}
