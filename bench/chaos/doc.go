// Package chaos holds the two parts of `mailbell bench chaos` that know nothing of mailbell: the network that its
// processes live in, and the plan of faults.
//
// Invariants:
//   - A Network touches only namespaces, links and mounts that it made, and Close removes them all. What a network of a
//     process that was killed left behind is removed by the next one.
//   - A Plan is decided by its seed alone, and never breaks the same thing twice at once.
//
// The package starts no goroutines.
package chaos
