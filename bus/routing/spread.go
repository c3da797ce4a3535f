package routing

import "time"

const maxSpread = 5 * time.Minute

// spread turns the number of clients that are told to fetch at once into a delay
// over which they should do it: what was told lately and not yet fetched, over the rate that the store bears.
type spread struct {
	owed float64
	at   time.Time
}

// add counts n more and returns the delay in milliseconds; below a second's worth of fetches it is 0.
func (s *spread) add(now time.Time, n int, perSecond float64) uint32 {
	if d := now.Sub(s.at); d > 0 {
		s.owed = max(0, s.owed-d.Seconds()*perSecond)
		s.at = now
	}
	s.owed += float64(n)
	if s.owed <= perSecond {
		return 0
	}
	return uint32(min(s.owed/perSecond*1000, float64(maxSpread.Milliseconds())))
}
