package spool

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"testing"

	"go.uber.org/goleak"
)

// childEnv makes the test binary fill the spool in that folder until it is killed.
const childEnv = "MAILBELL_SPOOL_TEST_CHILD"

func TestMain(m *testing.M) {
	if dir := os.Getenv(childEnv); dir != "" {
		if err := fill(dir); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	goleak.VerifyTestMain(m)
}

// fill appends numbered records from several goroutines, takes some of them out again, and
// prints a line for each that was acknowledged ("a writer number") or is about to be Done
// ("d writer number"). Every line is one write to the pipe, so a kill loses none.
func fill(dir string) error {
	s, err := Open(Config{Dir: dir, MaxBytes: 4 << 20, SegmentBytes: 8 << 10})
	if err != nil {
		return err
	}
	failed := make(chan error, childWriters+1)
	for w := range childWriters {
		go func() {
			for n := 0; ; n++ {
				if err := s.Append(context.Background(), numbered(w, n)); err != nil {
					failed <- err
					return
				}
				fmt.Printf("a %d %d\n", w, n)
			}
		}()
	}
	go func() {
		for {
			recs, err := s.Next(context.Background(), 7, 1<<20)
			if err != nil {
				failed <- err
				return
			}
			for _, r := range recs {
				fmt.Printf("d %s\n", r.Value)
			}
			s.Done(len(recs))
		}
	}()
	return <-failed
}

const childWriters = 4

func numbered(writer, n int) Record {
	return Record{Key: "w" + strconv.Itoa(writer), Value: fmt.Appendf(nil, "%d %d", writer, n)}
}
