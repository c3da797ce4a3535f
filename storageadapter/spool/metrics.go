package spool

import (
	"github.com/prometheus/client_golang/prometheus"
)

// Why records were refused: labels of mailbell_spool_refused_total.
const (
	reasonLimit = "limit" // Config.MaxBytes
	reasonDisk  = "disk"  // the disk is full or failing
)

type metrics struct {
	registerer prometheus.Registerer
	all        []prometheus.Collector

	appended prometheus.Counter
	refused  *prometheus.CounterVec
	damaged  prometheus.Counter
	commit   prometheus.Histogram
}

func newMetrics(s *Spool) *metrics {
	m := &metrics{
		appended: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "mailbell_spool_appended_total", Help: "Records written to the spool's disk and acknowledged."}),
		refused: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "mailbell_spool_refused_total", Help: "Records that the spool did not take, by reason: limit or disk."}, []string{"reason"}),
		damaged: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "mailbell_spool_damaged_total", Help: "Acknowledged records lost because the disk returned other bytes than were written; of what was damaged before a start, a lower bound."}),
		commit: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "mailbell_spool_commit_seconds", Help: "Time to write and sync a group of records.",
			Buckets: prometheus.ExponentialBuckets(0.000_1, 2, 15)}),
	}
	for _, reason := range []string{reasonLimit, reasonDisk} {
		m.refused.WithLabelValues(reason)
	}
	m.all = []prometheus.Collector{m.appended, m.refused, m.damaged, m.commit,
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "mailbell_spool_oldest_seconds", Help: "How long the oldest record has waited; 0 when the spool is empty."},
			func() float64 { return s.oldestAge().Seconds() }),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "mailbell_spool_records", Help: "Records that wait in the spool."},
			func() float64 { n, _ := s.Len(); return float64(n) }),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "mailbell_spool_bytes", Help: "Bytes of the spool on disk."},
			func() float64 { _, b := s.Len(); return float64(b) }),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "mailbell_spool_limit_bytes", Help: "Bytes that the spool may use on disk."},
			func() float64 { return float64(s.cfg.MaxBytes) }),
	}
	return m
}

// register shows the metrics, once the spool may be looked at from other goroutines.
func (m *metrics) register(reg prometheus.Registerer) {
	m.registerer = reg
	if reg != nil {
		reg.MustRegister(m.all...)
	}
}

// unregister lets the next Spool of the process register the same names.
func (m *metrics) unregister() {
	if m.registerer == nil {
		return
	}
	for _, c := range m.all {
		m.registerer.Unregister(c)
	}
}
