// Package roundcube measures what a real webmail costs that polls, and what the same webmail costs with mailbell's plugin:
// Debian's Roundcube, nginx, php-fpm and Dovecot, with users that are signed in over HTTP.
//
// A user asks what the page's JavaScript asks, at the times at which it does; in between nothing is simulated. Time is
// squeezed by a factor: a poll each minute becomes one each second, and the CPU time of each request is what it is. So
// are the notifier's pings.
// What runs whatever the users do, mailbell's own idling, is measured apart and not squeezed.
//
// Each user of a running side has goroutines, which end with it.
package roundcube

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// maxSqueeze leaves a second between two pings, which is what a busy machine may need for an answer.
const maxSqueeze = 50

// The page shows INBOX; mixedElsewhere is the part of Mixed's changes that come into another folder.
const (
	openFolder     = "INBOX"
	otherFolder    = "Lists"
	mixedElsewhere = 0.5
)

// Config of a comparison. The zero value is 20 users with a refresh interval of a minute and 6 changes an hour.
type Config struct {
	Users           int           // signed in, each in a session of its own; 0 = 20
	PushUsers       int           // of the pushing side; 0 = Users. A request costs more where they are rare, so who compares servers that are as busy has more of them
	IdlePushUsers   int           // the same, while nothing changes; 0 = PushUsers
	Interval        time.Duration // between a user's refreshes without the plugin; 0 = 1 min, Roundcube's default
	SlowRefresh     time.Duration // with the plugin; 0 = 1 h
	SessionLifetime time.Duration // of Roundcube; 0 = 1 h. The plugin keeps alive at three quarters of it
	ChangeRate      float64       // messages that a user gets in an hour; 0 = 6. Idle users are measured too
	Messages        int           // in each INBOX at the start; 0 = 50, a full page
	Span            time.Duration // of users' time, for each measurement; 0 = 1 h
	Squeeze         float64       // users' time over the machine's; 0 = 50, which is the most
	Seed            uint64
	Binary          string                           // mailbell
	Say             func(format string, args ...any) // progress; nil says nothing
}

// Validate says what is wrong with the configuration.
func (c Config) Validate() error {
	c = c.withDefaults()
	switch {
	case c.Users < 1 || c.Users > 500:
		return errors.New("bench compare: --users must be from 1 to 500 with --store roundcube: each is a session of PHP")
	case c.PushUsers < 1 || c.PushUsers > 500 || c.IdlePushUsers < c.PushUsers || c.IdlePushUsers > 500:
		return errors.New("bench compare: --push-users and --idle-push-users must be from 1 to 500, and the idle ones not fewer")
	case c.Interval < time.Second || c.Interval > time.Hour:
		return errors.New("bench compare: --poll-interval must be from 1s to 1h")
	case !(c.ChangeRate >= 0) || c.ChangeRate > 1000:
		return errors.New("bench compare: --change-rate must be from 0 to 1000")
	case c.Span < time.Minute || c.Squeeze < 1 || c.Span.Seconds()/c.Squeeze < 5:
		return errors.New("bench compare: --span over --squeeze must be at least 5s of the machine's time")
	case c.Squeeze > maxSqueeze:
		return fmt.Errorf("bench compare: --squeeze must be %d at most: sockets are pinged every 50s of users' time, and need a second for it", maxSqueeze)
	case c.Messages < 0 || c.Messages > 1000:
		return errors.New("bench compare: at most 1000 messages in an INBOX")
	case c.SessionLifetime < 2*time.Minute:
		return errors.New("bench compare: --session-lifetime must be at least 2m")
	}
	return nil
}

func (c Config) withDefaults() Config {
	fill := func(d *time.Duration, v time.Duration) {
		if *d == 0 {
			*d = v
		}
	}
	fill(&c.Interval, time.Minute)
	fill(&c.SlowRefresh, time.Hour)
	fill(&c.SessionLifetime, time.Hour)
	fill(&c.Span, time.Hour)
	if c.Users == 0 {
		c.Users = 20
	}
	if c.PushUsers == 0 {
		c.PushUsers = c.Users
	}
	if c.IdlePushUsers == 0 {
		c.IdlePushUsers = c.PushUsers
	}
	if c.ChangeRate == 0 {
		c.ChangeRate = 6
	}
	if c.Messages == 0 {
		c.Messages = 50
	}
	if c.Squeeze == 0 {
		c.Squeeze = maxSqueeze
	}
	if c.Say == nil {
		c.Say = func(string, ...any) {}
	}
	return c
}

