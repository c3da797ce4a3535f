// Package publisher is the mail store of the benches: it publishes events of numbered accounts at a steady
// rate through the Go API of storageadapter, and keeps the ledger of what the log acknowledged. A bench starts
// it as a process of its own (see Serve).
//
// Goroutines: one clock, and a fixed number of lanes. An account's events always go through the
// same lane, one call after the other, so that their order on the log is that of their sequence numbers.
package publisher

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"

	"github.com/mailbell/mailbell/bench/ledger"
	"github.com/mailbell/mailbell/schema"
)

// Config says what is published and where to.
type Config struct {
	Run      uint32   `json:"run"`
	First    uint32   `json:"first,omitempty"` // account number that the others count from
	Accounts uint32   `json:"accounts"`        // events go to the accounts First to First+Accounts-1, at random
	Seed     uint64   `json:"seed"`
	Brokers  []string `json:"brokers,omitempty"`
	Topic    string   `json:"topic,omitempty"`
	Lanes    int      `json:"lanes,omitempty"` // calls under way at once; 0 = 64

	// Adapters are base URLs of adapters to publish through instead of the Go API, with ServiceToken. With Reports it
	// is what a Dovecot server reports, each account to one adapter; otherwise it is events, to the first that takes them.
	Adapters     []string `json:"adapters,omitempty"`
	ServiceToken string   `json:"serviceToken,omitempty"`
	Reports      bool     `json:"reports,omitempty"`
	// Retry publishes what failed again, with the same ids, until it is acknowledged.
	Retry bool `json:"retry,omitempty"`
}

// Trial is one stretch of steady publishing.
type Trial struct {
	PerSecond float64 `json:"perSecond"`
	Seconds   float64 `json:"seconds"`
}

// Outcome is what came of a trial.
type Outcome struct {
	Offered      int                    `json:"offered"`      // events that the rate asked for
	Acknowledged int                    `json:"acknowledged"` // of them: on the log
	Failed       int                    `json:"failed"`       // of them: the publisher got an error
	Late         int                    `json:"late"`         // of them: not sent in time, because the lanes were full
	Retried      int                    `json:"retried"`      // calls that were made again
	Seconds      float64                `json:"seconds"`      // from the first event to the last answer
	AckLatencies *hdrhistogram.Snapshot `json:"ackLatencies"` // microseconds
	Problem      string                 `json:"problem,omitempty"`
}

// api is the part of storageadapter.Publisher that is used.
type api interface {
	Publish(ctx context.Context, events ...schema.Event) ([]schema.Position, error)
}

const (
	defaultLanes = 64
	// laneQueue bounds what waits in one lane. What does not fit is late, and not sent: a store
	// that can't keep up must not hide it in a queue.
	laneQueue = 4096
	maxCall   = 256 // events in one call
)

// publisher runs trials.
type publisher struct {
	cfg    Config
	api    api
	random *rand.Rand
	seq    []uint32 // next sequence number by account
	lanes  []chan ledger.ID

	retried atomic.Int64 // calls that failed and were made again

	mu     sync.Mutex // guards the rest
	ledger *ledger.Ledger
	slow   []SlowAck
}

// SlowAck is an event that was acknowledged long after it was due.
type SlowAck struct {
	Account uint32 `json:"a"`
	Seq     uint32 `json:"s"`
	At      int64  `json:"t"` // when it was acknowledged, Unix milliseconds
}

// slowAck is what is long, and maxSlowAcks bounds how many are remembered.
const (
	slowAck     = 250 * time.Millisecond
	maxSlowAcks = 1 << 20
)

func newPublisher(cfg Config, api api) (*publisher, error) {
	if cfg.Accounts == 0 {
		return nil, errors.New("publisher: accounts must be positive")
	}
	if cfg.Lanes == 0 {
		cfg.Lanes = defaultLanes
	}
	p := &publisher{cfg: cfg, api: api, random: rand.New(rand.NewPCG(cfg.Seed, 1)), seq: make([]uint32, cfg.Accounts), ledger: ledger.NewLedger()}
	return p, nil
}

