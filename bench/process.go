package bench

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/mailbell/mailbell/bench/cputime"
)

// processes are the children of one bench. stop ends them all.
type processes struct {
	binary  string                   // mailbell itself
	outlive bool                     // the children see our end at their input, and may do something then
	within  func(func() error) error // forks the children elsewhere, such as in a network namespace; nil = here

	mu  sync.Mutex // guards all
	all []*process
}

// process is one child. It dies with its parent.
type process struct {
	name  string
	cmd   *exec.Cmd
	stdin io.WriteCloser
	lines chan []byte   // of stdout; closed at its end
	done  chan struct{} // closed when it has ended
	err   error         // valid after done
	log   *logTail      // of stderr
}

// newProcesses prepares for children of the running binary.
func newProcesses() (*processes, error) {
	binary, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("find own binary: %w", err)
	}
	return &processes{binary: binary}, nil
}

// start runs mailbell with these arguments. Its environment is ours less every MAILBELL_ variable, so that
// a setting of the user's shell does not change what is measured.
func (ps *processes) start(name string, args ...string) (*process, error) {
	return ps.startWith(nil, name, args...)
}

// startWith is start with variables added to the environment.
func (ps *processes) startWith(env []string, name string, args ...string) (*process, error) {
	return ps.launch(env, append([]string{ps.binary}, args...), name)
}

// startBehind is start with a command before it, which has to replace itself with mailbell, as `ip netns exec` does.
func (ps *processes) startBehind(command []string, name string, args ...string) (*process, error) {
	return ps.launch(nil, slices.Concat(command, []string{ps.binary}, args), name)
}

func (ps *processes) launch(env, argv []string, name string) (*process, error) {
	cmd := exec.Command(argv[0], argv[1:]...)
	for _, v := range os.Environ() {
		if !strings.HasPrefix(v, "MAILBELL_") {
			cmd.Env = append(cmd.Env, v)
		}
	}
	cmd.Env = append(cmd.Env, env...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	if ps.outlive {
		cmd.SysProcAttr.Pdeathsig = 0
	}
	p := &process{name: name, cmd: cmd, lines: make(chan []byte, 64), done: make(chan struct{}), log: newLogTail()}
	var err error
	if p.stdin, err = cmd.StdinPipe(); err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	cmd.Stderr = p.log
	fork := ps.within
	if fork == nil {
		fork = func(f func() error) error { return f() }
	}
	if err := fork(cmd.Start); err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	go p.follow(stdout)
	ps.mu.Lock()
	defer ps.mu.Unlock()
	ps.all = append(ps.all, p)
	return p, nil
}

// follow hands on the lines of stdout, then reaps. It ends with the process.
func (p *process) follow(stdout io.Reader) {
	r := bufio.NewReaderSize(stdout, 1<<20)
	for {
		line, err := r.ReadBytes('\n')
		if len(line) > 0 {
			p.lines <- line
		}
		if err != nil {
			break
		}
	}
	close(p.lines)
	p.err = p.cmd.Wait()
	close(p.done)
}

// say writes one JSON line to the process.
func (p *process) say(v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return p.tell(string(b))
}

// tell writes one line to the process.
func (p *process) tell(line string) error {
	if _, err := io.WriteString(p.stdin, line+"\n"); err != nil {
		return p.failure(fmt.Errorf("write to it: %w", err))
	}
	return nil
}

// next returns the next line of stdout.
func (p *process) next(ctx context.Context) ([]byte, error) {
	select {
	case line, ok := <-p.lines:
		if !ok {
			<-p.done
			return nil, p.failure(errors.New("it ended too early"))
		}
		return line, nil
	case <-ctx.Done():
		return nil, p.failure(ctx.Err())
	}
}

// logged waits for a log line with this message, which a server child prints because it was started with
// --log-format json, and returns its attributes.
func (p *process) logged(ctx context.Context, message string) (map[string]any, error) {
	for {
		attrs, changed := p.log.find(message)
		if attrs != nil {
			return attrs, nil
		}
		select {
		case <-changed:
		case <-p.done:
			return nil, p.failure(fmt.Errorf("it ended before it logged %q: %w", message, p.err))
		case <-ctx.Done():
			return nil, p.failure(fmt.Errorf("wait for its log line %q: %w", message, ctx.Err()))
		}
	}
}

// failure wraps an error with the process's name and its last words.
func (p *process) failure(err error) error {
	if words := p.log.String(); words != "" {
		return fmt.Errorf("%s: %w; it said:\n%s", p.name, err, words)
	}
	return fmt.Errorf("%s: %w", p.name, err)
}

// stopTimeout is how long a process may take to end after SIGTERM.
const stopTimeout = 15 * time.Second

// stop ends one process, kindly first.
func (p *process) stop() {
	_ = p.stdin.Close()
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	go func() { // keeps the pipe from filling up; ends with the process
		for range p.lines {
		}
	}()
	select {
	case <-p.done:
	case <-time.After(stopTimeout):
		_ = p.cmd.Process.Kill()
		<-p.done
	}
}

// kill ends one process at once.
func (p *process) kill() {
	_ = p.cmd.Process.Kill()
	go func() { // keeps the pipe from filling up; ends with the process
		for range p.lines {
		}
	}()
	<-p.done
}

// stop ends all, the last started first.
func (ps *processes) stop() {
	ps.mu.Lock()
	all := ps.all
	ps.all = nil
	ps.mu.Unlock()
	for i := len(all) - 1; i >= 0; i-- {
		all[i].stop()
	}
}

// kill ends all at once and unkindly: hundreds of processes whose work is done.
func (ps *processes) kill() {
	ps.mu.Lock()
	all := ps.all
	ps.all = nil
	ps.mu.Unlock()
	for _, p := range all {
		_ = p.cmd.Process.Kill()
	}
	for _, p := range all {
		p.stop()
	}
}

// cpuSeconds returns the process's user and system time so far.
func (p *process) cpuSeconds() (float64, error) {
	t, err := p.cpuTime()
	return t.Sum(), err
}

// cpuTime returns what the process has used so far.
func (p *process) cpuTime() (cputime.Time, error) {
	t, err := cputime.Process(p.cmd.Process.Pid)
	if err != nil {
		return t, fmt.Errorf("%s: %w", p.name, err)
	}
	return t, nil
}

// memory returns a line of the process's /proc/PID/status, such as RssAnon or VmRSS, in bytes.
func (p *process) memory(key string) (int64, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.cmd.Process.Pid))
	if err != nil {
		return 0, fmt.Errorf("memory of %s: %w", p.name, err)
	}
	for line := range strings.Lines(string(b)) {
		if k, v, ok := strings.Cut(line, ":"); ok && k == key {
			kb, err := strconv.ParseInt(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(v), "kB")), 10, 64)
			return kb << 10, err
		}
	}
	return 0, fmt.Errorf("memory of %s: /proc/PID/status has no %s", p.name, key)
}
