package bench

import (
	"context"
	"fmt"
	"os"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/mailbell/mailbell/bench/chaos"
	"github.com/mailbell/mailbell/bench/swarm"
)

// faultRun is a fault as it happened.
type faultRun struct {
	chaos.Fault
	began, healed time.Time
}

// chaosRules are the kinds of fault, how often each comes, and for how long. Whom they hit is for the site to say.
func chaosRules() []chaos.Rule {
	const s = time.Second
	return []chaos.Rule{
		{Kind: chaos.BrokerKill, Weight: 6, Shortest: 1 * s, Longest: 8 * s},
		{Kind: chaos.BrokerStop, Weight: 4, Shortest: 2 * s, Longest: 12 * s},
		{Kind: chaos.BusKill, Weight: 8, Shortest: 1 * s, Longest: 8 * s},
		{Kind: chaos.BusStop, Weight: 6, Shortest: 2 * s, Longest: 12 * s},
		{Kind: chaos.BusDrain, Weight: 4, Shortest: 1 * s, Longest: 5 * s},
		{Kind: chaos.BusJoin, Weight: 3, Shortest: 8 * s, Longest: 15 * s},
		{Kind: chaos.NotifierKill, Weight: 6, Shortest: 1 * s, Longest: 6 * s},
		{Kind: chaos.NotifierStop, Weight: 4, Shortest: 2 * s, Longest: 12 * s},
		{Kind: chaos.NotifierDrain, Weight: 4, Shortest: 1 * s, Longest: 5 * s},
		{Kind: chaos.NotifierJoin, Weight: 2, Shortest: 8 * s, Longest: 15 * s},
		{Kind: chaos.NotifierTakeover, Weight: 4},
		{Kind: chaos.AdapterKill, Weight: 4, Shortest: 1 * s, Longest: 6 * s},
		{Kind: chaos.AdapterStop, Weight: 2, Shortest: 2 * s, Longest: 8 * s},
		{Kind: chaos.ClientsStop, Weight: 3, Shortest: 2 * s, Longest: 15 * s},
		{Kind: chaos.ClientsReconnect, Weight: 4},
		{Kind: chaos.Isolate, Weight: 7, Shortest: 2 * s, Longest: 15 * s},
		{Kind: chaos.CutBoth, Weight: 6, Shortest: 3 * s, Longest: 20 * s},
		{Kind: chaos.CutOneWay, Weight: 7, Shortest: 3 * s, Longest: 20 * s},
		{Kind: chaos.SlowLink, Weight: 4, Shortest: 5 * s, Longest: 15 * s},
		{Kind: chaos.DiskFull, Weight: 4, Shortest: 3 * s, Longest: 10 * s},
	}
}

// ChaosKinds returns the names of the kinds of fault.
func ChaosKinds() (kinds []string) {
	for _, r := range chaosRules() {
		kinds = append(kinds, string(r.Kind))
	}
	return kinds
}

// rules returns what this site can do, and what it can't and why.
func (s *chaosSite) rules() (rules []chaos.Rule, skipped []string) {
	yes, reason := s.network.Namespaced()
	for _, r := range chaosRules() {
		if len(s.cfg.Only) > 0 && !slices.Contains(s.cfg.Only, string(r.Kind)) {
			continue
		}
		why := ""
		switch r.Kind {
		case chaos.Isolate, chaos.CutBoth, chaos.CutOneWay:
			if !yes {
				why = reason
			}
		case chaos.SlowLink:
			if !yes {
				why = reason
			} else if s.network.Shapes() == "" {
				why = "tc knows neither netem nor tbf"
			}
		case chaos.DiskFull:
			if s.noSmall {
				why = "no file system may be mounted"
			}
		}
		if why != "" {
			skipped = append(skipped, fmt.Sprintf("%s: %s", r.Kind, why))
			continue
		}
		rules = append(rules, s.aim(r)...)
	}
	return rules, skipped
}

// aim says whom a rule hits.
func (s *chaosSite) aim(r chaos.Rule) []chaos.Rule {
	at := func(kinds ...nodeKind) []chaos.Rule { r.Targets = s.names(kinds...); return []chaos.Rule{r} }
	switch r.Kind {
	case chaos.BrokerKill, chaos.BrokerStop:
		return at(brokerNode)
	case chaos.BusKill, chaos.BusStop, chaos.BusDrain:
		return at(busNode)
	case chaos.NotifierKill, chaos.NotifierStop, chaos.NotifierDrain, chaos.NotifierTakeover:
		return at(notifierNode)
	case chaos.AdapterKill, chaos.AdapterStop, chaos.DiskFull:
		return at(adapterNode)
	case chaos.ClientsStop, chaos.ClientsReconnect:
		return at(clientsNode)
	case chaos.Isolate, chaos.SlowLink:
		return at(brokerNode, busNode, notifierNode, adapterNode, clientsNode)
	case chaos.BusJoin:
		r.Targets = []string{s.of(busNode)[3].name}
		return []chaos.Rule{r}
	case chaos.NotifierJoin:
		r.Targets = []string{s.of(notifierNode)[3].name}
		return []chaos.Rule{r}
	}
	// Between two hosts that talk to each other, in both roles.
	var rules []chaos.Rule
	for _, pair := range [][2]nodeKind{{busNode, notifierNode}, {notifierNode, busNode}, {busNode, brokerNode}, {brokerNode, busNode},
		{adapterNode, brokerNode}, {notifierNode, clientsNode}, {clientsNode, notifierNode}, {brokerNode, brokerNode}} {
		r.Targets, r.Peers, r.Weight = s.names(pair[0]), s.names(pair[1]), 1
		rules = append(rules, r)
	}
	return rules
}

