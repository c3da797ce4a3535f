package notifier

import "time"

// Clients that were too slow are told so when they read again, and ask the store. When a network that hung goes on, all of
// them do at once: what each notifier tells is spread so that its clients ask the store no more than
// slowFetches times a second. (What the bus tells, it spreads itself: it knows how many there are in all.)
const (
	slowFetches   = 500
	slowSpreadMax = time.Minute
)

// slowSpread counts who was told lately and has not asked yet. It belongs to the hub's goroutine.
type slowSpread struct {
	owed float64
	at   time.Time
}

// add counts one more and returns the milliseconds over which to spread its fetch; 0 while there are few.
func (s *slowSpread) add(now time.Time) uint32 {
	if d := now.Sub(s.at); d > 0 {
		s.owed = max(0, s.owed-d.Seconds()*slowFetches)
		s.at = now
	}
	s.owed++
	return fetchSpread(s.owed)
}

// fetchSpread is the milliseconds over which to spread so many fetches; 0 for few.
func fetchSpread(fetches float64) uint32 {
	if fetches < slowFetches/2 {
		return 0
	}
	return uint32(min(fetches/slowFetches*1000, float64(slowSpreadMax.Milliseconds())))
}
