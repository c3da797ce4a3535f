package bus

import (
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/mailbell/mailbell/bus/routing"
	"github.com/mailbell/mailbell/schema"
)

// metrics are this package's, all named mailbell_bus_….
type metrics struct {
	linkBytes      prometheus.Counter
	cuts           *prometheus.CounterVec // by reason
	gateway        *prometheus.CounterVec // by code
	gatewayWait    prometheus.Histogram
	probes         *prometheus.CounterVec // by result
	moved          prometheus.Counter
	readerRestarts prometheus.Counter
	skipped        prometheus.Counter
	standIns       prometheus.Counter

	mu      sync.Mutex
	retired routing.Stats // guarded by mu: counts of partitions that are no longer read
}

func newMetrics(reg prometheus.Registerer, n *Node) *metrics {
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: "mailbell_bus_" + name, Help: help})
	}
	m := &metrics{
		linkBytes:      counter("link_sent_bytes_total", "Bytes of messages sent to notifiers."),
		readerRestarts: counter("reader_restarts_total", "Times that a partition's reader had to begin again."),
		standIns:       counter("stand_ins_total", "Partitions that this node began to serve for an owner that a notifier did not reach."),
		skipped:        counter("records_skipped_total", "Records of the log that are no event of an account: no key, too large, or no JSON object."),
		cuts: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "mailbell_bus_links_ended_total",
			Help: "Links that ended, by reason."}, []string{"reason"}),
		gateway: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "mailbell_bus_gateway_answers_total",
			Help: "Answers of /v1/connect, by code."}, []string{"code"}),
		gatewayWait: prometheus.NewHistogram(prometheus.HistogramOpts{Name: "mailbell_bus_gateway_wait_seconds",
			Help: "How long clients were asked to wait before they connect.", Buckets: []float64{0, 0.1, 0.5, 1, 2, 5, 10, 20}}),
		probes: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "mailbell_bus_probes_total",
			Help: "Connections to the notifiers' public addresses, to see whether they work, by result."}, []string{"result"}),
		moved: counter("moves_ordered_total", "Connections that notifiers were asked to send elsewhere, so that all are even."),
	}
	for _, r := range []CutReason{CutQueueFull, CutHelloTimeout, CutReplaced, CutShutdown, CutBadMessage, cutByPeer} {
		m.cuts.WithLabelValues(string(r))
	}
	m.gateway.WithLabelValues("ok")
	m.probes.WithLabelValues("ok")
	m.probes.WithLabelValues("failed")
	if reg != nil {
		reg.MustRegister(m.linkBytes, m.readerRestarts, m.skipped, m.standIns, m.cuts, m.gateway, m.gatewayWait, m.probes, m.moved, newCollector(n, m))
	}
	return m
}

// retire keeps the counts of a core that is given up.
func (m *metrics) retire(s routing.Stats) {
	m.mu.Lock()
	defer m.mu.Unlock()
	addCounts(&m.retired, &s)
}

func addCounts(to, s *routing.Stats) {
	to.Records += s.Records
	to.Duplicates += s.Duplicates
	to.Deliveries += s.Deliveries
	to.Resets += s.Resets
	for i := range s.Answers {
		to.Answers[i] += s.Answers[i]
	}
}

// collector asks the partitions when metrics are read, so that events cost no atomics.
type collector struct {
	node    *Node
	metrics *metrics

	records, duplicates, deliveries, answers, resets    *prometheus.Desc
	partitions, topic, links, queued, notifiers         *prometheus.Desc
	windowRecords, windowBytes, indexAccounts, indexMem *prometheus.Desc
	routes, parked                                      *prometheus.Desc
}

func newCollector(n *Node, m *metrics) *collector {
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc("mailbell_bus_"+name, help, labels, nil)
	}
	return &collector{
		node: n, metrics: m,
		records:       desc("events_total", "Events read from the log, duplicates not counted."),
		duplicates:    desc("events_duplicate_total", "Events dropped because the window holds one of the same account and id."),
		deliveries:    desc("deliveries_total", "Events sent to notifiers: each event as often as links want it."),
		answers:       desc("answers_total", "Answers to subscribe and resume requests of notifiers, by kind.", "answer"),
		resets:        desc("resets_total", "Gaps in the log and changes of its epoch, after which clients have to fetch."),
		partitions:    desc("partitions", "Partitions by state: owned, reading (not yet caught up), leaving (another node has them), standin (served for an owner that notifiers do not reach).", "state"),
		topic:         desc("topic_partitions", "Partitions of the topic, whoever has them."),
		links:         desc("links", "Links that are up."),
		queued:        desc("link_queued_bytes", "Bytes that wait on all links together."),
		notifiers:     desc("notifiers", "Notifiers linked to this node, by state.", "state"),
		windowRecords: desc("window_events", "Events in all windows."),
		windowBytes:   desc("window_bytes", "Bytes of all windows, as they count towards their bound."),
		indexAccounts: desc("index_accounts", "Accounts whose last position is known."),
		indexMem:      desc("index_bytes", "Memory of the index of last positions."),
		routes:        desc("routes", "Pairs of account and notifier."),
		parked:        desc("requests_parked", "Requests that wait for this node to read as far as their position."),
	}
}

