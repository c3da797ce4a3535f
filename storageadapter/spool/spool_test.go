package spool

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
)

var quiet = slog.New(slog.DiscardHandler)

func open(t testing.TB, cfg Config) *Spool {
	t.Helper()
	if cfg.Logger == nil {
		cfg.Logger = quiet
	}
	s, err := Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func put(t testing.TB, s *Spool, values ...string) {
	t.Helper()
	var recs []Record
	for _, v := range values {
		recs = append(recs, Record{Key: "k", Value: []byte(v)})
	}
	if err := s.Append(t.Context(), recs...); err != nil {
		t.Fatal(err)
	}
}

// take takes n records out.
func take(t testing.TB, s *Spool, n int) []string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	var got []string
	for len(got) < n {
		recs, err := s.Next(ctx, n-len(got), 1<<20)
		if err != nil {
			t.Fatalf("next after %d of %d: %v", len(got), n, err)
		}
		for _, r := range recs {
			got = append(got, string(r.Value))
		}
		s.Done(len(recs))
	}
	return got
}

func numbers(from, to int) []string {
	var vs []string
	for i := from; i < to; i++ {
		vs = append(vs, fmt.Sprint(i))
	}
	return vs
}

func TestFirstInFirstOut(t *testing.T) {
	s := open(t, Config{Dir: t.TempDir()})
	put(t, s, "0", "1", "2")
	put(t, s, "3")
	recs, err := s.Next(t.Context(), 10, 1<<20)
	if err != nil || len(recs) == 0 || recs[0].Key != "k" || string(recs[0].Value) != "0" {
		t.Fatalf("next: %v, %v", recs, err)
	}
	again, err := s.Next(t.Context(), 2, 1<<20)
	if err != nil || len(again) != 2 || string(again[0].Value) != "0" {
		t.Fatalf("what is not Done must come again: %v, %v", again, err)
	}
	s.Done(1)
	if got := take(t, s, 3); !slices.Equal(got, []string{"1", "2", "3"}) {
		t.Fatalf("got %v", got)
	}
	if n, _ := s.Len(); n != 0 {
		t.Fatalf("%d records left", n)
	}
}

func TestReopenKeepsOrderAndPlace(t *testing.T) {
	dir := t.TempDir()
	cfg := Config{Dir: dir, SegmentBytes: 200}
	next := 0
	for round := range 5 {
		s := open(t, cfg)
		put(t, s, numbers(round*20, round*20+20)...)
		for i := round*20 + 20; i < (round+1)*20; i++ {
			put(t, s, fmt.Sprint(i))
		}
		if got := take(t, s, 15); !slices.Equal(got, numbers(next, next+15)) {
			t.Fatalf("round %d: got %v, want from %d", round, got, next)
		}
		next += 15
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	s := open(t, cfg)
	if n, _ := s.Len(); n != 25 {
		t.Fatalf("%d records, want 25", n)
	}
	if got := take(t, s, 25); !slices.Equal(got, numbers(75, 100)) {
		t.Fatalf("got %v", got)
	}
}

func TestFullRefusesAndTakesAgain(t *testing.T) {
	reg := prometheus.NewRegistry()
	s := open(t, Config{Dir: t.TempDir(), MaxBytes: minMaxBytes, Registerer: reg})
	value := strings.Repeat("x", 500)
	n := 0
	var err error
	for ; n < 1000; n++ {
		if err = s.Append(t.Context(), Record{Value: []byte(value)}); err != nil {
			break
		}
	}
	if !errors.Is(err, ErrFull) || n < 20 {
		t.Fatalf("after %d records: %v, want ErrFull", n, err)
	}
	if _, used := s.Len(); used > minMaxBytes {
		t.Fatalf("%d bytes on disk, the limit is %d", used, minMaxBytes)
	}
	if got := take(t, s, n); len(got) != n {
		t.Fatalf("got %d of %d", len(got), n)
	}
	for range 3 * n { // and on, round after round, within the same limit
		put(t, s, value)
		take(t, s, 1)
	}
	if files, _ := listSegments(s.cfg.Dir); len(files) > 2 {
		t.Fatalf("%d segments left in an empty spool", len(files))
	}
}

func TestNextWaits(t *testing.T) {
	s := open(t, Config{Dir: t.TempDir()})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.Next(ctx, 1, 1); !errors.Is(err, context.Canceled) {
		t.Fatalf("empty spool, ended context: %v", err)
	}
	got := make(chan string)
	go func() {
		recs, err := s.Next(context.Background(), 1, 1)
		if err != nil {
			got <- err.Error()
			return
		}
		got <- string(recs[0].Value)
	}()
	put(t, s, "late")
	if v := <-got; v != "late" {
		t.Fatalf("got %q", v)
	}
	s.Done(1)
	go func() {
		_, err := s.Next(context.Background(), 1, 1)
		got <- fmt.Sprint(errors.Is(err, ErrClosed))
	}()
	s.Close()
	if v := <-got; v != "true" {
		t.Fatal("Close must end Next with ErrClosed")
	}
	if err := s.Append(t.Context(), Record{}); !errors.Is(err, ErrClosed) {
		t.Fatalf("append after Close: %v", err)
	}
}

func TestNextBounds(t *testing.T) {
	s := open(t, Config{Dir: t.TempDir()})
	big := strings.Repeat("b", 5000)
	put(t, s, "a", big, "c")
	for _, want := range []string{"a", big, "c"} {
		recs, err := s.Next(t.Context(), 10, 40) // room for a or c alone, not for big
		if err != nil || len(recs) != 1 || string(recs[0].Value) != want {
			t.Fatalf("got %d records, %v, want one of %d bytes", len(recs), err, len(want))
		}
		s.Done(1)
	}
}

func TestRecordLimits(t *testing.T) {
	s := open(t, Config{Dir: t.TempDir()})
	for name, r := range map[string]Record{
		"key":   {Key: strings.Repeat("k", MaxKeyBytes+1)},
		"value": {Value: make([]byte, MaxValueBytes+1)},
	} {
		if err := s.Append(t.Context(), Record{Value: []byte("good")}, r); err == nil {
			t.Errorf("%s over the limit was taken", name)
		}
	}
	largest := Record{Key: strings.Repeat("k", MaxKeyBytes), Value: bytes.Repeat([]byte("v"), MaxValueBytes)}
	if err := s.Append(t.Context(), largest); err != nil {
		t.Fatal(err)
	}
	recs, err := s.Next(t.Context(), 1, 1)
	if err != nil || recs[0].Key != largest.Key || !bytes.Equal(recs[0].Value, largest.Value) {
		t.Fatalf("the largest record came back as %d records, %v", len(recs), err)
	}
}

func TestSecondProcessIsRefused(t *testing.T) {
	dir := t.TempDir()
	open(t, Config{Dir: dir})
	_, err := Open(Config{Dir: dir, Logger: quiet})
	if !errors.Is(err, ErrLocked) || !strings.Contains(err.Error(), fmt.Sprint(os.Getpid())) || !strings.Contains(err.Error(), dir) {
		t.Fatalf("got %v, want ErrLocked with the holder's process id and the folder", err)
	}
}

func TestConfig(t *testing.T) {
	for _, c := range []struct {
		cfg  Config
		want string
	}{
		{Config{}, "no folder"},
		{Config{Dir: "d", MaxBytes: 5}, "too small"},
		{Config{Dir: "d", SegmentBytes: -1}, "negative"},
		{Config{Dir: "d"}, ""},
	} {
		err := c.cfg.Validate()
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%+v: %v, want %q", c.cfg, err, c.want)
		}
	}
}

