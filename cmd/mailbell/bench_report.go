package main

import (
	"errors"
	"fmt"
	"os"

	"github.com/mailbell/mailbell/bench/report"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// reportFiles are where comparisons are drawn.
type reportFiles struct {
	html, svg string
}

func (f *reportFiles) register(fs *pflag.FlagSet) {
	fs.StringVar(&f.html, "report", "", "write the report as one HTML `file`")
	fs.StringVar(&f.svg, "svg", "", "write the charts as SVG files into this `folder`")
}

func (f *reportFiles) write(t terminal, all ...report.Comparison) error {
	if f.html != "" {
		file, err := os.Create(f.html)
		if err != nil {
			return fmt.Errorf("write the report: %w", err)
		}
		if err := errors.Join(report.HTML(file, all...), file.Close()); err != nil {
			return err
		}
		fmt.Fprintf(t.err, "wrote %s\n", f.html)
	}
	if f.svg != "" {
		if err := report.SVG(f.svg, all...); err != nil {
			return err
		}
		fmt.Fprintf(t.err, "wrote the charts to %s\n", f.svg)
	}
	return nil
}

const benchReportLong = `Draw what bench compare --json printed before. The first file is told in full;
further ones, such as runs over other mail stores, join the calculator and a chart.`

func newBenchReportCommand(t terminal) *cobra.Command {
	var out reportFiles
	cmd := &cobra.Command{
		Use:     "report FILE.json...",
		Short:   "Draw saved comparisons: HTML and SVG",
		Long:    benchReportLong,
		Example: "  mailbell bench report memory.json dovecot.json --report compare.html --svg slides",
		Args:    cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if out == (reportFiles{}) {
				return wrong(cmd, "nothing to write: give --report FILE.html, --svg FOLDER or both")
			}
			var all []report.Comparison
			for _, name := range args {
				f, err := os.Open(name)
				if err != nil {
					return fmt.Errorf("open comparison: %w", err)
				}
				c, err := report.Read(f)
				f.Close()
				if err != nil {
					return fmt.Errorf("%s: %w", name, err)
				}
				all = append(all, c)
			}
			return out.write(t, all...)
		},
	}
	out.register(cmd.Flags())
	return cmd
}
