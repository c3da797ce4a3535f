package bench

import (
	"fmt"
	"math"
	"time"

	"github.com/mailbell/mailbell/bench/mailstore"
)

// CompareResult is what polling and pushing cost for the same users and the same changes.
type CompareResult struct {
	Settings   CompareSettings `json:"settings"`
	Poll       CompareSide     `json:"poll"`
	Push       CompareSide     `json:"push"`
	Ratio      CompareRatio    `json:"ratio"` // poll's figure over push's
	Sweep      []SweepPoint    `json:"sweep,omitempty"`
	Crossing   *Crossing       `json:"crossing,omitempty"`
	Units      CompareUnits    `json:"units"`
	Advantages []string        `json:"advantages"` // given to polling
}

// CompareSettings is the configuration as it was run.
type CompareSettings struct {
	Users             int     `json:"users"`
	PollIntervalMs    int64   `json:"pollIntervalMs"`
	Jitter            float64 `json:"jitter"`
	ChangesPerHour    float64 `json:"changesPerUserHour"`
	NotModifiedTarget float64 `json:"notModifiedTarget,omitempty"`
	Burst             float64 `json:"burst,omitempty"`
	Diurnal           bool    `json:"diurnal,omitempty"`
	DurationSeconds   float64 `json:"durationSeconds"`
	QuietSeconds      float64 `json:"quietSeconds"`
	OutageSeconds     float64 `json:"outageSeconds"`
	Store             string  `json:"store"`
	Mailboxes         int     `json:"mailboxes"`
	Log               string  `json:"log"` // embedded or kafka
	Seed              uint64  `json:"seed"`
}

func (c CompareConfig) settings() CompareSettings {
	log := "embedded"
	if len(c.Brokers) > 0 {
		log = "kafka"
	}
	return CompareSettings{
		Users: c.Users, PollIntervalMs: c.Interval.Milliseconds(), Jitter: c.Jitter, ChangesPerHour: significant(c.ChangeRate, 5), NotModifiedTarget: c.NotModified,
		Burst: c.Burst, Diurnal: c.Diurnal, DurationSeconds: c.Duration.Seconds(), QuietSeconds: c.Quiet.Seconds(), OutageSeconds: c.Outage.Seconds(),
		Store: c.Store, Mailboxes: c.Mailboxes, Log: log, Seed: c.Seed,
	}
}

// CompareSide is one side's figures over the measured stretch. Bytes are those that servers read from (In) and
// wrote to (Out) the clients' sockets, HTTP's and WebSocket's headers included.
type CompareSide struct {
	CompareFigures
	WithoutFetch *CompareFigures `json:"withoutFetch,omitempty"` // push: for front ends that draw from the events' own counts
	AnswerMs     LatencyMs       `json:"answerMs"`               // from a request to its answer
	Empty        CompareStretch  `json:"empty"`                  // nobody connected, nothing changes
	Connect      CompareStretch  `json:"connect"`                // from nobody to everybody connected
	Quiet        CompareStretch  `json:"quiet"`                  // everybody connected, nothing changes
	LatencyCDF   [][2]float64    `json:"latencyCDF"`             // [milliseconds, share of changes known by then]
	Timeline     []TimelinePoint `json:"timeline"`
	Outage       *CompareOutage  `json:"outage,omitempty"`

	// DeliveryCPUMs is what Dovecot uses for one delivery that nobody hears of. It is taken out of both sides' figures.
	DeliveryCPUMs float64 `json:"deliveryCpuMs,omitempty"`
}

func (s *CompareSide) figures() CompareFigures { return s.CompareFigures }

