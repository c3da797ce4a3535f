// Package bus is the node between the log and the notifiers: it reads the partitions
// that are its share, remembers their recent events, sends each event to the
// notifiers that want its account, and tells clients which notifier to use.
//
// The thinking is in package routing, which is pure. Around it stand, in this
// package: the readers (partition.go) and the share of partitions (assign.go), the
// links over gRPC (server.go, link.go, queue.go, wire.go), the fleet of notifiers
// (fleet.go), whether their public addresses work (probe.go), how they are kept even and
// emptied (even.go, drain.go), the gateway's HTTP door (gateway.go) and what load balancers ask
// (agent.go). Who gets the next client is decided in package placement, which is pure too.
//
// # Invariants
//
//   - A partition is announced as owned only when everything has been read that was on
//     the log when its reader began, so that an owner never knows less than a
//     position that a client holds, but for what is being written at that moment
//     (routing parks those requests).
//   - A partition that stays with the node from one generation of the group to the
//     next keeps its reader, its window, its links and the generation in which it came:
//     nothing about it is interrupted. One that goes elsewhere is served a moment
//     longer (Config.Linger), until the new owner has read its window; notifiers drop
//     what comes from an older generation.
//   - What is put on a link's queue under a partition's mutex travels in that order. A
//     queue is bounded in bytes; the link whose queue is full is cut with [CutQueueFull], and
//     its notifier comes back and resumes by position. While a queue is more than a
//     quarter full nothing more is read from its link, so replays wait for room
//     and live events find it.
//   - Nothing that comes over a link or the gateway can make the node panic or keep
//     unbounded memory: each message is checked and refused with what was wrong.
//
// # Goroutines
//
// Run owns all of them and waits for them: one for the group, one per partition that
// is read, one that ticks every second, one that announces, one that writes
// beacons, one that fills the index backwards, one that keeps the
// notifiers even, one for load balancers where they are listened to, and three per link: reader, writer
// and prober.
package bus