// real is how long users' time takes here.
func (c Config) real(d time.Duration) time.Duration { return time.Duration(float64(d) / c.Squeeze) }

// Result of a comparison.
type Result struct {
	Settings Settings `json:"settings"`
	// Users that get mail into the open folder, users that get half of it elsewhere, and users that get none.
	Busy  Pair `json:"busy"`
	Mixed Pair `json:"mixed"`
	Idle  Pair `json:"idle"`
	// MailbellIdleCores is what mailbell uses without sockets. It is in no figure but Sites.
	MailbellIdleCores float64 `json:"mailbellIdleCores"`
	// DeliveryCPUMs is what Dovecot uses for one delivery that nobody hears of. It is taken out of both sides' figures, so
	// that what is left is what being told costs.
	DeliveryCPUMs float64 `json:"deliveryCpuMs"`
	// KeepAliveCPUMs is what one keep-alive of a session costs nginx and PHP.
	KeepAliveCPUMs float64 `json:"keepAliveCpuMs"`
	// Lifetimes are the ratios of CPU as they would be with other session lifetimes: the measured ones, with the
	// keep-alives of that lifetime in place of those that were measured.
	Lifetimes []Lifetime `json:"lifetimes"`
	Sites     []Site     `json:"sites"`
}

// Settings are the configuration as it was used.
type Settings struct {
	Store                  string  `json:"store"`
	Users                  int     `json:"users"`
	PushUsers              int     `json:"pushUsers"`
	IdlePushUsers          int     `json:"idlePushUsers"`
	IntervalSeconds        float64 `json:"intervalSeconds"`
	SlowRefreshSeconds     float64 `json:"slowRefreshSeconds"`
	SessionLifetimeSeconds float64 `json:"sessionLifetimeSeconds"`
	ChangesPerHour         float64 `json:"changesPerHour"`
	Messages               int     `json:"messages"`
	SpanSeconds            float64 `json:"spanSeconds"`
	Squeeze                float64 `json:"squeeze"`
}

// Pair is users without and with the plugin. The ratios are for as many of them.
type Pair struct {
	Poll  Figures `json:"poll"`
	Push  Figures `json:"push"`
	Ratio struct {
		CPU      float64 `json:"cpu"`
		Bytes    float64 `json:"bytes"`
		Requests float64 `json:"requests"`
	} `json:"ratio"`
}

// conclude reckons the ratios, for a user of either side.
func (p *Pair) conclude(pollUsers, pushUsers float64) {
	p.Ratio.CPU = ratio(p.Poll.CPUMsPerUserHour, p.Push.CPUMsPerUserHour)
	p.Ratio.Bytes = ratio(p.Poll.bytes()/pollUsers, p.Push.bytes()/pushUsers)
	p.Ratio.Requests = ratio(float64(p.Poll.Requests)/pollUsers, float64(p.Push.Requests)/pushUsers)
}

// Lifetime is what a session's lifetime makes of the ratios.
type Lifetime struct {
	Seconds float64 `json:"seconds"`
	Busy    float64 `json:"busyCpuRatio"`
	Idle    float64 `json:"idleCpuRatio"`
}

// Figures of one side. CPU is of nginx, php-fpm, Dovecot and mailbell, without deliveries and mailbell's idling. Both are
// measured apart and taken out as they are: a part that did next to nothing may come out a little below zero.
type Figures struct {
	CPUSeconds         float64            `json:"cpuSeconds"`
	CPUMsPerUserHour   float64            `json:"cpuMsPerUserHour"`
	ByProcess          map[string]float64 `json:"cpuSecondsByProcess"`
	Requests           int                `json:"requests"`
	RequestsByAction   map[string]int     `json:"requestsByAction"`
	Failed             int                `json:"failed"`
	BytesIn            int64              `json:"bytesIn"`  // to nginx, HTTP only
	BytesOut           int64              `json:"bytesOut"` // from nginx, HTTP only
	SocketBytesIn      int64              `json:"socketBytesIn"`
	SocketBytesOut     int64              `json:"socketBytesOut"`
	Changes            int                `json:"changes"`   // in the open folder
	Elsewhere          int                `json:"elsewhere"` // changes in another one
	Unseen             int                `json:"unknown"`   // changes that no answer came after
	SecondsToKnowMean  float64            `json:"secondsToKnowMean"`
	SecondsToKnowWorst float64            `json:"secondsToKnowWorst"`
}