// CompareFigures are the figures that both sides, and each point of a sweep, have.
type CompareFigures struct {
	Seconds           float64            `json:"seconds"`
	Changes           int                `json:"changes"`  // made in the mail store
	Requests          int                `json:"requests"` // polls, or fetches after events
	RequestsPerSecond float64            `json:"requestsPerSecond"`
	Events            int                `json:"events"` // received by clients
	EventsPerSecond   float64            `json:"eventsPerSecond"`
	NotModifiedShare  float64            `json:"notModifiedShare"`
	CPUSeconds        float64            `json:"cpuSeconds"` // server processes only
	CPUUserSeconds    float64            `json:"cpuUserSeconds"`
	CPUSystemSeconds  float64            `json:"cpuSystemSeconds"`
	CPUByProcess      map[string]float64 `json:"cpuByProcess"`
	BytesIn           int64              `json:"bytesIn"`
	BytesOut          int64              `json:"bytesOut"`
	ResidentBytes     int64              `json:"residentBytes"`
	Sockets           int                `json:"sockets"`
	KernelBytes       int64              `json:"kernelBytes"`
	StoreReads        int64              `json:"storeReads"`
	LatencyMs         LatencyMs          `json:"latencyMs"`  // from the change to the user's knowledge
	Unknown           int                `json:"unknown"`    // changes that a user never came to know of
	Failed            int                `json:"failed"`     // requests without an answer
	Late              int                `json:"late"`       // polls that fell due while one was under way
	Connects          int                `json:"connects"`   // connections opened for requests
	OtherCores        *float64           `json:"otherCores"` // that programs which are no part of the bench used meanwhile: the figures' noise
	PerUserHour       PerUserHour        `json:"perUserHour"`
}

func (f *CompareFigures) bytes() int64 { return f.BytesIn + f.BytesOut }

// PerUserHour is what one user costs in an hour.
type PerUserHour struct {
	CPUSeconds float64 `json:"cpuSeconds"`
	Bytes      float64 `json:"bytes"`
	StoreReads float64 `json:"storeReads"`
}

func (f *CompareFigures) perUserHour(users int) PerUserHour {
	hours := f.Seconds / 3600 * float64(users)
	if hours == 0 {
		return PerUserHour{}
	}
	return PerUserHour{CPUSeconds: significant(f.CPUSeconds/hours, 4), Bytes: significant(float64(f.bytes())/hours, 4), StoreReads: significant(float64(f.StoreReads)/hours, 4)}
}

// CompareStretch is what a stretch beside the measured one cost.
type CompareStretch struct {
	Seconds      float64            `json:"seconds"`
	Requests     int                `json:"requests"`
	CPUSeconds   float64            `json:"cpuSeconds"`
	CPUByProcess map[string]float64 `json:"cpuByProcess"`
	BytesIn      int64              `json:"bytesIn"`
	BytesOut     int64              `json:"bytesOut"`
}

// TimelinePoint is one moment of the measured stretch and of the outage; rates are since the point before.
type TimelinePoint struct {
	Seconds  float64 `json:"t"` // since the measured stretch began
	Requests float64 `json:"requestsPerSecond"`
	Events   float64 `json:"eventsPerSecond"`
	Cores    float64 `json:"cores"`
	Bytes    float64 `json:"bytesPerSecond"`
	Changes  float64 `json:"changesPerSecond"`
	Stage    string  `json:"stage"` // measured, outage or recovery
}

// CompareOutage is what an outage of all servers, by kill -9, does. Times count from the moment in which the servers listen again.
type CompareOutage struct {
	Seconds        float64   `json:"seconds"`
	Changes        int       `json:"changes"`        // made meanwhile and in the recovery
	EveryoneBackMs *float64  `json:"everyoneBackMs"` // until every user has had an answer, or is subscribed again; null = not while it was watched
	CaughtUpMs     *float64  `json:"caughtUpMs"`     // until every user knows of everything that changed in the outage; null likewise
	WatchedSeconds float64   `json:"watchedSeconds"`
	PeakRequests   float64   `json:"peakRequestsPerSecond"`
	PeakCores      float64   `json:"peakCores"`
	CPUSeconds     float64   `json:"cpuSeconds"` // from the servers' start on
	BytesIn        int64     `json:"bytesIn"`
	BytesOut       int64     `json:"bytesOut"`
	Failed         int       `json:"failed"` // tries of clients in vain
	Lost           int       `json:"lost"`   // changes that a user never came to know of
	LatencyMs      LatencyMs `json:"latencyMs"`
}

