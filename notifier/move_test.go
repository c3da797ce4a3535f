package notifier

import (
	"testing"
	"time"

	"github.com/mailbell/mailbell/schema"
	"github.com/mailbell/mailbell/schema/link"
)

// The youngest go first, but nobody who has only just come.
func TestMovesTheYoungestThatIsOldEnough(t *testing.T) {
	r := start(t, func(cfg *Config) { cfg.MoveAge, cfg.Shards = time.Second, 1 })
	first := r.dial("first")
	begin := r.tick()
	eventually(t, "time passes", func() bool { return r.tick() > begin+1 })
	second := r.dial("second")
	eventually(t, "both are old enough", func() bool { return len(r.shards[0].movable(nil, r.cfg.MoveAge)) == 2 })
	young := r.dial("young")
	r.bus.tellAll(&link.FromBus{Body: &link.FromBus_Move{Move: &link.Move{Connections: 1, PerSecond: 100}}})
	if f := second.expect(schema.FrameReconnect); f.Reason != string(schema.ReconnectRebalance) || f.URL != "" {
		t.Errorf("%+v", f)
	}
	young.silent()
	first.silent()
}

func TestMaximumAge(t *testing.T) {
	r := start(t, func(cfg *Config) { cfg.MaxAge = time.Second })
	begin := time.Now()
	if f := r.dial("a").expect(schema.FrameReconnect); f.Reason != string(schema.ReconnectRebalance) {
		t.Errorf("%+v", f)
	}
	if took := time.Since(begin); took < 600*time.Millisecond || took > 10*time.Second {
		t.Errorf("after %v, want 0.8 to 1 s", took)
	}
}
