// Package kafkaproc runs Apache Kafka as child processes, for tests and benches: one broker or three, on free ports of
// the loopback interface, with their data in a temporary folder. Brokers can be killed, stopped for a while and
// started again.
//
// Invariants:
//   - No broker outlives the process that started it: the kernel kills them with it.
//   - A port is used by one cluster only, from Start to Stop; Restart uses the same ones again.
//
// Goroutines: one for each broker, which waits for its end and holds the thread that started it. Stop waits for them.
package kafkaproc

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Listener is one more door of each broker, beside the plain one.
type Listener struct {
	Name     string // such as SECURE
	Protocol string // SSL, SASL_SSL or SASL_PLAINTEXT
}

// ScramUser is a user that may log in with SCRAM.
type ScramUser struct {
	Mechanism string // SCRAM-SHA-256 or SCRAM-SHA-512
	Name      string
	Password  string
}

// Options say what to start. The zero value is one broker.
type Options struct {
	// Brokers is 1 or 3; 0 means 1. Three replicate everything to each other, and two have to have a record.
	Brokers int
	// Dir is where the data goes; empty means a temporary folder, which Stop removes.
	Dir string
	// Listeners are further doors; Cluster.Addrs has their addresses.
	Listeners []Listener
	// Properties are added to those of each broker, and win over them.
	Properties map[string]string
	// Scram are the users known from the first start on.
	Scram []ScramUser
	// JVM are further flags of the Java machine. The default heap is 384 MB.
	JVM []string
	// Hosts are where the brokers run, one for each; none means the loopback interface.
	Hosts []Host
}

// Host is a machine of its own for a broker, such as a network namespace.
type Host struct {
	IP      string   // an IPv4 address that this process and the other brokers reach
	Command []string // what stands before a command to run it there
}

// Validate returns what is wrong with o.
func (o Options) Validate() error {
	if o.Brokers != 0 && o.Brokers != 1 && o.Brokers != 3 {
		return fmt.Errorf("kafka options: %d brokers: 1 or 3 are possible", o.Brokers)
	}
	if len(o.Hosts) > 0 && len(o.Hosts) != max(1, o.Brokers) {
		return fmt.Errorf("kafka options: %d hosts for %d brokers", len(o.Hosts), max(1, o.Brokers))
	}
	for _, l := range o.Listeners {
		if l.Name == "" || l.Protocol == "" {
			return fmt.Errorf("kafka options: a listener needs a name and a protocol, such as SECURE and SASL_SSL, not %+v", l)
		}
	}
	return nil
}

// Cluster is a running Kafka.
type Cluster struct {
	// Static after Start.
	opts      Options
	dir       string
	temporary bool
	libs      string
	brokers   []*broker
}

// readyTimeout bounds the start when ctx does not.
const readyTimeout = 2 * time.Minute

// Start fetches Kafka if it is not in the cache, starts the brokers and waits until all of them know each other.
func Start(ctx context.Context, o Options) (*Cluster, error) {
	if err := o.Validate(); err != nil {
		return nil, err
	}
	if o.Brokers == 0 {
		o.Brokers = 1
	}
	ctx, cancel := context.WithTimeout(ctx, readyTimeout)
	defer cancel()
	libs, err := Fetch(ctx)
	if err != nil {
		return nil, err
	}
	for try := 1; ; try++ {
		c, err := start(ctx, o, libs)
		if err == nil {
			return c, nil
		}
		if try == 3 || !strings.Contains(err.Error(), "Address already in use") {
			return nil, fmt.Errorf("start kafka: %w", err)
		}
	}
}

func start(ctx context.Context, o Options, libs string) (*Cluster, error) {
	c := &Cluster{opts: o, dir: o.Dir, libs: libs}
	if c.dir == "" {
		dir, err := os.MkdirTemp("", "mailbell-kafka-")
		if err != nil {
			return nil, err
		}
		c.dir, c.temporary = dir, true
	}
	err := c.prepare(ctx)
	if err == nil {
		for i := range c.brokers {
			c.brokers[i].start()
		}
		err = c.WaitReady(ctx)
	}
	if err != nil {
		c.Stop()
		return nil, err
	}
	return c, nil
}

