package schema

import (
	"math"
	"strings"
	"testing"
)

func TestPositionText(t *testing.T) {
	for want, p := range map[string]Position{
		"19aa3f5c2b4.12.48211": {0x19aa3f5c2b4, 12, 48211},
		"0.0.0":                {},
		"ffffffffffffffff.2147483647.9223372036854775807": {math.MaxUint64, math.MaxInt32, math.MaxInt64},
	} {
		if got := p.String(); got != want {
			t.Errorf("%+v is written %q, want %q", p, got, want)
		}
		if len(want) > MaxPositionBytes {
			t.Errorf("%q is longer than MaxPositionBytes", want)
		}
		if back, err := ParsePosition(want); err != nil || back != p {
			t.Errorf("%q is read as %+v, %v", want, back, err)
		}
	}
	for _, bad := range []string{"", ".", "..", "1", "1.2", "1.2.3.4", "01.2.3", "1.02.3", "1.2.03", "A.1.1", "+1.1.1", "1.-1.1", "1.1.-1",
		"1.1.", "x.1.1", "1.2147483648.1", "1.1.9223372036854775808", "10000000000000000.1.1", " 1.1.1", "1.1.1 ", "1.1.1\n", strings.Repeat("1", 1000)} {
		if p, err := ParsePosition(bad); err == nil {
			t.Errorf("%q is read as %+v", bad, p)
		} else if !strings.Contains(err.Error(), "19aa3f5c2b4.12.48211") || len(err.Error()) > 300 {
			t.Errorf("%q: the error does not help: %v", bad, err)
		}
	}
}

func TestPositionCompare(t *testing.T) {
	p := Position{1, 2, 3}
	for _, tc := range []struct {
		q   Position
		cmp int
		ok  bool
	}{
		{Position{1, 2, 3}, 0, true}, {Position{1, 2, 4}, -1, true}, {Position{1, 2, 2}, 1, true},
		{Position{1, 3, 3}, 0, false}, {Position{2, 2, 3}, 0, false},
	} {
		if cmp, ok := p.Compare(tc.q); cmp != tc.cmp || ok != tc.ok {
			t.Errorf("%v with %v: %d %v", p, tc.q, cmp, ok)
		}
	}
}

func FuzzParsePosition(f *testing.F) {
	f.Add("19aa3f5c2b4.12.48211")
	f.Fuzz(func(t *testing.T, s string) {
		if p, err := ParsePosition(s); err == nil && p.String() != s {
			t.Errorf("%q is read as %v", s, p)
		}
	})
}

// TestPartitionOf holds the values that Kafka's own tests have for murmur2
// (org.apache.kafka.common.utils.UtilsTest.testMurmur2).
func TestPartitionOf(t *testing.T) {
	for key, want := range map[string]int32{
		"21": -973932308, "foobar": -790332482, "a-little-bit-long-string": -985981536,
		"a-little-bit-longer-string": -1486304829, "lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8": -58897971, "abc": 479470107,
	} {
		if got := int32(murmur2(key)); got != want {
			t.Errorf("murmur2(%q) = %d, want %d", key, got, want)
		}
	}
	for n := 1; n < 300; n++ {
		if p := PartitionOf("alice@example.com", n); p < 0 || int(p) >= n {
			t.Errorf("partition %d of %d", p, n)
		}
	}
}
