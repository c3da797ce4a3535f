package notifier

import (
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics are what a notifier tells Prometheus; docs/metrics.md has their meaning.
type metrics struct {
	*traffic
	accepts    tally
	handshakes *prometheus.CounterVec // result
	closes     *prometheus.CounterVec // reason
	pauses     *prometheus.CounterVec // reason
	framesIn   tally
	eventsOut  tally
	dropped    [dropReasons]tally
	missed     *prometheus.CounterVec // reason
	catchUps   *prometheus.CounterVec // kind
	errors     *prometheus.CounterVec // code
	pings      tally
	records    tally
	links      prometheus.Gauge
	linkEnds   *prometheus.CounterVec // reason
	fenced     tally
	takenOver  tally
}

// dropReason says why a slow client did not get an event.
type dropReason uint8

const (
	dropMissed     dropReason = iota // it will be told anyway that it missed something
	dropConnection                   // what is parked for it is as much as one client may have
	dropTotal                        // what is parked for all is as much as all may have
	dropDiscarded                    // it was parked, and went with the backlog
	dropReasons
)

// dropLabels are the reasons as the metric's label has them.
var dropLabels = [dropReasons]string{"missed", "backlog", "totalBacklog", "discarded"}

// tally is a counter that we read ourselves as well.
type tally struct{ atomic.Uint64 }

func (t *tally) Inc() { t.Add(1) }

const metricPrefix = "mailbell_notifier_"

func newMetrics(reg prometheus.Registerer, s *shared) *metrics {
	vec := func(name, help, label string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: metricPrefix + name, Help: help}, []string{label})
	}
	m := &metrics{
		traffic:    newTraffic(reg, s.cfg.PollInterval),
		handshakes: vec("handshakes_total", "Handshakes by result: ok, or why they were refused or ended.", "result"),
		closes:     vec("closes_total", "WebSockets that ended, by reason.", "reason"),
		pauses:     vec("accept_pauses_total", "Times that accepting was stopped for a moment, by reason.", "reason"),
		missed:     vec("missed_total", "Missed frames by reason.", "reason"),
		catchUps:   vec("catch_ups_total", "Subscribes answered, by what happened since the client's position.", "kind"),
		errors:     vec("errors_total", "Error frames by code.", "code"),
		links:      prometheus.NewGauge(prometheus.GaugeOpts{Name: metricPrefix + "links", Help: "Bus nodes linked."}),
		linkEnds:   vec("link_ends_total", "Links that ended, by reason.", "reason"),
	}
	counter := func(name, help string, t *tally) prometheus.Collector {
		return prometheus.NewCounterFunc(prometheus.CounterOpts{Name: metricPrefix + name, Help: help}, func() float64 { return float64(t.Load()) })
	}
	gauge := func(name, help string, fn func() float64) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: metricPrefix + name, Help: help}, fn)
	}
	if reg != nil {
		reg.MustRegister(m.handshakes, m.closes, m.pauses, m.missed, m.catchUps, m.errors, m.links, m.linkEnds,
			counter("accepts_total", "Connections accepted from the kernel.", &m.accepts),
			counter("frames_received_total", "Frames received from clients, control frames among them.", &m.framesIn),
			counter("events_sent_total", "Events written or parked for clients.", &m.eventsOut),
			counter("pings_total", "WebSocket pings sent to silent connections.", &m.pings),
			counter("records_received_total", "Events received from bus nodes.", &m.records),
			counter("records_fenced_total", "Events dropped because their sender does not own the partition any more.", &m.fenced),
			counter("taken_over_total", "Connections received from the process that this one took over from.", &m.takenOver),
			gauge("connections", "WebSockets open.", func() float64 { return float64(s.open.Load()) }),
			gauge("sockets", "Descriptors of clients: WebSockets, handshakes, and those being closed.", func() float64 { return float64(s.admit.sockets.Load()) }),
			gauge("handshakes", "Handshakes under way.", func() float64 { return float64(s.admit.handshakes.Load()) }),
			gauge("backlog_bytes", "Bytes parked for slow clients.", func() float64 { return float64(s.backlog.Load()) }),
		)
		for reason := range m.dropped {
			reg.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{
				Name: metricPrefix + "events_dropped_total", Help: "Events that a slow client did not get, by reason; it is told by a missed frame.",
				ConstLabels: prometheus.Labels{"reason": dropLabels[reason]},
			}, func() float64 { return float64(m.dropped[reason].Load()) }))
		}
	}
	return m
}

func (m *metrics) closed(reason string) { m.closes.WithLabelValues(reason).Inc() }
