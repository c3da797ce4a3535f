package bench

import "fmt"

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
