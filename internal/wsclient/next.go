package wsclient

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"github.com/mailbell/mailbell/schema"
)

// Next returns what happens next, connecting first where need be. It waits as long as
// ctx allows; a client whose ctx ended may be asked again. An error other than ctx's is
// final: the token is refused, or the client is closed. One goroutine at a time may
// call it.
func (c *Client) Next(ctx context.Context) (Update, error) {
	for {
		if len(c.updates) > 0 {
			u := c.updates[0]
			c.updates = slices.Delete(c.updates, 0, 1)
			return u, nil
		}
		if err := c.over(ctx); err != nil {
			return Update{}, err
		}
		if err := c.step(ctx); err != nil {
			if ctx.Err() == nil {
				c.fatal = err
			}
			return Update{}, c.over(ctx)
		}
	}
}

// over says whether there is any point in going on.
func (c *Client) over(ctx context.Context) error {
	if c.life.Err() != nil {
		return ErrClosed
	}
	if c.fatal != nil {
		return c.fatal
	}
	return ctx.Err()
}

// step makes an attempt to connect, or waits for one frame or for something to do.
func (c *Client) step(ctx context.Context) error {
	c.mu.Lock()
	conn := c.conn
	c.mu.Unlock()
	if conn == nil {
		if err := c.sleep(ctx, time.Until(c.retryAt)); err != nil {
			return err
		}
		floor, err := c.connect(ctx)
		if err == nil || c.over(ctx) != nil {
			return c.over(ctx)
		}
		return c.failed(err, floor)
	}
	message, err := c.read(ctx, conn)
	switch {
	case err == nil:
		return c.handle(message)
	case c.over(ctx) != nil:
		return c.over(ctx)
	case errors.Is(err, os.ErrDeadlineExceeded):
		return nil
	}
	return c.lost(err)
}

func (c *Client) sleep(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return nil
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-c.life.Done():
		return ErrClosed
	}
}

