package storageadapter

import (
	"strconv"

	"github.com/prometheus/client_golang/prometheus"
)

// Why events were not published: labels of mailbell_publish_failures_total.
const (
	reasonInvalid     = "invalid"
	reasonUnavailable = "unavailable"
	reasonTooLarge    = "tooLarge"
	reasonPartitions  = "partitionsChanged"
	reasonCanceled    = "canceled"
	reasonOther       = "other"
)

type publisherMetrics struct {
	published prometheus.Counter
	failures  *prometheus.CounterVec
	seconds   prometheus.Histogram
}

func newPublisherMetrics(reg prometheus.Registerer) *publisherMetrics {
	m := &publisherMetrics{
		published: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "mailbell_publish_events_total", Help: "Events that are on the log, acknowledged by every in-sync replica."}),
		failures: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "mailbell_publish_failures_total", Help: "Events that were not acknowledged, by reason."}, []string{"reason"}),
		seconds: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "mailbell_publish_seconds", Help: "Time until the log has acknowledged a call's events, or failed.",
			Buckets: prometheus.ExponentialBuckets(0.000_5, 2, 16)}),
	}
	for _, reason := range []string{reasonInvalid, reasonUnavailable, reasonTooLarge, reasonPartitions, reasonCanceled, reasonOther} {
		m.failures.WithLabelValues(reason)
	}
	if reg != nil {
		reg.MustRegister(m.published, m.failures, m.seconds)
	}
	return m
}

type ingestMetrics struct {
	requests *prometheus.CounterVec
	events   prometheus.Histogram
}

func newIngestMetrics(reg prometheus.Registerer) *ingestMetrics {
	m := &ingestMetrics{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "mailbell_ingest_requests_total", Help: "Requests to POST /v1/events, by HTTP status."}, []string{"status"}),
		events: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "mailbell_ingest_events", Help: "Events of a request that was published.",
			Buckets: prometheus.ExponentialBuckets(1, 4, 8)}),
	}
	if reg != nil {
		reg.MustRegister(m.requests, m.events)
	}
	return m
}

func (m *ingestMetrics) answered(status int) {
	m.requests.WithLabelValues(strconv.Itoa(status)).Inc()
}
