package bench

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sort"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"

	"github.com/mailbell/mailbell/bench/chaos"
	"github.com/mailbell/mailbell/bench/ledger"
	"github.com/mailbell/mailbell/bench/publisher"
	"github.com/mailbell/mailbell/bench/swarm"
	"github.com/mailbell/mailbell/internal/eventlog"
	"github.com/mailbell/mailbell/schema"
)

// chaosKey names an event of the bench.
type chaosKey struct{ account, seq uint32 }

// chaosBooks are all that is known at the end.
type chaosBooks struct {
	acked   *ledger.Ledger // what publishers were told is published
	slow    map[chaosKey]int64
	offsets map[chaosKey]int64 // where each event first stands on the log
	finals  []*swarm.Final
	names   []string // of the processes of the finals
}

// audit asks everybody what they know and compares.
func (c *chaosRun) audit(ctx context.Context) (ChaosResult, error) {
	c.cfg.Progress.say("comparing what was acknowledged with what arrived")
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	r := ChaosResult{Minutes: c.cfg.Minutes, Seed: c.cfg.Seed, Faults: make(map[string]int), CatchUp: make(map[string]int), Network: "loopback",
		Clients: c.cfg.Clients / len(c.clients) * len(c.clients)}
	if yes, _ := c.site.network.Namespaced(); yes {
		r.Network = "namespaces"
	}
	for _, f := range c.faults {
		r.Faults[string(f.Kind)]++
		r.Injected++
	}
	b := chaosBooks{acked: ledger.NewLedger(), slow: make(map[chaosKey]int64), offsets: make(map[chaosKey]int64)}
	if err := errors.Join(c.askPublishers(ctx, &b, &r), c.askClients(ctx, &b, &r), c.readLog(ctx, &b)); err != nil {
		return r, err
	}
	c.judge(&b, &r)
	c.silences(&b, &r)
	c.site.mu.Lock()
	r.Crashes = slices.Clone(c.site.crashes)
	c.site.mu.Unlock()
	return r, nil
}

func (c *chaosRun) askPublishers(ctx context.Context, b *chaosBooks, r *ChaosResult) error {
	for _, p := range c.publishers {
		p.node.unwanted()
		if err := p.node.process().say(publisher.Request{Finish: true}); err != nil {
			return err
		}
		reply, err := p.reply(ctx)
		if err != nil {
			return err
		}
		b.acked.Add(reply.Ledger)
		for _, s := range reply.Slow {
			b.slow[chaosKey{s.Account, s.Seq}] = s.At
		}
		r.Offered += p.done.Offered
		r.Retried += p.done.Retried
	}
	r.Acknowledged = b.acked.Acknowledged()
	return nil
}

func (c *chaosRun) askClients(ctx context.Context, b *chaosBooks, r *ChaosResult) error {
	hist := hdrhistogram.New(1, 600_000_000, 2)
	for _, s := range c.clients {
		s.node.unwanted()
		if err := s.node.process().tell(swarm.CommandFinish); err != nil {
			return err
		}
		last, err := s.waitReport(ctx, func(r swarm.Report) bool { return r.Final != nil })
		if err != nil {
			return err
		}
		b.finals = append(b.finals, last.Final)
		b.names = append(b.names, s.node.name)
		hist.Merge(hdrhistogram.Import(last.Latencies))
		r.Missed += last.Counts.Missed
		r.Reconnects += last.Counts.Closed
		for k, n := range last.Counts.CatchUp {
			r.CatchUp[k] += n
		}
		c.cfg.Progress.say("%s: failures %v", s.node.name, last.Counts.Failures)
	}
	r.LatencyMs = latencyMs(hist)
	return nil
}

