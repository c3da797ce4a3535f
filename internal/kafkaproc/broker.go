package kafkaproc

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
)

// broker is one Kafka process.
type broker struct {
	// Static after construction.
	c     *Cluster
	index int
	dir   string
	addrs []string // plain, controller, then the further listeners

	mu     sync.Mutex
	cmd    *exec.Cmd     // guarded by mu; nil when it does not run
	ended  chan struct{} // guarded by mu; closed when it has ended
	failed error         // guarded by mu; why it could not be started, or ended by itself
}

func newBroker(c *Cluster, index int, ports []int) *broker {
	b := &broker{c: c, index: index, dir: filepath.Join(c.dir, fmt.Sprintf("broker-%d", index+1))}
	for _, p := range ports {
		b.addrs = append(b.addrs, fmt.Sprintf("%s:%d", c.host(index).IP, p))
	}
	return b
}

func (b *broker) propertiesFile() string { return filepath.Join(b.dir, "server.properties") }
func (b *broker) logFile() string        { return filepath.Join(b.dir, "output.log") }

func (b *broker) writeProperties(p map[string]string) error {
	if err := os.MkdirAll(b.dir, 0o755); err != nil {
		return err
	}
	var lines []string
	for k, v := range p {
		lines = append(lines, k+"="+strings.ReplaceAll(v, "\n", "\\\n")+"\n")
	}
	slices.Sort(lines)
	return os.WriteFile(b.propertiesFile(), []byte(strings.Join(lines, "")), 0o600)
}

// start runs the broker. The thread that starts a child with a death signal has to live as long as the child.
func (b *broker) start() {
	started := make(chan struct{})
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		b.run(started)
	}()
	<-started
}

func (b *broker) run(started chan<- struct{}) {
	cmd, ended, err := b.launch()
	close(started)
	if err != nil {
		return
	}
	err = cmd.Wait()
	b.mu.Lock()
	defer b.mu.Unlock()
	b.cmd = nil
	b.failed = fmt.Errorf("it has ended: %w", errors.Join(err, errors.New(cmd.ProcessState.String())))
	close(ended)
}

func (b *broker) launch() (*exec.Cmd, chan struct{}, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	out, err := os.OpenFile(b.logFile(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err == nil {
		defer out.Close()
		argv := slices.Concat(b.c.host(b.index).Command, []string{"java"}, b.c.java(b.c.opts.JVM, "kafka.Kafka", b.propertiesFile()))
		cmd := exec.Command(argv[0], argv[1:]...)
		cmd.Dir, cmd.Stdout, cmd.Stderr = b.dir, out, out
		cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
		if err = cmd.Start(); err == nil {
			b.cmd, b.ended, b.failed = cmd, make(chan struct{}), nil
			return cmd, b.ended, nil
		}
	}
	b.failed = fmt.Errorf("start java: %w", err)
	return nil, nil, b.failed
}

func (b *broker) pid() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.cmd == nil {
		return 0
	}
	return b.cmd.Process.Pid
}

func (b *broker) signal(s syscall.Signal) (ended chan struct{}, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.cmd == nil {
		return nil, fmt.Errorf("broker %d does not run", b.index)
	}
	return b.ended, b.cmd.Process.Signal(s)
}

func (b *broker) kill() {
	if ended, err := b.signal(syscall.SIGKILL); err == nil {
		<-ended
	}
}

func (b *broker) pause() error {
	_, err := b.signal(syscall.SIGSTOP)
	return err
}

func (b *broker) resume() error {
	_, err := b.signal(syscall.SIGCONT)
	return err
}

func (b *broker) state() (ended <-chan struct{}, failed error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.ended, b.failed
}

// waitReady asks the broker which brokers it knows, again and again.
func (b *broker) waitReady(ctx context.Context, want int) error {
	var last error
	for {
		ended, failed := b.state()
		if failed != nil {
			return failed
		}
		have, err := knownBrokers(ctx, b.addrs[0])
		if err == nil && have == want {
			return nil
		}
		if last = err; err == nil {
			last = fmt.Errorf("it knows %d brokers, not %d", have, want)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("it is not ready: %w (%w)", last, ctx.Err())
		case <-ended:
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// knownBrokers sends a metadata request, version 1 without topics, and returns the number of brokers in the answer.
func knownBrokers(ctx context.Context, addr string) (int, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	var d net.Dialer
	nc, err := d.DialContext(ctx, "tcp", addr)
	if err != nil {
		return 0, err
	}
	defer nc.Close()
	deadline, _ := ctx.Deadline()
	_ = nc.SetDeadline(deadline)
	request := []byte{0, 0, 0, 14, 0, 3, 0, 1, 0, 0, 0, 7, 0xff, 0xff, 0, 0, 0, 0}
	if _, err := nc.Write(request); err != nil {
		return 0, err
	}
	var head [12]byte // size, correlation id, number of brokers
	if _, err := io.ReadFull(nc, head[:]); err != nil {
		return 0, err
	}
	return int(int32(binary.BigEndian.Uint32(head[8:]))), nil
}

// output returns the end of what the broker printed.
func (b *broker) output() string {
	const most = 16 << 10
	out, err := os.ReadFile(b.logFile())
	if err != nil {
		return err.Error()
	}
	if len(out) > most {
		out = out[len(out)-most:]
		if i := bytes.IndexByte(out, '\n'); i >= 0 {
			out = out[i+1:]
		}
	}
	return string(out)
}