// bytes is what went over the wire, both ways.
func (f Figures) bytes() float64 {
	return float64(f.BytesIn + f.BytesOut + f.SocketBytesIn + f.SocketBytesOut)
}

// Site is what a site of some users would need, if costs grow with users.
type Site struct {
	Users     int     `json:"users"`
	PollCores float64 `json:"pollCores"`
	PushCores float64 `json:"pushCores"` // mailbell's idling included
	Ratio     float64 `json:"ratio"`
	// The same, of users that get no mail.
	IdlePollCores float64 `json:"idlePollCores"`
	IdlePushCores float64 `json:"idlePushCores"`
	IdleRatio     float64 `json:"idleRatio"`
}

// Broken tells whether the promise was: a user with the plugin was not told of a change, or a request failed.
func (r Result) Broken() error {
	for name, f := range map[string]Figures{"polling": r.Busy.Poll, "pushing": r.Busy.Push, "polling, half elsewhere": r.Mixed.Poll, "pushing, half elsewhere": r.Mixed.Push, "idle polling": r.Idle.Poll, "idle pushing": r.Idle.Push} {
		if f.Failed > 0 {
			return fmt.Errorf("bench compare: %s: %d requests failed", name, f.Failed)
		}
	}
	if unseen := r.Busy.Push.Unseen + r.Mixed.Push.Unseen; unseen > 0 {
		return fmt.Errorf("bench compare: %d changes were never shown", unseen)
	}
	return nil
}

// Compare measures both sides, with mail and without.
func Compare(ctx context.Context, cfg Config) (Result, error) {
	if err := cfg.Validate(); err != nil {
		return Result{}, err
	}
	cfg = cfg.withDefaults()
	r := Result{Settings: Settings{
		Store: "roundcube", Users: cfg.Users, PushUsers: cfg.PushUsers, IdlePushUsers: cfg.IdlePushUsers, IntervalSeconds: cfg.Interval.Seconds(), SlowRefreshSeconds: cfg.SlowRefresh.Seconds(),
		SessionLifetimeSeconds: cfg.SessionLifetime.Seconds(), ChangesPerHour: cfg.ChangeRate, Messages: cfg.Messages, SpanSeconds: cfg.Span.Seconds(), Squeeze: cfg.Squeeze,
	}}
	for _, push := range []bool{false, true} {
		s, err := startSide(ctx, cfg, push)
		if err != nil {
			return r, err
		}
		err = s.measure(ctx, &r)
		s.stop()
		if err != nil {
			return r, err
		}
	}
	r.Busy.conclude(float64(cfg.Users), float64(cfg.PushUsers))
	r.Mixed.conclude(float64(cfg.Users), float64(cfg.PushUsers))
	r.Idle.conclude(float64(cfg.Users), float64(cfg.IdlePushUsers))
	for _, users := range []int{1000, 10_000, 50_000} {
		r.Sites = append(r.Sites, r.site(users))
	}
	for _, lifetime := range []time.Duration{10 * time.Minute, time.Hour} {
		r.Lifetimes = append(r.Lifetimes, r.lifetime(lifetime))
	}
	return r, nil
}

func (r Result) site(users int) Site {
	s := Site{
		Users: users, PollCores: cores(r.Busy.Poll, users), PushCores: cores(r.Busy.Push, users) + r.MailbellIdleCores,
		IdlePollCores: cores(r.Idle.Poll, users), IdlePushCores: cores(r.Idle.Push, users) + r.MailbellIdleCores,
	}
	s.Ratio, s.IdleRatio = ratio(s.PollCores, s.PushCores), ratio(s.IdlePollCores, s.IdlePushCores)
	return s
}

func (r Result) lifetime(d time.Duration) Lifetime {
	perHour := func(seconds float64) float64 { return 3600 / (keepAlive * seconds) }
	more := r.KeepAliveCPUMs * (perHour(d.Seconds()) - perHour(r.Settings.SessionLifetimeSeconds))
	return Lifetime{
		Seconds: d.Seconds(),
		Busy:    ratio(r.Busy.Poll.CPUMsPerUserHour, r.Busy.Push.CPUMsPerUserHour+more),
		Idle:    ratio(r.Idle.Poll.CPUMsPerUserHour, r.Idle.Push.CPUMsPerUserHour+more),
	}
}

func ratio(a, b float64) float64 {
	if b <= 0 {
		return 0
	}
	return a / b
}

func cores(f Figures, users int) float64 { return f.CPUMsPerUserHour / 1000 / 3600 * float64(users) }
