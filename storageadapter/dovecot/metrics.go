package dovecot

import (
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Why something reported did not become an event: labels of mailbell_dovecot_dropped_total.
const (
	dropEmpty     = "empty"     // says nothing, or what another event says better
	dropDuplicate = "duplicate" // the other reporter was first
	dropUnknown   = "unknown"   // of a name that mailbell does not know
	dropFailed    = "failed"    // of a transaction that failed
	dropInvalid   = "invalid"   // breaks a rule for events
	dropTooMany   = "tooMany"   // more kinds of change in a transaction than are told apart
	dropTooLarge  = "tooLarge"  // the topic does not take it
)

type metrics struct {
	requests *prometheus.CounterVec
	seconds  prometheus.Histogram
	reported prometheus.Counter
	accepted prometheus.Counter
	refused  prometheus.Counter
	dropped  *prometheus.CounterVec
	retries  prometheus.Counter
}

func newMetrics(reg prometheus.Registerer) *metrics {
	m := &metrics{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "mailbell_dovecot_requests_total", Help: "Reports from Dovecot, by source (ox, lua) and HTTP status."}, []string{"source", "status"}),
		seconds: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "mailbell_dovecot_answer_seconds", Help: "Time for which Dovecot waited for an answer.",
			Buckets: prometheus.ExponentialBuckets(0.000_25, 2, 13)}),
		reported: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "mailbell_dovecot_reported_total", Help: "Events in Dovecot's reports, before they were gathered."}),
		accepted: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "mailbell_dovecot_accepted_total", Help: "Events that were made of the reports and accepted."}),
		refused: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "mailbell_dovecot_refused_total", Help: "Events that the spool could not take; Dovecot does not report them again."}),
		dropped: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "mailbell_dovecot_dropped_total", Help: "Reported events that became none, by reason."}, []string{"reason"}),
		retries: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "mailbell_dovecot_publish_retries_total", Help: "Times that the log did not take events out of the spool."}),
	}
	for _, reason := range []string{dropEmpty, dropDuplicate, dropUnknown, dropFailed, dropInvalid, dropTooMany, dropTooLarge} {
		m.dropped.WithLabelValues(reason)
	}
	if reg != nil {
		reg.MustRegister(m.requests, m.seconds, m.reported, m.accepted, m.refused, m.dropped, m.retries)
	}
	return m
}

func (m *metrics) answered(by source, status int, d time.Duration) {
	m.requests.WithLabelValues(string(by), strconv.Itoa(status)).Inc()
	m.seconds.Observe(d.Seconds())
}
