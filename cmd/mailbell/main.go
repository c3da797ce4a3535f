// Mailbell rings when mail changes. This is the one binary; each subcommand is
// a part of it, or all of them in one process:
//
//	                    ┌────────────────── mailbell run ──────────────────┐
//	mail store ──HTTP──►│ adapter ──► log (Kafka) ──► bus ──link──► notifier │──WebSocket──► browser
//	                    └──────────────────────────────────────────────────┘
//
// The package holds no logic of a part. It reads the settings (flags, then
// environment, then file), makes each part's Config from them, and wires the
// parts as actors of an oklog/run group: the first one to return stops all
// others, and the process ends when the last has returned. The first Ctrl-C or
// SIGTERM is such a return; the second one ends the process at once.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
)

// version is set by the Makefile; empty means what Go stamped into the binary.
var version string

func main() {
	ctx, stop := signalContext(context.Background())
	code := execute(ctx, terminal{in: os.Stdin, out: os.Stdout, err: os.Stderr, environ: os.Environ()}, os.Args[1:])
	stop()
	os.Exit(code)
}

// terminal is what a command sees of the outside.
type terminal struct {
	in       io.Reader
	out, err io.Writer
	environ  []string
}

// errReported ends a command with exit code 1 that has said why already.
var errReported = errors.New("reported")

// execute runs one command line and returns the exit code: 0, 1 for a failure,
// 2 for a command line or configuration that makes no sense.
func execute(ctx context.Context, t terminal, args []string) int {
	root := newRoot(t)
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return 0
	}
	if errors.Is(err, errReported) {
		return 1
	}
	var usage *usageError
	if errors.As(err, &usage) {
		for _, line := range flatten(usage.err) {
			fmt.Fprintf(t.err, "mailbell: %s\n", line)
		}
		fmt.Fprintf(t.err, "Try '%s --help'.\n", usage.command)
		return 2
	}
	for _, line := range flatten(err) {
		fmt.Fprintf(t.err, "mailbell: %s\n", line)
	}
	return 1
}

// flatten lists joined errors one a line.
func flatten(err error) []error {
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		var all []error
		for _, e := range joined.Unwrap() {
			all = append(all, flatten(e)...)
		}
		return all
	}
	return []error{err}
}

// signalContext ends with the first SIGINT or SIGTERM; after it, the signals have
// their usual effect again, so a second one ends the process at once.
func signalContext(parent context.Context) (context.Context, context.CancelFunc) {
	ctx, stop := signal.NotifyContext(parent, os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop)
	return ctx, stop
}
