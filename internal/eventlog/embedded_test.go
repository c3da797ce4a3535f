package eventlog

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestEmbeddedSecondProcess(t *testing.T) {
	dir := t.TempDir()
	e, _ := startEmbedded(t, EmbeddedConfig{Dir: dir})
	_, err := StartEmbedded(testContext(t, 10*time.Second), EmbeddedConfig{Dir: dir, Logger: quiet()})
	wantError(t, err, fmt.Sprintf("folder %s is in use by process %d: stop that process, or choose another folder with --data", dir, os.Getpid()))
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
	again, _ := startEmbedded(t, EmbeddedConfig{Dir: dir})
	if again.Partitions() != 16 {
		t.Fatalf("%d partitions", again.Partitions())
	}
}

func TestEmbeddedOtherShape(t *testing.T) {
	dir := t.TempDir()
	e, _ := startEmbedded(t, EmbeddedConfig{Dir: dir, Partitions: 4})
	e.Close()
	tests := []struct {
		name string
		cfg  EmbeddedConfig
		want string
	}{
		{"other partitions", EmbeddedConfig{Partitions: 8}, "it has 4 partitions, not 8"},
		{"other topic", EmbeddedConfig{Partitions: 4, Topic: "other"}, `it holds topic "mail-events", not "other"`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			tt.cfg.Dir, tt.cfg.Logger = dir, quiet()
			_, err := StartEmbedded(testContext(t, 10*time.Second), tt.cfg)
			wantError(t, err, tt.want)
		})
	}
	changeState(t, dir, func(s *embeddedState) { s.Version = stateVersion + 1 })
	_, err := StartEmbedded(testContext(t, 10*time.Second), EmbeddedConfig{Dir: dir, Partitions: 4, Logger: quiet()})
	wantError(t, err, "written by a newer mailbell")
}

func changeState(t *testing.T, dir string, change func(*embeddedState)) {
	t.Helper()
	var s embeddedState
	if err := s.load(dir); err != nil {
		t.Fatal(err)
	}
	change(&s)
	b, err := json.Marshal(s)
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, "state.json"), b, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// allEpochs asks for every partition's epoch through a Log of its own, which remembers nothing.
func allEpochs(t *testing.T, e *Embedded) []uint64 {
	t.Helper()
	l := openLog(t, Config{Brokers: e.Brokers()})
	var all []uint64
	for p := range int32(l.Partitions()) {
		epoch, err := l.Epoch(testContext(t, 10*time.Second), p)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, epoch)
	}
	return all
}

// The epoch survives a restart, and changes when the newest records may be missing.
func TestEmbeddedRestartEpochs(t *testing.T) {
	tests := []struct {
		name   string
		change func(*embeddedState)
		same   []bool // by partition
	}{
		{"clean", func(*embeddedState) {}, []bool{true, true}},
		{"killed, same boot", func(s *embeddedState) { s.Clean = false }, []bool{true, true}},
		{"clean, other boot", func(s *embeddedState) { s.Boot = "other" }, []bool{true, true}},
		{"killed, other boot", func(s *embeddedState) { s.Clean, s.Boot = false, "other" }, []bool{false, false}},
		{"partition 1 is shorter than it was", func(s *embeddedState) { s.Next[1] += 10 }, []bool{true, false}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			e, l := startEmbedded(t, EmbeddedConfig{Dir: dir, Partitions: 2})
			if _, err := l.Append(testContext(t, 10*time.Second), benchRecords(100, 1)...); err != nil {
				t.Fatal(err)
			}
			before := allEpochs(t, e)
			if err := e.Close(); err != nil {
				t.Fatal(err)
			}
			changeState(t, dir, tt.change)
			e, _ = startEmbedded(t, EmbeddedConfig{Dir: dir, Partitions: 2})
			for p, epoch := range allEpochs(t, e) {
				if (epoch == before[p]) != tt.same[p] {
					t.Errorf("partition %d: epoch %d, before %d", p, epoch, before[p])
				}
			}
		})
	}
}

