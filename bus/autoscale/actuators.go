package autoscale

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Command runs a program for each decision, with what is asked in its environment: MAILBELL_ACTION (out, in), MAILBELL_COUNT,
// MAILBELL_NODE and MAILBELL_REASON.
type Command struct{ Args []string }

// Out implements [Actuator].
func (c Command) Out(ctx context.Context, count int, _ []string, reason string) error {
	return run(ctx, c.Args, "MAILBELL_ACTION=out", "MAILBELL_COUNT="+strconv.Itoa(count), "MAILBELL_NODE=", "MAILBELL_REASON="+reason)
}

// In implements [Actuator].
func (c Command) In(ctx context.Context, node, reason string) error {
	return run(ctx, c.Args, "MAILBELL_ACTION=in", "MAILBELL_COUNT=1", "MAILBELL_NODE="+node, "MAILBELL_REASON="+reason)
}

func run(ctx context.Context, args []string, env ...string) error {
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Env = append(os.Environ(), env...)
	cmd.WaitDelay = time.Second
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s: %w: %.500s", args[0], err, out)
	}
	return nil
}

// Owns implements [Actuator]: the program knows which it can end.
func (Command) Owns(string) bool { return true }

// Webhook posts what is asked: {"action":"out","count":1,"reason":"…"} or {"action":"in","node":"n1","reason":"…"}.
type Webhook struct{ URL string }

// Out implements [Actuator].
func (w Webhook) Out(ctx context.Context, count int, _ []string, reason string) error {
	return postJSON(ctx, w.URL, map[string]any{"action": Out, "count": count, "reason": reason})
}

// In implements [Actuator].
func (w Webhook) In(ctx context.Context, node, reason string) error {
	return postJSON(ctx, w.URL, map[string]any{"action": In, "node": node, "reason": reason})
}

// Owns implements [Actuator]: who is asked knows which it can end.
func (Webhook) Owns(string) bool { return true }

// Systemd starts and stops the instances of a template unit such as mailbell-notifier@.service, whose node is named
// as the unit's instance.
type Systemd struct {
	Unit   string // with the @, such as mailbell-notifier@.service
	Prefix string // of the nodes' names; a number follows. Empty means "notifier-"
	Tool   string // empty means systemctl
}

// Out implements [Actuator].
func (s Systemd) Out(ctx context.Context, count int, inUse []string, _ string) error {
	for _, name := range freeNames(s.prefix(), count, func(name string) bool { return slices.Contains(inUse, name) }) {
		if err := s.control(ctx, "start", name); err != nil {
			return err
		}
	}
	return nil
}

// In implements [Actuator].
func (s Systemd) In(ctx context.Context, node, _ string) error {
	if !s.Owns(node) {
		return fmt.Errorf("end %s: it is no instance of %s", node, s.Unit)
	}
	return s.control(ctx, "stop", node)
}

// Owns implements [Actuator].
func (s Systemd) Owns(node string) bool { return strings.HasPrefix(node, s.prefix()) }

func (s Systemd) prefix() string {
	if s.Prefix == "" {
		return "notifier-"
	}
	return s.Prefix
}

func (s Systemd) control(ctx context.Context, verb, node string) error {
	tool := s.Tool
	if tool == "" {
		tool = "systemctl"
	}
	return run(ctx, []string{tool, "--no-block", verb, strings.Replace(s.Unit, "@", "@"+node, 1)})
}

// freeNames are the first names that are not taken.
func freeNames(prefix string, count int, taken func(string) bool) (names []string) {
	for i := 1; len(names) < count; i++ {
		if name := prefix + strconv.Itoa(i); !taken(name) {
			names = append(names, name)
		}
	}
	return names
}

// Local starts notifiers as plain processes of this machine. They go on when this process ends; who they are is
// in files, so that another instance can end them.
type Local struct {
	Dir  string   // for the files
	Args []string // the command line; {node} in it is replaced by the node's name

	started []int // our children, to be reaped
}

const localPrefix = "local-"

// Out implements [Actuator].
func (l *Local) Out(_ context.Context, count int, inUse []string, _ string) error {
	l.reap()
	if err := os.MkdirAll(l.Dir, 0o700); err != nil {
		return err
	}
	for _, name := range freeNames(localPrefix, count, func(name string) bool {
		_, _, err := l.process(name)
		return slices.Contains(inUse, name) || err == nil
	}) {
		if err := l.start(name); err != nil {
			return fmt.Errorf("start %s: %w", name, err)
		}
	}
	return nil
}

func (l *Local) start(name string) error {
	var args []string
	for _, a := range l.Args {
		args = append(args, strings.ReplaceAll(a, "{node}", name))
	}
	log, err := os.OpenFile(filepath.Join(l.Dir, name+".log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // not to be interrupted with us
	if err := cmd.Start(); err != nil {
		return err
	}
	pid := cmd.Process.Pid
	l.started = append(l.started, pid)
	birth, err := processBirth(pid)
	if err != nil {
		return err
	}
	return os.WriteFile(l.file(name), fmt.Appendf(nil, "%d %s\n", pid, birth), 0o600)
}

// In implements [Actuator].
func (l *Local) In(_ context.Context, node, _ string) error {
	l.reap()
	p, _, err := l.process(node)
	if err != nil {
		return fmt.Errorf("end %s: %w", node, err)
	}
	if err := p.Signal(syscall.SIGTERM); err != nil {
		return fmt.Errorf("end %s: %w", node, err)
	}
	return os.Remove(l.file(node))
}

// Owns implements [Actuator].
func (l *Local) Owns(node string) bool {
	_, _, err := l.process(node)
	return err == nil
}

func (l *Local) file(node string) string { return filepath.Join(l.Dir, filepath.Base(node)+".pid") }

// process finds the process that has the node's name, and makes sure that its number was not given to another one.
func (l *Local) process(node string) (p *os.Process, pid int, err error) {
	b, err := os.ReadFile(l.file(node))
	if err != nil {
		return nil, 0, err
	}
	number, birth, _ := strings.Cut(strings.TrimSpace(string(b)), " ")
	if pid, err = strconv.Atoi(number); err != nil {
		return nil, 0, err
	}
	if now, err := processBirth(pid); err != nil || now != birth {
		return nil, 0, errors.New("its process is gone")
	}
	p, err = os.FindProcess(pid)
	return p, pid, err
}

// processBirth is when a process that lives was started, in the kernel's ticks.
func processBirth(pid int) (string, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return "", err
	}
	fields := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:]))
	if len(fields) < 20 || fields[0] == "Z" {
		return "", errors.New("its process has ended")
	}
	return fields[19], nil
}

// reap takes leave of children that have ended.
func (l *Local) reap() {
	l.started = slices.DeleteFunc(l.started, func(pid int) bool {
		got, err := syscall.Wait4(pid, nil, syscall.WNOHANG, nil)
		return got == pid || errors.Is(err, syscall.ECHILD)
	})
}
