package roundcube

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/mailbell/mailbell/internal/auth"
	"github.com/mailbell/mailbell/internal/dovecotproc"
	"github.com/mailbell/mailbell/internal/roundcubeproc"
)

const (
	startTimeout = 10 * time.Minute
	stopTimeout  = 10 * time.Second
	deliveries   = 200                    // by which the cost of one is measured
	idleTime     = 10 * time.Second       // for which mailbell's idling is measured
	window       = 500 * time.Millisecond // in which the plugin makes one refresh of several changes
	keepAlive    = 0.75                   // of the session's lifetime, as the plugin has it
	keepAlives   = 200                    // by which the cost of one is measured
	pingInterval = 50 * time.Second       // of a notifier, unless told otherwise
)

// side is one way of using Roundcube: its servers and users.
type side struct {
	cfg   Config
	push  bool
	dir   string
	bell  *exec.Cmd // nil without push
	log   bytes.Buffer
	mail  *dovecotproc.Server
	web   *roundcubeproc.Server
	roots map[string]int // processes by name
	users []*user

	sockets   []func() // each closes one
	idleCores float64  // mailbell's, without sockets
	transport *http.Transport
	failures  failures
	elsewhere atomic.Int64 // deliveries into another folder than the open one
}

// failures collects what requests failed with.
type failures struct {
	mu    sync.Mutex
	count int   // guarded by mu
	first error // guarded by mu
}

func (f *failures) add(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.count++
	if f.first == nil {
		f.first = err
	}
}

func startSide(ctx context.Context, cfg Config, push bool) (*side, error) {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	s := &side{cfg: cfg, push: push, roots: make(map[string]int), transport: &http.Transport{MaxIdleConnsPerHost: max(cfg.Users, cfg.IdlePushUsers)}}
	if err := s.start(ctx); err != nil {
		s.stop()
		return nil, fmt.Errorf("%w\n%s", err, &s.log)
	}
	return s, nil
}

func (s *side) start(ctx context.Context) error {
	var err error
	if s.dir, err = os.MkdirTemp("", "mailbell-bench-"); err != nil {
		return err
	}
	http, sockets, err := twoAddresses()
	if err != nil {
		return err
	}
	token, line, err := auth.NewServiceToken("roundcube", auth.ScopeConnect)
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(s.dir, "service-tokens"), []byte(line+"\n"), 0o600); err != nil {
		return err
	}
	mail := dovecotproc.Options{}
	web := roundcubeproc.Options{
		Workers: 4,
		Config:  fmt.Sprintf("$config['refresh_interval'] = %d; $config['session_lifetime'] = %d;", int(s.cfg.Interval.Seconds()), int(s.cfg.SessionLifetime.Minutes())),
	}
	if s.push {
		module, err := roundcubeproc.ModuleDir()
		if err != nil {
			return err
		}
		mail.AgentURL = "http://" + http
		web.Plugins, web.Notifier = []string{filepath.Join(module, "deploy", "roundcube", "mailbell")}, sockets
		web.Config += fmt.Sprintf("\n$config['mailbell_gateway'] = 'http://%s/v1/connect'; $config['mailbell_token'] = '%s';", http, token)
	}
	if s.mail, err = dovecotproc.Start(ctx, mail); err != nil {
		return err
	}
	web.IMAPAddr = s.mail.IMAPAddr()
	if s.web, err = roundcubeproc.Start(ctx, web); err != nil {
		return err
	}
	pid, err := os.ReadFile(filepath.Join(s.mail.Dir(), "run", "master.pid"))
	if err != nil {
		return err
	}
	if s.roots["dovecot"], err = strconv.Atoi(strings.TrimSpace(string(pid))); err != nil {
		return err
	}
	for name, pid := range s.web.PIDs() {
		s.roots[name] = pid
	}
	if s.push {
		if err := s.startBell(ctx, http, sockets); err != nil {
			return err
		}
		if err := s.measureIdling(ctx); err != nil {
			return err
		}
	}
	if s.push {
		return s.signIn(ctx, s.cfg.PushUsers)
	}
	return s.signIn(ctx, s.cfg.Users)
}

