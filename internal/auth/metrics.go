package auth

import (
	"github.com/prometheus/client_golang/prometheus"
)

// metrics of the keys.
type metrics struct {
	keys      prometheus.Gauge
	reloads   *prometheus.CounterVec
	refreshed prometheus.Gauge
}

func newMetrics(reg prometheus.Registerer) *metrics {
	m := &metrics{
		keys: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "mailbell_auth_keys",
			Help: "Keys that users' tokens are verified with.",
		}),
		reloads: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "mailbell_auth_key_reloads_total",
			Help: "Times the keys were read again from their file or URL, by result (ok, failed).",
		}, []string{"result"}),
		refreshed: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "mailbell_auth_keys_refreshed_timestamp_seconds",
			Help: "When the keys were last read successfully, in seconds since 1970.",
		}),
	}
	if reg != nil {
		reg.MustRegister(m.keys, m.reloads, m.refreshed)
	}
	return m
}
