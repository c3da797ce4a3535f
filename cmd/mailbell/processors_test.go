package main

import (
	"os"
	"runtime"
	"testing"
)

// The pollers' processors come on top of the CPUs', unless the operator says how many there are to be.
func TestMoreProcessors(t *testing.T) {
	before := runtime.GOMAXPROCS(0)
	defer runtime.GOMAXPROCS(before)
	t.Setenv("GOMAXPROCS", "1")
	moreProcessors(3)
	if got := runtime.GOMAXPROCS(0); got != before {
		t.Errorf("with GOMAXPROCS set: %d processors, want %d", got, before)
	}
	os.Unsetenv("GOMAXPROCS")
	for range 2 {
		moreProcessors(3)
		if got := runtime.GOMAXPROCS(0); got != cpus+3 {
			t.Errorf("%d processors, want %d", got, cpus+3)
		}
	}
}