// prepare chooses the ports, writes the properties and formats the folders.
func (c *Cluster) prepare(ctx context.Context) error {
	perBroker := 2 + len(c.opts.Listeners)
	ports, err := freePorts(perBroker * c.opts.Brokers)
	if err != nil {
		return err
	}
	var voters []string
	for i := range c.opts.Brokers {
		voters = append(voters, fmt.Sprintf("%d@%s:%d", i+1, c.host(i).IP, ports[i*perBroker+1]))
	}
	for i := range c.opts.Brokers {
		b := newBroker(c, i, ports[i*perBroker:(i+1)*perBroker])
		c.brokers = append(c.brokers, b)
		if err := b.writeProperties(c.properties(b, strings.Join(voters, ","))); err != nil {
			return err
		}
	}
	return c.format(ctx)
}

func (c *Cluster) host(i int) Host {
	if len(c.opts.Hosts) == 0 {
		return Host{IP: "127.0.0.1"}
	}
	return c.opts.Hosts[i]
}

func (c *Cluster) properties(b *broker, voters string) map[string]string {
	replicas, insync := "1", "1"
	if c.opts.Brokers == 3 {
		replicas, insync = "3", "2"
	}
	listeners := []string{"PLAINTEXT://" + b.addrs[0], "CONTROLLER://" + b.addrs[1]}
	advertised := []string{"PLAINTEXT://" + b.addrs[0]}
	protocols := []string{"PLAINTEXT:PLAINTEXT", "CONTROLLER:PLAINTEXT"}
	for i, l := range c.opts.Listeners {
		listeners = append(listeners, l.Name+"://"+b.addrs[2+i])
		advertised = append(advertised, l.Name+"://"+b.addrs[2+i])
		protocols = append(protocols, l.Name+":"+l.Protocol)
	}
	p := map[string]string{
		"process.roles":                                    "broker,controller",
		"node.id":                                          strconv.Itoa(b.index + 1),
		"controller.quorum.voters":                         voters,
		"listeners":                                        strings.Join(listeners, ","),
		"advertised.listeners":                             strings.Join(advertised, ","),
		"listener.security.protocol.map":                   strings.Join(protocols, ","),
		"controller.listener.names":                        "CONTROLLER",
		"inter.broker.listener.name":                       "PLAINTEXT",
		"log.dirs":                                         filepath.Join(b.dir, "data"),
		"auto.create.topics.enable":                        "false",
		"default.replication.factor":                       replicas,
		"min.insync.replicas":                              insync,
		"offsets.topic.replication.factor":                 replicas,
		"offsets.topic.num.partitions":                     "1",
		"transaction.state.log.replication.factor":         replicas,
		"transaction.state.log.min.isr":                    insync,
		"transaction.state.log.num.partitions":             "1",
		"share.coordinator.state.topic.replication.factor": replicas,
		"share.coordinator.state.topic.min.isr":            insync,
		"group.initial.rebalance.delay.ms":                 "0",
		"num.io.threads":                                   "4",
		"num.network.threads":                              "2",
		"log.cleaner.dedupe.buffer.size":                   "8388608",
	}
	maps.Copy(p, c.opts.Properties)
	return p
}

// format makes the folder of the first broker with Kafka's own tool, and the others' like it.
func (c *Cluster) format(ctx context.Context) error {
	first := c.brokers[0]
	if _, err := os.Stat(filepath.Join(first.dir, "data", "meta.properties")); err == nil {
		return nil // of an earlier start
	}
	cluster := randomUUID()
	args := []string{"kafka.tools.StorageTool", "format", "-t", cluster, "-c", first.propertiesFile()}
	for _, u := range c.opts.Scram {
		args = append(args, "--add-scram", fmt.Sprintf("%s=[name=%s,password=%s]", u.Mechanism, u.Name, u.Password))
	}
	out, err := exec.CommandContext(ctx, "java", c.java([]string{"-Xmx64m", "-XX:TieredStopAtLevel=1"}, args...)...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("format the data folder: %w: %s", err, out)
	}
	boot, err := os.ReadFile(filepath.Join(first.dir, "data", "bootstrap.checkpoint"))
	if err != nil {
		return fmt.Errorf("format the data folder: %w", err)
	}
	for _, b := range c.brokers[1:] {
		meta := fmt.Sprintf("version=1\ncluster.id=%s\nnode.id=%d\ndirectory.id=%s\n", cluster, b.index+1, randomUUID())
		err := errors.Join(
			os.MkdirAll(filepath.Join(b.dir, "data"), 0o755),
			os.WriteFile(filepath.Join(b.dir, "data", "bootstrap.checkpoint"), boot, 0o644),
			os.WriteFile(filepath.Join(b.dir, "data", "meta.properties"), []byte(meta), 0o644))
		if err != nil {
			return fmt.Errorf("format the data folder: %w", err)
		}
	}
	return nil
}

