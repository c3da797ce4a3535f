package bench

import (
	"context"

	"github.com/mailbell/mailbell/bench/swarm"
)

// connectPackets brings all clients up in one process.
func (h *hold) connectPackets(ctx context.Context) error {
	p, err := h.fleet.child([]string{"GOMAXPROCS=2", "GOGC=30"}, "clients", "bench", "packets")
	if err != nil {
		return err
	}
	err = p.say(swarm.PacketsConfig{
		Run: h.fleet.run, Connections: h.cfg.Connections, Targets: h.fleet.at("10.0.0.1"), KeyFile: h.fleet.keyFile, ReportMs: 250,
	})
	if err != nil {
		return err
	}
	c := &holdClient{process: p, connections: h.cfg.Connections, changed: make(chan struct{})}
	go c.follow()
	h.clients = append(h.clients, c)
	return h.up(ctx, 0)
}