// After says when one of the outage's times came, or that it did not come as long as it was watched.
func (o *CompareOutage) After(ms *float64) string {
	if ms == nil {
		return fmt.Sprintf("not within %.0f s", o.WatchedSeconds)
	}
	return fmt.Sprintf("%.1f s", *ms/1000)
}

// CompareRatio is poll's figure over push's: over 1, pushing is cheaper. 0 means that there is none.
type CompareRatio struct {
	CPU               float64 `json:"cpu"`
	Bytes             float64 `json:"bytes"`
	CPUWithoutFetch   float64 `json:"cpuWithoutFetch"`
	BytesWithoutFetch float64 `json:"bytesWithoutFetch"`
	StoreReads        float64 `json:"storeReads"`
	LatencyP50        float64 `json:"latencyP50"`
}

// SweepPoint is polling at another interval; pushing does not depend on it.
type SweepPoint struct {
	IntervalSeconds float64        `json:"intervalSeconds"`
	Poll            CompareFigures `json:"poll"`
}

// Crossing is the poll interval from which on polling costs less CPU than pushing, from the units; 0 means that
// there is none.
type Crossing struct {
	CPUSeconds             float64 `json:"cpuIntervalSeconds"`
	CPUSecondsWithoutFetch float64 `json:"cpuIntervalSecondsWithoutFetch"`
}

// CompareUnits is what single things cost, for the calculator. Microseconds are of CPU. What servers use before anybody
// is connected is in the base and in no other unit.
type CompareUnits struct {
	PollBaseCores     float64 `json:"pollBaseCores"` // of the poll server, with nobody connected; the pushing side's fetches need one as well
	PushBaseCores     float64 `json:"pushBaseCores"` // of mailbell's processes
	Poll304Us         float64 `json:"poll304Us"`
	Poll200Us         float64 `json:"poll200Us"`
	Poll304Bytes      float64 `json:"poll304Bytes"`
	Poll200Bytes      float64 `json:"poll200Bytes"`
	Poll304Reads      float64 `json:"poll304Reads"`
	Poll200Reads      float64 `json:"poll200Reads"`
	ReadsPerMailbox   float64 `json:"readsPerMailbox"` // of the reads of a poll or a fetch, how many each mailbox adds
	EventUs           float64 `json:"eventUs"`         // from the ingest to the socket
	FetchUs           float64 `json:"fetchUs"`         // the request that an event causes
	HoldUsPerHour     float64 `json:"holdUsPerHour"`   // a connection's hour, without events
	EventBytes        float64 `json:"eventBytes"`
	FetchBytes        float64 `json:"fetchBytes"`
	FetchReads        float64 `json:"fetchReads"`
	FetchesPerEvent   float64 `json:"fetchesPerEvent"`
	HoldBytesPerHour  float64 `json:"holdBytesPerHour"`
	PollResidentBytes float64 `json:"pollResidentBytesPerUser"`
	PushResidentBytes float64 `json:"pushResidentBytesPerUser"`
	Mailboxes         int     `json:"mailboxes"`
}

// Broken says whether a promise was broken: a change of which a user never heard by push.
func (r CompareResult) Broken() error {
	lost := r.Push.Unknown
	if r.Push.Outage != nil {
		lost += r.Push.Outage.Lost
	}
	if lost > 0 {
		return fmt.Errorf("bench compare: users were never told of %d changes", lost)
	}
	return nil
}

