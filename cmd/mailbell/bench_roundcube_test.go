package main

import (
	"strings"
	"testing"

	"github.com/spf13/cobra"
)

func TestStoreFlags(t *testing.T) {
	for _, c := range []struct{ args, refused string }{
		{"--store roundcube --users 2 --poll-interval 1m --change-rate 3 --seed 2 --span 1h --squeeze 60 --session-lifetime 10m --json", ""},
		{"--store roundcube --report x.html --duration 1m", "--duration, --report: not with --store roundcube"},
		{"--store roundcube --sweep 2s,5s --svg x", "--svg, --sweep: not with --store roundcube"},
		{"--store sqlite --users 5 --sweep 2s --report x.html", ""},
		{"--span 1h", "--span: only with --store roundcube"},
	} {
		cmd := newBenchCompareCommand(terminal{})
		cmd.RunE = func(cmd *cobra.Command, _ []string) error {
			store, err := cmd.Flags().GetString("store")
			if err != nil {
				return err
			}
			return checkStoreFlags(cmd, store)
		}
		cmd.SilenceErrors, cmd.SilenceUsage = true, true
		cmd.SetArgs(strings.Fields(c.args))
		err := cmd.Execute()
		if (err == nil) != (c.refused == "") || err != nil && !strings.Contains(err.Error(), c.refused) {
			t.Errorf("%s: %v, want %q", c.args, err, c.refused)
		}
	}
}
