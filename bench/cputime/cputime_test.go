package cputime

import (
	"math"
	"os"
	"os/exec"
	"testing"
)

// What a child used is in the tree, while it runs and once it has ended; a tick of 10 ms is not the smallest step.
func TestTree(t *testing.T) {
	before, err := Tree(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	child := exec.Command("sh", "-c", "i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done; read end; true")
	in, err := child.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	alone := Time{}
	for alone.Sum() < 0.002 { // a few milliseconds are all it needs
		if alone, err = Process(child.Process.Pid); err != nil {
			t.Fatal(err)
		}
	}
	during, err := Tree(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	if got := during.Minus(before).Sum(); got < alone.Sum() {
		t.Errorf("with a child that has used %v s, the tree has used %v s more", alone.Sum(), got)
	}
	if pids, err := Descendants(os.Getpid()); err != nil || len(pids) < 2 || pids[0] != os.Getpid() {
		t.Errorf("descendants %v, %v", pids, err)
	}
	in.Close()
	if err := child.Wait(); err != nil {
		t.Fatal(err)
	}
	if after, err := Tree(os.Getpid()); err != nil || after.Minus(during).Sum() < -0.02 {
		t.Errorf("once the child has ended, the tree has used %v s more, %v", after.Minus(during).Sum(), err)
	}
	if _, err := Tree(1 << 30); err == nil {
		t.Error("the tree of nobody is told")
	}
	if _, err := Process(1 << 30); err == nil {
		t.Error("the time of nobody is told")
	}
}

// A stretch far below a tick is not nothing.
func TestPerCall(t *testing.T) {
	sum := 0.0
	got, err := PerCall(os.Getpid(), 10, func(i int) error {
		for n := range 20000 {
			sum += math.Sqrt(float64(n + i))
		}
		return nil
	})
	if err != nil || got <= 0 || sum == 0 {
		t.Errorf("%v s a call, %v", got, err)
	}
}

func TestLess(t *testing.T) {
	if got := (Time{3, 1}).Less(2); got != (Time{1.5, 0.5}) {
		t.Errorf("%v", got)
	}
	if got := (Time{1, 1}).Less(5); got != (Time{}) {
		t.Errorf("%v", got)
	}
}
