package notifier

import (
	"sync/atomic"
	"time"

	"github.com/mailbell/mailbell/schema"
	"github.com/prometheus/client_golang/prometheus"
)

// traffic measures what the node is for: how soon events reach their sockets, and how many polls it saves. The hub
// writes it, once an event and once a second.
type traffic struct {
	delay       prometheus.Histogram
	heldSeconds atomic.Uint64 // connections times seconds
	sampled     time.Time     // owned by the hub
}

func newTraffic(reg prometheus.Registerer, pollInterval time.Duration) *traffic {
	t := &traffic{delay: prometheus.NewHistogram(prometheus.HistogramOpts{
		Name: metricPrefix + "event_delay_seconds",
		Help: "Time from an event's timestamp to the sockets; as good as the clocks, and as the store's timestamps. Of a crowd of events some are observed.",
		// Native for who scrapes it so; the buckets are for everybody else.
		NativeHistogramBucketFactor: 1.1, NativeHistogramMaxBucketNumber: 160, NativeHistogramMinResetDuration: time.Hour,
		Buckets: []float64{0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30},
	})}
	if reg == nil {
		return t
	}
	reg.MustRegister(t.delay,
		prometheus.NewCounterFunc(prometheus.CounterOpts{Name: metricPrefix + "connection_seconds_total",
			Help: "Seconds that WebSockets were open, all connections together."},
			func() float64 { return float64(t.heldSeconds.Load()) }),
		prometheus.NewCounterFunc(prometheus.CounterOpts{Name: "mailbell_polls_avoided_total",
			Help: "Polls that the open WebSockets stand for: their seconds over --poll-interval."},
			func() float64 { return float64(t.heldSeconds.Load()) / pollInterval.Seconds() }),
	)
	return t
}

// hold counts what open connections have waited since the last call.
func (t *traffic) hold(open int64, now time.Time) {
	if !t.sampled.IsZero() && open > 0 {
		t.heldSeconds.Add(uint64(float64(open)*now.Sub(t.sampled).Seconds() + 0.5))
	}
	t.sampled = now
}

// observed is how many events of a batch are observed: all of a quiet time, evenly spread ones of a busy one, when
// reading and booking each timestamp would take a twentieth of what sending does.
const observed = 8

// delivered observes events that have just been handed to their sockets.
func (t *traffic) delivered(batch []delivery) {
	now := time.Now()
	for i := 0; i < len(batch); i += (len(batch) + observed - 1) / observed {
		if at, ok := schema.EventTime(batch[i].event); ok {
			t.delay.Observe(max(0, now.Sub(at).Seconds()))
		}
	}
}