func TestDamagedTail(t *testing.T) {
	for _, c := range []struct {
		name   string
		damage func(b []byte) []byte
		want   int // of 5 records
	}{
		{"nothing", func(b []byte) []byte { return b }, 5},
		{"half a header", func(b []byte) []byte { return append(b, 1, 2, 3) }, 5},
		{"half a frame", func(b []byte) []byte { return b[:len(b)-1] }, 4},
		{"a changed byte", func(b []byte) []byte { b[len(b)-1] ^= 1; return b }, 4},
		{"a changed length", func(b []byte) []byte { b[len(b)-19] ^= 0x80; return b }, 4},
		{"zeros after a power cut", func(b []byte) []byte { return append(b, make([]byte, 4096)...) }, 5},
		{"a length beyond all bounds", func(b []byte) []byte { return append(b, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0, 0) }, 5},
		{"no header", func([]byte) []byte { return []byte("mb") }, 0},
		{"empty", func([]byte) []byte { return nil }, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			s := open(t, Config{Dir: dir})
			put(t, s, numbers(0, 5)...)
			s.Close()
			path := segmentPath(dir, 1)
			b, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			damaged := c.damage(slices.Clone(b))
			if err := os.WriteFile(path, damaged, 0o600); err != nil {
				t.Fatal(err)
			}
			var log bytes.Buffer
			s = open(t, Config{Dir: dir, Logger: slog.New(slog.NewTextHandler(&log, nil))})
			if n, _ := s.Len(); n != c.want {
				t.Fatalf("%d records, want %d", n, c.want)
			}
			put(t, s, "new")
			if got := take(t, s, c.want+1); !slices.Equal(got, append(numbers(0, c.want), "new")) {
				t.Fatalf("got %v", got)
			}
			if cut := !bytes.Equal(damaged, b) && len(damaged) > 0; cut != strings.Contains(log.String(), "cut off the damaged end") {
				t.Fatalf("log says %q", log.String())
			}
		})
	}
}

