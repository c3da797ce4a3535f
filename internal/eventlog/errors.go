package eventlog

import (
	"errors"
	"fmt"
)

var (
	// ErrUnavailable wraps what may work later: no broker reached, no leader, too few replicas, no answer in time.
	ErrUnavailable = errors.New("the log cannot be reached")
	// ErrTooLarge wraps a record that the topic does not take.
	ErrTooLarge = errors.New("the record is too large for the topic")
	// ErrPartitionsChanged means that the topic has another number of partitions than before. Accounts now belong to
	// other partitions, so order and positions no longer hold: every mailbell process has to be stopped first.
	ErrPartitionsChanged = errors.New("the number of partitions has changed")
	// ErrTopicGone ends a Read whose topic is on its brokers no more. What offsets meant is void, even if there is a topic
	// of that name again by now.
	ErrTopicGone = errors.New("the topic was deleted")
	// ErrClosed is returned by everything after Close.
	ErrClosed = errors.New("the log is closed")
)

// AppendError says which of the records of one Append failed. The others are on the log.
type AppendError struct {
	Failed map[int]error // by index into Append's records
}

func (e *AppendError) Error() string {
	first := -1
	for i := range e.Failed {
		if first < 0 || i < first {
			first = i
		}
	}
	return fmt.Sprintf("append: %d records failed, the first is record %d: %v", len(e.Failed), first, e.Failed[first])
}

// Unwrap returns the errors of the records, so that errors.Is finds ErrUnavailable and the like.
func (e *AppendError) Unwrap() []error {
	errs := make([]error, 0, len(e.Failed))
	for _, err := range e.Failed {
		errs = append(errs, err)
	}
	return errs
}

// GapError means that Read could not continue with the offset that comes next: the log no longer has it, or not yet.
// Read again from First after telling everyone who needed what is missing.
type GapError struct {
	Partition   int32
	Want        int64 // the offset that should have come
	First, Next int64 // what the log has: First is the oldest offset, Next the one that the next record will get
}

// Trimmed reports whether retention has taken the missing records. Otherwise Want lies beyond the end of the log: it
// was read from another incarnation of the topic.
func (e *GapError) Trimmed() bool { return e.Want < e.Next }

func (e *GapError) Error() string {
	if e.Trimmed() {
		return fmt.Sprintf("read partition %d: offset %d is no longer on the log, which begins at %d", e.Partition, e.Want, e.First)
	}
	return fmt.Sprintf("read partition %d: offset %d is beyond the end of the log at %d: the topic was recreated or cut", e.Partition, e.Want, e.Next)
}