// Describe implements prometheus.Collector.
func (c *collector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{c.records, c.duplicates, c.deliveries, c.answers, c.resets, c.partitions, c.topic, c.links, c.queued,
		c.notifiers, c.windowRecords, c.windowBytes, c.indexAccounts, c.indexMem, c.routes, c.parked} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (c *collector) Collect(ch chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	counter := func(d *prometheus.Desc, v uint64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v), labels...)
	}
	c.metrics.mu.Lock()
	sum := c.metrics.retired
	c.metrics.mu.Unlock()
	states := map[PartitionState]int{PartitionOwned: 0, PartitionReading: 0, PartitionLeaving: 0, PartitionStandIn: 0}
	for _, p := range c.node.Partitions() {
		states[p.State]++
		addCounts(&sum, &p.Stats)
		sum.WindowRecords += p.Stats.WindowRecords
		sum.WindowBytes += p.Stats.WindowBytes
		sum.IndexAccounts += p.Stats.IndexAccounts
		sum.IndexBytes += p.Stats.IndexBytes
		sum.Routes += p.Stats.Routes
		sum.Parked += p.Stats.Parked
	}
	counter(c.records, sum.Records)
	counter(c.duplicates, sum.Duplicates)
	counter(c.deliveries, sum.Deliveries)
	counter(c.resets, sum.Resets)
	for a := routing.Fresh; a <= routing.NotOwner; a++ {
		counter(c.answers, sum.Answers[a], a.String())
	}
	for s, count := range states {
		gauge(c.partitions, float64(count), string(s))
	}
	gauge(c.topic, float64(len(c.node.partitions)))
	links, queued := *c.node.links.byID.Load(), 0
	for _, l := range links {
		queued += l.queue.waiting()
	}
	gauge(c.links, float64(len(links)))
	gauge(c.queued, float64(queued))
	notifiers := map[NotifierState]int{Serving: 0, Draining: 0, Full: 0, Silent: 0, Replaced: 0, Unreachable: 0}
	for _, n := range c.node.fleet.Snapshot(time.Now()) {
		notifiers[n.State]++
	}
	for s, count := range notifiers {
		gauge(c.notifiers, float64(count), string(s))
	}
	gauge(c.windowRecords, float64(sum.WindowRecords))
	gauge(c.windowBytes, float64(sum.WindowBytes))
	gauge(c.indexAccounts, float64(sum.IndexAccounts))
	gauge(c.indexMem, float64(sum.IndexBytes))
	gauge(c.routes, float64(sum.Routes))
	gauge(c.parked, float64(sum.Parked))
}

// PartitionState is how far a partition is with this node.
type PartitionState string

// The states.
const (
	PartitionReading PartitionState = "reading" // not yet caught up
	PartitionOwned   PartitionState = "owned"
	PartitionLeaving PartitionState = "leaving" // another node has it, and this one serves on for a moment
	PartitionStandIn PartitionState = "standin" // another node has it, and notifiers do not reach that one
)

// PartitionStatus is one partition that this node reads.
type PartitionStatus struct {
	Partition  int32
	State      PartitionState
	Generation uint64 // 0 unless it is served
	Head       routing.Position
	Stats      routing.Stats
}

// Partitions returns the partitions that this node reads, in order. One that it is about to own may be there twice.
func (n *Node) Partitions() []PartitionStatus {
	var all []PartitionStatus
	n.served(func(p *partition) { all = append(all, p.status()) })
	return all
}

func (p *partition) status() PartitionStatus {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := PartitionStatus{Partition: p.id, State: PartitionReading}
	if p.core != nil {
		s.Generation, s.Head, s.Stats = p.core.Generation(), p.core.Head(), p.core.Stats()
	}
	switch {
	case p.standIn:
		s.State = PartitionStandIn
	case p.released:
		s.State = PartitionLeaving
	case s.Generation != 0:
		s.State = PartitionOwned
	}
	return s
}

// Subscribers returns which notifiers want an account, by name, and whether this node owns its partition.
func (n *Node) Subscribers(account string) (notifiers []string, owner bool) {
	p := n.partitions[schema.PartitionOf(schema.Account(account), len(n.partitions))].Load()
	if p == nil {
		return nil, false
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.core == nil || p.core.Generation() == 0 {
		return nil, false
	}
	for id, l := range *n.links.byID.Load() {
		if _, wants := p.core.Wanted(account, id); wants {
			notifiers = append(notifiers, l.notifier.Node)
		}
	}
	return notifiers, true
}