// breakThings injects the faults of a plan and heals them, and returns when all are healed and the time is over.
func (c *chaosRun) breakThings(ctx context.Context, plan []chaos.Fault) error {
	c.faults = make([]faultRun, len(plan))
	var running sync.WaitGroup
	defer running.Wait()
	var mu sync.Mutex
	var failed error
	report := time.NewTicker(5 * time.Second)
	defer report.Stop()
	next, end := 0, time.After(time.Until(c.started.Add(c.cfg.length())))
	for {
		var due <-chan time.Time
		if next < len(plan) {
			due = time.After(time.Until(c.started.Add(plan[next].At)))
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-report.C:
			c.progress(next, len(plan))
		case <-due:
			f := &c.faults[next]
			f.Fault = plan[next]
			next++
			running.Go(func() {
				if err := c.suffer(ctx, f); err != nil {
					mu.Lock()
					failed = fmt.Errorf("%s of %s: %w", f.Kind, f.Target, err)
					mu.Unlock()
				}
			})
		case <-end:
			running.Wait()
			return failed
		}
	}
}

func (c *chaosRun) progress(faults, planned int) {
	live, events, total := 0, 0, c.cfg.Clients
	for _, s := range c.clients {
		n := s.counts()
		live, events = live+n.Live, events+n.Events
	}
	c.cfg.Progress.say("%v: %d of %d faults, %d of %d clients live, %d events heard", time.Since(c.started).Round(time.Second), faults, planned, live, total, events)
}

// suffer injects one fault, waits, and heals it.
func (c *chaosRun) suffer(ctx context.Context, f *faultRun) error {
	f.began = time.Now()
	c.cfg.Progress.say("%v: %s %s %s for %v", time.Since(c.started).Round(time.Second), f.Kind, f.Target, f.Peer, f.For.Round(time.Second/10))
	heal, err := c.inject(ctx, f.Fault)
	if err != nil {
		return err
	}
	select {
	case <-ctx.Done():
	case <-time.After(time.Until(f.began.Add(f.For))):
	}
	err = heal()
	f.healed = time.Now()
	return err
}

// inject breaks something and returns what heals it.
func (c *chaosRun) inject(ctx context.Context, f chaos.Fault) (heal func() error, err error) {
	n := c.site.node(f.Target)
	switch f.Kind {
	case chaos.BrokerKill:
		c.site.kafka.Kill(n.index)
		return func() error { return c.site.kafka.Launch(n.index) }, nil
	case chaos.BusKill, chaos.NotifierKill, chaos.AdapterKill:
		n.unwanted()
		err := n.signal(syscall.SIGKILL)
		return func() error { <-n.process().done; return n.launch(n.args...) }, err
	case chaos.BrokerStop, chaos.BusStop, chaos.NotifierStop, chaos.AdapterStop, chaos.ClientsStop:
		err := n.signal(syscall.SIGSTOP)
		return func() error { return n.signal(syscall.SIGCONT) }, err
	case chaos.BusDrain, chaos.NotifierDrain:
		err := n.leave(ctx)
		return func() error { return n.launch(n.args...) }, err
	case chaos.BusJoin, chaos.NotifierJoin:
		err := n.launch(n.args...)
		return func() error { return n.leave(ctx) }, err
	case chaos.NotifierTakeover:
		return func() error { return n.handOver(ctx) }, nil
	case chaos.ClientsReconnect:
		return func() error { return n.process().tell(swarm.CommandReturn) }, nil
	case chaos.DiskFull:
		file, err := chaos.FillDisk(n.small)
		return func() error { return os.Remove(file) }, err
	}
	return c.injectLink(f, n.host)
}

func (c *chaosRun) injectLink(f chaos.Fault, host *chaos.Host) (heal func() error, err error) {
	switch f.Kind {
	case chaos.Isolate:
		return host.Join, host.Isolate()
	case chaos.SlowLink:
		return host.Fast, host.Slow()
	}
	peer := c.site.node(f.Peer).host
	if f.Kind == chaos.CutOneWay {
		return func() error { return host.JoinTo(peer) }, host.CutTo(peer)
	}
	heal = func() error {
		if err := host.JoinTo(peer); err != nil {
			return err
		}
		return peer.JoinTo(host)
	}
	if err := host.CutTo(peer); err != nil {
		return heal, err
	}
	return heal, peer.CutTo(host)
}

// leave ends a process as an operator does, and waits for it.
func (n *chaosNode) leave(ctx context.Context) error {
	n.unwanted()
	if err := n.signal(syscall.SIGTERM); err != nil {
		return err
	}
	n.awaitEnd(ctx, n.process(), "asked to leave")
	return nil
}

// handOver starts a successor, to which the process hands its connections and ends.
func (n *chaosNode) handOver(ctx context.Context) error {
	p := n.process()
	n.unwanted()
	if err := n.launch(n.args...); err != nil {
		return err
	}
	n.awaitEnd(ctx, p, "to be taken over")
	return nil
}

// awaitEnd waits for an end that was asked for. One that does not come, or is a failure, counts as a crash.
func (n *chaosNode) awaitEnd(ctx context.Context, p *process, why string) {
	select {
	case <-p.done:
		if p.err != nil {
			n.site.mu.Lock()
			n.site.crashes = append(n.site.crashes, fmt.Sprintf("%s, %s: %v: %s", n.name, why, p.err, lastLines(p.log.String(), 3)))
			n.site.mu.Unlock()
		}
	case <-time.After(30 * time.Second):
		n.site.mu.Lock()
		n.site.crashes = append(n.site.crashes, fmt.Sprintf("%s, %s, did not end for 30 s", n.name, why))
		n.site.mu.Unlock()
		_ = p.cmd.Process.Kill()
		<-p.done
	case <-ctx.Done():
		_ = p.cmd.Process.Kill()
		<-p.done
	}
}
