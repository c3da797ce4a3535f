package bus

import (
	"time"

	"github.com/mailbell/mailbell/internal/trace"
	"github.com/mailbell/mailbell/schema"
)

// traced ends the stages of the batch that has just been sent to the links' queues. Callers hold mu.
func (p *partition) traced(read time.Time) {
	t := p.node.cfg.Tracer
	if t == nil {
		return
	}
	now := time.Now()
	for i := range p.batch {
		id := schema.EventID(p.batch[i].Event)
		t.Stage(id, trace.Read, p.batch[i].Time, read)
		t.Stage(id, trace.Routed, read, now)
	}
}
