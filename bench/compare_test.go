package bench

import (
	"net"
	"testing"
	"time"

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

func TestCrossing(t *testing.T) {
	r := CompareResult{Settings: CompareSettings{ChangesPerHour: 36}, Units: CompareUnits{Poll304Us: 50, Poll200Us: 50, EventUs: 400, FetchUs: 100, FetchesPerEvent: 1}}
	c := crossingOf(&r)
	// Pushing costs 0.01 × 500 µs a user-second, which is a poll of 50 µs every 10 s.
	if c.CPUSeconds < 9.9 || c.CPUSeconds > 10.1 || c.CPUSecondsWithoutFetch < 12.4 || c.CPUSecondsWithoutFetch > 12.6 {
		t.Errorf("crossing %+v", c)
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
		{Mailboxes: 1000}, {Sweep: []time.Duration{0}}, {ChangeRate: 1e7}, {Outage: time.Hour}} {
		if bad.Validate() == nil {
			t.Errorf("%+v is accepted", bad)
		}
	}
}
