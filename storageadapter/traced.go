package storageadapter

import (
	"time"

	"github.com/mailbell/mailbell/internal/trace"
	"github.com/mailbell/mailbell/schema"
)

// traced ends a stage, which began at a time, of the events that are on the log: one that failed is tried again by its publisher or
// the spool, and would begin its trace twice.
func (p *Publisher) traced(stage trace.Stage, events []Encoded, partial *PartialError, from time.Time) {
	if p.tracer == nil {
		return
	}
	now := time.Now()
	for i := range events {
		if partial != nil && partial.Failed[i] != nil {
			continue
		}
		p.tracer.Stage(schema.EventID(events[i].JSON), stage, from, now)
	}
}
