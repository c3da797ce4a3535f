// Package cputime reads what processes have used of the CPU, to the nanosecond: /proc counts in ticks of 10 ms, which is
// nothing for a short stretch of many small processes.
package cputime

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Time is user and system seconds.
type Time struct{ User, System float64 }

// Sum is both.
func (t Time) Sum() float64 { return t.User + t.System }

// Plus adds another.
func (t Time) Plus(o Time) Time { return Time{t.User + o.User, t.System + o.System} }

// Minus subtracts another.
func (t Time) Minus(o Time) Time { return Time{t.User - o.User, t.System - o.System} }

// Less takes seconds from both parts, in proportion, down to 0.
func (t Time) Less(seconds float64) Time {
	if seconds <= 0 || t.Sum() <= 0 {
		return t
	}
	left := max(0, 1-seconds/t.Sum())
	return Time{t.User * left, t.System * left}
}

// Ticks is how many of /proc's ticks are a second: USER_HZ, which is 100 on every Linux that Go runs on.
const Ticks = 100

// Process returns what a process has used so far, its threads that have ended among them, less its children.
func Process(pid int) (Time, error) {
	f, err := stat(pid)
	if err != nil {
		return Time{}, err
	}
	return own(pid, f)
}

// own splits the process's clock in the proportion in which /proc/PID/stat has it.
func own(pid int, f []string) (Time, error) {
	// A process's CPU clock, as clock_getcpuclockid(3) makes it: the inverted number, and 2 for the scheduler's time.
	var ts unix.Timespec
	if err := unix.ClockGettime(int32(^pid<<3|2), &ts); err != nil {
		return Time{}, fmt.Errorf("cpu time of process %d: %w", pid, err)
	}
	total := float64(ts.Nano()) / 1e9
	user, system := number(f[11]), number(f[12])
	if user+system == 0 {
		return Time{User: total}, nil
	}
	return Time{User: total * user / (user + system), System: total * system / (user + system)}, nil
}

// Tree returns what a process and all that descend from it have used so far, those that have ended and were waited for among them.
func Tree(root int) (Time, error) {
	var sum Time
	err := each(root, func(pid int, f []string) {
		if t, err := own(pid, f); err == nil { // else it has ended; its parent has its time
			sum = sum.Plus(t)
		}
		sum.User += number(f[13]) / Ticks // of children that have ended
		sum.System += number(f[14]) / Ticks
	})
	return sum, err
}

// Descendants returns a process and all that descend from it.
func Descendants(root int) ([]int, error) {
	var all []int
	err := each(root, func(pid int, _ []string) { all = append(all, pid) })
	return all, err
}

// PerCall returns the seconds that a process and its descendants use for one of n calls.
func PerCall(root, n int, call func(i int) error) (float64, error) {
	before, err := Tree(root)
	if err != nil {
		return 0, err
	}
	for i := range n {
		if err := call(i); err != nil {
			return 0, err
		}
	}
	after, err := Tree(root)
	return max(0, after.Minus(before).Sum()) / float64(max(n, 1)), err
}

// each calls fn with the fields of /proc/PID/stat of the process and its descendants.
func each(root int, fn func(pid int, f []string)) error {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return fmt.Errorf("processes of %d: %w", root, err)
	}
	stats, children := make(map[int][]string), make(map[int][]int)
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		f, err := stat(pid)
		if err != nil {
			continue // has ended
		}
		parent := int(number(f[1]))
		stats[pid], children[parent] = f, append(children[parent], pid)
	}
	if stats[root] == nil {
		return fmt.Errorf("processes of %d: %w", root, errors.New("it has ended"))
	}
	for todo := []int{root}; len(todo) > 0; todo = todo[1:] {
		fn(todo[0], stats[todo[0]])
		todo = append(todo, children[todo[0]]...)
	}
	return nil
}

// stat returns the fields of /proc/PID/stat from the state on. The name in parentheses before it may hold anything.
func stat(pid int) ([]string, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return nil, fmt.Errorf("cpu time of process %d: %w", pid, err)
	}
	f := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:]))
	if len(f) < 15 {
		return nil, fmt.Errorf("cpu time of process %d: /proc/PID/stat has %d fields", pid, len(f))
	}
	return f, nil
}

func number(s string) float64 {
	n, _ := strconv.ParseFloat(s, 64)
	return n
}
