package schema

import (
	"math/rand/v2"
	"testing"
)

func TestUIDSet(t *testing.T) {
	for text, want := range map[string]string{
		"1": "1", "3,2,1": "1:3", "1:3,5:7,4": "1:7", "7:5": "5:7", "1:300,405": "1:300,405",
		"10,1:2,5": "1:2,5,10", "4294967295,4294967294": "4294967294:4294967295", "1:4294967295,7": "1:4294967295",
		"1:10,3:4": "1:10", "5,5,5": "5", "2:4,1:9": "1:9", "1,3,5,2:4": "1:5",
	} {
		s, err := ParseUIDSet(text)
		if err != nil || s.String() != want {
			t.Errorf("%q is %q, want %q (%v)", text, s.String(), want, err)
		}
	}
	for _, bad := range []string{"", "*", "1:*", "a", "1:", ":1", "1,,2", "0", "-1", "00", "4294967296", "1:2:3", " 1"} {
		if s, err := ParseUIDSet(bad); err == nil {
			t.Errorf("%q is read as %q", bad, s.String())
		}
	}
}

// TestUIDSetModel compares with a map, in random order.
func TestUIDSetModel(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	for range 500 {
		var s UIDSet
		model := map[uint32]bool{}
		for range random.IntN(60) {
			lo := uint32(random.IntN(100))
			hi := lo + uint32(random.IntN(8))
			s.AddRange(lo, hi)
			for uid := max(lo, 1); uid <= hi; uid++ {
				model[uid] = true
			}
		}
		if s.Len() != len(model) {
			t.Fatalf("%s has %d, the model %d", s.String(), s.Len(), len(model))
		}
		for uid := range uint32(110) {
			if s.Contains(uid) != model[uid] {
				t.Fatalf("%s: %d", s.String(), uid)
			}
		}
		for i := 1; i < len(s.ranges); i++ {
			if s.ranges[i].lo <= s.ranges[i-1].hi+1 {
				t.Fatalf("%s is not joined", s.String())
			}
		}
	}
}

func FuzzParseUIDSet(f *testing.F) {
	f.Add("1:300,405")
	f.Add("3,2,1,*")
	f.Fuzz(func(t *testing.T, text string) {
		s, err := ParseUIDSet(text)
		if err != nil {
			return
		}
		if canonical := isCanonicalUIDSet(text); canonical != (s.String() == text) {
			t.Fatalf("%q: canonical %v, set %q", text, canonical, s.String())
		}
		again, err := ParseUIDSet(s.String())
		if err != nil || again.String() != s.String() {
			t.Fatalf("%q: %q, then %q, %v", text, s.String(), again.String(), err)
		}
	})
}

func BenchmarkUIDSetAdd(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		var s UIDSet
		for uid := range uint32(5000) {
			s.Add(uid + 1)
		}
	}
}
