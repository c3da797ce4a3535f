package report

import (
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"

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
		all = append(all, fmt.Sprintf("After an outage of all servers for %.0f s, counted from the moment in which they listened again: everybody was served again after %s by polling and %s by pushing, and knew of everything after %s and %s. Changes lost: %d and %d.",
			s.OutageSeconds, a.After(a.EveryoneBackMs), b.After(b.EveryoneBackMs), a.After(a.CaughtUpMs), b.After(b.CaughtUpMs), a.Lost, b.Lost))
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

// none stands where a figure is missing or means nothing.
const none = "–"

// fixed groups the thousands.
func fixed(v float64, digits int) string {
	whole, rest, _ := strings.Cut(strconv.FormatFloat(v, 'f', digits, 64), ".")
	for i := len(whole) - 3; i > 0 && whole[i-1] != '-'; i -= 3 {
		whole = whole[:i] + "," + whole[i:]
	}
	if rest == "" {
		return whole
	}
	return whole + "." + rest
}

func orNone(v *float64, digits int) string {
	if v == nil {
		return none
	}
	return fixed(*v, digits)
}

// table collects rows.
type table struct {
	poll, push, bare bench.CompareFigures
	rows             []row
}

// all adds a figure that the three columns have.
func (t *table) all(name, unit string, digits int, value func(bench.CompareFigures) float64) {
	t.rows = append(t.rows, row{name, unit, fixed(value(t.poll), digits), fixed(value(t.push), digits), fixed(value(t.bare), digits)})
}

// two adds a figure that only the two sides have.
func (t *table) two(name, unit string, digits int, a, b float64) {
	t.rows = append(t.rows, row{Name: name, Unit: unit, Poll: fixed(a, digits), Push: fixed(b, digits)})
}

func rows(r bench.CompareResult) []row {
	t := &table{poll: r.Poll.CompareFigures, push: r.Push.CompareFigures, bare: *r.Push.WithoutFetch}
	t.load()
	t.cpu()
	t.resources()
	t.knowledge()
	t.two("from a request to its answer, p50", "ms", 2, r.Poll.AnswerMs.P50, r.Push.AnswerMs.P50)
	t.two("from a request to its answer, p99", "ms", 2, r.Poll.AnswerMs.P99, r.Push.AnswerMs.P99)
	t.two("from a request to its answer, max", "ms", 2, r.Poll.AnswerMs.Max, r.Push.AnswerMs.Max)
	t.rows = append(t.rows, row{Name: "cores that other programs used meanwhile", Poll: orNone(t.poll.OtherCores, 2), Push: orNone(t.push.OtherCores, 2)})
	if r.Poll.DeliveryCPUMs > 0 || r.Push.DeliveryCPUMs > 0 {
		t.two("CPU of a delivery, which is in no other figure", "ms", 2, r.Poll.DeliveryCPUMs, r.Push.DeliveryCPUMs)
	}
	t.stretch("nobody connected", r.Poll.Empty, r.Push.Empty)
	t.stretch("to bring everybody up", r.Poll.Connect, r.Push.Connect)
	t.stretch("quiet stretch", r.Poll.Quiet, r.Push.Quiet)
	if a, b := r.Poll.Outage, r.Push.Outage; a != nil && b != nil {
		t.outage(a, b)
	}
	return t.rows
}

func (t *table) load() {
	t.all("changes in the mail store", "", 0, func(f bench.CompareFigures) float64 { return float64(f.Changes) })
	t.all("requests", "1/s", 1, func(f bench.CompareFigures) float64 { return f.RequestsPerSecond })
	t.all("events", "1/s", 1, func(f bench.CompareFigures) float64 { return f.EventsPerSecond })
	t.all("answered by 304", "%", 1, func(f bench.CompareFigures) float64 { return 100 * f.NotModifiedShare })
	t.all("polls that fell due while one was under way", "", 0, func(f bench.CompareFigures) float64 { return float64(f.Late) })
	t.all("requests without an answer", "", 0, func(f bench.CompareFigures) float64 { return float64(f.Failed) })
	t.all("connections opened for requests", "", 0, func(f bench.CompareFigures) float64 { return float64(f.Connects) })
}

func (t *table) cpu() {
	t.all("server CPU", "s", 3, func(f bench.CompareFigures) float64 { return f.CPUSeconds })
	t.all("of it user", "s", 3, func(f bench.CompareFigures) float64 { return f.CPUUserSeconds })
	t.all("of it system", "s", 3, func(f bench.CompareFigures) float64 { return f.CPUSystemSeconds })
	names := make(map[string]bool)
	sides := []bench.CompareFigures{t.poll, t.push, t.bare}
	for _, f := range sides {
		for name := range f.CPUByProcess {
			names[name] = true
		}
	}
	for _, name := range slices.Sorted(maps.Keys(names)) {
		var cells [3]string
		for i, f := range sides {
			cells[i] = none
			if v, ok := f.CPUByProcess[name]; ok {
				cells[i] = fixed(v, 3)
			}
		}
		t.rows = append(t.rows, row{"of it the process " + name, "s", cells[0], cells[1], cells[2]})
	}
	t.all("server CPU per user-hour", "s", 4, func(f bench.CompareFigures) float64 { return f.PerUserHour.CPUSeconds })
}

func (t *table) resources() {
	t.all("bytes to the servers", "kB", 1, func(f bench.CompareFigures) float64 { return float64(f.BytesIn) / 1e3 })
	t.all("bytes to the clients", "kB", 1, func(f bench.CompareFigures) float64 { return float64(f.BytesOut) / 1e3 })
	t.all("bytes per user-hour", "kB", 2, func(f bench.CompareFigures) float64 { return f.PerUserHour.Bytes / 1e3 })
	t.all("resident memory of the servers", "MiB", 1, func(f bench.CompareFigures) float64 { return float64(f.ResidentBytes) / (1 << 20) })
	t.all("server sockets", "", 0, func(f bench.CompareFigures) float64 { return float64(f.Sockets) })
	t.all("kernel memory of those sockets", "MiB", 2, func(f bench.CompareFigures) float64 { return float64(f.KernelBytes) / (1 << 20) })
	t.all("reads of the mail store", "", 0, func(f bench.CompareFigures) float64 { return float64(f.StoreReads) })
	t.all("reads of the mail store per user-hour", "", 1, func(f bench.CompareFigures) float64 { return f.PerUserHour.StoreReads })
}

func (t *table) knowledge() {
	t.all("user knows, p50", "ms", 2, func(f bench.CompareFigures) float64 { return f.LatencyMs.P50 })
	t.all("user knows, p90", "ms", 2, func(f bench.CompareFigures) float64 { return f.LatencyMs.P90 })
	t.all("user knows, p99", "ms", 2, func(f bench.CompareFigures) float64 { return f.LatencyMs.P99 })
	t.all("user knows, max", "ms", 2, func(f bench.CompareFigures) float64 { return f.LatencyMs.Max })
	t.all("changes that a user never knew of", "", 0, func(f bench.CompareFigures) float64 { return float64(f.Unknown) })
}

func (t *table) stretch(name string, a, b bench.CompareStretch) {
	t.two(name+": time", "s", 1, a.Seconds, b.Seconds)
	t.two(name+": CPU", "s", 3, a.CPUSeconds, b.CPUSeconds)
	t.two(name+": requests", "", 0, float64(a.Requests), float64(b.Requests))
	t.two(name+": bytes both ways", "kB", 1, float64(a.BytesIn+a.BytesOut)/1e3, float64(b.BytesIn+b.BytesOut)/1e3)
}

func (t *table) outage(a, b *bench.CompareOutage) {
	t.two("outage: servers down for", "s", 1, a.Seconds, b.Seconds)
	t.two("outage: changes in it and in the recovery", "", 0, float64(a.Changes), float64(b.Changes))
	t.rows = append(t.rows,
		row{Name: "outage: everybody served again after", Poll: a.After(a.EveryoneBackMs), Push: b.After(b.EveryoneBackMs)},
		row{Name: "outage: everybody knows after", Poll: a.After(a.CaughtUpMs), Push: b.After(b.CaughtUpMs)})
	t.two("outage: user knows, p50", "s", 2, a.LatencyMs.P50/1e3, b.LatencyMs.P50/1e3)
	t.two("outage: user knows, p99", "s", 2, a.LatencyMs.P99/1e3, b.LatencyMs.P99/1e3)
	t.two("outage: user knows, max", "s", 2, a.LatencyMs.Max/1e3, b.LatencyMs.Max/1e3)
	t.two("outage: CPU from the servers' start to the end", "s", 3, a.CPUSeconds, b.CPUSeconds)
	t.two("outage: bytes to the servers", "kB", 1, float64(a.BytesIn)/1e3, float64(b.BytesIn)/1e3)
	t.two("outage: bytes to the clients", "kB", 1, float64(a.BytesOut)/1e3, float64(b.BytesOut)/1e3)
	t.two("outage: highest rate of requests", "1/s", 0, a.PeakRequests, b.PeakRequests)
	t.two("outage: most cores", "", 2, a.PeakCores, b.PeakCores)
	t.two("outage: tries of clients in vain", "", 0, float64(a.Failed), float64(b.Failed))
	t.two("outage: changes lost", "", 0, float64(a.Lost), float64(b.Lost))
}
