package roundcube

import (
	"os"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestValidate(t *testing.T) {
	for _, good := range []Config{{}, {Users: 500, Interval: time.Second, Span: time.Hour, Squeeze: 720}} {
		if err := good.Validate(); err != nil {
			t.Errorf("%+v: %v", good, err)
		}
	}
	for _, bad := range []Config{
		{Users: -1}, {Users: 501}, {Interval: time.Millisecond}, {Interval: 2 * time.Hour}, {ChangeRate: -1}, {ChangeRate: 1001},
		{Span: time.Second}, {Squeeze: 0.5}, {Span: time.Minute, Squeeze: 60}, {Messages: 1001}, {SessionLifetime: time.Minute},
	} {
		if bad.Validate() == nil {
			t.Errorf("%+v is valid", bad)
		}
	}
}

func TestTreeCPU(t *testing.T) {
	first, err := treeCPU(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	// Work until the clock of /proc has seen it.
	deadline := time.Now().Add(time.Minute)
	for now := first; now <= first; {
		if time.Now().After(deadline) {
			t.Fatalf("still %v s", now)
		}
		for i := range 10_000_000 {
			_ = i * i
		}
		if now, err = treeCPU(os.Getpid()); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := treeCPU(1 << 30); err == nil {
		t.Error("a process that is not there has CPU time")
	}
}

// TestPoll runs the side that needs no mailbell, for a minute of users' time.
func TestPoll(t *testing.T) {
	cfg := Config{Users: 2, Messages: 3, Interval: 10 * time.Second, ChangeRate: 300, Span: time.Minute, Squeeze: 10}.withDefaults()
	s, err := startSide(t.Context(), cfg, false)
	if err != nil {
		t.Fatal(err)
	}
	defer s.stop()
	var r Result
	if err := s.measure(t.Context(), &r); err != nil {
		t.Fatal(err)
	}
	if busy := r.Busy.Poll; busy.Failed > 0 || busy.Changes == 0 || busy.Unseen == busy.Changes || busy.RequestsByAction["refresh"] < 6 {
		t.Errorf("busy = %+v", busy)
	}
	if idle := r.Idle.Poll; idle.Failed > 0 || idle.Changes > 0 || idle.RequestsByAction["refresh"] < 6 {
		t.Errorf("idle = %+v", idle)
	}
}
