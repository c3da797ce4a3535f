package main

import (
	"context"
	"fmt"
	"io"
	"strings"
	"testing"
	"testing/iotest"
)

func TestReadBatches(t *testing.T) {
	tests := []struct {
		name, in string
		want     string // event@line, with a comma between
	}{
		{"nothing", "", ""},
		{"one", "{a}\n", "{a}@1"},
		{"no newline at the end", "{a}\n{b}", "{a}@1,{b}@2"},
		{"blank lines count", "\n{a}\r\n\n  {b} \n", "{a}@2,{b}@4"},
	}
	readers := map[string]func(io.Reader) io.Reader{
		"at once":    func(r io.Reader) io.Reader { return r },
		"byte-wise":  iotest.OneByteReader,
		"EOF early":  iotest.DataErrReader,
		"half reads": iotest.HalfReader,
	}
	for _, tt := range tests {
		for how, reader := range readers {
			t.Run(tt.name+"/"+how, func(t *testing.T) {
				if got := readAll(t, reader(strings.NewReader(tt.in))); got != tt.want {
					t.Errorf("batches = %q, want %q", got, tt.want)
				}
			})
		}
	}
}

func readAll(t *testing.T, r io.Reader) string {
	t.Helper()
	to := make(chan batch)
	failed := make(chan error, 1)
	go func() {
		defer close(to)
		failed <- readBatches(context.Background(), r, to)
	}()
	var got []string
	for b := range to {
		for i, e := range b.events {
			got = append(got, fmt.Sprintf("%s@%d", e, b.lines[i]))
		}
	}
	if err := <-failed; err != nil {
		t.Fatal(err)
	}
	return strings.Join(got, ",")
}

func TestBatchesAreBounded(t *testing.T) {
	rest := []byte(strings.Repeat("{}\n", maxBatchEvents+1))
	b, rest, line := cutBatch(rest, 0)
	if len(b.events) != maxBatchEvents || line != maxBatchEvents || string(rest) != "{}\n" {
		t.Errorf("%d events, line %d, rest %q", len(b.events), line, rest)
	}
}

func TestLineTooLong(t *testing.T) {
	to := make(chan batch)
	if err := readBatches(context.Background(), strings.NewReader(strings.Repeat("x", 1<<20)), to); err == nil || !strings.Contains(err.Error(), "line 1: more than 65536 bytes") {
		t.Errorf("error = %v", err)
	}
}
