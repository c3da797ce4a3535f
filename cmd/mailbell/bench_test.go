package main

import (
	"bytes"
	"context"
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/mailbell/mailbell/bench"
	"github.com/spf13/cobra"
)

func TestInterruptible(t *testing.T) {
	cmd := &cobra.Command{RunE: interruptible(func(*cobra.Command, []string) error { return errors.New("publisher: context canceled") })}
	ctx, cancel := context.WithCancel(context.Background())
	cmd.SetContext(ctx)
	if err := cmd.RunE(cmd, nil); err == nil || err.Error() != "publisher: context canceled" {
		t.Errorf("a failure is %v", err)
	}
	cancel()
	if err := cmd.RunE(cmd, nil); err == nil || err.Error() != "interrupted" {
		t.Errorf("an interrupted bench is %v", err)
	}
}

// Reports break where people can read on, not in the middle of a word on a terminal of 80 columns.
func TestReportFitsATerminal(t *testing.T) {
	var out bytes.Buffer
	report := bench.NewReport("pipeline", nil)
	report.Machine.CPU, report.Machine.Kernel, report.Machine.Go = "Intel(R) Xeon(R)", "6.12.74+deb13-amd64", "go1.26.4-X:somethinglong"
	result := bench.PipelineResult{Offered: 1234567, Acknowledged: 1234567, Delivered: 1234567}
	if err := printReport(terminal{out: &out}, false, report, func(w io.Writer) { printPipeline(w, result) }); err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(out.String()) {
		if len(line) > 80 {
			t.Errorf("%d columns: %s", len(line), line)
		}
	}
}
