package bench

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	mathrand "math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/mailbell/mailbell/bench/chaos"
	"github.com/mailbell/mailbell/internal/auth"
	"github.com/mailbell/mailbell/internal/kafkaproc"
)

// nodeKind is what runs on a host.
type nodeKind string

const (
	brokerNode    nodeKind = "broker"
	busNode       nodeKind = "bus"
	notifierNode  nodeKind = "notifier"
	adapterNode   nodeKind = "adapter"
	clientsNode   nodeKind = "clients"
	publisherNode nodeKind = "publisher"
)

// chaosNode is one process on one host, across its restarts.
type chaosNode struct {
	// Static after construction.
	name   string
	kind   nodeKind
	host   *chaos.Host
	site   *chaosSite
	index  int // of a broker
	args   []string
	spare  bool   // runs only while a fault says so
	small  string // its small disk, if it has one
	logs   *os.File
	served map[string]string // flag -> address

	mu      sync.Mutex
	p       *process // guarded by mu; nil before the first start
	wanted  bool     // guarded by mu: an end is a crash
	watches sync.WaitGroup
}

// chaosSite is everything that runs.
type chaosSite struct {
	// Static after newChaosSite.
	cfg        ChaosConfig
	dir        string
	run        uint32
	topic      string
	keyFile    string
	token      string // of a service that may do everything
	processes  *processes
	network    *chaos.Network
	kafka      *kafkaproc.Cluster
	nodes      []*chaosNode
	clients    []*chaosNode
	publishers []*chaosNode
	noSmall    bool // no small disk could be mounted

	mu      sync.Mutex
	crashes []string // guarded by mu
}

const (
	chaosPartitions = 12
	// chaosWindow is short, so that outages beyond it happen and are told.
	chaosWindow  = 20 * time.Second
	smallDiskMiB = 8
)

func newChaosSite(ctx context.Context, cfg ChaosConfig) (*chaosSite, error) {
	ps, err := newProcesses()
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "mailbell-chaos-")
	if err != nil {
		return nil, fmt.Errorf("make a folder for the bench: %w", err)
	}
	run := mathrand.Uint32()
	s := &chaosSite{cfg: cfg, dir: dir, run: run, topic: fmt.Sprintf("chaos-%x", run), keyFile: filepath.Join(dir, "hs256.key"), processes: ps}
	if s.network, err = chaos.NewNetwork(); err != nil {
		_ = os.RemoveAll(dir)
		return nil, err
	}
	if err := s.build(ctx); err != nil {
		s.stop()
		return nil, err
	}
	return s, nil
}

// build makes hosts and starts what runs on them, from the log outwards.
func (s *chaosSite) build(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 4*time.Minute)
	defer cancel()
	if err := errors.Join(s.writeKeys(), s.addNodes()); err != nil {
		return err
	}
	if yes, reason := s.network.Namespaced(); yes {
		s.cfg.Progress.say("%d hosts in network namespaces", len(s.nodes)+len(s.clients)+len(s.publishers))
	} else {
		s.cfg.Progress.say("all on loopback: %s", reason)
	}
	if err := s.startKafka(ctx); err != nil {
		return err
	}
	s.describe()
	for _, kind := range []nodeKind{busNode, notifierNode, adapterNode} {
		var starting []*chaosNode
		for _, n := range s.nodes {
			if n.kind != kind || n.spare {
				continue
			}
			if err := n.launch(n.args...); err != nil {
				return err
			}
			starting = append(starting, n)
			if kind == busNode && len(starting) == 1 { // it makes the topic
				if _, err := n.process().logged(ctx, "starting"); err != nil {
					return err
				}
			}
		}
		for _, n := range starting {
			if kind == busNode {
				continue // ready is asked of the notifiers, which need them
			}
			if _, err := n.process().logged(ctx, "ready"); err != nil {
				return err
			}
		}
		s.cfg.Progress.say("%d of kind %s are up", len(starting), kind)
	}
	return nil
}

func (s *chaosSite) writeKeys() error {
	secret := make([]byte, 32)
	_, _ = rand.Read(secret)
	plain, line, err := auth.NewServiceToken("chaos", auth.ScopePublish, auth.ScopeConnect)
	if err != nil {
		return err
	}
	s.token = plain
	return errors.Join(
		os.WriteFile(s.keyFile, []byte(hex.EncodeToString(secret)), 0o600),
		os.WriteFile(s.tokensFile(), []byte(line+"\n"), 0o600))
}

