package chaos

import (
	"math/rand/v2"
	"slices"
	"time"
)

// Kind is a kind of fault.
type Kind string

// The kinds of fault. Kill is kill -9 and a start afterwards, stop is SIGSTOP and SIGCONT, drain is SIGTERM and a
// start afterwards, join is one more node for a while that leaves as planned.
const (
	BrokerKill       Kind = "broker-kill"
	BrokerStop       Kind = "broker-stop"
	BusKill          Kind = "bus-kill"
	BusStop          Kind = "bus-stop"
	BusDrain         Kind = "bus-drain"
	BusJoin          Kind = "bus-join"
	NotifierKill     Kind = "notifier-kill"
	NotifierStop     Kind = "notifier-stop"
	NotifierDrain    Kind = "notifier-drain"
	NotifierJoin     Kind = "notifier-join"
	NotifierTakeover Kind = "notifier-takeover"
	AdapterKill      Kind = "adapter-kill"
	AdapterStop      Kind = "adapter-stop"
	ClientsStop      Kind = "clients-stop"
	ClientsReconnect Kind = "clients-reconnect"
	Isolate          Kind = "isolate"     // one host from all others, both ways
	CutBoth          Kind = "cut-both"    // between two hosts, both ways
	CutOneWay        Kind = "cut-one-way" // between two hosts, one way
	SlowLink         Kind = "slow-link"
	DiskFull         Kind = "disk-full"
)

// Rule says how often a kind comes and whom it may hit.
type Rule struct {
	Kind    Kind
	Weight  int
	Targets []string // names of processes or hosts
	Peers   []string // of kinds between two hosts: the other end
	// Shortest and Longest bound the fault's time. Both 0: it is over at once.
	Shortest, Longest time.Duration
}

// Fault is one planned fault.
type Fault struct {
	Kind   Kind
	Target string
	Peer   string // of kinds between two hosts
	At     time.Duration
	For    time.Duration
}

// End is when the fault is healed.
func (f Fault) End() time.Duration { return f.At + f.For }

// Settle is how long a target is left alone after its fault was healed: a restarted node needs it to be of use again.
const settle = 4 * time.Second

// Plan draws faults from a seed for a time, on average one every interval. A target that is broken is not broken
// again until it has had time to come back, and of a group (say, the brokers) at most one is broken at a time, so that
// what is tested is what a redundant site has to survive. Groups are the targets that rules share.
func Plan(seed uint64, length, every time.Duration, rules []Rule, groups [][]string) []Fault {
	r := rand.New(rand.NewPCG(seed, 0x6d61696c62656c6c))
	var faults []Fault
	free := make(map[string]time.Duration) // when a target may be broken again
	group := func(name string) []string {
		for _, g := range groups {
			if slices.Contains(g, name) {
				return g
			}
		}
		return []string{name}
	}
	total := 0
	for _, rule := range rules {
		total += rule.Weight
	}
	if total == 0 || every <= 0 {
		return nil
	}
	for at := every; at < length; at += time.Duration((0.5 + r.Float64()) * float64(every)) {
		for range 20 { // draws until one fits
			f, ok := draw(r, rules, total, at)
			if !ok || f.End() > length || busy(f, free, group) {
				continue
			}
			free[f.Target] = f.End() + settle
			if f.Peer != "" {
				free[f.Peer] = f.End() + settle
			}
			faults = append(faults, f)
			break
		}
	}
	return faults
}

func draw(r *rand.Rand, rules []Rule, total int, at time.Duration) (Fault, bool) {
	n := r.IntN(total)
	i := 0
	for ; n >= rules[i].Weight; i++ {
		n -= rules[i].Weight
	}
	rule := rules[i]
	if len(rule.Targets) == 0 {
		return Fault{}, false
	}
	f := Fault{Kind: rule.Kind, Target: rule.Targets[r.IntN(len(rule.Targets))], At: at}
	if len(rule.Peers) > 0 {
		f.Peer = rule.Peers[r.IntN(len(rule.Peers))]
		if f.Peer == f.Target {
			return Fault{}, false
		}
	}
	if span := rule.Longest - rule.Shortest; span > 0 {
		f.For = rule.Shortest + time.Duration(r.Int64N(int64(span)))
	} else {
		f.For = rule.Shortest
	}
	return f, true
}

// busy reports whether something that the fault concerns is broken.
func busy(f Fault, free map[string]time.Duration, group func(string) []string) bool {
	for _, name := range []string{f.Target, f.Peer} {
		if name == "" {
			continue
		}
		for _, other := range group(name) {
			if f.At < free[other] {
				return true
			}
		}
	}
	return false
}
