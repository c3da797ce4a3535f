package notifier

import (
	"testing"
	"time"
)

func TestSlowSpread(t *testing.T) {
	var s slowSpread
	now := time.Unix(1000, 0)
	if got := s.add(now); got != 0 {
		t.Errorf("one client waits for %d ms", got)
	}
	var last uint32
	for range 10 * slowFetches {
		last = s.add(now)
	}
	if last < 9_900 || last > 10_100 {
		t.Errorf("ten seconds' worth of clients is spread over %d ms", last)
	}
	if got := s.add(now.Add(5 * time.Second)); got < 4_900 || got > 5_100 {
		t.Errorf("half of them have asked, and the next waits for %d ms", got)
	}
	if got := s.add(now.Add(time.Minute)); got != 0 {
		t.Errorf("all have asked, and the next waits for %d ms", got)
	}
	for range 1_000_000 {
		last = s.add(now.Add(time.Minute))
	}
	if last != uint32(slowSpreadMax.Milliseconds()) {
		t.Errorf("a million is spread over %d ms", last)
	}
}
