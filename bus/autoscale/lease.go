package autoscale

import (
	"context"
	"slices"

	"github.com/mailbell/mailbell/internal/eventlog"
)

// Group is what the lease needs of the log; *eventlog.Log is one.
type Group interface {
	Join(ctx context.Context, cfg eventlog.GroupConfig) error
}

// KafkaLease is a consumer group of its own on the events' topic: who is assigned partition 0 has the lease. Kafka gives it
// to another within the session's 6 seconds when its holder is gone.
type KafkaLease struct {
	Log   Group
	Group string // such as mailbell-bus-autoscale
	Node  string
}

// Hold implements [Lease].
func (l KafkaLease) Hold(ctx context.Context, fn func(ctx context.Context)) error {
	return l.Log.Join(ctx, eventlog.GroupConfig{Group: l.Group, NodeID: l.Node, OnAssigned: func(ctx context.Context, _ int64, partitions []int32) {
		if slices.Contains(partitions, 0) {
			fn(ctx)
		}
	}})
}
