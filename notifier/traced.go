package notifier

import (
	"time"

	"github.com/mailbell/mailbell/internal/trace"
	"github.com/mailbell/mailbell/schema"
)

// traced ends the last stage of events that have just been handed to their sockets.
func (h *hub) traced(from time.Time) {
	if h.cfg.Tracer == nil {
		return
	}
	now := time.Now()
	for i := range h.batch {
		h.cfg.Tracer.Stage(schema.EventID(h.batch[i].event), trace.Written, from, now)
	}
}
