// Package doctor looks at a site from where it runs and says what to change: the topic's settings, whether every node
// is reached, the clocks, and the limits of open files.
//
// Gather asks; Judge thinks and is pure. Nothing is changed, and nothing is sent that has an effect.
package doctor

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/mailbell/mailbell/internal/eventlog"
)

// Level is how bad a finding is.
type Level string

// Good needs nothing; Warn works today and will hurt one day; Bad breaks a promise.
const (
	Good Level = "ok"
	Warn Level = "warn"
	Bad  Level = "bad"
)

// Finding is the result of one check.
type Finding struct {
	Check  string `json:"check"`
	Level  Level  `json:"level"`
	Found  string `json:"found"`
	Change string `json:"change,omitempty"` // what to change, for all but Good
}

// Wants is what the site is meant to be.
type Wants struct {
	Topic  string
	Window time.Duration // of the bus nodes
	Index  time.Duration // how far back they answer "current"
}

// Facts are what was found out.
type Facts struct {
	Log    *eventlog.Description // nil when no broker was reached, or none was named, and then there is no LogErr
	LogErr error
	Nodes  []Node
	Files  Files // of this process
}

// Node is one bus, notifier or adapter process, asked at its ops address, or one link address.
type Node struct {
	Address string
	Link    bool // only a link address: that it accepts is all that is known
	Err     error
	Took    time.Duration
	Ready   bool
	Problem string        // what /readyz says when not ready
	Ahead   time.Duration // of its clock before ours; exact to Blur
	Blur    time.Duration
	Files   Files
}

// Files are a process's open files; 0 is unknown.
type Files struct{ Open, Max uint64 }

const (
	goodReplicas    = 3
	fewPartitions   = 12
	clockTolerance  = 5 * time.Second
	clockBroken     = 25 * time.Second // a ticket lives for 30 s
	fewFiles        = 10_000
	minMessageBytes = 64<<10 + 1<<10
)

// Judge says what the facts mean, in the order of the checks.
func Judge(f Facts, w Wants) []Finding {
	j := &judge{}
	j.log(f, w)
	for _, n := range f.Nodes {
		j.node(n)
	}
	j.files("files here", f.Files)
	return j.findings
}

// Worst returns the worst level.
func Worst(findings []Finding) Level {
	order := []Level{Good, Warn, Bad}
	worst := slices.MaxFunc(append(findings, Finding{Level: Good}), func(a, b Finding) int {
		return cmp.Compare(slices.Index(order, a.Level), slices.Index(order, b.Level))
	})
	return worst.Level
}

type judge struct{ findings []Finding }

func (j *judge) say(check string, level Level, found, change string) {
	if level == Good {
		change = ""
	}
	j.findings = append(j.findings, Finding{Check: check, Level: level, Found: found, Change: change})
}

// rate says the worst level that applies.
func rate(bad, warn bool) Level {
	switch {
	case bad:
		return Bad
	case warn:
		return Warn
	}
	return Good
}

func (j *judge) log(f Facts, w Wants) {
	if f.LogErr == nil && f.Log == nil {
		return
	}
	if f.LogErr != nil {
		j.say("brokers", Bad, fmt.Sprintf("no broker answers: %v", f.LogErr), "check --brokers, the network and the login; bus and adapter need it too")
		return
	}
	d := f.Log
	j.brokers(d)
	if d.Missing {
		j.say("topic", Bad, fmt.Sprintf("topic %s does not exist", w.Topic),
			"start a bus node or an adapter, which make it, or create it with 256 partitions, 3 replicas and min.insync.replicas=2")
		return
	}
	j.shape(d, w)
	j.settings(d, w)
	j.say("record times", rate(false, d.FromTheFuture > 0), fmt.Sprintf("%d partitions have records from the future", d.FromTheFuture),
		"set the clock of the publisher that is ahead: what it publishes stays in the windows for too long")
}

func (j *judge) brokers(d *eventlog.Description) {
	for _, b := range d.Brokers {
		name := fmt.Sprintf("broker %d", b.ID)
		if b.Err != nil {
			j.say(name, Bad, fmt.Sprintf("%s is not reached: %v", b.Address, b.Err),
				"it says of itself that it is there: check its advertised.listeners, and the way from here to it")
			continue
		}
		j.say(name, Good, fmt.Sprintf("%s answers in %v", b.Address, b.Took.Round(100*time.Microsecond)), "")
	}
	n := len(d.Brokers)
	j.say("brokers", rate(false, n < goodReplicas), fmt.Sprintf("%d", n), "run three, so that one may fail and every event still has two copies")
}

func (j *judge) shape(d *eventlog.Description, w Wants) {
	j.say("partitions", rate(false, d.Partitions < fewPartitions), fmt.Sprintf("%d", d.Partitions),
		"make the topic anew with more, 256 say, while everything is stopped: they are what bus nodes share, and their number can't change later")
	j.say("replication", rate(d.Replicas < 2, d.Replicas < goodReplicas), fmt.Sprintf("%d", d.Replicas),
		fmt.Sprintf("raise the replication factor of %s to 3 with kafka-reassign-partitions.sh: one broker's disk is all that holds some events", w.Topic))
	j.say("replicas in step", rate(d.Leaderless > 0, d.UnderReplicated > 0),
		fmt.Sprintf("%d partitions without a leader, %d with a replica behind", d.Leaderless, d.UnderReplicated),
		"find the broker that is down or slow; if none is, wait and look again")
}

