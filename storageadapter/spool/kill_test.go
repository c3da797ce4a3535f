package spool

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"sync"
	"testing"
	"time"
)

// TestChurn runs writers against a reader that reopens the spool now and then, and checks
// that every writer's records come out once and in order.
func TestChurn(t *testing.T) {
	const writers, each = 8, 400
	cfg := Config{Dir: t.TempDir(), SegmentBytes: 2 << 10, Logger: quiet}
	next := make([]int, writers)
	for range 3 {
		s := open(t, cfg)
		base := slices.Clone(next)
		var wg sync.WaitGroup
		for w := range writers {
			wg.Go(func() {
				for n := range each {
					if err := s.Append(t.Context(), numbered(w, base[w]+n)); err != nil {
						t.Error(err)
						return
					}
				}
			})
		}
		for got := 0; got < writers*each; {
			recs, err := s.Next(t.Context(), 33, 1<<20)
			if err != nil {
				t.Fatal(err)
			}
			for _, r := range recs {
				var w, n int
				if _, err := fmt.Sscan(string(r.Value), &w, &n); err != nil || next[w] != n {
					t.Fatalf("writer %d: got %d, want %d (%v)", w, n, next[w], err)
				}
				next[w]++
			}
			s.Done(len(recs))
			got += len(recs)
		}
		wg.Wait()
		if n, used := s.Len(); n != 0 || used > 2*cfg.SegmentBytes {
			t.Fatalf("%d records and %d bytes left", n, used)
		}
		s.Close()
	}
}

// TestKill kills a process that writes, again and again: what it saw acknowledged is in the
// spool or was taken out before, in each writer's order.
func TestKill(t *testing.T) {
	for round := range 6 {
		t.Run(fmt.Sprint(round), func(t *testing.T) { killOnce(t, 300*(round+1)) })
	}
}

func killOnce(t *testing.T, lines int) {
	dir := t.TempDir()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), childEnv+"="+dir)
	cmd.Stderr = os.Stderr
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var acked, taken [childWriters]int // one past the last number
	scanner := bufio.NewScanner(stdout)
	for n := 0; scanner.Scan(); n++ {
		var kind string
		var w, number int
		if _, err := fmt.Sscan(scanner.Text(), &kind, &w, &number); err != nil {
			break // cut by the kill
		}
		if kind == "a" {
			acked[w] = number + 1
		} else {
			taken[w] = number + 1
		}
		if n == lines {
			if err := cmd.Process.Kill(); err != nil {
				t.Fatal(err)
			}
		}
	}
	_, _ = io.Copy(io.Discard, stdout)
	if err := cmd.Wait(); err == nil {
		t.Fatal("the child ended by itself")
	}
	s := open(t, Config{Dir: dir})
	left, _ := s.Len()
	next := taken
	seen := [childWriters]bool{}
	for i, v := range take(t, s, left) {
		var w, n int
		if _, err := fmt.Sscan(v, &w, &n); err != nil {
			t.Fatal(err)
		}
		// The last ones taken may come again; from there on every number follows.
		if again := !seen[w] && n <= next[w]; !again && n != next[w] {
			t.Fatalf("record %d: writer %d jumps from %d to %d (acknowledged %d, taken %d)", i, w, next[w], n, acked[w], taken[w])
		}
		seen[w] = true
		next[w] = n + 1
	}
	for w := range childWriters {
		if last := max(next[w], taken[w]); last < acked[w] {
			t.Errorf("writer %d: %d acknowledged, the spool ends at %d", w, acked[w], last)
		}
	}
}

func FuzzDecodeFrame(f *testing.F) {
	frame := appendFrame(nil, time.UnixMilli(1), &Record{Key: "k", Value: []byte("v")})
	f.Add(frame)
	f.Add(frame[:len(frame)-1])
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		r, at, n, err := decodeFrame(b)
		if err != nil {
			return
		}
		if again := appendFrame(nil, at, &r); !bytes.Equal(again, b[:n]) {
			t.Fatalf("decoded %x, encodes as %x", b[:n], again)
		}
	})
}

func BenchmarkAppend(b *testing.B) {
	for _, writers := range []int{1, 64} {
		b.Run(fmt.Sprintf("writers=%d", writers), func(b *testing.B) {
			s := open(b, Config{Dir: b.TempDir(), MaxBytes: 16 << 30})
			rec := Record{Key: "alice@example.com", Value: bytes.Repeat([]byte("x"), 350)}
			b.ReportAllocs()
			b.SetParallelism(writers)
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					if err := s.Append(context.Background(), rec); err != nil {
						b.Fatal(err)
					}
				}
			})
		})
	}
}
