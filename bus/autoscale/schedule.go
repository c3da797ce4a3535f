package autoscale

import (
	"fmt"
	"strconv"
	"strings"
	"time"
)

// Schedule is a time of the week, or of one date, with a minimum of its own.
type Schedule struct {
	Text     string // as it was written
	Min      int
	days     [7]bool
	date     string // of one day; empty: days count
	from, to time.Duration
	zone     *time.Location
}

const scheduleForm = `want "mon-fri 07:00-19:00 Europe/Berlin min=6", or a date such as 2026-12-24 for the days`

var dayNames = [...]string{"sun", "mon", "tue", "wed", "thu", "fri", "sat"}

// ParseSchedule reads days (mon-fri, sat, daily, 2026-12-24), hours, a time zone and the minimum. Hours may go over midnight.
func ParseSchedule(text string) (Schedule, error) {
	s := Schedule{Text: text}
	fields := strings.Fields(text)
	bad := func(what string) (Schedule, error) {
		return Schedule{}, fmt.Errorf("schedule %q: %s: %s", text, what, scheduleForm)
	}
	if len(fields) != 4 {
		return bad(fmt.Sprintf("it has %d parts", len(fields)))
	}
	if !s.parseDays(strings.ToLower(fields[0])) {
		return bad("the days")
	}
	from, to, ok := strings.Cut(fields[1], "-")
	var okFrom, okTo bool
	s.from, okFrom = parseClock(from)
	s.to, okTo = parseClock(to)
	if !ok || !okFrom || !okTo || s.from == s.to {
		return bad("the hours")
	}
	var err error
	if s.zone, err = time.LoadLocation(fields[2]); err != nil {
		return bad("the time zone")
	}
	value, ok := strings.CutPrefix(fields[3], "min=")
	if s.Min, err = strconv.Atoi(value); !ok || err != nil || s.Min < 1 {
		return bad("the minimum")
	}
	return s, nil
}

func (s *Schedule) parseDays(text string) bool {
	if _, err := time.Parse(time.DateOnly, text); err == nil {
		s.date = text
		return true
	}
	if text == "daily" {
		text = "sun-sat"
	}
	for part := range strings.SplitSeq(text, ",") {
		first, last, isRange := strings.Cut(part, "-")
		a, b := dayNumber(first), dayNumber(last)
		if !isRange {
			b = a
		}
		if a < 0 || b < 0 {
			return false
		}
		for d := a; ; d = (d + 1) % 7 {
			s.days[d] = true
			if d == b {
				break
			}
		}
	}
	return true
}

func dayNumber(name string) int {
	for i, n := range dayNames {
		if n == name {
			return i
		}
	}
	return -1
}

func parseClock(text string) (time.Duration, bool) {
	if text == "24:00" {
		return 24 * time.Hour, true
	}
	t, err := time.Parse("15:04", text)
	return time.Duration(t.Hour())*time.Hour + time.Duration(t.Minute())*time.Minute, err == nil
}

// Active reports whether the schedule counts at that moment.
func (s *Schedule) Active(at time.Time) bool {
	local := at.In(s.zone)
	clock := time.Duration(local.Hour())*time.Hour + time.Duration(local.Minute())*time.Minute + time.Duration(local.Second())*time.Second
	if s.from < s.to {
		return s.onDay(local) && clock >= s.from && clock < s.to
	}
	// Over midnight: the evening of a day, or the morning after one.
	return s.onDay(local) && clock >= s.from || s.onDay(local.AddDate(0, 0, -1)) && clock < s.to
}

func (s *Schedule) onDay(local time.Time) bool {
	if s.date != "" {
		return local.Format(time.DateOnly) == s.date
	}
	return s.days[local.Weekday()]
}
