package notifier

import (
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
)

func TestTraffic(t *testing.T) {
	reg := prometheus.NewRegistry()
	tr := newTraffic(reg, time.Minute)
	start := time.Now()
	tr.hold(0, start)
	tr.hold(300, start.Add(time.Second))
	tr.hold(300, start.Add(2*time.Second))
	old := time.Now().Add(-3 * time.Second).UTC().Format(time.RFC3339Nano)
	tr.delivered([]delivery{{event: []byte(`{"id":"1","timestamp":"` + old + `"}`)}, {event: []byte(`{"id":"2"}`)}})

	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	got := make(map[string]*dto.Metric)
	for _, f := range families {
		got[f.GetName()] = f.GetMetric()[0]
	}
	if v := got["mailbell_notifier_connection_seconds_total"].GetCounter().GetValue(); v != 600 {
		t.Errorf("%v connection seconds, want 600", v)
	}
	if v := got["mailbell_polls_avoided_total"].GetCounter().GetValue(); v != 10 {
		t.Errorf("%v polls avoided, want 10", v)
	}
	h := got["mailbell_notifier_event_delay_seconds"].GetHistogram()
	if h.GetSampleCount() != 1 || h.GetSampleSum() < 3 || h.GetSampleSum() > 30 || h.Schema == nil {
		t.Errorf("delay: count %d, sum %v, native %v: want one of 3 s", h.GetSampleCount(), h.GetSampleSum(), h.Schema != nil)
	}
}

func BenchmarkTrafficDelivered(b *testing.B) {
	tr := newTraffic(nil, time.Minute)
	batch := []delivery{{event: []byte(`{"id":"01J","event":"MessageNew","account":"alice@example.com","mailbox":"INBOX","uidValidity":1424683682,"uidset":"5","timestamp":"2026-11-21T05:17:58.123Z"}`)}}
	b.ReportAllocs()
	for b.Loop() {
		tr.delivered(batch)
	}
}
