package report

import (
	"fmt"
	"math"
	"strconv"

	"github.com/mailbell/mailbell/bench"
)

// fact is a figure of the page's head.
type fact struct {
	Value, Text, Winner string // Winner is push, poll or empty
}

func facts(r bench.CompareResult) []fact {
	poll, push := r.Poll, r.Push
	return []fact{
		factor(r.Ratio.CPU, "CPU of the servers"),
		factor(r.Ratio.Bytes, "bytes on the clients' sockets"),
		factor(r.Ratio.StoreReads, "reads of the mail store"),
		{Value: milliseconds(push.LatencyMs.P50), Text: "until a user knows, by push (p50); " + milliseconds(poll.LatencyMs.P50) + " by polling", Winner: winner(r.Ratio.LatencyP50)},
	}
}

func winner(ratio float64) string {
	switch {
	case ratio > 1:
		return "push"
	case ratio > 0:
		return "poll"
	}
	return ""
}

func factor(ratio float64, of string) fact {
	switch winner(ratio) {
	case "push":
		return fact{Value: digits(ratio) + " × less", Text: of + ", by push", Winner: "push"}
	case "poll":
		return fact{Value: digits(1/ratio) + " × less", Text: of + ", by polling", Winner: "poll"}
	}
	return fact{Value: "–", Text: of + ": nothing to compare"}
}

func digits(x float64) string {
	if x >= 100 {
		return strconv.FormatFloat(math.Round(x), 'f', -1, 64)
	}
	return strconv.FormatFloat(x, 'g', 3, 64)
}

func milliseconds(ms float64) string {
	if ms >= 1000 {
		return digits(ms/1000) + " s"
	}
	return digits(ms) + " ms"
}

// plainly says in sentences what the figures mean, and where polling is cheaper.
func plainly(r bench.CompareResult) []string {
	poll, push, bare := r.Poll, r.Push, r.Push.WithoutFetch
	s := r.Settings
	all := []string{fmt.Sprintf("%d users, %s mail store, %.4g changes a user-hour, a poll every %s: %.1f polls a second, of which %.0f %% found nothing new.",
		s.Users, s.Store, s.ChangesPerHour, milliseconds(float64(s.PollIntervalMs)), poll.RequestsPerSecond, 100*poll.NotModifiedShare)}
	switch {
	case r.Ratio.CPU >= 1:
		all = append(all, fmt.Sprintf("Polling cost %.2f s of server CPU and pushing %.2f s, the fetches that events cause included (%.2f s without them).", poll.CPUSeconds, push.CPUSeconds, bare.CPUSeconds))
	case r.Ratio.CPUWithoutFetch >= 1:
		all = append(all, fmt.Sprintf("Polling was cheaper in CPU here: %.2f s, against %.2f s for pushing with a fetch after every event. A front end that draws from the events' own counts needs %.2f s, which is less than polling.", poll.CPUSeconds, push.CPUSeconds, bare.CPUSeconds))
	default:
		all = append(all, fmt.Sprintf("Polling was cheaper in CPU here: %.2f s, against %.2f s for pushing with a fetch after every event, and %.2f s without. What the money buys then is time: users know after %s instead of %s.",
			poll.CPUSeconds, push.CPUSeconds, bare.CPUSeconds, milliseconds(push.LatencyMs.P50), milliseconds(poll.LatencyMs.P50)))
	}
	if c := r.Crossing; c != nil {
		all = append(all, crossing(c, r.Settings))
	}
	if a, b := poll.Outage, push.Outage; a != nil && b != nil {
		all = append(all, fmt.Sprintf("After an outage of all servers for %.0f s everybody was served again within %s by polling and %s by pushing, and knew of everything within %s and %s. Changes lost: %d and %d.",
			s.OutageSeconds, milliseconds(a.EveryoneBackMs), milliseconds(b.EveryoneBackMs), milliseconds(a.CaughtUpMs), milliseconds(b.CaughtUpMs), a.Lost, b.Lost))
	}
	return all
}

func crossing(c *bench.Crossing, s bench.CompareSettings) string {
	if c.CPUSeconds == 0 {
		return fmt.Sprintf("From the unit costs, at %.4g changes a user-hour there is no poll interval between 0.1 s and 1 h at which the CPU of the two sides is the same.", s.ChangesPerHour)
	}
	text := fmt.Sprintf("From the unit costs, at %.4g changes a user-hour polling costs less CPU than pushing with fetches when the interval is longer than %s", s.ChangesPerHour, milliseconds(1000*c.CPUSeconds))
	if c.CPUSecondsWithoutFetch > 0 {
		text += fmt.Sprintf(" (without fetches: longer than %s)", milliseconds(1000*c.CPUSecondsWithoutFetch))
	}
	return text + "; users then know that much later."
}

