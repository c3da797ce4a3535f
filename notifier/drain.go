package notifier

import (
	"context"
	"math"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/gobwas/ws"
	"github.com/mailbell/mailbell/schema"
	"github.com/mailbell/mailbell/schema/link"
)

// order is what the bus wants done with the clients: one of the two.
type order struct {
	drain *link.Drain
	move  *link.Move
}

// away sends up to `most` connections away, beginning behind slot `from`: each is asked to come back after a moment of its
// own within spread, and closed with 1012 when grace has passed after that. It returns where to go on, 0
// at the end.
func (sh *shard) away(from uint32, most int, spread, grace time.Duration, reason schema.ReconnectReason, url string) (next uint32, sent int) {
	sh.enter()
	defer sh.leave()
	for i := from + 1; i < sh.slots.all.next; i++ {
		if sent == most {
			return i - 1, sent
		}
		if c := sh.slots.all.at(i); c.state == slotOpen && c.flags&flagLeaving == 0 {
			sh.sendAway(i, c, spread, grace, reason, url)
			sent++
		}
	}
	return 0, sent
}

// sendAway asks one client to come back elsewhere, as away does.
func (sh *shard) sendAway(i uint32, c *slot, spread, grace time.Duration, reason schema.ReconnectReason, url string) {
	after := time.Duration(rand.Int64N(int64(spread) + 1))
	c.flags |= flagLeaving
	c.quiet = sh.tick() + ticks(after+grace)
	sh.setDue(i, c.quiet)
	sh.tmp = schema.AppendReconnect(newFrame(sh.tmp), uint32(after/time.Millisecond), reason, url)
	sh.pushControl(i, c, seal(sh.tmp, ws.OpText))
}

// closeAll closes what is still open, and refuses whose handshake is under way.
func (sh *shard) closeAll(why *closing) {
	sh.enter()
	defer sh.leave()
	for i := uint32(1); i < sh.slots.all.next; i++ {
		switch c := sh.slots.all.at(i); c.state {
		case slotOpen:
			sh.fail(i, c, why)
		case slotHead, slotChecking:
			sh.refuse(i, c, refuseDrain)
		}
	}
}

// Drain sends all clients away within `over`: no connection is accepted any more, Ready fails, each client is
// asked to reconnect after a moment of its own, and who has not gone by then is closed with 1012. It
// returns when no client is left, or ctx ends. Run goes on; end it afterwards.
func (s *Server) Drain(ctx context.Context, over time.Duration) error {
	s.acceptor.close()
	return s.sendAway(ctx, over, schema.ReconnectDrain)
}

func (s *Server) sendAway(ctx context.Context, over time.Duration, reason schema.ReconnectReason) error {
	s.draining.Store(true)
	grace := min(over/10, 2*time.Second)
	for _, sh := range s.shards {
		for from, more := uint32(0), true; more; more = from != 0 {
			from, _ = sh.away(from, 256, over-2*grace, grace, reason, "")
		}
	}
	end := time.NewTimer(over - grace/2)
	defer end.Stop()
	poll := time.NewTicker(20 * time.Millisecond)
	defer poll.Stop()
	ended := false
	for s.admit.sockets.Load() > 0 && !(ended && s.open.Load() == 0 && s.admit.handshakes.Load() == 0) {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-poll.C:
		case <-end.C:
			ended = true
			for _, sh := range s.shards {
				sh.closeAll(&closeMoved)
			}
		}
	}
	return nil
}

// runOrders carries out what the bus orders, each order by itself, until ctx ends.
func (s *Server) runOrders(ctx context.Context) {
	var wg sync.WaitGroup
	defer wg.Wait()
	busy := make(chan struct{}, 4) // orders at a time
	for {
		select {
		case <-ctx.Done():
			return
		case o := <-s.hub.orders:
			select {
			case busy <- struct{}{}:
			default:
				s.cfg.Logger.Warn("an order of the bus was dropped: too many are being carried out")
				continue
			}
			wg.Go(func() {
				s.carryOut(ctx, o)
				<-busy
			})
		}
	}
}

func (s *Server) carryOut(ctx context.Context, o order) {
	if o.move != nil {
		s.move(ctx, o.move)
		return
	}
	over := time.Duration(min(o.drain.OverMs, math.MaxInt32)) * time.Millisecond
	reason := schema.ReconnectDrain
	if o.drain.Reason == string(schema.ReconnectRebalance) {
		reason = schema.ReconnectRebalance
	}
	s.cfg.Logger.Info("the bus asks to send the clients away", "over", over, "reason", reason)
	if err := s.sendAway(ctx, over, reason); err != nil {
		return
	}
	if reason == schema.ReconnectRebalance {
		s.draining.Store(false) // they were to go elsewhere, not for good
	}
}