func (s *chaosSite) tokensFile() string { return filepath.Join(s.dir, "service-tokens") }

func (s *chaosSite) addNodes() error {
	add := func(kind nodeKind, prefix string, count, spares int) ([]*chaosNode, error) {
		var nodes []*chaosNode
		for i := range count + spares {
			n := &chaosNode{name: fmt.Sprintf("%s%d", prefix, i+1), kind: kind, site: s, index: i, spare: i >= count, served: make(map[string]string)}
			var err error
			if n.host, err = s.network.Add(n.name); err != nil {
				return nil, err
			}
			if s.cfg.LogDir != "" {
				if n.logs, err = os.Create(filepath.Join(s.cfg.LogDir, n.name+".log")); err != nil {
					return nil, fmt.Errorf("keep logs: %w", err)
				}
			}
			nodes = append(nodes, n)
		}
		return nodes, nil
	}
	var err error
	for _, k := range []struct {
		kind          nodeKind
		prefix        string
		count, spares int
	}{{brokerNode, "k", 3, 0}, {busNode, "b", 3, 1}, {notifierNode, "n", 3, 1}, {adapterNode, "a", 2, 0}} {
		nodes, err := add(k.kind, k.prefix, k.count, k.spares)
		if err != nil {
			return err
		}
		s.nodes = append(s.nodes, nodes...)
	}
	if s.clients, err = add(clientsNode, "c", 3, 0); err != nil {
		return err
	}
	s.publishers, err = add(publisherNode, "p", 3, 0)
	return err
}

func (s *chaosSite) startKafka(ctx context.Context) error {
	o := kafkaproc.Options{Brokers: 3, Dir: filepath.Join(s.dir, "kafka"), Properties: map[string]string{
		// Leaders go back to a broker that has come back, so that its next end is one of leaders.
		"leader.imbalance.check.interval.seconds": "5", "leader.imbalance.per.broker.percentage": "0",
		"broker.session.timeout.ms": "6000",
	}}
	if yes, _ := s.network.Namespaced(); yes {
		for _, n := range s.of(brokerNode) {
			o.Hosts = append(o.Hosts, kafkaproc.Host{IP: n.host.IP, Command: n.host.Command()})
		}
	}
	var err error
	s.kafka, err = kafkaproc.Start(ctx, o)
	return err
}

// of returns the nodes of a kind.
func (s *chaosSite) of(kind nodeKind) []*chaosNode {
	var nodes []*chaosNode
	for _, n := range s.nodes {
		if n.kind == kind {
			nodes = append(nodes, n)
		}
	}
	return nodes
}

// names returns the names of the nodes of a kind that are no spares.
func (s *chaosSite) names(kinds ...nodeKind) []string {
	var names []string
	for _, list := range [][]*chaosNode{s.nodes, s.clients} {
		for _, n := range list {
			for _, k := range kinds {
				if n.kind == k && !n.spare {
					names = append(names, n.name)
				}
			}
		}
	}
	return names
}

func (s *chaosSite) node(name string) *chaosNode {
	for _, list := range [][]*chaosNode{s.nodes, s.clients} {
		for _, n := range list {
			if n.name == name {
				return n
			}
		}
	}
	panic("bench chaos: no node " + name) // the plan has names that it was given
}

// describe sets every node's command line.
func (s *chaosSite) describe() {
	brokers := strings.Join(s.kafka.Brokers(), ",")
	var links []string
	for _, n := range s.of(busNode) {
		links = append(links, n.serve("--link"))
	}
	for _, n := range s.nodes {
		common := []string{"--ops", n.serve("--ops"), "--log-format", "json"}
		switch n.kind {
		case busNode:
			n.args = append([]string{"bus", "--brokers", brokers, "--topic", s.topic, "--group", s.topic, "--partitions", fmt.Sprint(chaosPartitions),
				"--replication", "3", "--node", n.name, "--link", n.serve("--link"), "--http", n.serve("--http"), "--jwt-keys", s.keyFile,
				"--service-tokens", s.tokensFile(), "--window", chaosWindow.String()}, common...)
		case notifierNode:
			n.args = append([]string{"notifier", "--bus", strings.Join(links, ","), "--node", n.name, "--sockets", n.serve("--sockets"),
				"--jwt-keys", s.keyFile, "--max-per-address", "-1", "--drain", "3s", "--takeover", filepath.Join(s.dir, n.name+".sock")}, common...)
		case adapterNode:
			data := filepath.Join(s.dir, n.name)
			if ok, err := s.network.SmallDisk(filepath.Join(data, "spool"), smallDiskMiB); ok && err == nil {
				n.small = filepath.Join(data, "spool")
			} else {
				s.noSmall = true
			}
			n.args = append([]string{"adapter", "--brokers", brokers, "--topic", s.topic, "--service-tokens", s.tokensFile(), "--dovecot", "--data", data,
				"--http", n.serve("--http")}, common...)
		}
	}
}

