package eventlog

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"sync"
	"time"

	kafka "github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/protocol/describeconfigs"
	"github.com/segmentio/kafka-go/protocol/incrementalalterconfigs"
	"github.com/segmentio/kafka-go/protocol/metadata"
)

// Description is what the brokers say of the topic and of themselves.
type Description struct {
	Brokers  []BrokerState // by id
	Embedded bool          // it is the log of a `mailbell run`
	Missing  bool          // there is no such topic; what follows is empty then

	Partitions      int
	Replicas        int // the fewest of any partition
	Leaderless      int // partitions that nobody leads just now
	UnderReplicated int // partitions that not every replica follows just now
	// Settings are those of the topic, by Kafka's names, such as min.insync.replicas. Nil when they may not be
	// read, and SettingsErr says why.
	Settings    map[string]string
	SettingsErr error
	// FromTheFuture is how many partitions have a record whose time is more than a minute ahead of this clock.
	FromTheFuture int
}

// BrokerState is one broker as it was reached from here.
type BrokerState struct {
	ID      int32
	Address string
	Took    time.Duration // to connect, log in and answer
	Err     error         // why it could not be reached at the address that it gives out
}

// wantedSettings are those that a Description has.
var wantedSettings = [...]string{"cleanup.policy", "max.message.bytes", "message.timestamp.type", "min.insync.replicas", "retention.bytes",
	"retention.ms", "unclean.leader.election.enable"}

// topicResource is Kafka's number for a topic in requests about settings.
const topicResource = 2

// Describe asks the brokers of cfg about themselves and the topic, each at the address that it gives out. It changes
// nothing. The error is that of finding any broker at all.
func Describe(ctx context.Context, cfg Config) (*Description, error) {
	cfg = cfg.withDefaults()
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	dialer, err := newDialer(cfg)
	if err != nil {
		return nil, err
	}
	c := newCluster(cfg, dialer, cfg.Logger)
	defer c.close()
	answer, err := c.askAny(ctx, &metadata.Request{TopicNames: []string{cfg.Topic}})
	if err != nil {
		return nil, fmt.Errorf("describe log: %w", err)
	}
	m := answer.(*metadata.Response)
	d := &Description{Embedded: m.ClusterID == embeddedClusterID}
	if err := d.topic(m, cfg.Topic); err != nil {
		return nil, fmt.Errorf("describe log: %w", err)
	}
	d.brokers(ctx, c, m)
	if !d.Missing {
		d.Settings, d.SettingsErr = c.settings(ctx, cfg.Topic)
		d.FromTheFuture = c.fromTheFuture(ctx, cfg)
	}
	return d, nil
}

func (d *Description) topic(m *metadata.Response, topic string) error {
	i := slices.IndexFunc(m.Topics, func(t metadata.ResponseTopic) bool { return t.Name == topic })
	if i < 0 || errors.Is(kafka.Error(m.Topics[i].ErrorCode), kafka.UnknownTopicOrPartition) {
		d.Missing = true
		return nil
	}
	t := m.Topics[i]
	if t.ErrorCode != 0 {
		return fmt.Errorf("topic %q: %w", topic, kafka.Error(t.ErrorCode))
	}
	d.Partitions = len(t.Partitions)
	for i, p := range t.Partitions {
		if n := len(p.ReplicaNodes); i == 0 || n < d.Replicas {
			d.Replicas = n
		}
		if p.LeaderID < 0 {
			d.Leaderless++
		}
		if len(p.IsrNodes) < len(p.ReplicaNodes) {
			d.UnderReplicated++
		}
	}
	return nil
}

// brokers asks each broker something, all at once.
func (d *Description) brokers(ctx context.Context, c *cluster, m *metadata.Response) {
	d.Brokers = make([]BrokerState, len(m.Brokers))
	var asking sync.WaitGroup
	for i, b := range m.Brokers {
		asking.Go(func() {
			state := BrokerState{ID: b.NodeID, Address: net.JoinHostPort(b.Host, strconv.Itoa(int(b.Port)))}
			began := time.Now()
			_, state.Err = c.ask(ctx, state.Address, &metadata.Request{TopicNames: []string{}})
			state.Took = time.Since(began)
			d.Brokers[i] = state
		})
	}
	asking.Wait()
	slices.SortFunc(d.Brokers, func(a, b BrokerState) int { return int(a.ID - b.ID) })
}

func (c *cluster) settings(ctx context.Context, topic string) (map[string]string, error) {
	answer, err := c.askAny(ctx, &describeconfigs.Request{Resources: []describeconfigs.RequestResource{
		{ResourceType: topicResource, ResourceName: topic, ConfigNames: wantedSettings[:]},
	}})
	if err != nil {
		return nil, err
	}
	settings := make(map[string]string)
	for _, r := range answer.(*describeconfigs.Response).Resources {
		if r.ErrorCode != 0 {
			return nil, fmt.Errorf("read the settings of topic %q: %w", topic, kafka.Error(r.ErrorCode))
		}
		for _, e := range r.ConfigEntries {
			settings[e.ConfigName] = e.ConfigValue
		}
	}
	return settings, nil
}

// set changes one setting of the topic.
func (c *cluster) set(ctx context.Context, name, value string) error {
	answer, err := c.askAny(ctx, &incrementalalterconfigs.Request{Resources: []incrementalalterconfigs.RequestResource{
		{ResourceType: topicResource, ResourceName: c.cfg.Topic, Configs: []incrementalalterconfigs.RequestConfig{{Name: name, Value: value}}},
	}})
	if err != nil {
		return fmt.Errorf("set %s of topic %q: %w", name, c.cfg.Topic, err)
	}
	for _, r := range answer.(*incrementalalterconfigs.Response).Responses {
		if r.ErrorCode != 0 {
			return fmt.Errorf("set %s of topic %q: %w", name, c.cfg.Topic, kafka.Error(r.ErrorCode))
		}
	}
	return nil
}

// fromTheFuture counts the partitions with records of a clock that is ahead. What can't be asked counts as none.
func (c *cluster) fromTheFuture(ctx context.Context, cfg Config) (count int) {
	cfg.Create, cfg.Partitions = false, 0
	l, err := Open(ctx, cfg)
	if err != nil {
		return 0
	}
	defer l.Close()
	ahead := time.Now().Add(time.Minute)
	for p := range int32(l.Partitions()) {
		at, err := l.OffsetAt(ctx, p, ahead)
		if err != nil {
			return count
		}
		if _, next, err := l.Bounds(ctx, p); err == nil && at < next {
			count++
		}
	}
	return count
}
