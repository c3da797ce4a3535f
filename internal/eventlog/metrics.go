package eventlog

import "github.com/prometheus/client_golang/prometheus"

type metrics struct {
	appendedRecords prometheus.Counter
	appendedBytes   prometheus.Counter
	appendRequests  prometheus.Counter
	appendRetries   prometheus.Counter
	appendFailures  *prometheus.CounterVec
	appendSeconds   prometheus.Histogram
	appendWaiting   prometheus.Gauge
	readRecords     prometheus.Counter
	readBytes       prometheus.Counter
	fetchRequests   prometheus.Counter
	gaps            *prometheus.CounterVec
	generations     prometheus.Counter
}

func newMetrics(reg prometheus.Registerer) *metrics {
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: "mailbell_log_" + name, Help: help})
	}
	m := &metrics{
		appendedRecords: counter("append_records_total", "Records acknowledged by all in-sync replicas."),
		appendedBytes:   counter("append_bytes_total", "Bytes of keys, values and headers of acknowledged records."),
		appendRequests:  counter("append_requests_total", "Produce requests sent to brokers."),
		appendRetries:   counter("append_retries_total", "Record batches that were sent again."),
		appendFailures: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "mailbell_log_append_failures_total", Help: "Records that could not be appended, by reason."}, []string{"reason"}),
		appendSeconds: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "mailbell_log_append_seconds", Help: "Time from the call of Append to its answer.",
			Buckets:                     []float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30},
			NativeHistogramBucketFactor: 1.1}),
		appendWaiting: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "mailbell_log_append_waiting_bytes", Help: "Bytes that wait to be acknowledged."}),
		readRecords:   counter("read_records_total", "Records read from the log."),
		readBytes:     counter("read_bytes_total", "Bytes of record batches read from the log."),
		fetchRequests: counter("fetch_requests_total", "Fetch requests sent to brokers."),
		gaps: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "mailbell_log_gaps_total", Help: "Reads that ended because offsets were missing, by reason."}, []string{"reason"}),
		generations: counter("group_generations_total", "Generations of the consumer group that this node took part in."),
	}
	if reg != nil {
		reg.MustRegister(m.appendedRecords, m.appendedBytes, m.appendRequests, m.appendRetries, m.appendFailures, m.appendSeconds,
			m.appendWaiting, m.readRecords, m.readBytes, m.fetchRequests, m.gaps, m.generations)
	}
	return m
}
