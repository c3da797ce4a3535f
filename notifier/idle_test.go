package notifier

import (
	"context"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Pings come in rounds, none later than the interval says, and one in an interval to who stays silent; the more there
// are, the more rounds.
func TestPingsComeInRounds(t *testing.T) {
	for _, interval := range []time.Duration{100 * time.Millisecond, 3 * time.Second, 50 * time.Second, 10 * time.Minute} {
		for open, most := range map[int64]int{1: 1, inRound - 1: 1, 3 * inRound: 4, 1_000_000: maxRounds} {
			s, shards := newBench(t, 1)
			s.open.Store(open)
			n, now, rounds := ticks(interval), uint32(36_000), make(map[uint32]int)
			for i := range uint32(1000) {
				first := shards[0].roundAt(i, now, n)
				if first <= now || first > now+n {
					t.Fatalf("%v: at first pinged %d ticks from now", interval, first-now)
				}
				if next := shards[0].roundAt(i, first, n); next != first+n {
					t.Fatalf("%v: pinged again after %d ticks", interval, next-first)
				}
				rounds[first]++
			}
			if len(rounds) > most || n >= maxRounds && len(rounds) != most {
				t.Errorf("%v: %d connections are pinged at %d times, want %d", interval, open, len(rounds), most)
			}
			for at, pinged := range rounds {
				if n >= maxRounds && pinged > 1000/most+1 {
					t.Errorf("%v: %d of 1000 are pinged at %d", interval, pinged, at)
				}
			}
		}
	}
	_, shards := newBench(t, 1)
	if at := shards[0].quietAt(1, -1); at != 0 {
		t.Errorf("without pings one is due at %d", at)
	}
}

// A client that sleeps must not be lost with the first probe that is: Linux ends a connection that has been silent for
// TCP_USER_TIMEOUT as soon as one probe is unanswered.
func TestKeepaliveSurvivesALostProbe(t *testing.T) {
	r := start(t, func(c *Config) { c.WriteTimeout = time.Second })
	r.dial("alice@example.com").subscribe("1", "alice@example.com")
	r.slotOf("alice@example.com", func(_ *shard, _ uint32, c *slot) {
		get := func(option int) int {
			n, err := unix.GetsockoptInt(int(c.fd), unix.IPPROTO_TCP, option)
			if err != nil || n <= 0 {
				t.Fatalf("option %d is %d %v", option, n, err)
			}
			return n
		}
		probing := get(unix.TCP_KEEPIDLE) + get(unix.TCP_KEEPCNT)*get(unix.TCP_KEEPINTVL)
		if timeout := get(unix.TCP_USER_TIMEOUT) / 1000; timeout < probing {
			t.Errorf("TCP_USER_TIMEOUT is %d s; the probes take %d s", timeout, probing)
		}
	})
}

// The sweeper lets others have the shard while many are due.
func TestSweepTakesTurns(t *testing.T) {
	_, shards := newBench(t, 1)
	sh := shards[0]
	sh.enter()
	for range 3 * lookAtOnce {
		i := sh.slots.take()
		sh.slots.all.at(i).state = slotOpen
		*sh.slots.due.at(i) = 1
	}
	sh.leave()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	go func() {
		for ctx.Err() == nil {
			sh.enter()
			left := 0
			for i := uint32(1); i < sh.slots.all.next; i++ {
				if *sh.slots.due.at(i) == 1 {
					left++
				}
			}
			sh.leave()
			if left > 0 && left < 3*lookAtOnce {
				cancel()
			}
		}
	}()
	for ctx.Err() == nil {
		sh.sweep()
		sh.enter()
		for i := uint32(1); i < sh.slots.all.next; i++ {
			*sh.slots.due.at(i) = 1
		}
		sh.leave()
	}
	if ctx.Err() != context.Canceled {
		t.Error("nobody got the shard in the middle of a sweep")
	}
}
