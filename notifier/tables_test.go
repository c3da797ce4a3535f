package notifier

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"unsafe"

	"github.com/mailbell/mailbell/schema"
)

// What a connection costs is in the package comment; it stays true here.
func TestSizes(t *testing.T) {
	for _, tt := range []struct {
		name      string
		got, want uintptr
	}{
		{"slot", unsafe.Sizeof(slot{}), 44},
		{"deadline", unsafe.Sizeof(slots{}.due.parts[0][0]), 4},
		{"subscription", unsafe.Sizeof(sub{}), 32},
		{"account", unsafe.Sizeof(nameEntry{}), 24},
		{"name", uintptr(unitsOf(len("user00000@example.com"))) * arenaUnit, 24},
	} {
		if tt.got != tt.want {
			t.Errorf("a %s has %d bytes, the package comment says %d", tt.name, tt.got, tt.want)
		}
	}
}

// names against maps, at random.
func TestNamesModel(t *testing.T) {
	n := newNames()
	rng := rand.New(rand.NewPCG(1, 2))
	type model struct {
		id           nameID
		holds, wants int
	}
	have := map[string]*model{}
	pick := func() string { return strings.Repeat("x", rng.IntN(40)) + fmt.Sprint(rng.IntN(300)) }
	for range 200000 {
		name := pick()
		m := have[name]
		if m == nil {
			m = &model{}
		}
		switch k := rng.IntN(5); {
		case k == 0:
			m.id, _ = n.hold(name, 0)
			m.holds++
		case k == 1:
			m.id, _ = n.want(name, 0)
			m.wants++
		case k == 2 && m.holds > 0:
			n.release(m.id)
			m.holds--
		case k == 3 && m.wants > 0:
			n.unwant(m.id)
			m.wants--
		}
		if m.holds+m.wants > 0 {
			have[name] = m
			if !n.is(m.id, name) || n.name(m.id) != name || m.wants > 0 && n.wanted(name) != m.id {
				t.Fatalf("%q is not %d", name, m.id)
			}
		} else {
			delete(have, name)
			if n.wanted(name) != 0 {
				t.Fatalf("%q is still there", name)
			}
		}
	}
	var allHolds, allWants uint64
	for _, m := range have {
		allHolds, allWants = allHolds+uint64(m.holds), allWants+uint64(m.wants)
	}
	if inUse, holds, wants := n.counts(); inUse != len(have) || holds != allHolds || wants != allWants {
		t.Errorf("%d names with %d holds and %d wants, want %d, %d and %d", inUse, holds, wants, len(have), allHolds, allWants)
	}
	for name, m := range have {
		for ; m.holds > 0; m.holds-- {
			n.release(m.id)
		}
		for ; m.wants > 0; m.wants-- {
			n.unwant(m.id)
		}
		if n.wanted(name) != 0 {
			t.Errorf("%q is still there", name)
		}
	}
	inUse, holds, wants := n.counts()
	if inUse != 0 || holds != 0 || wants != 0 {
		t.Errorf("left: %d names, %d holds, %d wants", inUse, holds, wants)
	}
	for i, id := range n.index {
		if id != 0 {
			t.Errorf("index[%d] = %d", i, id)
		}
	}
}

func TestNamesLimit(t *testing.T) {
	n := newNames()
	a, ok := n.hold("a", 1)
	if !ok {
		t.Fatal("the first is within the limit")
	}
	if _, ok := n.hold("a", 1); ok {
		t.Error("the second is not")
	}
	n.release(a)
	if _, ok := n.hold("a", 1); !ok {
		t.Error("it is again")
	}
}

