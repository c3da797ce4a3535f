package eventlog

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	kafka "github.com/segmentio/kafka-go"
)

// DefaultGroup is the consumer group of the bus nodes.
const DefaultGroup = "mailbell-bus"

// GroupConfig says how a node takes part in a group.
type GroupConfig struct {
	// Group is the group's name; empty means DefaultGroup.
	Group string
	// NodeID names this node, the same across restarts, so that it gets its partitions back.
	NodeID string
	// Heartbeat is how often the node says that it lives, and learns of a rebalance; 0 means 500 ms.
	Heartbeat time.Duration
	// Session is the silence after which a node counts as dead; 0 means 6 s, which is Kafka's own minimum.
	Session time.Duration
	// Rebalance bounds how long a rebalance waits for a node that lives; 0 means 10 s.
	Rebalance time.Duration
	// OnAssigned is called once for each generation of the group, with the partitions that are this node's in it. Its
	// ctx ends with the generation, and then it has to return soon: the next generation begins only after that. When
	// it returns earlier, the generation goes on.
	OnAssigned func(ctx context.Context, generation int64, partitions []int32)
}

func (c GroupConfig) withDefaults() GroupConfig {
	if c.Group == "" {
		c.Group = DefaultGroup
	}
	if c.Heartbeat == 0 {
		c.Heartbeat = 500 * time.Millisecond
	}
	if c.Session == 0 {
		c.Session = 6 * time.Second
	}
	if c.Rebalance == 0 {
		c.Rebalance = 10 * time.Second
	}
	return c
}

// Validate returns what is wrong with c.
func (c GroupConfig) Validate() error {
	var errs []error
	if c.NodeID == "" {
		errs = append(errs, errors.New("group config: no node id: give each node a name of its own, such as bus-1"))
	}
	if c.OnAssigned == nil {
		errs = append(errs, errors.New("group config: no OnAssigned"))
	}
	if c.Heartbeat < 0 || c.Session < 0 || c.Rebalance < 0 {
		errs = append(errs, errors.New("group config: a duration is negative"))
	}
	if d := c.withDefaults(); d.Heartbeat*3 > d.Session {
		errs = append(errs, fmt.Errorf("group config: a heartbeat every %v is too seldom for a session of %v: at least three have to fit", d.Heartbeat, d.Session))
	}
	return errors.Join(errs...)
}

// Join takes part in the group until ctx ends, then leaves it, so that the others take over at once, and returns nil.
// It returns an error when the group can never be joined, or the topic's partitions changed.
func (l *Log) Join(ctx context.Context, cfg GroupConfig) error {
	if err := cfg.Validate(); err != nil {
		return err
	}
	cfg = cfg.withDefaults()
	group, err := kafka.NewConsumerGroup(l.consumerGroup(cfg))
	if err != nil {
		return fmt.Errorf("join group %q: %w", cfg.Group, err)
	}
	defer group.Close()
	ctx, cancel := l.cluster.within(ctx)
	defer cancel()
	for {
		generation, err := group.Next(ctx)
		switch {
		case l.cluster.err() != nil:
			return fmt.Errorf("group %q: %w", cfg.Group, l.cluster.err())
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, kafka.GroupAuthorizationFailed), errors.Is(err, kafka.InconsistentGroupProtocol),
			errors.Is(err, kafka.InvalidSessionTimeout), errors.Is(err, kafka.InvalidGroupId):
			return fmt.Errorf("join group %q: %w", cfg.Group, err)
		case err != nil: // such as "Group Coordinator Not Available" on a broker that never had a group
			l.log.Debug("join the group again", "group", cfg.Group, "err", err)
			continue
		}
		l.serve(ctx, cfg, generation)
	}
}

func (l *Log) consumerGroup(cfg GroupConfig) kafka.ConsumerGroupConfig {
	d := l.cluster.dialer
	return kafka.ConsumerGroupConfig{
		ID:      cfg.Group,
		Brokers: l.cluster.addresses(),
		Topics:  []string{l.cfg.Topic},
		Dialer: &kafka.Dialer{ClientID: clientID + "-" + cfg.NodeID, Timeout: 3 * time.Second, DialFunc: d.dial,
			TLS: d.tls, SASLMechanism: d.sasl},
		GroupBalancers:    []kafka.GroupBalancer{balancer{node: cfg.NodeID}},
		HeartbeatInterval: cfg.Heartbeat,
		SessionTimeout:    cfg.Session,
		RebalanceTimeout:  cfg.Rebalance,
		JoinGroupBackoff:  200 * time.Millisecond,
		StartOffset:       kafka.LastOffset,
		Timeout:           5 * time.Second,
	}
}

// serve hands a generation to OnAssigned and returns when it has ended.
func (l *Log) serve(ctx context.Context, cfg GroupConfig, generation *kafka.Generation) {
	partitions := make([]int32, 0, l.partitions)
	for _, p := range generation.Assignments[l.cfg.Topic] {
		partitions = append(partitions, int32(p.ID))
	}
	slices.Sort(partitions)
	l.metrics.generations.Inc()
	l.log.Info("new generation of the group", "group", cfg.Group, "node", cfg.NodeID, "generation", generation.ID, "partitions", len(partitions))
	ended := make(chan struct{})
	generation.Start(func(over context.Context) {
		defer close(ended)
		genCtx, cancel := context.WithCancel(ctx)
		defer cancel()
		defer context.AfterFunc(over, cancel)()
		var keeping sync.WaitGroup
		keeping.Go(func() { l.keepGroup(generation, partitions) })
		defer keeping.Wait()
		cfg.OnAssigned(genCtx, int64(generation.ID), partitions)
		<-genCtx.Done()
	})
	<-ended
}

// keepGroup commits an offset, which nobody reads: Kafka forgets a group without members and offsets after minutes, and
// would count its generations from 1 again. Then a notifier would take the new owners for stale ones.
func (l *Log) keepGroup(generation *kafka.Generation, partitions []int32) {
	if len(partitions) == 0 {
		return
	}
	offsets := map[string]map[int]int64{l.cfg.Topic: {int(partitions[0]): 0}}
	if err := generation.CommitOffsets(offsets); err != nil {
		l.log.Debug("keep the group", "err", err)
	}
}
