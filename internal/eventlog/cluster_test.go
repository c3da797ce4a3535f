package eventlog

import "testing"

// Readers are told when leaders have moved, and not each time that the topic is looked at.
func TestLayoutTellsOfMoves(t *testing.T) {
	var c cluster
	c.put(&layout{leaders: []int32{1, 2}})
	moved := c.moved()
	told := func() bool {
		select {
		case <-moved:
			return true
		default:
			return false
		}
	}
	if c.put(&layout{leaders: []int32{1, 2}}); told() {
		t.Error("readers are told of the same leaders")
	}
	if c.put(&layout{leaders: []int32{1, -1}}); !told() {
		t.Error("readers are not told that a leader has gone")
	}
	moved = c.moved()
	if told() {
		t.Error("readers are told of what was before they asked")
	}
	if c.put(&layout{leaders: []int32{1, 3}}); !told() {
		t.Error("readers are not told of the new leader")
	}
}
