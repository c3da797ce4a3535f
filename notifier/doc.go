// Package notifier holds the clients' connections: it accepts, upgrades, authenticates and keeps WebSockets of
// mailbell.v1, and writes each event to those that subscribed to its account.
//
// # What a connection costs
//
// An idle connection is a descriptor and some numbers; it has no goroutine, timer, buffer or net.Conn. With one
// subscription to an account of its own, whose name has 21 bytes:
//
//	slot           44   generation, descriptor, lists, account, address, deadlines, rate, age, state
//	deadline        4   in an array of its own, which is swept
//	subscription   32   account, connection, the account's and the connection's lists, floor, filter
//	account        24   reference counts, hash, where the name is
//	name           24   in the arena, in units of 8 bytes
//	hash tables 11–21   account by name, subscriptions by account: 4 bytes a place, 3/8 to 3/4 full
//
// that is 139 to 149 bytes, and none of them a pointer. A test holds the sizes of the first five, another measures a process:
// that has some 30 more for each of 15,000 connections, which is what Go's allocator adds (tables that have been outgrown and
// wait for the collector, pages half used, the collector's own marks). The poller costs nothing here: the kernel keeps a
// handle with each descriptor (epoll.go). Each further address of clients costs some 40 bytes, each further account that a
// connection subscribes to 32, and 58 more if nobody else has it. What only busy connections need (half
// frames, parked events, the request's head) is in an extra, from buffers that are used again.
//
// # Invariants
//
//   - A client hears only of accounts that its token allows, and of each event once at most over one connection:
//     a subscription keeps the offset up to which its client has been told.
//   - Every event of a subscription is sent, or a `missed` with a later position is.
//   - A connection is named by a handle with a generation. Nothing meant for a former owner of a slot or a descriptor
//     reaches the next one: descriptors are closed, and written to, only under their shard's lock.
//   - What the poller says is a hint. Only what the socket itself answers counts.
//   - No client makes another one wait: nothing here blocks on a socket, and each queue has a bound. Backlog: Limits.Backlog
//     and TotalBacklog, then `missed`; in the kernel 64 KiB beyond what is under way. Answers: twice the backlog, and
//     TotalBacklog, then the connection ends. Handshakes: MaxHandshakes, then those silent for longest make room; of those that
//     wait for a key half as many as there are workers, then 503. Refused clients that don't leave: 1,024, then they are cut.
//     Messages to a bus node: 4,096, then the link is cut and begins again.
//
// # Goroutines
//
// Run starts them and waits for all: a poller and a sweeper per shard, the acceptor and its poller, who waits for a
// successor (takeover.go), the workers that fetch keys, the hub, and for every bus node a link with its writer. The
// hub owns the core (what is wanted, owned and waited for) and is the only one to deliver, so what it decides first arrives first.
// Locks are taken in this order: acceptor, shard, and then one of the leaves (names, inbox, pool).
//
// The way of an event: linker.read, hub.handle, core.deliveries, hub.event (the frame is built here, once),
// shard.deliver, shard.pushEvent.
//
// The way of a subscribe: shard.message, shard.askSubscribe, inbox, core.subscribe, the owner's Resumed,
// core.resumed, shard.subscribed.
package notifier
