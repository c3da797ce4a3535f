// Package attack is the hostile clients of `bench abuse`: each attack is a way to hurt a notifier that somebody with
// a socket has. A bench starts an attack as a process of its own (see Serve), against a notifier of its own on
// loopback; the package talks to nothing else.
//
// Each connection has a goroutine, which all end before Serve returns.
package attack

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mailbell/mailbell/bench/ledger"
	"github.com/mailbell/mailbell/bench/swarm"
)

// Config is the first line that Serve reads.
type Config struct {
	Name        string `json:"name"`
	Target      string `json:"target"` // host:port on loopback
	Connections int    `json:"connections"`
	KeyFile     string `json:"keyFile"` // attackers have accounts of their own
	First       uint32 `json:"first"`   // the number of the first of these
	Accounts    uint32 `json:"accounts,omitempty"`
}

// Report is what Serve answers: once under way, and at the end.
type Report struct {
	Attempts int64  `json:"attempts"` // connections, or frames where that is what it floods with
	Open     int64  `json:"open"`     // connections now
	Entered  int64  `json:"entered"`  // of the clients, who has been let in at least once
	Failed   int64  `json:"failed"`   // connections that the notifier did not take
	Problem  string `json:"problem,omitempty"`
	Final    bool   `json:"final,omitempty"`
}

// Attack is one of them.
type Attack struct {
	Name        string
	What        string
	Connections int      // at once, at full size
	AtLeast     int      // however small the scale is
	Accounts    uint32   // that its clients have; 0 = each its own
	Effect      []string // the notifier's metrics of which at least one grows, or it was no attack
	Sets        bool     // nothing is measured before the effect is there

	// What it needs of the bench.
	NeedsEvents bool // for the accounts that it subscribes to
	OneAddress  bool // it comes from one address, and has more connections than one may have
	FewFiles    bool // descriptors for most of its connections, not for all
	SlowKeys    bool // the source of keys takes long
	AllEnter    bool // each client has to be let in
	run         func(*attacker, context.Context, int)
}

// Find returns the attack of that name.
func Find(name string) (Attack, bool) {
	for _, a := range All() {
		if a.Name == name {
			return a, true
		}
	}
	return Attack{}, false
}

// attacker is a running attack.
type attacker struct {
	// Static after construction.
	cfg    Config
	attack Attack
	target netip.AddrPort

	attempts, open, failed atomic.Int64
	problem                atomic.Value
	entered                []atomic.Bool // by client

	mu     sync.Mutex
	minter *swarm.Minter // guarded by mu
}