// serve returns the address that a node listens on for a flag, the same each time.
func (n *chaosNode) serve(flag string) string {
	if a, ok := n.served[flag]; ok {
		return a
	}
	ports := map[string]string{"--sockets": "7480", "--link": "7481", "--http": "8480", "--ops": "7489"}
	port := ports[flag]
	if yes, _ := n.site.network.Namespaced(); !yes {
		port = freePort()
	}
	n.served[flag] = net.JoinHostPort(n.host.IP, port)
	return n.served[flag]
}

func freePort() string {
	l, err := net.Listen("tcp", anyPort)
	if err != nil {
		return "0"
	}
	defer l.Close()
	_, port, _ := net.SplitHostPort(l.Addr().String())
	return port
}

func (s *chaosSite) gateways() (urls []string) {
	for _, n := range s.of(busNode) {
		if !n.spare {
			urls = append(urls, "http://"+n.serve("--http"))
		}
	}
	return urls
}

func (s *chaosSite) adapters() (urls []string) {
	for _, n := range s.of(adapterNode) {
		urls = append(urls, "http://"+n.serve("--http"))
	}
	return urls
}

// stop ends every process and removes what was made.
func (s *chaosSite) stop() {
	for _, list := range [][]*chaosNode{s.nodes, s.clients, s.publishers} {
		for _, n := range list {
			n.unwanted()
			_ = n.signal(syscall.SIGCONT)
		}
	}
	s.processes.kill()
	for _, list := range [][]*chaosNode{s.nodes, s.clients, s.publishers} {
		for _, n := range list {
			n.watches.Wait()
			if n.logs != nil {
				n.logs.Close()
			}
		}
	}
	if s.kafka != nil {
		s.kafka.Stop()
	}
	if err := s.network.Close(); err != nil {
		s.cfg.Progress.say("%v", err)
	}
	_ = os.RemoveAll(s.dir)
}

// launch starts the node's process. When it ends while it is wanted, that is a crash, and it is started again.
func (n *chaosNode) launch(args ...string) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	p, err := n.site.processes.startBehind(n.host.Command(), n.name, args...)
	if err != nil {
		return err
	}
	if n.logs != nil {
		p.log.copyTo(n.logs)
	}
	n.p, n.wanted = p, true
	n.watches.Go(func() { n.watch(p, args) })
	return nil
}

// watch waits for the end of a process.
func (n *chaosNode) watch(p *process, args []string) {
	<-p.done
	n.mu.Lock()
	crashed := n.wanted && n.p == p
	n.mu.Unlock()
	if !crashed {
		return
	}
	n.site.mu.Lock()
	n.site.crashes = append(n.site.crashes, fmt.Sprintf("%s: %v: %s", n.name, p.err, lastLines(p.log.String(), 3)))
	n.site.mu.Unlock()
	if n.kind == clientsNode || n.kind == publisherNode {
		return // what it knew is gone
	}
	_ = n.launch(args...)
}

func lastLines(s string, count int) string {
	lines := strings.Split(strings.TrimSpace(s), "\n")
	return strings.Join(lines[max(0, len(lines)-count):], " | ")
}

func (n *chaosNode) process() *process {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.p
}

// unwanted says that the next end is no crash.
func (n *chaosNode) unwanted() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.wanted = false
}

func (n *chaosNode) signal(sig syscall.Signal) error {
	if n.kind == brokerNode {
		if pid := n.site.brokerPid(n.index); pid != 0 {
			return syscall.Kill(pid, sig)
		}
		return nil
	}
	p := n.process()
	if p == nil {
		return nil
	}
	if err := p.cmd.Process.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("%s: %w", n.name, err)
	}
	return nil
}

func (s *chaosSite) brokerPid(i int) int {
	if s.kafka == nil {
		return 0
	}
	return s.kafka.Pid(i)
}
