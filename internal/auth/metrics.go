package auth

import (
	"github.com/prometheus/client_golang/prometheus"
)

// metrics of the keys.
type metrics struct {
	keys    prometheus.Gauge
	reloads *prometheus.CounterVec
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
	}
	if reg != nil {
		reg.MustRegister(m.keys, m.reloads)
	}
	return m
}

// registerRefreshed has the keys looked at when the metric is read: a node without clients checks no tokens.
func registerRefreshed(k *Keys) {
	if k.cfg.Registerer == nil {
		return
	}
	k.cfg.Registerer.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "mailbell_auth_keys_refreshed_timestamp_seconds",
		Help: "When the keys were last read successfully, or their file was last seen unchanged, in seconds since 1970.",
	}, func() float64 {
		k.look()
		return float64(k.refreshed.Load())
	}))
}
