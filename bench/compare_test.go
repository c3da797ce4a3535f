package bench

import (
	"encoding/json"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/mailbell/mailbell/bench/cputime"
	"github.com/mailbell/mailbell/bench/mailstore"
	"github.com/mailbell/mailbell/bench/pollswarm"
)

func TestCompareBooks(t *testing.T) {
	b := newCompareBooks(2)
	t0 := time.Now()
	at := func(ms int) time.Time { return t0.Add(time.Duration(ms) * time.Millisecond) }
	for _, ms := range []int{0, 10, 20} {
		b.applied(0, at(ms))
	}
	b.applied(1, at(5))
	if n := b.behind(at(100)); n != 2 {
		t.Errorf("%d users are behind, want 2", n)
	}
	// One answer told of two changes; the third of account 0 and that of account 1 nobody heard of.
	b.learn([]pollswarm.Known{{Account: 0, Seq: 2, At: at(40).UnixNano()}}, nil)
	sorted, changes, unknown := b.delays(t0, at(100), false)
	if changes != 4 || unknown != 2 || len(sorted) != 2 || sorted[0] != int64(30*time.Millisecond) || sorted[1] != int64(40*time.Millisecond) {
		t.Errorf("%d changes, %d unknown, delays %v", changes, unknown, sorted)
	}
	if n := b.behind(at(15)); n != 1 {
		t.Errorf("%d users are behind on what changed until 15 ms, want 1", n)
	}
	if l := latencyOf(sorted); l.P50 != 40 || l.Max != 40 {
		t.Errorf("latencies %v", l)
	}
	if points := cdfOf(sorted); points[len(points)-1] != [2]float64{40, 1} {
		t.Errorf("distribution ends at %v", points[len(points)-1])
	}
}

// A recovery that never came is none, and not the fastest.
func TestOutageAfter(t *testing.T) {
	ms := 0.0
	o := CompareOutage{EveryoneBackMs: &ms, WatchedSeconds: 42}
	if back, caughtUp := o.After(o.EveryoneBackMs), o.After(o.CaughtUpMs); back != "0.0 s" || caughtUp != "not within 42 s" {
		t.Errorf("everybody is back after %q, and caught up after %q", back, caughtUp)
	}
	if b, err := json.Marshal(o); err != nil || !strings.Contains(string(b), `"everyoneBackMs":0,"caughtUpMs":null`) {
		t.Errorf("%s, %v", b, err)
	}
}

// What deliveries take is no part of what Dovecot is asked for, and no other program's either.
func TestCPUBetween(t *testing.T) {
	at := time.Now()
	a := reading{at: at, cpu: map[string]cputime.Time{mailstore.Dovecot: {User: 10}, "run": {User: 3}}, deliveries: 4, machine: 100}
	b := reading{at: at.Add(2 * time.Second), cpu: map[string]cputime.Time{mailstore.Dovecot: {User: 13, System: 1}, "run": {User: 3.5}, "pollserver": {User: 0.25}}, deliveries: 5, machine: 106}
	sum, by := cpuBetween(a, b)
	if sum != (cputime.Time{User: 3, System: 0.75}) || by[mailstore.Dovecot] != 3 || by["run"] != 0.5 || by["pollserver"] != 0.25 {
		t.Errorf("sum %+v of %v", sum, by)
	}
	if got := otherCores(a, b); got != round2((6-4-0.5-0.25)/2) {
		t.Errorf("other programs used %v cores", got)
	}
}

// Every side and every interval is measured over the same changes, with two polls of each user at least.
func TestCompareSchedule(t *testing.T) {
	cfg := CompareConfig{Interval: time.Second, Duration: 5 * time.Second, Sweep: []time.Duration{10 * time.Second, 2 * time.Second}}.withDefaults()
	at := cfg
	at.Interval = 10 * time.Second
	if s := cfg.schedule(); s != at.schedule() || s.RunIn != 10*time.Second || s.Duration != 20*time.Second {
		t.Errorf("schedule %+v", s)
	}
}

