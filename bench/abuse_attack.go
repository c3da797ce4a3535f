package bench

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mailbell/mailbell/bench/attack"
	"github.com/mailbell/mailbell/bench/ledger"
	"github.com/mailbell/mailbell/bench/publisher"
	"github.com/mailbell/mailbell/bench/swarm"
)

// attackUntilOK tries again when latency alone was bad, which may have had other causes.
func (a *abuse) attackUntilOK(ctx context.Context, kind attack.Attack) (result AbuseAttack, err error) {
	for try := 1; try <= abuseTries; try++ {
		if result, err = a.attack(ctx, kind); err != nil {
			return result, err
		}
		result.Tries = try
		if result.OK || result.Problem != "" || result.HonestDisconnected > 0 || result.HonestLost > 0 {
			break
		}
	}
	a.cfg.Progress.say("%s: ok %v, p99 %.2f ms after %.2f ms", kind.Name, result.OK, result.HonestP99Ms, result.BaselineP99Ms)
	return result, nil
}

// attack measures the honest clients in peace, then under attack.
func (a *abuse) attack(ctx context.Context, kind attack.Attack) (AbuseAttack, error) {
	r := AbuseAttack{Name: kind.Name, What: kind.What}
	ctx, cancel := context.WithTimeout(ctx, 4*a.cfg.Duration+2*time.Minute)
	defer cancel()
	a.cfg.Progress.say("%s: in peace", kind.Name)
	baseline, err := a.peace(ctx)
	if err != nil {
		return r, err
	}
	a.cfg.Progress.say("%s: %s", kind.Name, kind.What)
	effect, err := a.effect(ctx, kind)
	if err != nil {
		return r, err
	}
	stop, err := a.begin(ctx, kind)
	if err != nil {
		return r, err
	}
	if kind.Sets {
		if _, err := a.grown(ctx, kind, effect, abuseSetting); err != nil {
			return r, err
		}
	}
	notifier := a.fleet.notifiers[0]
	cpu, start := 0.0, time.Now()
	if cpu, err = notifier.cpuSeconds(); err != nil {
		return r, err
	}
	war, err := a.publish(ctx, a.cfg.Duration)
	if err != nil {
		return r, err
	}
	after, err := notifier.cpuSeconds()
	if err != nil {
		return r, err
	}
	rss, err := notifier.memory("RssAnon")
	if err != nil {
		return r, err
	}
	if !kind.FewFiles { // then nobody can come
		if r.NewcomerMs, err = a.newcomer(ctx); err != nil {
			r.Problem = "a newcomer was kept out: " + err.Error()
		}
	}
	report, err := stop()
	if err != nil {
		return r, err
	}
	if r.Effect, err = a.grown(ctx, kind, effect, abuseAftermath); err != nil {
		return r, err
	}
	r.NotifierCores, r.NotifierMiB = round3((after-cpu)/time.Since(start).Seconds()), rss>>20
	r.Attempts, r.Failed, r.Entered = report.Attempts, report.Failed, report.Entered
	switch {
	case r.Problem != "":
	case r.Attempts == 0 || r.Effect == 0:
		r.Problem = strings.TrimSpace("it did not take place: none of " + strings.Join(kind.Effect, ", ") + " has grown. " + report.Problem)
	case kind.AllEnter && int(report.Entered) < a.connections(kind):
		r.Problem = strings.TrimSpace(fmt.Sprintf("only %d of %d clients got in. %s", report.Entered, a.connections(kind), report.Problem))
	}
	r.BaselineP99Ms, r.HonestP99Ms, r.HonestP50Ms = baseline, latencyMs(war.latencies).P99, latencyMs(war.latencies).P50
	r.HonestEvents, r.HonestDisconnected, r.HonestLost, r.HonestTold = war.events, war.disconnected, war.lost, war.told
	r.OK = r.Problem == "" && r.HonestDisconnected == 0 && r.HonestLost == 0 && r.HonestP99Ms <= max(2*r.BaselineP99Ms, r.BaselineP99Ms+abuseGraceMs)
	return r, nil
}

// peace is the p99 without attack. One that is much worse than the best so far is measured again: what the last attack left
// behind, or something else on the machine, must not excuse what this one does.
func (a *abuse) peace(ctx context.Context) (p99 float64, err error) {
	for range abuseTries {
		ph, err := a.publish(ctx, a.cfg.Duration/2)
		if err != nil {
			return 0, err
		}
		p99 = latencyMs(ph.latencies).P99
		if a.calmest == 0 || p99 <= 2*a.calmest {
			break
		}
	}
	if a.calmest == 0 || p99 < a.calmest {
		a.calmest = p99
	}
	return p99, nil
}

// begin starts the attackers and returns what ends them. They have the least claim to the machine's CPUs, since
// elsewhere they would have machines of their own.
func (a *abuse) begin(ctx context.Context, kind attack.Attack) (func() (attack.Report, error), error) {
	p, err := a.fleet.child([]string{"GOMAXPROCS=1"}, "attackers", "bench", "attack")
	if err != nil {
		return nil, err
	}
	yieldCPU(p.cmd.Process.Pid)
	restore, err := a.arrange(kind)
	if err != nil {
		return nil, err
	}
	err = p.say(attack.Config{Name: kind.Name, Target: a.fleet.sockets[0], Connections: a.connections(kind), KeyFile: a.fleet.keyFile, Accounts: kind.Accounts})
	if err != nil {
		return nil, err
	}
	if _, err := p.next(ctx); err != nil {
		return nil, err
	}
	var pouring *process
	if kind.NeedsEvents {
		if pouring, err = a.pour(ctx, kind.Accounts); err != nil {
			return nil, err
		}
	}
	return func() (last attack.Report, err error) {
		defer func() { err = errors.Join(err, restore()) }()
		if pouring != nil {
			pouring.stop()
		}
		if err := p.tell("finish"); err != nil {
			return last, err
		}
		for !last.Final {
			line, err := p.next(ctx)
			if err != nil {
				return last, err
			}
			if err := json.Unmarshal(line, &last); err != nil {
				return last, err
			}
		}
		return last, nil
	}, nil
}

