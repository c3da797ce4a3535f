package ledger

import (
	"reflect"
	"testing"
)

func TestID(t *testing.T) {
	id := ID{Run: 7777777, Account: 123, Seq: 4, SentAt: 1795238278000000001}
	if back, ok := ParseID([]byte(id.String())); !ok || back != id {
		t.Errorf("%s is read as %+v, %v", id, back, ok)
	}
	for _, bad := range []string{"", "b", "b1", "b1.2.3", "b1.2.3.", "x1.2.3.4", "b1.2.3.-4", "b1.2.4294967296.4", "b1.A.1.1", "b1.a.1.1", "01JD5Z8QF3VYB6M0XW7R9K2T4C"} {
		if id, ok := ParseID([]byte(bad)); ok {
			t.Errorf("%q is read as %+v", bad, id)
		}
	}
}

// TestCheck plays what a client sees against what was acknowledged: events 1..n at offsets 10, 20, ...
func TestCheck(t *testing.T) {
	for name, tc := range map[string]struct {
		acked int
		since int64
		see   func(o *Observer)
		want  Verdict
	}{
		"all in order": {3, -1, func(o *Observer) { o.Event(1); o.Event(2); o.Event(3) }, Verdict{Expected: 3, Delivered: 3}},
		"nothing came": {3, -1, func(*Observer) {}, Verdict{Expected: 3, Lost: 3}},
		"one in the middle": {3, -1, func(o *Observer) { o.Event(1); o.Event(3) },
			Verdict{Expected: 3, Delivered: 2, Lost: 1}},
		"the last":        {3, -1, func(o *Observer) { o.Event(1); o.Event(2) }, Verdict{Expected: 3, Delivered: 2, Lost: 1}},
		"twice":           {2, -1, func(o *Observer) { o.Event(1); o.Event(2); o.Event(1); o.Event(2) }, Verdict{Expected: 2, Delivered: 2, Duplicates: 2}},
		"order":           {3, -1, func(o *Observer) { o.Event(1); o.Event(3); o.Event(2) }, Verdict{Expected: 3, Delivered: 3, Misordered: 1}},
		"told, then more": {4, -1, func(o *Observer) { o.Event(1); o.Covered(30); o.Event(4) }, Verdict{Expected: 4, Delivered: 2, Told: 2}},
		"told too little": {4, -1, func(o *Observer) { o.Event(1); o.Covered(20); o.Event(4) }, Verdict{Expected: 4, Delivered: 2, Told: 1, Lost: 1}},
		"told too late":   {4, -1, func(o *Observer) { o.Event(1); o.Event(4); o.Covered(40) }, Verdict{Expected: 4, Delivered: 2, Lost: 2}},
		"dropped by position": {3, -1, func(o *Observer) { o.Event(1); o.Event(3); o.Duplicate() },
			Verdict{Expected: 3, Delivered: 2, Lost: 1, Duplicates: 1}},
		"led back": {4, -1, func(o *Observer) {
			o.Event(1)
			o.Covered(30)
			o.Event(4)
			o.Covered(10)
			o.LedBack()
			o.Event(2)
			o.Event(3)
			o.Event(4)
		}, Verdict{Expected: 4, Delivered: 4, Duplicates: 1}},
		"led back, then order": {7, -1, func(o *Observer) { o.Event(1); o.LedBack(); o.Event(2); o.Event(4); o.Event(3) },
			Verdict{Expected: 7, Delivered: 4, Misordered: 1, Lost: 3}},
		"told of the end":     {4, -1, func(o *Observer) { o.Event(1); o.Covered(40) }, Verdict{Expected: 4, Delivered: 1, Told: 3}},
		"subscribed late":     {4, 20, func(o *Observer) { o.Covered(20); o.Event(3); o.Event(4) }, Verdict{Expected: 2, Delivered: 2}},
		"unacknowledged came": {3, -1, func(o *Observer) { o.Event(1); o.Event(2); o.Event(3); o.Event(4) }, Verdict{Expected: 4, Delivered: 4}},
	} {
		l := NewLedger()
		for seq := 1; seq <= tc.acked; seq++ {
			l.Acknowledge(7, uint32(seq), int64(10*seq))
		}
		o := NewObserver()
		tc.see(&o)
		var got Verdict
		l.Check(&got, o.Observation(7), tc.since)
		got.Examples = nil
		if !reflect.DeepEqual(got, tc.want) {
			t.Errorf("%s: %+v, want %+v", name, got, tc.want)
		}
	}
}

func TestUnacknowledgedIsNotExpected(t *testing.T) {
	l := NewLedger()
	l.Acknowledge(1, 1, 10)
	l.Acknowledge(1, 3, 30) // 2 was never acknowledged
	o := NewObserver()
	o.Event(1)
	o.Event(3)
	var v Verdict
	l.Check(&v, o.Observation(1), -1)
	if v.Lost != 0 || v.Expected != 2 || l.Acknowledged() != 2 {
		t.Errorf("%+v, acknowledged %d", v, l.Acknowledged())
	}
}