// A partition that retention has emptied of events goes on counting after a restart, clean or not.
func TestEmbeddedRetention(t *testing.T) {
	for _, clean := range []bool{true, false} {
		t.Run(fmt.Sprintf("clean=%v", clean), func(t *testing.T) {
			dir := t.TempDir()
			e, l := startEmbedded(t, EmbeddedConfig{Dir: dir, Partitions: 2})
			ctx := testContext(t, 30*time.Second)
			epochs := allEpochs(t, e)
			var last [2]int64
			at, err := l.Append(ctx, benchRecords(1000, 1)...)
			if err != nil {
				t.Fatal(err)
			}
			for _, a := range at {
				last[a.Partition] = max(last[a.Partition], a.Offset)
			}
			if err := e.Retain(ctx, time.Now().Add(48*time.Hour)); err != nil {
				t.Fatal(err)
			}
			for p := range int32(2) {
				first, next, err := l.Bounds(ctx, p)
				if err != nil || first <= last[p] || first == next {
					t.Fatalf("partition %d: %d to %d after retention, last event %d, %v", p, first, next, last[p], err)
				}
				var gap *GapError
				if err := l.Read(ctx, p, 0, func([]Message) error { return errors.New("read something") }); !errors.As(err, &gap) || gap.First != first || !gap.Trimmed() {
					t.Fatalf("read from 0: %v", err)
				}
			}
			if clean {
				e.Close()
			} else {
				dir = copyDir(t, dir) // what a kill -9 at this moment leaves
				e.Close()
			}
			e, l = startEmbedded(t, EmbeddedConfig{Dir: dir, Partitions: 2})
			if !slices.Equal(allEpochs(t, e), epochs) {
				t.Error("the epochs have changed")
			}
			at, err = l.Append(ctx, benchRecords(100, 2)...)
			if err != nil {
				t.Fatal(err)
			}
			for _, a := range at {
				if a.Offset <= last[a.Partition] {
					t.Fatalf("offset %d of partition %d is used again", a.Offset, a.Partition)
				}
			}
		})
	}
}

// What the topic says of its retention is what --retention is now.
func TestEmbeddedRetentionIsTold(t *testing.T) {
	dir := t.TempDir()
	for _, retention := range []time.Duration{24 * time.Hour, 2 * time.Hour} {
		e, _ := startEmbedded(t, EmbeddedConfig{Dir: dir, Partitions: 2, Retention: retention})
		d, err := Describe(testContext(t, 10*time.Second), Config{Brokers: e.Brokers(), Logger: quiet()})
		if err != nil || !d.Embedded || d.Settings["retention.ms"] != fmt.Sprint(retention.Milliseconds()) {
			t.Errorf("retention %v: %+v, %v", retention, d, err)
		}
		e.Close()
	}
}

func copyDir(t *testing.T, from string) string {
	t.Helper()
	to := t.TempDir()
	if err := os.CopyFS(to, os.DirFS(from)); err != nil {
		t.Fatal(err)
	}
	return to
}

// RetentionBytes bounds the whole log.
func TestEmbeddedRetentionBytes(t *testing.T) {
	e, l := startEmbedded(t, EmbeddedConfig{Partitions: 4, RetentionBytes: embeddedMinBytes})
	ctx := testContext(t, 60*time.Second)
	value := []byte(strings.Repeat("x", 10_000))
	for i := range 60 {
		recs := make([]Record, 100)
		for j := range recs {
			recs[j] = Record{Key: fmt.Sprintf("user%d-%d", i, j), Value: value}
		}
		if _, err := l.Append(ctx, recs...); err != nil {
			t.Fatal(err)
		}
	}
	size := func() (n int64) {
		for _, p := range e.cluster.PartitionInfos(DefaultTopic) {
			n += p.NumBytes
		}
		return n
	}
	before := size()
	if err := e.Retain(ctx, time.Now()); err != nil {
		t.Fatal(err)
	}
	if after := size(); before < 50<<20 || after > embeddedMinBytes*11/10 || after < embeddedMinBytes/2 {
		t.Fatalf("%d bytes before, %d after, limit %d", before, after, embeddedMinBytes)
	}
}