func TestDamageWhileRunning(t *testing.T) {
	dir := t.TempDir()
	s := open(t, Config{Dir: dir, SegmentBytes: 64})
	put(t, s, "0", "1", "2")
	put(t, s, "3")
	path := segmentPath(dir, 1)
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	b[len(b)/2] ^= 1 // in the second record
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	if got := take(t, s, 3); !slices.Equal(got, []string{"0", "2", "3"}) {
		t.Fatalf("got %v", got)
	}
	if n, _ := s.Len(); n != 0 {
		t.Fatalf("%d records left", n)
	}
	if lost := testutil.ToFloat64(s.metrics.damaged); lost != 1 {
		t.Fatalf("%v records counted as lost, want 1", lost)
	}
}

// TestDamageBeforeTheEnd damages what was acknowledged long before a stop: whole frames behind it stay.
func TestDamageBeforeTheEnd(t *testing.T) {
	frame := int(segmentHeaderBytes) // where the first of segment 1 begins
	next := frameHeaderBytes + bodyHeaderBytes + len("k") + len("0")
	for _, c := range []struct {
		name    string
		segment uint64 // of 2 with 4 records each
		damage  func(b []byte) []byte
		want    []string
		lost    float64
	}{
		{"a byte in the first file", 1, func(b []byte) []byte { b[frame+2*next-1] ^= 1; return b }, []string{"0", "2", "3", "4", "5", "6", "7"}, 1},
		{"a length in the first file", 1, func(b []byte) []byte { b[frame+next+1] ^= 1; return b }, []string{"0", "2", "3", "4", "5", "6", "7"}, 1},
		{"two places", 1, func(b []byte) []byte { b[frame+9] ^= 1; b[frame+2*next+9] ^= 1; return b }, []string{"1", "3", "4", "5", "6", "7"}, 2},
		{"the end of the first file", 1, func(b []byte) []byte { return b[:len(b)-1] }, []string{"0", "1", "2", "4", "5", "6", "7"}, 1},
		{"all of the first file", 1, func(b []byte) []byte { return make([]byte, len(b)) }, []string{"4", "5", "6", "7"}, 1},
		{"the header of the first file", 1, func(b []byte) []byte { b[0] ^= 1; return b }, numbers(0, 8), 0},
		{"a byte in the last file", 2, func(b []byte) []byte { b[frame+9] ^= 1; return b }, []string{"0", "1", "2", "3", "5", "6", "7"}, 1},
		{"the end of the last file", 2, func(b []byte) []byte { return b[:len(b)-1] }, numbers(0, 7), 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			cfg := Config{Dir: t.TempDir(), SegmentBytes: int64(frame + 4*next)}
			s := open(t, cfg)
			for _, n := range numbers(0, 8) {
				put(t, s, n)
			}
			s.Close()
			path := segmentPath(cfg.Dir, c.segment)
			b, err := os.ReadFile(path)
			if err != nil || len(b) != frame+4*next {
				t.Fatalf("%d bytes, %v", len(b), err)
			}
			if err := os.WriteFile(path, c.damage(b), 0o600); err != nil {
				t.Fatal(err)
			}
			var log bytes.Buffer
			reg := prometheus.NewRegistry()
			s = open(t, Config{Dir: cfg.Dir, Logger: slog.New(slog.NewTextHandler(&log, nil)), Registerer: reg})
			put(t, s, "new")
			if got := take(t, s, len(c.want)+1); !slices.Equal(got, append(slices.Clone(c.want), "new")) {
				t.Errorf("got %v, want %v and the new one", got, c.want)
			}
			if n, _ := s.Len(); n != 0 {
				t.Errorf("%d records left", n)
			}
			if lost := testutil.ToFloat64(s.metrics.damaged); lost != c.lost {
				t.Errorf("%v records counted as lost, want %v", lost, c.lost)
			}
			if told := strings.Contains(log.String(), "level=ERROR"); told != (c.lost > 0) {
				t.Errorf("log says %q", log.String())
			}
		})
	}
}

func TestDamagedHeadComesAgain(t *testing.T) {
	dir := t.TempDir()
	s := open(t, Config{Dir: dir})
	put(t, s, "0", "1")
	take(t, s, 1)
	s.Close()
	if err := os.WriteFile(filepath.Join(dir, headName), []byte("garbage that is longer than a head"), 0o600); err != nil {
		t.Fatal(err)
	}
	s = open(t, Config{Dir: dir})
	if got := take(t, s, 2); !slices.Equal(got, []string{"0", "1"}) {
		t.Fatalf("got %v", got)
	}
}

func TestHeadBeyondTheSegment(t *testing.T) {
	dir := t.TempDir()
	s := open(t, Config{Dir: dir})
	put(t, s, "0", "1")
	take(t, s, 2)
	s.Close()
	// A power cut: the head reached the disk, the records that it covers did not.
	if err := os.Truncate(segmentPath(dir, 1), segmentHeaderBytes); err != nil {
		t.Fatal(err)
	}
	s = open(t, Config{Dir: dir})
	put(t, s, "2")
	if got := take(t, s, 1); got[0] != "2" {
		t.Fatalf("got %v", got)
	}
}