// yieldCPU has a process run only where nobody else wants to, as if it were on a machine of its own: all threads that it has,
// since Linux schedules each by itself, and those that they start have it from them. A low priority would not do: a thread
// that wakes waits for the slice of one that runs with it, but not for an idle one's.
func yieldCPU(pid int) {
	threads, _ := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	for _, t := range threads {
		if id, err := strconv.Atoi(t.Name()); err == nil {
			_ = unix.SchedSetAttr(id, &unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_IDLE}, 0)
		}
	}
}

// pour publishes events for the attackers' own accounts until it is stopped.
func (a *abuse) pour(ctx context.Context, accounts uint32) (*process, error) {
	p, err := a.publisher(ctx, "pouring", a.fleet.run+1, 0, accounts)
	if err != nil {
		return nil, err
	}
	return p, p.say(publisher.Request{Trial: &publisher.Trial{PerSecond: 1000, Seconds: 3600}})
}

const (
	abuseSetting   = time.Minute // for an attack to take effect
	abuseAftermath = 5 * time.Second
	abusePatience  = 10 * time.Second // for a newcomer
)

// connections is how many the attack has.
func (a *abuse) connections(kind attack.Attack) int {
	if kind.OneAddress {
		return a.cfg.perAddress() + 200
	}
	return max(1, kind.AtLeast, int(float64(kind.Connections)*a.cfg.Scale))
}

// arrange does to the notifier's surroundings what the attack is about, and returns what undoes it.
func (a *abuse) arrange(kind attack.Attack) (restore func() error, err error) {
	switch {
	case kind.SlowKeys:
		a.fleet.keys.slow.Store(true)
		return func() error { a.fleet.keys.slow.Store(false); return nil }, nil
	case kind.FewFiles:
		return a.fewFiles(a.connections(kind) * 4 / 5)
	}
	return func() error { return nil }, nil
}

// fewFiles lets the notifier open so many more files at most.
func (a *abuse) fewFiles(more int) (restore func() error, err error) {
	pid := a.fleet.notifiers[0].cmd.Process.Pid
	open, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil {
		return nil, fmt.Errorf("count the notifier's files: %w", err)
	}
	var was unix.Rlimit
	if err := unix.Prlimit(pid, unix.RLIMIT_NOFILE, nil, &was); err != nil {
		return nil, fmt.Errorf("limit the notifier's files: %w", err)
	}
	few := unix.Rlimit{Cur: min(was.Cur, uint64(len(open)+more)), Max: was.Max}
	if err := unix.Prlimit(pid, unix.RLIMIT_NOFILE, &few, nil); err != nil {
		return nil, fmt.Errorf("limit the notifier's files: %w", err)
	}
	return func() error { return unix.Prlimit(pid, unix.RLIMIT_NOFILE, &was, nil) }, nil
}

// effect is the sum of the metrics that the attack is about.
func (a *abuse) effect(ctx context.Context, kind attack.Attack) (sum float64, err error) {
	for _, name := range kind.Effect {
		found, err := scrape(ctx, &a.client, a.fleet.ops[0], name)
		if err != nil {
			return 0, err
		}
		for _, v := range found {
			sum += v
		}
	}
	return sum, nil
}

// grown waits until the attack has had an effect, for a while, and returns how much.
func (a *abuse) grown(ctx context.Context, kind attack.Attack, before float64, patience time.Duration) (float64, error) {
	for start := time.Now(); ; {
		now, err := a.effect(ctx, kind)
		if err != nil || now > before || time.Since(start) > patience {
			return now - before, err
		}
		if err := pause(ctx, 50*time.Millisecond); err != nil {
			return 0, err
		}
	}
}

// newcomer is how long it takes one more honest client to be let in.
func (a *abuse) newcomer(ctx context.Context) (ms float64, err error) {
	m, err := swarm.NewMinter(a.fleet.keyFile)
	if err != nil {
		return 0, err
	}
	token, err := m.Mint(ledger.AccountName(abuseAttackers - 1))
	if err != nil {
		return 0, err
	}
	start := time.Now()
	d := net.Dialer{Deadline: start.Add(abusePatience), LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 3, 0, 1)}}
	conn, err := d.DialContext(ctx, "tcp4", a.fleet.sockets[0])
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	_ = conn.SetDeadline(start.Add(abusePatience))
	if _, err := conn.Write(swarm.AppendHandshake(nil, a.fleet.sockets[0], token)); err != nil {
		return 0, err
	}
	answer, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		return 0, err
	}
	_ = answer.Body.Close()
	if answer.StatusCode != http.StatusSwitchingProtocols {
		return 0, errors.New(answer.Status)
	}
	return round3(time.Since(start).Seconds() * 1000), nil
}