func (s *side) startBell(ctx context.Context, http, sockets string) error {
	// A notifier looks for sockets to ping when the answers to the last ones are due, at the latest.
	ping := s.cfg.real(pingInterval).String()
	s.bell = exec.Command(s.cfg.Binary, "run", "--data", filepath.Join(s.dir, "data"), "--dovecot", "--demo=false", "--http", http, "--sockets", sockets,
		"--link", "127.0.0.1:0", "--ops", "127.0.0.1:0", "--service-tokens", filepath.Join(s.dir, "service-tokens"),
		"--public-url", "ws://"+s.web.Addr()+"/mailbell/v1/ws", "--max-per-address", "-1", "--ping-interval", ping, "--pong-timeout", ping)
	for _, v := range os.Environ() {
		if !strings.HasPrefix(v, "MAILBELL_") {
			s.bell.Env = append(s.bell.Env, v)
		}
	}
	s.bell.Stderr = &s.log
	s.bell.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := s.bell.Start(); err != nil {
		s.bell = nil
		return err
	}
	s.roots["mailbell"] = s.bell.Process.Pid
	// The plugin would be told to come back later until the gateway has a notifier.
	ticker := time.NewTicker(20 * time.Millisecond)
	defer ticker.Stop()
	for {
		conn, err := net.Dial("tcp", sockets)
		if err == nil {
			return conn.Close()
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return fmt.Errorf("mailbell does not start: %w", err)
		}
	}
}

func twoAddresses() (a, b string, err error) {
	var addrs [2]string
	for i := range addrs {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return "", "", err
		}
		defer l.Close()
		addrs[i] = l.Addr().String()
	}
	return addrs[0], addrs[1], nil
}

// signIn fills users' mailboxes and signs them in, until there are n.
func (s *side) signIn(ctx context.Context, n int) error {
	for i := len(s.users); i < n; i++ {
		name := fmt.Sprintf("user%d@example.com", i)
		for range s.cfg.Messages {
			if err := s.deliver(ctx, name); err != nil {
				return err
			}
		}
		u, err := s.open(ctx, name)
		if err != nil {
			return err
		}
		s.users = append(s.users, u)
		if s.push { // at once: its ticket ends soon
			if err := s.listen(ctx, u); err != nil {
				return err
			}
		}
		s.cfg.Say("%s: %d of %d users are signed in", s.name(), i+1, n)
	}
	return nil
}

// open signs a user in, with a ticket where there is to be one.
func (s *side) open(ctx context.Context, name string) (*user, error) {
	for {
		u, err := signIn(ctx, s.transport, s.web.URL(), name, s.cfg.Messages)
		if err != nil || !s.push || u.socket != "" {
			return u, err
		}
		// mailbell answers before its notifier takes clients; a page would come back by itself.
		if err := sleep(ctx, time.Second); err != nil {
			return nil, fmt.Errorf("the pages get no tickets: %w", err)
		}
	}
}

func (s *side) name() string {
	if s.push {
		return "push"
	}
	return "poll"
}

func (s *side) deliver(ctx context.Context, to string) error {
	return s.mail.Deliver(ctx, to, dovecotproc.Message("sam@example.org", to, "A subject of a usual length "+strconv.Itoa(rand.IntN(1e6)), strings.Repeat("Some text. ", 200)))
}

func (s *side) stop() {
	for _, closeSocket := range s.sockets {
		closeSocket()
	}
	s.transport.CloseIdleConnections()
	if s.web != nil {
		s.web.Stop()
	}
	if s.mail != nil {
		s.mail.Stop()
	}
	if s.bell != nil {
		_ = s.bell.Process.Signal(os.Interrupt)
		timer := time.AfterFunc(stopTimeout, func() { _ = s.bell.Process.Kill() })
		_ = s.bell.Wait() // how it ended does not matter any more
		timer.Stop()
	}
	_ = os.RemoveAll(s.dir)
}

// cpu returns the CPU seconds of each part so far.
func (s *side) cpu() (map[string]float64, error) {
	all := make(map[string]float64)
	for name, pid := range s.roots {
		seconds, err := treeCPU(pid)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		all[name] = seconds
	}
	return all, nil
}
