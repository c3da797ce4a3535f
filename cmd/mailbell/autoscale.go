package main

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"strings"
	"time"

	"github.com/mailbell/mailbell/bus"
	"github.com/mailbell/mailbell/bus/autoscale"
	"github.com/mailbell/mailbell/internal/eventlog"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/spf13/pflag"
)

// autoscaleFlags are the settings of the controller in a bus node.
type autoscaleFlags struct {
	on        bool
	act       bool
	policy    autoscale.Policy
	schedules []string
	command   string
	webhook   string
	systemd   string
	local     string
	dir       string
	notify    string
}

func (f *autoscaleFlags) register(fs *pflag.FlagSet) {
	fs.BoolVar(&f.on, "autoscale", false, "decide how many notifiers there are; one of the bus nodes that have this does, the others stand by")
	fs.BoolVar(&f.act, "autoscale-act", false, "carry the decisions out instead of only logging them")
	fs.IntVar(&f.policy.Min, "autoscale-min", 2, "healthy notifiers below which more are started at once")
	fs.IntVar(&f.policy.Max, "autoscale-max", 100, "notifiers at most")
	fs.Float64Var(&f.policy.OutAbove, "autoscale-out-above", 15000, "start more above this average of connections")
	fs.Float64Var(&f.policy.InBelow, "autoscale-in-below", 0, "end one below this average of connections (default: a third of --autoscale-out-above)")
	fs.IntVar(&f.policy.Step, "autoscale-step", 1, "how many are started at a time")
	fs.DurationVar(&f.policy.OutEvery, "autoscale-out-every", 3*time.Minute, "least `time` between two starts, unless there are too few")
	fs.DurationVar(&f.policy.InEvery, "autoscale-in-every", time.Hour, "least `time` between two ends")
	fs.DurationVar(&f.policy.Launch, "autoscale-launch", 2*time.Minute, "`time` that a notifier may take to come")
	fs.DurationVar(&f.policy.DrainOver, "autoscale-drain", 5*time.Minute, "`time` over which the clients of one that is to end leave")
	fs.StringArrayVar(&f.schedules, "autoscale-schedule", nil, `a minimum for some hours, such as "mon-fri 07:00-19:00 Europe/Berlin min=6"; may be given again`)
	fs.StringVar(&f.command, "autoscale-command", "", "`program` that starts and ends notifiers: MAILBELL_ACTION, MAILBELL_COUNT and MAILBELL_NODE say what")
	fs.StringVar(&f.webhook, "autoscale-webhook", "", "`URL` to which what is to be started and ended is posted")
	fs.StringVar(&f.systemd, "autoscale-systemd", "", "template `unit` of this machine whose instances are notifiers, such as mailbell-notifier@.service")
	fs.StringVar(&f.local, "autoscale-local", "", "`command` line of a notifier that is started as a plain process; {node} stands for its name")
	fs.StringVar(&f.dir, "autoscale-dir", "./mailbell-local", "`folder` for the process ids and logs of --autoscale-local")
	fs.StringVar(&f.notify, "autoscale-notify", "", "`URL` of a webhook in Slack's format that hears of each decision")
}

// scaler makes the controller; nil unless it is asked for.
func (f *autoscaleFlags) scaler(node *bus.Node, log *eventlog.Log, group, name string, logger *slog.Logger, reg prometheus.Registerer) (*autoscale.Scaler, error) {
	if !f.on {
		if f.act {
			return nil, errors.New("--autoscale-act needs --autoscale")
		}
		return nil, nil
	}
	policy := f.policy
	for _, text := range f.schedules {
		s, err := autoscale.ParseSchedule(text)
		if err != nil {
			return nil, fmt.Errorf("--autoscale-schedule: %w", err)
		}
		policy.Schedules = append(policy.Schedules, s)
	}
	actuator, err := f.actuator()
	if err != nil {
		return nil, err
	}
	return autoscale.New(autoscale.Config{
		Policy: policy, Lease: autoscale.KafkaLease{Log: log, Group: cmp.Or(group, eventlog.DefaultGroup) + "-autoscale", Node: name},
		Fleet: func(now time.Time) []autoscale.Node { return fleetNodes(node.Fleet().Snapshot(now)) },
		Drain: func(notifier string, over time.Duration) (time.Duration, error) {
			_, took, err := node.Drain(notifier, "", over)
			return took, err
		},
		Actuator: actuator, Act: f.act, Notify: f.notify, Logger: logger, Registerer: reg,
	})
}

func fleetNodes(all []bus.Notifier) (nodes []autoscale.Node) {
	for _, n := range all {
		if n.State != bus.Replaced {
			nodes = append(nodes, autoscale.Node{Name: n.Node, Connections: int(n.Load.Connections), Since: n.Since,
				Healthy: n.State == bus.Serving || n.State == bus.Full, Draining: n.State == bus.Draining})
		}
	}
	return nodes
}

func (f *autoscaleFlags) actuator() (autoscale.Actuator, error) {
	var all []autoscale.Actuator
	if f.command != "" {
		all = append(all, autoscale.Command{Args: strings.Fields(f.command)})
	}
	if f.webhook != "" {
		all = append(all, autoscale.Webhook{URL: f.webhook})
	}
	if f.systemd != "" {
		if !strings.Contains(f.systemd, "@.") {
			return nil, fmt.Errorf("--autoscale-systemd %q: want a template unit, such as mailbell-notifier@.service", f.systemd)
		}
		all = append(all, autoscale.Systemd{Unit: f.systemd})
	}
	if f.local != "" {
		dir, err := filepath.Abs(f.dir)
		if err != nil {
			return nil, fmt.Errorf("--autoscale-dir: %w", err)
		}
		all = append(all, &autoscale.Local{Dir: dir, Args: strings.Fields(f.local)})
	}
	switch len(all) {
	case 0:
		return nil, nil
	case 1:
		return all[0], nil
	}
	return nil, errors.New("autoscale: more than one way to start notifiers is given: keep one")
}