// subs against maps, at random.
func TestSubsModel(t *testing.T) {
	var s subs
	var conns slots
	rng := rand.New(rand.NewPCG(3, 4))
	var open []uint32
	want := map[nameID]map[uint32]bool{} // account -> slots
	for range 64 {
		i := conns.take()
		conns.all.at(i).state = slotOpen
		open = append(open, i)
	}
	for step := range 100000 {
		i := open[rng.IntN(len(open))]
		c := conns.all.at(i)
		a := nameID(1 + rng.IntN(500))
		if n := s.find(c, a); n != 0 {
			if f := s.remove(c, n); f != uint32(a)%7 {
				t.Fatalf("filter %d", f)
			}
			delete(want[a], i)
		} else if c.nsubs < 200 {
			s.add(i, c, a, uint32(a)%7, 5)
			if want[a] == nil {
				want[a] = map[uint32]bool{}
			}
			want[a][i] = true
		}
		if step%1000 != 0 {
			continue
		}
		total := 0
		for a, set := range want {
			got := map[uint32]bool{}
			for n := s.first(a); n != 0; n = s.all.at(n).next {
				got[s.all.at(n).slot] = true
			}
			if len(got) != len(set) {
				t.Fatalf("account %d: %v, want %v", a, got, set)
			}
			total += len(set)
		}
		if s.count != total {
			t.Fatalf("%d subscriptions, want %d", s.count, total)
		}
	}
	for _, i := range open {
		for c := conns.all.at(i); c.subs != 0; {
			s.remove(c, c.subs)
		}
	}
	if s.count != 0 || s.accounts != 0 || slices.ContainsFunc(s.heads, func(n uint32) bool { return n != 0 }) {
		t.Errorf("left: %d subscriptions, %d accounts", s.count, s.accounts)
	}
}

func TestHandle(t *testing.T) {
	h := makeHandle(255, maxSlots-1, 1<<32-1)
	if h.shard() != 255 || h.index() != maxSlots-1 || h.gen() != 1<<32-1 {
		t.Errorf("%v", h)
	}
	var s slots
	i := s.take()
	s.all.at(i).state = slotOpen
	old := makeHandle(0, i, s.all.at(i).gen)
	if s.of(old) == nil {
		t.Error("the handle names its connection")
	}
	s.give(i)
	if s.of(old) != nil {
		t.Error("a free slot has no handle")
	}
	if j := s.take(); j != i {
		t.Fatalf("slot %d, want %d again", j, i)
	}
	s.all.at(i).state = slotOpen
	if s.of(old) != nil {
		t.Error("the handle names the slot's next owner")
	}
	if s.of(makeHandle(0, 77777, 1)) != nil || s.of(0) != nil {
		t.Error("a handle out of range names nothing")
	}
}

func TestFilters(t *testing.T) {
	var f filters
	if f.take(nil) != 0 || !f.pass(0, "", "") {
		t.Error("nil is all")
	}
	a := f.take([]schema.Mailbox{"B", "A", "B"})
	if b := f.take([]schema.Mailbox{"A", "B"}); a != b {
		t.Errorf("the same set: %d and %d", a, b)
	}
	none := f.take([]schema.Mailbox{})
	for _, tt := range []struct {
		filter   uint32
		box, old schema.Mailbox
		want     bool
	}{{a, "A", "", true}, {a, "C", "", false}, {a, "C", "B", true}, {a, "", "", false}, {none, "A", "", false}} {
		if got := f.pass(tt.filter, tt.box, tt.old); got != tt.want {
			t.Errorf("pass(%d, %q, %q) = %v", tt.filter, tt.box, tt.old, got)
		}
	}
	f.drop(a)
	f.drop(a)
	f.drop(none)
	if len(f.byKey) != 0 || len(f.free) != 2 {
		t.Errorf("left: %v", f.byKey)
	}
}

func TestBuffers(t *testing.T) {
	var b buffers
	for _, size := range []int{1, 511, 512, 513, 4096, 65536, 65537, 200000} {
		buf := b.get(size)
		if len(buf) != 0 || cap(buf) < size {
			t.Errorf("get(%d): %d of %d", size, len(buf), cap(buf))
		}
		buf = b.add(buf, make([]byte, size+1))
		if len(buf) != size+1 {
			t.Errorf("add: %d", len(buf))
		}
		b.put(buf)
	}
	for range 1000 {
		b.put(make([]byte, 0, 4096))
	}
	if b.kept > maxSpare {
		t.Errorf("%d bytes kept", b.kept)
	}
	b.put(nil)
}
