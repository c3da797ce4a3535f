package main

import (
	"log/slog"
	"math"
	"net/http"
	"strings"
	"time"

	"github.com/mailbell/mailbell/bus"
	"github.com/mailbell/mailbell/internal/ops"
	"github.com/mailbell/mailbell/notifier"
	"github.com/mailbell/mailbell/schema"
	"github.com/mailbell/mailbell/web/console"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/spf13/pflag"
)

func peersFlag(fs *pflag.FlagSet, v *[]string) {
	fs.StringSliceVar(v, "console-peers", nil, "`addresses` of other processes' operations ports, which the console on --ops shows too")
}

// consoleParts are the parts of this process that the console shows; nil where there are none.
type consoleParts struct {
	part, node string
	peers      []string
	bus        *bus.Node
	notifier   *notifier.Server
	partitions int // of the topic; 0: not known
}

// mountConsole serves the console on the operations port.
func mountConsole(port *ops.Server, p consoleParts, logger *slog.Logger) error {
	if p.node == "" {
		p.node = nodeName(port.Addr())
	}
	cfg := console.Config{Node: p.node, Part: p.part, Version: ops.BuildInfo(version).Version, Peers: p.peers, Logger: logger,
		Metrics: func() []console.Metric { return gathered(port.Registry()) }}
	if p.bus != nil {
		cfg.Bus = func() *console.Bus { return busStatus(p.bus, p.partitions) }
	}
	if p.bus != nil || p.notifier != nil {
		cfg.Account = p.account
	}
	h, err := console.New(cfg)
	if err != nil {
		return err
	}
	port.Handle(console.Path, h)
	port.Handle("GET /{$}", http.RedirectHandler(console.Path, http.StatusFound))
	return nil
}

// gathered are all metrics of ours, and the process's CPU and memory.
func gathered(reg prometheus.Gatherer) []console.Metric {
	families, err := reg.Gather()
	if err != nil {
		return nil
	}
	all := []console.Metric{}
	for _, f := range families {
		name := f.GetName()
		if !strings.HasPrefix(name, "mailbell_") && name != "process_cpu_seconds_total" && name != "process_resident_memory_bytes" && name != "process_open_fds" {
			continue
		}
		for _, m := range f.GetMetric() {
			one := console.Metric{Name: name}
			for _, l := range m.GetLabel() {
				if one.Labels == nil {
					one.Labels = make(map[string]string)
				}
				one.Labels[l.GetName()] = l.GetValue()
			}
			switch {
			case m.GetCounter() != nil:
				one.Value = m.GetCounter().GetValue()
			case m.GetGauge() != nil:
				one.Value = m.GetGauge().GetValue()
			case m.GetHistogram() != nil:
				h := m.GetHistogram()
				one.Value, one.Sum = float64(h.GetSampleCount()), h.GetSampleSum()
				for _, b := range h.GetBucket() {
					if bound := b.GetUpperBound(); !math.IsInf(bound, 0) {
						one.Buckets = append(one.Buckets, [2]float64{bound, float64(b.GetCumulativeCount())})
					}
				}
			}
			if !math.IsNaN(one.Value) && !math.IsInf(one.Value, 0) {
				all = append(all, one)
			}
		}
	}
	return all
}

func busStatus(n *bus.Node, total int) *console.Bus {
	b := &console.Bus{Partitions: []console.Partition{}, Total: total, Notifiers: []console.Notifier{}}
	for _, p := range n.Partitions() {
		b.Partitions = append(b.Partitions, console.Partition{Partition: p.Partition, State: string(p.State), Generation: p.Generation, Head: p.Head.Offset,
			Routes: p.Stats.Routes, WindowEvents: p.Stats.WindowRecords, WindowBytes: int64(p.Stats.WindowBytes)})
	}
	for _, m := range n.Fleet().Snapshot(time.Now()) {
		b.Notifiers = append(b.Notifiers, console.Notifier{
			Node: m.Node, URL: m.URL, Version: m.Version, Zone: m.Zone, State: string(m.State), Since: m.Since, Connections: m.Load.Connections, Capacity: m.Capacity,
			Subscriptions: m.Load.Subscriptions, EventsPerSecond: m.Load.EventsPerSecond, AcceptsPerSecond: m.Load.AcceptsPerSecond, CPUCores: m.Load.CPUCores,
			MemoryBytes: m.Load.MemoryBytes, BacklogBytes: m.Load.BacklogBytes,
		})
	}
	return b
}

// account is what this process knows of an account's subscriptions.
func (p consoleParts) account(account schema.Account) console.AccountAnswer {
	a := console.AccountAnswer{Partition: -1, Notifiers: []string{}, Subscriptions: []console.Subscription{}}
	if p.bus != nil {
		if p.partitions > 0 {
			a.Partition = schema.PartitionOf(account, p.partitions)
		}
		if notifiers, owner := p.bus.Subscribers(string(account)); owner {
			a.Owner, a.Notifiers = true, append(a.Notifiers, notifiers...)
		}
	}
	if p.notifier != nil {
		some, all := p.notifier.Subscribers(account, console.MaxSubscriptions)
		for _, s := range some {
			a.Subscriptions = append(a.Subscriptions, console.Subscription{Address: s.Address, Mailboxes: s.Mailboxes, Waiting: s.Waiting})
		}
		a.More = all - len(some)
	}
	return a
}
