package kafkaproc_test

import (
	"context"
	"net"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/mailbell/mailbell/internal/kafkaproc"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestOptions(t *testing.T) {
	tests := []struct {
		name string
		o    kafkaproc.Options
		want string // part of the error; "" for none
	}{
		{"zero", kafkaproc.Options{}, ""},
		{"two brokers", kafkaproc.Options{Brokers: 2}, "1 or 3 are possible"},
		{"listener without protocol", kafkaproc.Options{Listeners: []kafkaproc.Listener{{Name: "SECURE"}}}, "a name and a protocol"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			err := tt.o.Validate()
			if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
				t.Fatalf("got %v, want %q", err, tt.want)
			}
		})
	}
}

func TestKillPauseRestart(t *testing.T) {
	c := kafkaproc.ClusterForTest(t, kafkaproc.Options{Brokers: 3})
	if got := len(c.Brokers()); got != 3 {
		t.Fatalf("%d addresses", got)
	}
	pid := c.Pid(1)
	c.Kill(1)
	if c.Pid(1) != 0 || syscall.Kill(pid, 0) == nil {
		t.Fatalf("broker 1 still runs after Kill")
	}
	if err := c.Pause(1); err == nil {
		t.Fatal("a dead broker was paused")
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := c.Restart(ctx, 1); err != nil {
		t.Fatal(err)
	}
	if err := c.Pause(0); err != nil {
		t.Fatal(err)
	}
	if err := c.Resume(0); err != nil {
		t.Fatal(err)
	}
	if err := c.WaitReady(ctx); err != nil {
		t.Fatal(err)
	}
	dir := c.Dir()
	c.Stop()
	if _, err := os.Stat(dir); !os.IsNotExist(err) {
		t.Fatalf("%s is still there after Stop: %v", dir, err)
	}
	for _, addr := range c.Brokers() {
		if nc, err := net.Dial("tcp", addr); err == nil {
			nc.Close()
			t.Fatalf("%s still answers after Stop", addr)
		}
	}
}

// Two callers at a time get the same folder.
func TestFetchTwice(t *testing.T) {
	if testing.Short() {
		t.Skip("needs Apache Kafka")
	}
	var dirs [2]string
	var wg sync.WaitGroup
	for i := range dirs {
		wg.Go(func() {
			dir, err := kafkaproc.Fetch(context.Background())
			if err != nil {
				t.Error(err)
			}
			dirs[i] = dir
		})
	}
	wg.Wait()
	if dirs[0] == "" || dirs[0] != dirs[1] {
		t.Fatalf("got %q", dirs)
	}
}