func (j *judge) settings(d *eventlog.Description, w Wants) {
	if d.Settings == nil {
		j.say("settings", Warn, fmt.Sprintf("not readable: %v", d.SettingsErr), "allow this user DescribeConfigs on the topic, then look again")
		return
	}
	broker := "BROKER"
	if len(d.Brokers) > 0 {
		broker = d.Brokers[0].Address
	}
	change := func(key, value, why string) string {
		return fmt.Sprintf("kafka-configs.sh --bootstrap-server %s --alter --topic %s --add-config %s=%s: %s", broker, w.Topic, key, value, why)
	}
	insync := number(d.Settings["min.insync.replicas"])
	j.say("min.insync.replicas", rate(insync < 2 && d.Replicas >= 2, insync < 2 || insync >= int64(d.Replicas)), fmt.Sprint(insync),
		insyncChange(insync, d.Replicas, change))
	policy := d.Settings["cleanup.policy"]
	j.say("cleanup.policy", rate(strings.Contains(policy, "compact"), policy != "delete"), told(policy),
		change("cleanup.policy", "delete", "compaction takes events that nobody has seen, because another of the same account followed"))
	j.retention(d, w, change)
	size := number(d.Settings["max.message.bytes"])
	j.say("max.message.bytes", rate(size >= 0 && size < minMessageBytes, false), fmt.Sprint(size),
		change("max.message.bytes", "1048588", "an event may have 64 KiB"))
	unclean := d.Settings["unclean.leader.election.enable"]
	j.say("unclean leaders", rate(unclean == "true", false), told(unclean),
		change("unclean.leader.election.enable", "false", "a replica that is behind may become leader, and what was acknowledged is gone"))
	kind := d.Settings["message.timestamp.type"]
	j.say("message.timestamp.type", rate(false, kind != "CreateTime"), told(kind),
		change("message.timestamp.type", "CreateTime", "windows are as long as the events are old, not as their way to the log was"))
}

// told is a setting's value as it is shown.
func told(value string) string { return cmp.Or(value, "not told") }

func insyncChange(insync int64, replicas int, change func(key, value, why string) string) string {
	if insync < 2 {
		return change("min.insync.replicas", "2", "an acknowledged event may be on one disk alone")
	}
	return change("min.insync.replicas", strconv.Itoa(max(1, replicas-1)), "with one broker gone nothing can be published")
}

func (j *judge) retention(d *eventlog.Description, w Wants, change func(key, value, why string) string) {
	ms := number(d.Settings["retention.ms"])
	keep := time.Duration(ms) * time.Millisecond
	text := keep.String()
	if ms < 0 {
		text = "for ever"
	}
	enough, why := max(w.Index, 2*w.Window), fmt.Sprintf("a new owner reads its window of %v and an index of %v from the log", w.Window, w.Index)
	advice := change("retention.ms", strconv.FormatInt(enough.Milliseconds(), 10), why)
	if d.Embedded {
		advice = fmt.Sprintf("start mailbell run with --retention %v: %s", enough, why) // it takes no other word for it
	}
	j.say("retention", rate(ms >= 0 && keep < 2*w.Window, ms >= 0 && keep < w.Index), text, advice)
	if size := number(d.Settings["retention.bytes"]); size >= 0 {
		j.say("retention.bytes", Warn, fmt.Sprint(size), change("retention.bytes", "-1", "a burst would push events out of the log before their time"))
	}
}

func number(s string) int64 {
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil {
		return -1
	}
	return n
}

func (j *judge) node(n Node) {
	if n.Err != nil {
		j.say(n.Address, Bad, fmt.Sprintf("not reached: %v", n.Err), "start it, or check the address and the way from here to it")
		return
	}
	if n.Link {
		j.say(n.Address, Good, fmt.Sprintf("link port open, %v away", n.Took.Round(100*time.Microsecond)), "")
		return
	}
	j.say(n.Address, rate(!n.Ready, false), readiness(n), "see what it waits for in its log")
	off := max(0, n.Ahead.Abs()-n.Blur)
	j.say("clock of "+n.Address, rate(off > clockBroken, off > clockTolerance), fmt.Sprintf("%v ahead, give or take %v", n.Ahead.Round(10*time.Millisecond), n.Blur.Round(10*time.Millisecond)),
		"synchronise the clocks (NTP): tickets live for 30 s, and windows are measured in the publishers' time")
	j.files("files of "+n.Address, n.Files)
}

func readiness(n Node) string {
	if n.Ready {
		return fmt.Sprintf("ready, %v away", n.Took.Round(100*time.Microsecond))
	}
	return "not ready: " + n.Problem
}

func (j *judge) files(check string, f Files) {
	if f.Max == 0 {
		return
	}
	full := f.Open > f.Max/10*9
	j.say(check, rate(full, f.Max < fewFiles || f.Open > f.Max/4*3), fmt.Sprintf("%d of %d open files", f.Open, f.Max),
		"raise the limit (LimitNOFILE= in systemd, ulimit -n): each client of a notifier is an open file")
}
