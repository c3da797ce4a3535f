// Package schema says what an event is, what its key and its position are, and
// how the frames of the clients' wire look. It is pure: values in, values out,
// no I/O, no clock but for NewID, no state. Everything that comes from outside is decoded here,
// strictly, and every decoder has a fuzz target.
//
// The names are those of RFC 5423 (Internet Message Store Events) wherever it
// has one. The wire between bus and notifier is in the package link below.
package schema
