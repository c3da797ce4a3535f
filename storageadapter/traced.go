package storageadapter

import (
	"time"

	"github.com/mailbell/mailbell/internal/trace"
	"github.com/mailbell/mailbell/schema"
)

// traced ends a stage of events that began at a time.
func (p *Publisher) traced(stage trace.Stage, events []Encoded, from time.Time) {
	if p.tracer == nil {
		return
	}
	now := time.Now()
	for i := range events {
		p.tracer.Stage(schema.EventID(events[i].JSON), stage, from, now)
	}
}