// row is a line of the table of all figures.
type row struct {
	Name, Unit       string
	Poll, Push, Bare string // Bare: without fetch; empty where it means nothing
}

func rows(r bench.CompareResult) []row {
	poll, push, bare := r.Poll.CompareFigures, r.Push.CompareFigures, *r.Push.WithoutFetch
	var all []row
	add := func(name, unit string, digits int, value func(bench.CompareFigures) float64) {
		text := func(f bench.CompareFigures) string { return strconv.FormatFloat(value(f), 'f', digits, 64) }
		all = append(all, row{name, unit, text(poll), text(push), text(bare)})
	}
	add("changes in the mail store", "", 0, func(f bench.CompareFigures) float64 { return float64(f.Changes) })
	add("requests", "1/s", 1, func(f bench.CompareFigures) float64 { return f.RequestsPerSecond })
	add("events", "1/s", 1, func(f bench.CompareFigures) float64 { return f.EventsPerSecond })
	add("answered by 304", "%", 1, func(f bench.CompareFigures) float64 { return 100 * f.NotModifiedShare })
	add("server CPU", "s", 2, func(f bench.CompareFigures) float64 { return f.CPUSeconds })
	add("of it user", "s", 2, func(f bench.CompareFigures) float64 { return f.CPUUserSeconds })
	add("of it system", "s", 2, func(f bench.CompareFigures) float64 { return f.CPUSystemSeconds })
	add("server CPU per user-hour", "s", 4, func(f bench.CompareFigures) float64 { return f.PerUserHour.CPUSeconds })
	add("bytes to the servers", "kB", 1, func(f bench.CompareFigures) float64 { return float64(f.BytesIn) / 1e3 })
	add("bytes to the clients", "kB", 1, func(f bench.CompareFigures) float64 { return float64(f.BytesOut) / 1e3 })
	add("bytes per user-hour", "kB", 2, func(f bench.CompareFigures) float64 { return f.PerUserHour.Bytes / 1e3 })
	add("resident memory of the servers", "MiB", 1, func(f bench.CompareFigures) float64 { return float64(f.ResidentBytes) / (1 << 20) })
	add("server sockets", "", 0, func(f bench.CompareFigures) float64 { return float64(f.Sockets) })
	add("kernel memory of those sockets", "MiB", 2, func(f bench.CompareFigures) float64 { return float64(f.KernelBytes) / (1 << 20) })
	add("reads of the mail store", "", 0, func(f bench.CompareFigures) float64 { return float64(f.StoreReads) })
	add("user knows, p50", "ms", 2, func(f bench.CompareFigures) float64 { return f.LatencyMs.P50 })
	add("user knows, p90", "ms", 2, func(f bench.CompareFigures) float64 { return f.LatencyMs.P90 })
	add("user knows, p99", "ms", 2, func(f bench.CompareFigures) float64 { return f.LatencyMs.P99 })
	add("user knows, max", "ms", 2, func(f bench.CompareFigures) float64 { return f.LatencyMs.Max })
	add("changes that a user never knew of", "", 0, func(f bench.CompareFigures) float64 { return float64(f.Unknown) })
	add("requests without an answer", "", 0, func(f bench.CompareFigures) float64 { return float64(f.Failed) })
	two := func(name, unit string, digits int, a, b float64) {
		all = append(all, row{Name: name, Unit: unit, Poll: strconv.FormatFloat(a, 'f', digits, 64), Push: strconv.FormatFloat(b, 'f', digits, 64)})
	}
	two("cores that other programs used meanwhile", "", 2, poll.OtherCores, push.OtherCores)
	two("to bring everybody up: CPU", "s", 2, r.Poll.Connect.CPUSeconds, r.Push.Connect.CPUSeconds)
	two("quiet stretch: CPU", "s", 2, r.Poll.Quiet.CPUSeconds, r.Push.Quiet.CPUSeconds)
	if a, b := r.Poll.Outage, r.Push.Outage; a != nil && b != nil {
		two("outage: servers down for", "s", 1, a.Seconds, b.Seconds)
		two("outage: everybody served again after", "s", 1, a.EveryoneBackMs/1e3, b.EveryoneBackMs/1e3)
		two("outage: everybody knows after", "s", 1, a.CaughtUpMs/1e3, b.CaughtUpMs/1e3)
		two("outage: CPU from the servers' start to the end", "s", 2, a.CPUSeconds, b.CPUSeconds)
		two("outage: highest rate of requests", "1/s", 0, a.PeakRequests, b.PeakRequests)
		two("outage: tries of clients in vain", "", 0, float64(a.Failed), float64(b.Failed))
		two("outage: changes lost", "", 0, float64(a.Lost), float64(b.Lost))
	}
	return all
}
