// Package routing is the pure core of the bus: what one partition of the log
// remembers, who wants which of its accounts, and what to answer.
//
// Values in, values out: no I/O, no clock (time is an argument), no goroutines,
// no locks. A [Partition] belongs to one caller at a time; the bus holds a mutex
// around each. Every method returns its [Output]s in the order in which they must
// travel on each link; they are valid until the next call.
//
// # What a partition knows
//
// The head: everything up to it has been read. The window: each event after the
// window's floor, in order, bounded by bytes and by age. The index: for each
// account a 32-bit hash and the offset of its last event, eight bytes, reaching
// back to the index's floor, which lies far behind the window's. The routes:
// account to links.
//
// # Invariants
//
//   - An answer is certain or it is [Resync]. [Current] is given only when the
//     index or the window proves that nothing happened. Two accounts whose hashes
//     collide share an index entry that holds the later offset of the two, so a
//     collision can only turn Current into Replay or Resync.
//   - A link that subscribed to an account gets each later event of it exactly once
//     and in order, or the partition is disowned ([Partition.Gap],
//     [Partition.Disown]) and the link must subscribe again with its position.
//   - An answer's Head and the deliveries agree: what Resumed or Subscribed replays
//     ends at Head, and every later event comes as a delivery after the answer.
//   - The memory that a window holds is written once: outputs share it, and it is
//     never written again.
//   - An event whose account and id equal those of an event in the window is
//     dropped. Duplicates are found as far back as the window reaches, no further.
package routing
