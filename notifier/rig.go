package notifier

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"time"

	"github.com/mailbell/mailbell/internal/auth"
	"github.com/mailbell/mailbell/schema"
)

// Rig is a notifier's inside on a bench: shards with the connections that it is given, and the hub's way of an event to
// them. Nobody accepts, and there is no bus. It is used by one goroutine at a time.
type Rig struct {
	hub   *hub
	polls polls
	ids   []nameID
	names []string
}

// NewRig returns an empty rig with so many shards. Close gives back what it holds.
func NewRig(shards int) (*Rig, error) {
	cfg := Config{Logger: slog.New(slog.NewTextHandler(io.Discard, nil)), Shards: shards}.withDefaults()
	s := newShared(cfg)
	r := &Rig{}
	var all []*shard
	for i := range shards {
		all = append(all, newShard(s, uint8(i)))
	}
	if err := r.polls.open(all, func(error) {}); err != nil {
		return nil, errors.Join(err, r.Close())
	}
	r.hub = newHub(s, all)
	return r, nil
}

// Add makes an open connection of a non-blocking descriptor, subscribed to the account, and returns its number: 0, 1, …
// The descriptor stays the caller's.
func (r *Rig) Add(fd int, account schema.Account) (int, error) {
	sh := r.hub.shards[len(r.ids)%len(r.hub.shards)]
	subject, _ := sh.accounts.hold(string(account), 0)
	id, _ := sh.accounts.want(string(account), 0)
	addr, _ := sh.addrs.hold("\x7f\x00\x00\x01", 0)
	sh.enter()
	defer sh.leave()
	i := sh.slots.take()
	c := sh.slots.all.at(i)
	c.fd, c.addr, c.subject, c.state = int32(fd), addr, subject, slotOpen
	sh.subs.add(i, c, id, 0, -1)
	if err := sh.poll.add(c.fd, pollIn, sh.handleOf(i, c)); err != nil {
		return 0, fmt.Errorf("add to epoll: %w", err)
	}
	r.ids, r.names = append(r.ids, id), append(r.names, string(account))
	return len(r.ids) - 1, nil
}

// Push sends an event to a connection, as when the link has delivered it; Flush sends what it still holds.
func (r *Rig) Push(conn int, pos schema.Position, event []byte) {
	r.hub.event(r.ids[conn], r.names[conn], pos, event)
}

// Flush sends what has been pushed.
func (r *Rig) Flush() { r.hub.flushEvents() }

// Backlog is the bytes that sockets did not take.
func (r *Rig) Backlog() int64 { return r.hub.backlog.Load() }

// Close ends the pollers.
func (r *Rig) Close() error { return r.polls.close() }

// Handshake answers the heads of requests as a shard does, and lets everybody in: what tokens cost is not
// the handshake's. It is used by one goroutine at a time.
type Handshake struct {
	upgrader *upgrader
}

// NewHandshake returns one that allows all origins.
func NewHandshake() (*Handshake, error) {
	origins, err := auth.ParseOrigins("*")
	if err != nil {
		return nil, err
	}
	return &Handshake{upgrader: newUpgrader(&gate{
		keys: everybody{}, tickets: new(auth.TicketKeys), origins: origins, now: time.Now, admit: func() *refusal { return nil },
	})}, nil
}

// Upgrade returns the answer to a request's head, valid until the next call.
func (h *Handshake) Upgrade(head []byte) ([]byte, error) {
	response, _, err := h.upgrader.upgrade(head)
	return response, err
}

type everybody struct{}

func (everybody) VerifyNow(string) (auth.Access, error) {
	return auth.Access{Subject: "alice@example.com"}, nil
}

func (everybody) Verify(context.Context, string) (auth.Access, error) {
	return auth.Access{Subject: "alice@example.com"}, nil
}