// run publishes at the trial's rate for its time and waits for the answers.
func (p *publisher) run(ctx context.Context, t Trial) Outcome {
	var acknowledged, failed atomic.Int64
	var problem atomic.Value
	var lanes sync.WaitGroup
	p.lanes = make([]chan ledger.ID, p.cfg.Lanes)
	hists := make([]*hdrhistogram.Histogram, p.cfg.Lanes)
	start := time.Now()
	for i := range p.lanes {
		p.lanes[i] = make(chan ledger.ID, laneQueue)
		hists[i] = hdrhistogram.New(1, 600_000_000, 2)
		lanes.Go(func() {
			l := lane{publisher: p, hist: hists[i]}
			for first := range p.lanes[i] {
				ok, err := l.call(ctx, first, p.lanes[i])
				acknowledged.Add(int64(ok))
				if err != nil {
					failed.Add(int64(len(l.ids) - ok))
					problem.Store(err.Error())
				}
			}
		})
	}
	offered, late := p.offer(ctx, t, start)
	for _, lane := range p.lanes {
		close(lane)
	}
	lanes.Wait()
	o := Outcome{Offered: offered, Acknowledged: int(acknowledged.Load()), Failed: int(failed.Load()), Late: late, Seconds: time.Since(start).Seconds()}
	all := hdrhistogram.New(1, 600_000_000, 2)
	for _, h := range hists {
		all.Merge(h)
	}
	o.AckLatencies, o.Retried = all.Export(), int(p.retried.Load())
	if s, ok := problem.Load().(string); ok {
		o.Problem = s
	}
	return o
}

// offer puts the due events into the lanes, a thousand times a second.
func (p *publisher) offer(ctx context.Context, t Trial, start time.Time) (offered, late int) {
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	total := int(t.PerSecond * t.Seconds)
	for offered < total {
		select {
		case <-ctx.Done():
			return offered, late
		case <-tick.C:
		}
		due := min(int(time.Since(start).Seconds()*t.PerSecond)+1, total)
		for ; offered < due; offered++ {
			index := p.random.Uint32N(p.cfg.Accounts)
			account := p.cfg.First + index
			lane := p.lanes[account%uint32(len(p.lanes))]
			id := ledger.ID{Run: p.cfg.Run, Account: account, Seq: p.seq[index] + 1, SentAt: time.Now().UnixNano()}
			select {
			case lane <- id:
				p.seq[index]++
			default:
				late++
			}
		}
	}
	return offered, late
}

// lane makes one call after the other.
type lane struct {
	publisher *publisher
	hist      *hdrhistogram.Histogram
	ids       []ledger.ID
	events    []schema.Event
}

// call publishes first and what waits behind it, and books what was acknowledged.
func (l *lane) call(ctx context.Context, first ledger.ID, queue <-chan ledger.ID) (acknowledged int, err error) {
	l.ids, l.events = append(l.ids[:0], first), append(l.events[:0], event(first))
collect:
	for len(l.ids) < maxCall {
		select {
		case id, ok := <-queue:
			if !ok {
				break collect
			}
			l.ids, l.events = append(l.ids, id), append(l.events, event(id))
		default:
			break collect
		}
	}
	positions, err := l.publish(ctx)
	if err != nil {
		return 0, err
	}
	if len(positions) != len(l.ids) {
		return 0, fmt.Errorf("publisher: %d positions for %d events", len(positions), len(l.ids))
	}
	now := time.Now().UnixNano()
	l.publisher.mu.Lock()
	defer l.publisher.mu.Unlock()
	for i, id := range l.ids {
		l.publisher.ledger.Acknowledge(id.Account, id.Seq, positions[i].Offset)
		_ = l.hist.RecordValue(max(1, (now-id.SentAt)/1000))
		if now-id.SentAt > int64(slowAck) && len(l.publisher.slow) < maxSlowAcks {
			l.publisher.slow = append(l.publisher.slow, SlowAck{id.Account, id.Seq, now / 1e6})
		}
	}
	return len(l.ids), nil
}

// publish makes the call, with Retry again and again.
func (l *lane) publish(ctx context.Context) ([]schema.Position, error) {
	for wait := 50 * time.Millisecond; ; wait = min(2*wait, time.Second) {
		positions, err := l.publisher.api.Publish(ctx, l.events...)
		if err == nil || !l.publisher.cfg.Retry {
			return positions, err
		}
		l.publisher.retried.Add(1)
		select {
		case <-ctx.Done():
			return nil, err
		case <-time.After(wait/2 + rand.N(wait/2)):
		}
	}
}

// event is what the LMTP server of a busy site would say: 350 bytes or so.
func event(id ledger.ID) schema.Event {
	messages, unseen := 100+id.Seq, 1+id.Seq%50
	account := schema.Account(ledger.AccountName(id.Account))
	return schema.Event{
		ID: id.String(), Event: schema.MessageNew, Account: account, Mailbox: "INBOX",
		UIDValidity: 1424683682, UIDSet: fmt.Sprint(messages), UIDNext: messages + 1, ModSeq: fmt.Sprint(715194045007 + uint64(id.Seq)),
		Messages: &messages, Unseen: &unseen, User: string(account), Service: "lmtp", Session: "PhnWe8JgYqF/AAAB",
		Timestamp: time.Unix(0, id.SentAt).UTC(),
	}
}
