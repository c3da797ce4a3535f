// Package autoscale decides how many notifiers there are. The controller in controller.go is pure: the fleet and the time
// go in, decisions come out. Around it stand the lease, by which one of several instances acts (lease.go), the
// loop (run.go), and what carries decisions out (actuators.go).
//
// Invariants:
//   - Below the minimum of healthy nodes, nodes are added at once. All else is slow: at most every
//     OutEvery out and every InEvery in.
//   - Only a node that the actuator owns is drained and ended.
//   - A node is ended only when it has no connections, or its drain is over.
//   - Nodes that were asked for and have not come yet count for Launch, so that a slow start does not
//     become many starts.
//   - Without Config.Act nothing is done; what would be is logged.
//
// Goroutines: Run uses its caller's and those of the lease, one that looks at the fleet and decides, and one that
// tells the webhook.
package autoscale

import (
	"errors"
	"fmt"
	"time"
)

// Node is a notifier as the controller sees it.
type Node struct {
	Name        string
	Connections int
	Healthy     bool // takes clients, or is full
	Draining    bool
	Foreign     bool      // it can't be ended by us
	Since       time.Time // when it came
}

// Policy says when to add and when to take away. The zero value of a field means its default.
type Policy struct {
	// Min is the healthy nodes below which nodes are added at once; 0 means 2. Max is where it ends; 0 means 100.
	Min, Max int
	// OutAbove is the average of connections of healthy nodes above which nodes are added; 0 means 15,000.
	OutAbove float64
	// InBelow is the average below which one is taken away; 0 means a third of OutAbove.
	InBelow float64
	// Step is how many nodes are added at a time; 0 means 1.
	Step int
	// OutEvery and InEvery are the least times between two changes; 0 means 3 minutes and 1 hour.
	OutEvery, InEvery time.Duration
	// Launch is how long a node may take to come; 0 means 2 minutes.
	Launch time.Duration
	// DrainOver is the time over which the clients of a node that is taken away leave; 0 means 5 minutes.
	DrainOver time.Duration
	// Schedules raise the minimum at times that are known before.
	Schedules []Schedule
}

// Validate tells what is wrong with p, if anything.
func (p Policy) Validate() error {
	p = p.withDefaults()
	switch {
	case p.Min < 1 || p.Max < p.Min:
		return fmt.Errorf("autoscale: from %d to %d nodes: want at least 1, and a maximum that is not below the minimum", p.Min, p.Max)
	case p.OutAbove <= 0 || p.InBelow < 0 || p.InBelow >= p.OutAbove:
		return fmt.Errorf("autoscale: out above %v and in below %v connections a node: want the second below the first", p.OutAbove, p.InBelow)
	case p.Step < 1 || p.OutEvery < 0 || p.InEvery < 0 || p.Launch < 0 || p.DrainOver < 0:
		return errors.New("autoscale: step and times must be positive")
	}
	return nil
}

func (p Policy) withDefaults() Policy {
	set(&p.Min, 2)
	set(&p.Max, 100)
	set(&p.OutAbove, 15_000)
	set(&p.InBelow, p.OutAbove/3)
	set(&p.Step, 1)
	set(&p.OutEvery, 3*time.Minute)
	set(&p.InEvery, time.Hour)
	set(&p.Launch, 2*time.Minute)
	set(&p.DrainOver, 5*time.Minute)
	return p
}

func set[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}

// Action is what a decision asks for.
type Action string

// The actions.
const (
	Out   Action = "out"   // start Count nodes
	Drain Action = "drain" // send Node's clients away over Over
	In    Action = "in"    // end Node, which is empty or drained
)

// Decision is something to be done.
type Decision struct {
	At     time.Time     `json:"at"`
	Action Action        `json:"action"`
	Count  int           `json:"count,omitempty"`
	Node   string        `json:"node,omitempty"`
	Over   time.Duration `json:"over,omitempty"` // nanoseconds
	Reason string        `json:"reason"`
	DryRun bool          `json:"dryRun"`
}

func (d Decision) String() string {
	text := ""
	switch d.Action {
	case Out:
		text = fmt.Sprintf("start %d", d.Count)
	case Drain:
		text = fmt.Sprintf("drain %s over %v", d.Node, d.Over)
	case In:
		text = "end " + d.Node
	}
	if d.DryRun {
		text += " (dry run)"
	}
	return text + ": " + d.Reason
}