func unitsOf(r *CompareResult) CompareUnits {
	u := CompareUnits{Mailboxes: r.Settings.Mailboxes}
	users := float64(r.Settings.Users)
	// Polls in the quiet stretch were all answered by 304.
	u.PollBaseCores = per(r.Poll.Empty.CPUSeconds, r.Poll.Empty.Seconds)
	u.Poll304Us = per(1e6*(r.Poll.Quiet.CPUSeconds-u.PollBaseCores*r.Poll.Quiet.Seconds), float64(r.Poll.Quiet.Requests))
	u.Poll304Bytes = per(float64(r.Poll.Quiet.BytesIn+r.Poll.Quiet.BytesOut), float64(r.Poll.Quiet.Requests))
	polls := float64(r.Poll.Requests)
	n304 := polls * r.Poll.NotModifiedShare
	u.Poll200Us = per(1e6*(r.Poll.CPUSeconds-u.PollBaseCores*r.Poll.Seconds)-n304*u.Poll304Us, polls-n304)
	u.Poll200Bytes = per(float64(r.Poll.bytes())-n304*u.Poll304Bytes, polls-n304)
	u.Poll304Reads, u.Poll200Reads = 1, 1
	switch r.Settings.Store {
	case mailstore.SQLite:
		u.Poll200Reads = 2
	case mailstore.Dovecot:
		u.Poll304Reads, u.Poll200Reads, u.ReadsPerMailbox = float64(u.Mailboxes), float64(u.Mailboxes), 1
	}
	push := r.Push.WithoutFetch
	quietHours := r.Push.Quiet.Seconds / 3600 * users
	u.PushBaseCores = per(ofSite(r, r.Push.Empty), r.Push.Empty.Seconds)
	u.HoldUsPerHour = per(1e6*(ofSite(r, r.Push.Quiet)-u.PushBaseCores*r.Push.Quiet.Seconds), quietHours)
	u.HoldBytesPerHour = per(float64(r.Push.Quiet.BytesIn+r.Push.Quiet.BytesOut), quietHours)
	hours := r.Push.Seconds / 3600 * users
	events, fetches := float64(r.Push.Events), float64(r.Push.Requests)
	u.EventUs = per(1e6*(push.CPUSeconds-u.PushBaseCores*push.Seconds)-hours*u.HoldUsPerHour, events)
	u.EventBytes = per(float64(push.bytes())-hours*u.HoldBytesPerHour, events)
	u.FetchUs = per(1e6*(r.Push.CPUSeconds-push.CPUSeconds-u.PollBaseCores*r.Push.Seconds), fetches)
	u.FetchBytes = per(float64(r.Push.bytes()-push.bytes()), fetches)
	u.FetchReads = per(float64(r.Push.StoreReads), fetches)
	u.FetchesPerEvent = per(fetches, events)
	u.PollResidentBytes = per(float64(r.Poll.ResidentBytes), users)
	u.PushResidentBytes = per(float64(r.Push.ResidentBytes), users)
	return u
}

// ofSite is what mailbell's own processes took of a stretch of the pushing side.
func ofSite(r *CompareResult, s CompareStretch) (seconds float64) {
	for name := range r.Push.WithoutFetch.CPUByProcess {
		seconds += s.CPUByProcess[name]
	}
	return seconds
}

func per(a, b float64) float64 {
	if b <= 0 {
		return 0
	}
	return significant(max(0, a/b), 4)
}

// crossingOf solves for the interval at which polling's CPU is pushing's, for as many users as were measured.
func crossingOf(r *CompareResult) *Crossing {
	u, rate, users := r.Units, r.Settings.ChangesPerHour/3600, float64(max(1, r.Settings.Users))
	quiet := rate / max(1, r.Settings.Burst) // arrivals that end a quiet interval
	cost := func(interval float64) float64 { // microseconds a user-second
		same := math.Exp(-quiet * interval)
		return 1e6*u.PollBaseCores/users + (same*u.Poll304Us+(1-same)*u.Poll200Us)/interval
	}
	solve := func(target float64) float64 {
		low, high := 0.1, float64(time.Hour/time.Second)
		if cost(high) > target || cost(low) < target {
			return 0
		}
		for range 60 {
			mid := math.Sqrt(low * high)
			if cost(mid) > target {
				low = mid
			} else {
				high = mid
			}
		}
		return significant(low, 3)
	}
	events := rate * u.EventUs
	hold := 1e6*u.PushBaseCores/users + u.HoldUsPerHour/3600
	return &Crossing{
		CPUSeconds:             solve(hold + events + 1e6*u.PollBaseCores/users + rate*u.FetchesPerEvent*u.FetchUs),
		CPUSecondsWithoutFetch: solve(hold + events),
	}
}
