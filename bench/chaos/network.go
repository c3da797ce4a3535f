package chaos

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
)

// Network is where the processes run: each host is a network namespace with a link to one bridge where this process
// may make them (Linux, root, iproute2); otherwise every host is the loopback interface, and no link can be cut.
//
// The bridge has an address too, so that this process reaches every host. That link is never cut.
type Network struct {
	// Static after NewNetwork.
	prefix string // of the names of everything made; empty on loopback
	subnet string // the first three octets
	netem  bool   // tc netem works
	tbf    bool   // tc tbf works
	reason string // why there are no namespaces

	mu     sync.Mutex
	hosts  []*Host  // guarded by mu
	mounts []string // guarded by mu
}

// Host is one machine of the network.
type Host struct {
	Name string
	IP   string

	network *Network
	ns      string // empty on loopback
	port    string // the bridge's end of its link
}

const (
	namePrefix = "mbc" // and the process id: what a killed process left behind can be told
	bridgeNode = 254
	maxHosts   = 200
	// deadAddress is nobody's: what is sent there never arrives.
	deadAddress = "02:00:00:00:00:de"
)

// NewNetwork makes the bridge, or settles for loopback.
func NewNetwork() (*Network, error) {
	n := &Network{}
	if n.reason = unfit(); n.reason != "" {
		return n, nil
	}
	removeStale()
	subnet, err := freeSubnet()
	if err != nil {
		return nil, err
	}
	n.prefix, n.subnet = namePrefix+strconv.Itoa(os.Getpid()), subnet
	bridge := n.prefix + "b"
	err = runAll(
		[]string{"ip", "link", "add", bridge, "type", "bridge", "forward_delay", "0", "stp_state", "0"},
		[]string{"ip", "addr", "add", fmt.Sprintf("%s.%d/24", subnet, bridgeNode), "dev", bridge},
		[]string{"ip", "link", "set", bridge, "up"})
	if err != nil {
		n.Close()
		return &Network{reason: err.Error()}, nil
	}
	n.netem = n.tries("netem", "delay", "1ms")
	n.tbf = n.tries("tbf", "rate", "1mbit", "burst", "32kbit", "latency", "400ms")
	return n, nil
}

// unfit says why namespaces can't be made here, or nothing.
func unfit() string {
	if os.Geteuid() != 0 {
		return "network namespaces need root"
	}
	if _, err := exec.LookPath("ip"); err != nil {
		return "network namespaces need the program ip (iproute2)"
	}
	return ""
}

// tries reports whether the kernel knows a queueing discipline.
func (n *Network) tries(args ...string) bool {
	dev := n.prefix + "q"
	if runAll([]string{"ip", "link", "add", dev, "type", "veth", "peer", "name", dev + "p"}) != nil {
		return false
	}
	defer runAll([]string{"ip", "link", "del", dev})
	return runAll(append([]string{"tc", "qdisc", "add", "dev", dev, "root"}, args...)) == nil
}

// Namespaced reports whether hosts have namespaces of their own; if not, reason says why.
func (n *Network) Namespaced() (yes bool, reason string) { return n.prefix != "", n.reason }

// Shapes says by which means links are made slow: netem, tbf, or nothing.
func (n *Network) Shapes() string {
	switch {
	case n.netem:
		return "netem"
	case n.tbf:
		return "tbf"
	}
	return ""
}

// Add makes a host.
func (n *Network) Add(name string) (*Host, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.prefix == "" {
		h := &Host{Name: name, IP: "127.0.0.1", network: n}
		n.hosts = append(n.hosts, h)
		return h, nil
	}
	if len(n.hosts) >= maxHosts {
		return nil, fmt.Errorf("add host %s: a network holds %d", name, maxHosts)
	}
	number := len(n.hosts) + 1
	h := &Host{Name: name, IP: fmt.Sprintf("%s.%d", n.subnet, number), network: n,
		ns: n.prefix + "-" + name, port: fmt.Sprintf("%sv%d", n.prefix, number)}
	n.hosts = append(n.hosts, h) // now, so that Close removes what there is of it
	err := runAll(
		[]string{"ip", "netns", "add", h.ns},
		[]string{"ip", "link", "add", h.port, "type", "veth", "peer", "name", "eth0", "netns", h.ns},
		[]string{"ip", "link", "set", h.port, "master", n.prefix + "b", "up"},
		[]string{"ip", "-n", h.ns, "addr", "add", h.IP + "/24", "dev", "eth0"},
		[]string{"ip", "-n", h.ns, "link", "set", "eth0", "up"},
		[]string{"ip", "-n", h.ns, "link", "set", "lo", "up"})
	if err != nil {
		return nil, fmt.Errorf("add host %s: %w", name, err)
	}
	return h, nil
}

// Command returns what stands before a command to run it on the host.
func (h *Host) Command() []string {
	if h.ns == "" {
		return nil
	}
	return []string{"ip", "netns", "exec", h.ns}
}

// errLoopback is the answer to a request that needs namespaces.
var errLoopback = errors.New("on loopback no link can be cut or slowed")

// Isolate cuts the host from all others, silently: no carrier is lost, no packet is refused.
func (h *Host) Isolate() error {
	if h.ns == "" {
		return errLoopback
	}
	return runAll([]string{"bridge", "link", "set", "dev", h.port, "state", "0"})
}

