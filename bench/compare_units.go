package bench

import (
	"math"
	"time"

	"github.com/mailbell/mailbell/bench/mailstore"
)

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