func TestKernelMemory(t *testing.T) {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for range 3 {
		c, err := net.Dial("tcp4", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		a, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		defer a.Close()
	}
	sockets, bytes, err := kernelMemory([]string{l.Addr().String()})
	if err != nil || sockets != 3 || bytes < 3*2000 || bytes > 3*100_000 {
		t.Errorf("%d sockets, %d bytes, %v", sockets, bytes, err)
	}
}

// What servers use before anybody is connected is in no unit that the calculator multiplies by users.
func TestUnits(t *testing.T) {
	stretch := func(poll, push float64) CompareStretch {
		return CompareStretch{Seconds: 10, CPUSeconds: poll + push, CPUByProcess: map[string]float64{"pollserver": poll, "run": push}}
	}
	quiet := stretch(0.01+0.05, 0)
	quiet.Requests = 1000
	bare := CompareFigures{Seconds: 10, Events: 500, CPUSeconds: 0.1 + 0.02 + 0.25, CPUByProcess: map[string]float64{"run": 0.37}}
	both := bare
	both.CPUSeconds, both.Requests = bare.CPUSeconds+0.01+0.1, 400
	r := CompareResult{
		Settings: CompareSettings{Users: 720, Store: mailstore.Memory},
		Poll: CompareSide{Empty: stretch(0.01, 0), Quiet: quiet,
			CompareFigures: CompareFigures{Seconds: 10, Requests: 1000, NotModifiedShare: 0.5, CPUSeconds: 0.01 + 0.025 + 0.05}},
		Push: CompareSide{Empty: stretch(0.01, 0.1), Quiet: stretch(0.01, 0.12), CompareFigures: both, WithoutFetch: &bare},
	}
	u := unitsOf(&r)
	// 720 users for 10 s are two user-hours; that they are held takes 20 ms of CPU.
	if u.PollBaseCores != 0.001 || u.PushBaseCores != 0.01 || u.Poll304Us != 50 || u.Poll200Us != 100 || u.HoldUsPerHour != 10_000 || u.EventUs != 500 || u.FetchUs != 250 {
		t.Errorf("units %+v", u)
	}
}

func TestCrossing(t *testing.T) {
	r := CompareResult{Settings: CompareSettings{ChangesPerHour: 36}, Units: CompareUnits{Poll304Us: 50, Poll200Us: 50, EventUs: 400, FetchUs: 100, FetchesPerEvent: 1}}
	c := crossingOf(&r)
	// Pushing costs 0.01 × 500 µs a user-second, which is a poll of 50 µs every 10 s.
	if c.CPUSeconds < 9.9 || c.CPUSeconds > 10.1 || c.CPUSecondsWithoutFetch < 12.4 || c.CPUSecondsWithoutFetch > 12.6 {
		t.Errorf("crossing %+v", c)
	}
	// A base of 5 µs a user-second on either side; pushing with fetches has both.
	r.Units.PollBaseCores, r.Units.PushBaseCores, r.Settings.Users = 0.001, 0.001, 200
	if based := crossingOf(&r); based.CPUSecondsWithoutFetch != c.CPUSecondsWithoutFetch || based.CPUSeconds < 4.9 || based.CPUSeconds > 5.1 {
		t.Errorf("with a base, crossing %+v", based)
	}
	r.Units.Poll304Us, r.Units.Poll200Us = 1e9, 1e9
	if c := crossingOf(&r); c.CPUSeconds != 0 {
		t.Errorf("polls that never pay cross at %v", c.CPUSeconds)
	}
}

func TestCompareConfig(t *testing.T) {
	if err := (CompareConfig{}).Validate(); err != nil {
		t.Error(err)
	}
	for _, bad := range []CompareConfig{{Users: 20000}, {Interval: time.Millisecond}, {Jitter: 2}, {NotModified: 1}, {ChangeRate: 1, NotModified: 0.5}, {Store: "oracle"},
		{Mailboxes: 1000}, {KeepAlive: -1}, {Interval: time.Hour}, {Sweep: []time.Duration{0}}, {ChangeRate: 1e7}, {Outage: time.Hour}} {
		if bad.Validate() == nil {
			t.Errorf("%+v is accepted", bad)
		}
	}
}