// Join undoes Isolate.
func (h *Host) Join() error {
	if h.ns == "" {
		return errLoopback
	}
	return runAll([]string{"bridge", "link", "set", "dev", h.port, "state", "3"})
}

// CutTo drops what this host sends to another one, and nothing else.
func (h *Host) CutTo(other *Host) error {
	if h.ns == "" {
		return errLoopback
	}
	return runAll([]string{"ip", "-n", h.ns, "neigh", "replace", other.IP, "lladdr", deadAddress, "dev", "eth0", "nud", "permanent"})
}

// JoinTo undoes CutTo.
func (h *Host) JoinTo(other *Host) error {
	if h.ns == "" {
		return errLoopback
	}
	return runAll([]string{"ip", "-n", h.ns, "neigh", "del", other.IP, "dev", "eth0"})
}

// Slow makes what the host sends late and sparse, or narrow where the kernel knows nothing better.
func (h *Host) Slow() error {
	args := []string{"ip", "netns", "exec", h.ns, "tc", "qdisc", "replace", "dev", "eth0", "root"}
	switch h.network.Shapes() {
	case "netem":
		return runAll(append(args, "netem", "delay", "150ms", "100ms", "loss", "2%"))
	case "tbf":
		return runAll(append(args, "tbf", "rate", "400kbit", "burst", "16kb", "latency", "300ms"))
	}
	return errLoopback
}

// Fast undoes Slow.
func (h *Host) Fast() error {
	return runAll([]string{"ip", "netns", "exec", h.ns, "tc", "qdisc", "del", "dev", "eth0", "root"})
}

// SmallDisk mounts a small file system over a folder; ok is false where that is not allowed.
func (n *Network) SmallDisk(dir string, megabytes int) (ok bool, err error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return false, fmt.Errorf("make a small disk: %w", err)
	}
	if os.Geteuid() != 0 {
		return false, nil
	}
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, fmt.Sprintf("size=%dm,mode=0755", megabytes)); err != nil {
		return false, nil
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.mounts = append(n.mounts, dir)
	return true, nil
}

// FillDisk takes all the room of a small disk, until the returned file is removed.
func FillDisk(dir string) (file string, err error) {
	file = filepath.Join(dir, "filler")
	f, err := os.Create(file)
	if err != nil {
		return "", fmt.Errorf("fill the disk: %w", err)
	}
	defer f.Close()
	for size := 1 << 20; size > 0; {
		if _, err := f.Write(make([]byte, size)); err != nil {
			if !errors.Is(err, syscall.ENOSPC) {
				return file, fmt.Errorf("fill the disk: %w", err)
			}
			size /= 4
		}
	}
	return file, nil
}

// Close removes everything. The processes on the hosts must have ended.
func (n *Network) Close() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	var errs []error
	for _, dir := range n.mounts {
		errs = append(errs, syscall.Unmount(dir, syscall.MNT_DETACH))
	}
	n.mounts = nil
	for _, h := range n.hosts {
		if h.ns != "" {
			errs = append(errs, runAll([]string{"ip", "netns", "del", h.ns}))
			_ = runAll([]string{"ip", "link", "del", h.port}) // may have gone with its other end
		}
	}
	n.hosts = nil
	if n.prefix != "" {
		errs = append(errs, runAll([]string{"ip", "link", "del", n.prefix + "b"}))
	}
	return errors.Join(errs...)
}

// removeStale removes what processes that were killed left behind.
func removeStale() {
	stale := func(name string) bool {
		rest, ours := strings.CutPrefix(name, namePrefix)
		digits := rest[:len(rest)-len(strings.TrimLeft(rest, "0123456789"))]
		pid, err := strconv.Atoi(digits)
		return ours && err == nil && errors.Is(syscall.Kill(pid, 0), syscall.ESRCH)
	}
	spaces, _ := os.ReadDir("/run/netns")
	for _, e := range spaces {
		if stale(e.Name()) {
			_ = runAll([]string{"ip", "netns", "del", e.Name()})
		}
	}
	links, _ := net.Interfaces()
	for _, l := range links {
		if stale(l.Name) {
			_ = runAll([]string{"ip", "link", "del", l.Name})
		}
	}
}

// freeSubnet finds a private /24 that no interface of this machine is in.
func freeSubnet() (string, error) {
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return "", fmt.Errorf("find a free subnet: %w", err)
	}
	for third := range 256 {
		third = (third + os.Getpid()) % 256
		_, candidate, _ := net.ParseCIDR(fmt.Sprintf("10.213.%d.0/24", third))
		taken := false
		for _, a := range addrs {
			if in, ok := a.(*net.IPNet); ok && (candidate.Contains(in.IP) || in.Contains(candidate.IP)) {
				taken = true
			}
		}
		if !taken {
			return fmt.Sprintf("10.213.%d", third), nil
		}
	}
	return "", errors.New("find a free subnet: all of 10.213.0.0/16 is in use")
}

func runAll(commands ...[]string) error {
	for _, c := range commands {
		if out, err := exec.Command(c[0], c[1:]...).CombinedOutput(); err != nil {
			return fmt.Errorf("%s: %w: %s", strings.Join(c, " "), err, strings.TrimSpace(string(out)))
		}
	}
	return nil
}
