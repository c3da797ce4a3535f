package bench

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// needs is what a bench asks of the machine.
type needs struct {
	perProcess int   // open files of the fullest process
	files      int64 // open files of all
	watches    int64 // descriptors in epoll
	ports      int   // connections from one address to one other
	processes  int
	memory     int64 // bytes
	tuned      bool  // a namespace of its own brings its own ports
	smaller    string
}

// check lists every limit that is too low, with what to raise.
func (n needs) check() error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	var rl unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &rl); err == nil && rl.Max < uint64(n.perProcess) {
		bad("open files per process: %d needed, %d possible: give more --nodes, or raise the hard limit (ulimit -Hn, LimitNOFILE=)", n.perProcess, rl.Max)
	}
	open, _ := firstNumber("/proc/sys/fs/file-nr", 0)
	if most, err := firstNumber("/proc/sys/fs/file-max", 0); err == nil && open+n.files > most {
		bad("open files altogether: %d needed, fs.file-max is %d: --tune, or sysctl fs.file-max=%d", open+n.files, most, (open+n.files)*11/10)
	}
	if most, err := firstNumber("/proc/sys/fs/epoll/max_user_watches", 0); err == nil && n.watches > most {
		bad("descriptors in epoll: %d needed, fs.epoll.max_user_watches is %d: --tune, or raise it", n.watches, most)
	}
	low, err1 := firstNumber("/proc/sys/net/ipv4/ip_local_port_range", 0)
	high, err2 := firstNumber("/proc/sys/net/ipv4/ip_local_port_range", 1)
	if err1 == nil && err2 == nil && !n.tuned && int(high-low) < n.ports {
		bad("ports: %d connections from one address, net.ipv4.ip_local_port_range has %d: --tune, or sysctl net.ipv4.ip_local_port_range='1024 65535'", n.ports, high-low)
	}
	if most, err := firstNumber("/proc/sys/kernel/pid_max", 0); err == nil && int64(n.processes)*16 > most {
		bad("processes: %d with some 10 threads each, kernel.pid_max is %d: raise it", n.processes, most)
	}
	if m, err := meminfo(); err == nil && m["MemAvailable"] < n.memory {
		bad("memory: about %d MiB needed, %d MiB available: %s", n.memory>>20, m["MemAvailable"]>>20, n.smaller)
	}
	return errors.Join(errs...)
}

// tuning is what was raised, to be put back.
type tuning struct {
	lock     *os.File // nil: nothing was raised
	restorer *process // puts everything back when its input ends, as it does if we are killed
}

// tune raises what is set for the whole machine and too low. Two benches that raise and put back would undo one
// another's, so there is one at a time.
func (n needs) tune() (*tuning, error) {
	t := &tuning{}
	open, _ := firstNumber("/proc/sys/fs/file-nr", 0)
	wanted := map[string]int64{
		"fs.file-max":               (open + n.files) * 11 / 10,
		"fs.epoll.max_user_watches": n.watches * 11 / 10,
	}
	if n.watches > 20_000 { // packets of loopback and tun that a CPU has no time for wait here; what is beyond is lost
		wanted["net.core.netdev_max_backlog"] = 200_000
	}
	for key, value := range wanted {
		if have, err := firstNumber(sysctlFile(key), 0); err != nil || have >= value {
			continue
		}
		if t.lock == nil {
			var err error
			if t.lock, err = lockTuning("limits", unix.LOCK_NB); err != nil {
				return nil, err
			}
		}
		if err := t.set(key, strconv.FormatInt(value, 10)); err != nil {
			return nil, errors.Join(err, t.restore())
		}
	}
	return t, nil
}

// lockTuning holds off other benches of this machine until the file is closed.
func lockTuning(what string, how int) (*os.File, error) {
	path := filepath.Join(os.TempDir(), "mailbell-bench-"+what+".lock")
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock out other benches: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|how); err != nil {
		f.Close()
		return nil, fmt.Errorf("another bench has raised this machine's limits: wait until it has ended (%s: %w)", path, err)
	}
	return f, nil
}

func (t *tuning) set(key, value string) error {
	before, err := readSysctl(key)
	if err != nil {
		return err
	}
	if t.restorer == nil {
		ps, err := newProcesses()
		if err != nil {
			return err
		}
		ps.outlive = true
		if t.restorer, err = ps.start("restorer", "bench", "restore"); err != nil {
			return err
		}
	}
	if err := t.restorer.say([2]string{key, before}); err != nil {
		return err
	}
	return writeSysctl(key, value)
}

// restore puts everything back.
func (t *tuning) restore() error {
	var err error
	if t.restorer != nil {
		_ = t.restorer.stdin.Close()
		for range t.restorer.lines {
		}
		<-t.restorer.done
		if t.restorer.err != nil {
			err = t.restorer.failure(t.restorer.err)
		}
		t.restorer = nil
	}
	if t.lock != nil {
		err = errors.Join(err, t.lock.Close())
		t.lock = nil
	}
	return err
}

// namespaceSettings are those of a tuned bench's own network namespace. Buffers need no tuning: an idle
// socket has none, whatever tcp_rmem and tcp_wmem say.
var namespaceSettings = map[string]string{
	"net.ipv4.ip_local_port_range":       "1024 65535",
	"net.ipv4.tcp_max_syn_backlog":       "65536",
	"net.core.somaxconn":                 "65536",
	"net.ipv4.tcp_no_metrics_save":       "1",
	"net.ipv4.tcp_orphan_retries":        "1", // what the bench leaves behind shall go soon
	"net.ipv4.tcp_fin_timeout":           "5",
	"net.ipv4.tcp_tw_reuse":              "1",
	"net.ipv4.conf.all.rp_filter":        "0",
	"net.ipv4.tcp_slow_start_after_idle": "0",
}

// newTunedNetns makes a namespace whose table of connections fits their number: the default one
// would have dozens in each place.
func newTunedNetns(sockets int64) (*netns, error) {
	const key = "net.ipv4.tcp_child_ehash_entries"
	size := int64(1 << 16)
	for size < sockets && size < 1<<22 {
		size <<= 1
	}
	lock, err := lockTuning("namespace", 0)
	if err != nil {
		return nil, err
	}
	t := &tuning{lock: lock}
	if err := t.set(key, strconv.FormatInt(size, 10)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, errors.Join(err, t.restore())
	}
	n, err := newNetns(namespaceSettings)
	return n, errors.Join(err, t.restore())
}

// firstNumber reads the i-th number of a file.
func firstNumber(path string, i int) (int64, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	fields := strings.Fields(string(b))
	if i >= len(fields) {
		return 0, fmt.Errorf("%s has %d numbers", path, len(fields))
	}
	n, err := strconv.ParseInt(fields[i], 10, 64)
	if err != nil && errors.Is(err, strconv.ErrRange) {
		return 1<<63 - 1, nil
	}
	return n, err
}

// meminfo returns the lines of /proc/meminfo in bytes.
func meminfo() (map[string]int64, error) {
	b, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return nil, err
	}
	m := make(map[string]int64)
	for line := range strings.Lines(string(b)) {
		key, value, _ := strings.Cut(line, ":")
		if kb, err := strconv.ParseInt(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(value), "kB")), 10, 64); err == nil {
			m[key] = kb << 10
		}
	}
	return m, nil
}
