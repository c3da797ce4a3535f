package eventlog

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// crashChild is the main function of a process that appends to the embedded log in dir and prints every record that is
// acknowledged, until it is killed.
func crashChild(dir string, out io.Writer) int {
	ctx := context.Background()
	e, err := StartEmbedded(ctx, EmbeddedConfig{Dir: dir, Partitions: 4, Logger: quiet()})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	l, err := Open(ctx, Config{Brokers: e.Brokers(), Logger: quiet()})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	for p := range int32(4) {
		epoch, err := l.Epoch(ctx, p)
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		fmt.Fprintf(out, "epoch %d %d\n", p, epoch)
	}
	var mu sync.Mutex
	var wg sync.WaitGroup
	for w := range 8 {
		wg.Go(func() {
			for i := 0; ; i++ {
				recs := make([]Record, 1+rand.IntN(20))
				for j := range recs {
					recs[j] = Record{Key: fmt.Sprintf("user%d@example.com", rand.IntN(50)), Value: fmt.Appendf(nil, "%d-%d-%d-%d", os.Getpid(), w, i, j)}
				}
				at, err := l.Append(ctx, recs...)
				if err != nil {
					fmt.Fprintln(os.Stderr, err)
					os.Exit(1)
				}
				mu.Lock()
				for j, a := range at {
					fmt.Fprintf(out, "ack %d %d %s\n", a.Partition, a.Offset, recs[j].Value)
				}
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	return 0
}

// Whatever was acknowledged before a kill -9 is there afterwards, under its offset; no offset is ever used for another
// record; and the epoch stays, so that positions go on meaning the same.
func TestCrashKeepsAcknowledged(t *testing.T) {
	dir := t.TempDir()
	type place struct {
		partition int32
		offset    int64
	}
	acked := make(map[place]string)
	epochs := make(map[int32]uint64)
	for round := range 4 {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), "EVENTLOG_CRASH_DIR="+dir)
		cmd.Stderr = os.Stderr
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		before := len(acked)
		lines := bufio.NewScanner(out)
		for lines.Scan() {
			f := strings.SplitN(lines.Text(), " ", 4)
			switch {
			case f[0] == "epoch" && len(f) == 3:
				p, _ := strconv.Atoi(f[1])
				epoch, _ := strconv.ParseUint(f[2], 10, 64)
				if old, ok := epochs[int32(p)]; ok && old != epoch {
					t.Errorf("round %d: partition %d changed its epoch from %d to %d", round, p, old, epoch)
				}
				epochs[int32(p)] = epoch
			case f[0] == "ack" && len(f) == 4:
				p, _ := strconv.Atoi(f[1])
				offset, err := strconv.ParseInt(f[2], 10, 64)
				if err != nil {
					continue // the last line may be cut
				}
				at := place{int32(p), offset}
				if old, ok := acked[at]; ok && old != f[3] {
					t.Fatalf("round %d: offset %v was %q and is %q now", round, at, old, f[3])
				}
				acked[at] = f[3]
			}
			if len(acked)-before == 3000+round*500 {
				_ = cmd.Process.Kill() // what is still in the pipe counts as acknowledged too
			}
		}
		_ = cmd.Wait()
		if len(acked)-before < 3000 {
			t.Fatalf("round %d: only %d records were acknowledged", round, len(acked)-before)
		}
	}
	_, l := startEmbedded(t, EmbeddedConfig{Dir: dir, Partitions: 4})
	found := make(map[place]string)
	for p := range int32(4) {
		_, next, err := l.Bounds(testContext(t, 10*time.Second), p)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range readUntil(t, l, p, 0, next) {
			found[place{p, m.Offset}] = string(m.Value)
		}
	}
	for at, want := range acked {
		if got := found[at]; !strings.HasPrefix(got, want) { // the last line may be cut
			t.Errorf("%v: acknowledged %q, found %q", at, want, got)
		}
	}
	t.Logf("%d acknowledged, %d found", len(acked), len(found))
}