// readLog finds where each event stands.
func (c *chaosRun) readLog(ctx context.Context, b *chaosBooks) error {
	log, err := eventlog.Open(ctx, eventlog.Config{Brokers: c.site.kafka.Brokers(), Topic: c.site.topic, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		return err
	}
	defer log.Close()
	errEnd := errors.New("end")
	for partition := range int32(log.Partitions()) {
		first, next, err := log.Bounds(ctx, partition)
		if err != nil {
			return err
		}
		if first >= next {
			continue
		}
		err = log.Read(ctx, partition, first, func(batch []eventlog.Message) error {
			for i := range batch {
				if batch[i].Beacon == nil {
					b.book(&batch[i], c.site.run)
				}
				if batch[i].Offset >= next-1 {
					return errEnd
				}
			}
			return nil
		})
		if err != nil && !errors.Is(err, errEnd) {
			return err
		}
	}
	return ctx.Err()
}

func (b *chaosBooks) book(m *eventlog.Message, run uint32) {
	if id, ok := ledger.ParseID(schema.EventID(m.Value)); ok {
		if id.Run == run {
			b.stands(id.Account, id.Seq, m.Offset)
		}
		return
	}
	account, ok := ledger.ParseAccount(string(m.Key))
	if !ok {
		return
	}
	e, err := schema.DecodeEvent(m.Value)
	if err != nil {
		return
	}
	set, err := schema.ParseUIDSet(e.UIDSet)
	if err != nil {
		return
	}
	for lo, hi := range set.Ranges() {
		for seq := lo; seq <= hi && seq-lo < 1<<16; seq++ {
			b.stands(account, seq, m.Offset)
		}
	}
}

func (b *chaosBooks) stands(account, seq uint32, offset int64) {
	key := chaosKey{account, seq}
	if _, known := b.offsets[key]; !known {
		b.offsets[key] = offset
	}
}

// judge checks each subscription against what is both acknowledged and on the log; what is not on the log is lost.
func (c *chaosRun) judge(b *chaosBooks, r *ChaosResult) {
	onLog := ledger.NewLedger()
	for account, seq := range b.acked.All() {
		offset, ok := b.offsets[chaosKey{account, seq}]
		if !ok {
			r.NotOnLog++
			if len(r.Examples) < 10 {
				r.Examples = append(r.Examples, fmt.Sprintf("%s event %d is acknowledged and not on the log", ledger.AccountName(account), seq))
			}
			continue
		}
		onLog.Acknowledge(account, seq, offset)
	}
	var v ledger.Verdict
	for i, f := range b.finals {
		before := len(v.Examples)
		for j, o := range f.Observations {
			if f.Since[j] >= 0 {
				onLog.Check(&v, o, f.Since[j])
			}
		}
		for k := before; k < len(v.Examples); k++ {
			v.Examples[k] = b.names[i] + ": " + v.Examples[k]
		}
	}
	r.Delivered, r.Duplicates, r.Told, r.Lost, r.Misordered = v.Delivered, v.Duplicates, v.Told, v.Lost+r.NotOnLog, v.Misordered
	r.Examples = append(r.Examples, v.Examples...)
}

// chaosWait is one event that took long: from its acknowledgement to its arrival, Unix milliseconds.
type chaosWait struct {
	chaosKey
	from, to int64
}

// silences finds the longest waits, and those of each fault that no other overlapped.
func (c *chaosRun) silences(b *chaosBooks, r *ChaosResult) {
	var waits []chaosWait
	for _, f := range b.finals {
		for _, l := range f.Late {
			key := chaosKey{l.Account, l.Seq}
			from := l.SentAt
			if at, ok := b.slow[key]; ok {
				from = at
			}
			if _, acked := b.offsets[key]; acked && l.At > from {
				waits = append(waits, chaosWait{key, from, l.At})
			}
		}
	}
	sort.Slice(waits, func(i, j int) bool { return waits[i].to-waits[i].from > waits[j].to-waits[j].from })
	for i, w := range waits {
		if i == 0 {
			r.LongestSilenceMs = w.to - w.from
		}
		if i%max(1, len(waits)/2000) == 0 && len(r.Slowest) < 5 {
			r.Slowest = append(r.Slowest, fmt.Sprintf("%s event %d: %d ms from %.1f s on, during %s", ledger.AccountName(w.account), w.seq, w.to-w.from,
				float64(w.from-c.started.UnixMilli())/1000, c.during(w)))
		}
	}
	r.Silences = make(map[string]Gap)
	byKind := make(map[chaos.Kind][]int64)
	for i, f := range c.faults {
		if !c.alone(i) {
			continue
		}
		longest := int64(0)
		for _, w := range waits {
			if w.from >= f.began.Add(-100*time.Millisecond).UnixMilli() && w.from <= f.healed.Add(fading).UnixMilli() {
				longest = w.to - w.from
				break // they are sorted
			}
		}
		byKind[f.Kind] = append(byKind[f.Kind], longest)
	}
	for kind, list := range byKind {
		slices.Sort(list)
		at := func(q float64) int64 { return list[min(len(list)-1, int(q*float64(len(list))))] }
		r.Silences[string(kind)] = Gap{Faults: len(list), P50Ms: at(0.5), P99Ms: at(0.99), MaxMs: list[len(list)-1]}
	}
}

// fading is how long a fault is felt after it was healed.
const fading = 5 * time.Second

// alone reports whether no other fault was felt during this one.
func (c *chaosRun) alone(i int) bool {
	f := &c.faults[i]
	for j := range c.faults {
		o := &c.faults[j]
		if i != j && o.began.Before(f.healed.Add(fading)) && f.began.Before(o.healed.Add(fading)) {
			return false
		}
	}
	return true
}

// during names the faults that a wait overlaps.
func (c *chaosRun) during(w chaosWait) string {
	text := ""
	for _, f := range c.faults {
		if f.began.UnixMilli() <= w.to && f.healed.UnixMilli() >= w.from-int64(fading/time.Millisecond) {
			text += fmt.Sprintf(" %s(%s%s)", f.Kind, f.Target, f.Peer)
		}
	}
	if text == "" {
		return "no fault"
	}
	return text[1:]
}
