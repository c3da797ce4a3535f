package routing

import (
	"fmt"
	"time"
)

// Limits of an answer to one client subscription. A longer replay costs
// everyone more than the one fetch that a resync causes.
const (
	DefaultReplayRecords = 1000
	DefaultReplayBytes   = 1 << 20
)

// Config bounds a partition. The zero value is useful.
type Config struct {
	// WindowBytes bounds the window, with 64 bytes counted for each record's place. 0 means 16 MiB.
	WindowBytes int64
	// WindowAge is how long an event stays in the window at most. 0 means 15 minutes.
	WindowAge time.Duration
	// IndexAccounts bounds the index of last positions; past it the accounts that
	// have been quiet for longest are forgotten, a quarter at a time. 0 means a million.
	IndexAccounts int
	// ReplayRecords and ReplayBytes bound the answer to one Resume. 0 means 1,000 and 1 MiB.
	ReplayRecords int
	ReplayBytes   int
	// ReattachBytes bounds what one Subscribe with a position replays. 0 means 8 MiB.
	ReattachBytes int
	// ParkFor is how long a request with a position beyond the head waits for the
	// head to reach it, before the answer is Resync. 0 means 2 seconds.
	ParkFor time.Duration
	// ParkedAccounts bounds the accounts in waiting requests; past it they are answered Resync at once. 0 means 262,144.
	ParkedAccounts int
	// FetchesPerSecond is what the mail store bears of resyncs from this partition;
	// the delays that Resync carries are made of it. 0 means 200.
	FetchesPerSecond float64
}

// Validate returns an error that names the first field out of range.
func (c Config) Validate() error {
	for _, f := range []struct {
		name string
		bad  bool
	}{
		{"WindowBytes", c.WindowBytes < 0},
		{"WindowAge", c.WindowAge < 0},
		{"IndexAccounts", c.IndexAccounts < 0},
		{"ReplayRecords", c.ReplayRecords < 0},
		{"ReplayBytes", c.ReplayBytes < 0},
		{"ReattachBytes", c.ReattachBytes < 0},
		{"ParkFor", c.ParkFor < 0},
		{"ParkedAccounts", c.ParkedAccounts < 0},
		{"FetchesPerSecond", !(c.FetchesPerSecond >= 0)},
	} {
		if f.bad {
			return fmt.Errorf("routing config: %s must not be negative; leave it 0 for the default", f.name)
		}
	}
	return nil
}

func (c Config) withDefaults() Config {
	def := func(p *int, v int) {
		if *p == 0 {
			*p = v
		}
	}
	if c.WindowBytes == 0 {
		c.WindowBytes = 16 << 20
	}
	if c.WindowAge == 0 {
		c.WindowAge = 15 * time.Minute
	}
	def(&c.IndexAccounts, 1<<20)
	def(&c.ReplayRecords, DefaultReplayRecords)
	def(&c.ReplayBytes, DefaultReplayBytes)
	def(&c.ReattachBytes, 8<<20)
	if c.ParkFor == 0 {
		c.ParkFor = 2 * time.Second
	}
	def(&c.ParkedAccounts, 1<<18)
	if c.FetchesPerSecond == 0 {
		c.FetchesPerSecond = 200
	}
	return c
}

// LinkID names one link for as long as the process runs; ids are not used twice.
type LinkID uint64

// Position is a place in the partition: everything up to and including Offset is
// covered. Positions of two epochs have no order.
type Position struct {
	Epoch  uint64
	Offset int64
}

// Record is one event of the log. Account and Event are not written after they were handed over.
type Record struct {
	Offset  int64
	Time    time.Time // when the log got it; only read by Append
	Account []byte
	Event   []byte // the JSON as it stands on the log
}

// Answer says what a subscriber is told about the time since its position. The
// numbers are those of the link's CatchUp.
type Answer uint8

// The answers.
const (
	Fresh    Answer = 1 // no position was given
	Current  Answer = 2 // nothing happened since
	Replay   Answer = 3 // the records are all that happened since
	Resync   Answer = 4 // not known: ask the store
	NotOwner Answer = 5 // ask the owner
)

// String returns the answer's name as a client or a metric sees it.
func (a Answer) String() string {
	switch a {
	case Fresh:
		return "fresh"
	case Current:
		return "current"
	case Replay:
		return "replay"
	case Resync:
		return "resync"
	case NotOwner:
		return "notOwner"
	}
	return fmt.Sprintf("Answer(%d)", uint8(a))
}

// Kind is what an Output is.
type Kind uint8

// The kinds of output.
const (
	Delivery   Kind = 1 // Records, and all that the link wants up to Head has been sent
	Subscribed Kind = 2 // answers Subscribe
	Resumed    Kind = 3 // answers Resume; Records belong to the answer
	Progress   Kind = 4 // Head alone: nothing that the link wants lies between its last delivery and there
)

// Output is one message for one link. Which partition it is about the caller knows.
type Output struct {
	Kind       Kind
	Link       LinkID
	Request    uint64
	Generation uint64
	Head       Position
	Answer     Answer
	SpreadMs   uint32 // with Resync
	Records    []Record
}

// Subscribe asks for all later events of some accounts.
type Subscribe struct {
	Request    uint64
	Generation uint64
	Accounts   []string
	After      *Position // nil: from now on
}

// Resume asks what one client subscription has not heard.
type Resume struct {
	Request    uint64
	Generation uint64
	Account    string
	Mailboxes  []string  // empty: all
	Since      *Position // nil: the client knows nothing
}