// Serve attacks until its input ends or says "finish".
func Serve(ctx context.Context, in io.Reader, out io.Writer) error {
	lines := bufio.NewReader(in)
	first, err := lines.ReadBytes('\n')
	if err != nil {
		return fmt.Errorf("attack: read configuration: %w", err)
	}
	a := &attacker{}
	if err := json.Unmarshal(first, &a.cfg); err != nil {
		return fmt.Errorf("attack: read configuration: %w", err)
	}
	if err := a.prepare(); err != nil {
		return fmt.Errorf("attack: %w", err)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() { // ends with its input, and the process with it
		_, _ = lines.ReadString('\n')
		cancel()
	}()
	var clients sync.WaitGroup
	for i := range a.cfg.Connections {
		clients.Go(func() { a.client(ctx, i) })
	}
	enc := json.NewEncoder(out)
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for ctx.Err() == nil {
		select {
		case <-ctx.Done():
		case <-tick.C:
			if err := enc.Encode(a.report(false)); err != nil {
				cancel()
			}
		}
	}
	clients.Wait()
	return enc.Encode(a.report(true))
}

func (a *attacker) prepare() (err error) {
	var ok bool
	if a.attack, ok = Find(a.cfg.Name); !ok {
		return fmt.Errorf("no attack is named %q", a.cfg.Name)
	}
	if a.target, err = netip.ParseAddrPort(a.cfg.Target); err != nil {
		return err
	}
	if !a.target.Addr().IsLoopback() {
		return errors.New("the target must be on loopback")
	}
	a.entered = make([]atomic.Bool, a.cfg.Connections)
	a.minter, err = swarm.NewMinter(a.cfg.KeyFile)
	return err
}

func (a *attacker) report(final bool) Report {
	entered := int64(0)
	for i := range a.entered {
		if a.entered[i].Load() {
			entered++
		}
	}
	r := Report{Entered: entered, Attempts: a.attempts.Load(), Open: a.open.Load(), Failed: a.failed.Load(), Final: final}
	r.Problem, _ = a.problem.Load().(string)
	return r
}

// client repeats the attack. They start over a few seconds, as many as two cores can also bring about.
func (a *attacker) client(ctx context.Context, i int) {
	if wait(ctx, time.Duration(i)*300*time.Microsecond) != nil {
		return
	}
	for ctx.Err() == nil {
		a.attack.run(a, ctx, i)
		if a.attack.Connections > 1000 && wait(ctx, time.Second) != nil {
			return
		}
	}
}

func wait(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}

// client is a connection of an attacker.
type client struct {
	*net.TCPConn
	a    *attacker
	stop func() bool // forgets about the end of the attack
}

// dial connects from a loopback address that it shares with 200 others, or with all.
func (a *attacker) dial(ctx context.Context, i int) (*client, error) {
	from := net.IPv4(127, 66, byte(i/200/200), byte(1+i/200%200))
	if a.attack.OneAddress {
		from = net.IPv4(127, 67, 0, 1)
	}
	d := net.Dialer{
		Timeout:   10 * time.Second,
		LocalAddr: &net.TCPAddr{IP: from},
		Control: func(_, _ string, c syscall.RawConn) error {
			return c.Control(func(fd uintptr) {
				_ = unix.SetsockoptInt(int(fd), unix.SOL_IP, unix.IP_BIND_ADDRESS_NO_PORT, 1)
				if a.attack.NeedsEvents { // before it connects: a window that has been offered is not taken back
					_ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF, 2048)
				}
			})
		},
	}
	conn, err := d.DialContext(ctx, "tcp4", a.target.String())
	if err != nil {
		a.failed.Add(1)
		if ctx.Err() == nil {
			a.problem.Store(err.Error())
			_ = wait(ctx, 100*time.Millisecond)
		}
		return nil, err
	}
	a.open.Add(1)
	c := &client{TCPConn: conn.(*net.TCPConn), a: a}
	c.stop = context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	return c, nil
}

// end closes with a reset: an attacker keeps no TIME_WAIT for himself.
func (c *client) end() {
	c.stop()
	_ = c.SetLinger(0)
	_ = c.Close()
	c.a.open.Add(-1)
}

// outlast reads until the notifier closes or the attack ends.
func (c *client) outlast() { _, _ = io.Copy(io.Discard, c.TCPConn) }

func (a *attacker) account(i int) string {
	n := uint32(i)
	if a.cfg.Accounts > 0 {
		n %= a.cfg.Accounts
	}
	return ledger.AccountName(a.cfg.First + n)
}

// enter connects, shakes hands with a good token, and waits for the 101.
func (a *attacker) enter(ctx context.Context, i int) (*client, error) {
	c, err := a.dial(ctx, i)
	if err != nil {
		return nil, err
	}
	a.mu.Lock()
	token, err := a.minter.Mint(a.account(i))
	a.mu.Unlock()
	if err == nil {
		_, err = c.Write(swarm.AppendHandshake(nil, a.cfg.Target, token))
	}
	if err == nil {
		err = c.admitted()
	}
	if err != nil {
		a.failed.Add(1)
		if ctx.Err() == nil {
			a.problem.Store(err.Error())
			_ = wait(ctx, 100*time.Millisecond)
		}
		c.end()
		return nil, err
	}
	a.entered[i].Store(true)
	return c, nil
}

func (c *client) admitted() error {
	b := make([]byte, 4096)
	n := 0
	for n < len(b) {
		k, err := c.Read(b[n:])
		if err != nil {
			return err
		}
		n += k
		if answer := string(b[:n]); len(answer) > 12 && answer[n-4:] == "\r\n\r\n" {
			if answer[9:12] != "101" {
				return errors.New("handshake: " + answer[9:12])
			}
			return nil
		}
	}
	return errors.New("handshake: a long answer")
}