// read waits for a message until something else is to be done.
func (c *Client) read(ctx context.Context, conn *Conn) ([]byte, error) {
	now := time.Now()
	if !c.moveAt.IsZero() && !now.Before(c.moveAt) {
		c.leave()
		return nil, os.ErrDeadlineExceeded // go on without it
	}
	if conn.Buffered() {
		return conn.Next()
	}
	wake, err := c.chores(conn, now)
	if err != nil {
		return nil, err
	}
	if err := conn.SetReadDeadline(wake); err != nil {
		return nil, err
	}
	// What ends ctx after this line finds the deadline set and moves it.
	stop := context.AfterFunc(ctx, func() { _ = conn.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	return conn.Next()
}

// leave goes where the server asked.
func (c *Client) leave() {
	c.hangUp()
	c.target, c.retryAt, c.failures = c.moveTo, time.Time{}, 0
}

// answerTimeout is how long a subscribe may go unanswered. A server says "unavailable" after 10 s.
const answerTimeout = 30 * time.Second

// errSilent says that the server gave no sign of life.
var errSilent = errors.New("the server does not answer")

// chores does what is due and returns when something will be again.
func (c *Client) chores(conn *Conn, now time.Time) (wake time.Time, err error) {
	if conn.received != c.heard {
		c.heard, c.heardAt, c.pinged = conn.received, now, false
	}
	silent := c.heardAt.Add(c.cfg.PingInterval)
	if c.pinged {
		silent = silent.Add(c.cfg.PingTimeout)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if !now.Before(silent) {
		if c.pinged {
			return time.Time{}, errSilent
		}
		c.pinged = true
		c.lastID++
		c.send(AppendPing(nil, c.lastID))
		// From now, however late this was noticed.
		c.heardAt = now.Add(-c.cfg.PingInterval)
		silent = now.Add(c.cfg.PingTimeout)
	}
	wake = earlier(silent, c.moveAt)
	for _, s := range c.subs {
		if !s.retryAt.IsZero() && !now.Before(s.retryAt) {
			c.ask(s)
		}
		wake = earlier(wake, s.retryAt)
		if s.askedAt.IsZero() {
			continue
		}
		late := s.askedAt.Add(answerTimeout)
		if !now.Before(late) {
			return time.Time{}, errSilent
		}
		wake = earlier(wake, late)
	}
	return wake, nil
}

// earlier is the earlier of a and b, where b may be zero for never.
func earlier(a, b time.Time) time.Time {
	if b.IsZero() || a.Before(b) {
		return a
	}
	return b
}

// handle turns a frame into updates. An error ends the connection.
func (c *Client) handle(message []byte) error {
	f, err := schema.DecodeServerFrame(message)
	if err != nil {
		return c.lost(fmt.Errorf("%w: %w", ErrProtocol, err))
	}
	switch f.Type {
	case schema.FrameReconnect:
		c.follow(f)
		return nil
	case schema.FrameUnsubscribed, schema.FramePong:
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if f.Type == schema.FrameErr {
		c.refused(f)
		return nil
	}
	s := c.subs[f.Account]
	if s == nil || !s.askedAt.IsZero() && f.Type != schema.FrameSubscribed {
		return nil // unsubscribed meanwhile, or of the subscription that this one replaces
	}
	switch f.Type {
	case schema.FrameSubscribed:
		c.subscribed(s, f)
	case schema.FrameEvent:
		if s.advance(f.Position) {
			c.updates = append(c.updates, Update{
				Kind: Event, Account: s.account, Position: f.Position, Event: slices.Clone(f.Event),
			})
		}
	case schema.FrameMissed:
		s.advance(f.Position)
		c.updates = append(c.updates, Update{
			Kind: Missed, Account: s.account, Position: f.Position, Reason: f.Reason, After: afterMs(f),
		})
	}
	return nil
}

func afterMs(f schema.ServerFrame) time.Duration {
	return time.Duration(f.AfterMs) * time.Millisecond
}

// subscribed takes the answer to a subscribe.
func (c *Client) subscribed(s *subscription, f schema.ServerFrame) {
	if f.ID != s.id {
		return // to an earlier one, which was replaced
	}
	s.askedAt, s.failures = time.Time{}, 0
	if f.CatchUp != schema.Replay {
		// Also backwards: the position asked with may be of the future, or of another log.
		// A replay's position is the one asked with: the events that follow lead on from there.
		s.set(f.Position)
	}
	c.updates = append(c.updates, Update{
		Kind: Subscribed, Account: s.account, Position: f.Position, CatchUp: f.CatchUp, After: afterMs(f),
	})
}

// advance moves the position on; false says that it has been there before.
func (s *subscription) advance(p schema.Position) bool {
	if s.known {
		if cmp, ok := p.Compare(s.last); ok && cmp <= 0 {
			return false
		}
	}
	s.set(p)
	return true
}

func (s *subscription) set(p schema.Position) {
	s.last, s.known, s.since = p, true, p.String()
}

// refused takes an error frame. What may get better is asked again, later.
func (c *Client) refused(f schema.ServerFrame) {
	for _, s := range c.subs {
		if s.askedAt.IsZero() || s.id != f.ID {
			continue
		}
		s.askedAt = time.Time{}
		if f.Code == schema.CodeUnavailable || f.Code == schema.CodeTooMany {
			s.retryAt = time.Now().Add(c.cfg.BackoffBase + c.backoff(s.failures))
			s.failures++
			return
		}
		delete(c.subs, s.account)
		c.updates = append(c.updates, Update{Kind: Refused, Account: s.account, Code: f.Code, Message: f.Message})
		return
	}
	c.cfg.Logger.Debug("the server refused a frame", "code", f.Code, "message", f.Message)
}

// Decode reads the event of an Update of kind Event.
func (u Update) Decode() (schema.Event, error) {
	if u.Kind != Event {
		return schema.Event{}, fmt.Errorf("decode update: %q has no event", u.Kind)
	}
	return schema.DecodeEvent(u.Event)
}

// Position is the last position of an account, for a later Subscribe; empty when there is none.
func (c *Client) Position(account schema.Account) string {
	c.mu.Lock()
	defer c.mu.Unlock()
	if s := c.subs[account]; s != nil {
		return s.since
	}
	return ""
}
