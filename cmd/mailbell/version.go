package main

import (
	"encoding/json"
	"fmt"

	"github.com/mailbell/mailbell/internal/ops"
	"github.com/spf13/cobra"
)

func newVersionCommand(t terminal) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:     "version",
		Short:   "Print which build this is",
		Example: "  mailbell version\n  mailbell version --json",
		Args:    cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			b := ops.BuildInfo(version)
			if asJSON {
				return json.NewEncoder(t.out).Encode(map[string]string{"version": b.Version, "commit": b.Commit, "go": b.Go})
			}
			_, err := fmt.Fprintf(t.out, "mailbell %s %s\n", b.Version, b.Go)
			return err
		},
	}
	jsonFlag(cmd.Flags(), &asJSON)
	return cmd
}