func (c *Cluster) java(flags []string, args ...string) []string {
	all := []string{"-Xms64m", "-Xmx384m", "-XX:+UseSerialGC", "-XX:-UsePerfData", "-Xshare:auto",
		"-Dlog4j2.configurationFile=" + filepath.Join(c.libs, "log4j2.xml"), "-cp", filepath.Join(c.libs, "libs") + "/*"}
	return slices.Concat(all, flags, args)
}

// Brokers returns the addresses of the plain listeners.
func (c *Cluster) Brokers() []string {
	addrs := make([]string, len(c.brokers))
	for i, b := range c.brokers {
		addrs[i] = b.addrs[0]
	}
	return addrs
}

// Addrs returns the addresses of the listener with that name, or nil if there is none.
func (c *Cluster) Addrs(listener string) []string {
	i := slices.IndexFunc(c.opts.Listeners, func(l Listener) bool { return l.Name == listener })
	if i < 0 {
		return nil
	}
	addrs := make([]string, len(c.brokers))
	for j, b := range c.brokers {
		addrs[j] = b.addrs[2+i]
	}
	return addrs
}

// Pid returns the process id of broker i, 0 if it does not run.
func (c *Cluster) Pid(i int) int { return c.brokers[i].pid() }

// Dir returns the folder with the brokers' data and output.
func (c *Cluster) Dir() string { return c.dir }

// Kill ends broker i at once, as kill -9 does, and waits for its end.
func (c *Cluster) Kill(i int) { c.brokers[i].kill() }

// Pause stops broker i with SIGSTOP: its connections stay open and nothing answers.
func (c *Cluster) Pause(i int) error { return c.brokers[i].pause() }

// Resume lets a paused broker i go on.
func (c *Cluster) Resume(i int) error { return c.brokers[i].resume() }

// Restart starts broker i again after Kill, and waits until the cluster is complete.
func (c *Cluster) Restart(ctx context.Context, i int) error {
	if err := c.Launch(i); err != nil {
		return err
	}
	return c.WaitReady(ctx)
}

// Launch starts broker i again after Kill, and does not wait until it is of use.
func (c *Cluster) Launch(i int) error {
	if c.brokers[i].pid() != 0 {
		return fmt.Errorf("restart kafka: broker %d runs", i)
	}
	c.brokers[i].start()
	return nil
}

// WaitReady waits until every broker knows every broker that runs.
func (c *Cluster) WaitReady(ctx context.Context) error {
	want := 0
	for _, b := range c.brokers {
		if b.pid() != 0 {
			want++
		}
	}
	for _, b := range c.brokers {
		if b.pid() == 0 {
			continue
		}
		if err := b.waitReady(ctx, want); err != nil {
			return fmt.Errorf("broker %d: %w\n%s", b.index, err, b.output())
		}
	}
	return nil
}

// Output returns the end of what each broker printed, for a failed test.
func (c *Cluster) Output() string {
	var s strings.Builder
	for _, b := range c.brokers {
		fmt.Fprintf(&s, "broker %d:\n%s\n", b.index, b.output())
	}
	return s.String()
}

// Stop kills the brokers and removes a temporary folder.
func (c *Cluster) Stop() {
	for _, b := range c.brokers {
		b.kill()
	}
	if c.temporary {
		_ = os.RemoveAll(c.dir)
	}
}

// freePorts returns ports that nobody listens on.
func freePorts(n int) ([]int, error) {
	ports := make([]int, n)
	for i := range ports {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		defer l.Close()
		ports[i] = l.Addr().(*net.TCPAddr).Port
	}
	return ports, nil
}

// randomUUID is what Kafka calls a Uuid: 16 bytes in URL-safe base64. It never begins with a dash.
func randomUUID() string {
	for {
		var b [16]byte
		_, _ = rand.Read(b[:]) // never fails
		if s := base64.RawURLEncoding.EncodeToString(b[:]); s[0] != '-' {
			return s
		}
	}
}
