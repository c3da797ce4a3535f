package routing

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"
)

// TestWindowFindsEveryID holds the id chains to a map, while the window grows, expires and shrinks.
func TestWindowFindsEveryID(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	h := newHasher()
	h.mask = 0xff
	var w window
	w.reset(-1)
	for offset := range int64(5000) {
		bytes := int64(100_000)
		if offset > 2500 {
			bytes = 10_000
		}
		account := []byte(fmt.Sprint("a", r.IntN(50)))
		id := []byte(fmt.Sprint("i", offset))
		k := h.bytes(account)
		w.add(Record{Offset: offset, Time: time.UnixMilli(offset), Account: account, Event: event(string(id), "", "")}, k.hash(), h.id(k, id)&0x3f)
		w.expire(bytes, time.Time{})
		old := r.Int64N(offset + 1)
		oldID := []byte(fmt.Sprint("i", old))
		want := false
		for n := w.first; n < w.next; n++ {
			want = want || w.at(n).offset == old && string(w.accountOf(w.at(n))) == string(account)
		}
		if got := w.has(account, oldID, h.id(k, oldID)&0x3f); got != want && h.id(k, oldID)&0x3f != 0 {
			t.Fatalf("at %d: has(%s, %s) = %t, want %t", offset, account, oldID, got, want)
		}
	}
	if len(w.ring) > 512 {
		t.Errorf("the ring has %d places for %d records", len(w.ring), w.len())
	}
	w.expire(0, time.Time{})
	if w.len() != 0 || w.bytes != 0 || len(w.chunks) != 0 || w.floor != 4999 {
		t.Errorf("after expiry of all: %d records, %d bytes, %d chunks, floor %d", w.len(), w.bytes, len(w.chunks), w.floor)
	}
}

// TestOutputsOutliveTheWindow: what was delivered is not written over when its window has moved on.
func TestOutputsOutliveTheWindow(t *testing.T) {
	p := New(Config{WindowBytes: 1 << 10}, 1, 0)
	p.Own(1)
	p.Subscribe(time.Time{}, 1, Subscribe{Generation: 1, Accounts: []string{"alice"}})
	out := p.Append(time.UnixMilli(1), []Record{{Offset: 1, Time: time.UnixMilli(1), Account: []byte("alice"), Event: event("first", "", "")}})
	kept := out[0].Records[0]
	for i := range int64(1000) {
		p.Append(time.UnixMilli(1), []Record{{Offset: 2 + i, Time: time.UnixMilli(1), Account: []byte("bob"), Event: event(fmt.Sprint(i), "", "")}})
	}
	if string(kept.Event) != string(event("first", "", "")) || string(kept.Account) != "alice" {
		t.Errorf("the record became %s %s", kept.Account, kept.Event)
	}
}

func TestConfigValidate(t *testing.T) {
	if err := (Config{}).Validate(); err != nil {
		t.Error(err)
	}
	if err := (Config{WindowBytes: -1}).Validate(); err == nil {
		t.Error("a negative WindowBytes passed")
	}
}
