package wsclient

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/mailbell/mailbell/schema"
)

// ticket is a gateway's answer.
type ticket struct {
	URL          string `json:"url"`
	ExpiresIn    int    `json:"expiresIn"`    // seconds
	RetryAfterMs int64  `json:"retryAfterMs"` // wait so long before using it
}

const maxTicketAnswer = 64 << 10

// connect makes one attempt. It returns how long to wait at least before the next.
func (c *Client) connect(ctx context.Context) (floor time.Duration, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(c.life, cancel)()
	target, token, floor, err := c.aim(ctx)
	if err != nil {
		return floor, err
	}
	conn, err := DialConn(ctx, target, ConnConfig{
		Token: token, Origin: c.cfg.Origin, TLS: c.cfg.TLS, Dialer: c.cfg.Dialer, Timeout: c.cfg.ConnectTimeout,
	})
	if err != nil {
		if status, ok := errors.AsType[*StatusError](err); ok {
			floor = status.RetryAfter
		}
		return floor, err
	}
	now := time.Now()
	c.openedAt, c.heardAt, c.heard, c.pinged, c.connected = now, now, 0, false, target
	c.moveAt, c.moveTo, c.denials = time.Time{}, "", 0
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.life.Err() != nil {
		_ = conn.Close()
		return 0, ErrClosed
	}
	c.conn = conn
	c.updates = append(c.updates, Update{Kind: Connected})
	for _, s := range c.subs {
		c.ask(s)
	}
	return 0, nil
}

// errWait says that there is nothing wrong: the gateway asks for patience.
var errWait = errors.New("the gateway asks to wait")

// aim finds the socket to connect to, and the token to show there.
func (c *Client) aim(ctx context.Context) (target, token string, floor time.Duration, err error) {
	target, c.target = c.target, ""
	if hasTicket(target) {
		return target, "", 0, nil
	}
	if token, err = c.token(ctx); err != nil {
		return "", "", 0, err
	}
	if target != "" && c.cfg.Account == "" {
		return target, token, 0, nil
	}
	if c.cfg.URL != "" {
		return c.cfg.URL, token, 0, nil
	}
	t, err := c.lookup(ctx, token)
	if err != nil {
		c.gateway++ // ask the next one next time
		if status, ok := errors.AsType[*StatusError](err); ok {
			floor = status.RetryAfter
		}
		return "", "", floor, err
	}
	floor = time.Duration(t.RetryAfterMs) * time.Millisecond
	if floor <= 0 && t.URL == "" {
		return "", "", 0, errors.New("ask the gateway: it names no socket")
	}
	if floor > 0 {
		if floor < time.Duration(t.ExpiresIn)*time.Second {
			c.target = t.URL // still good by then
		}
		return "", "", floor, errWait
	}
	if !hasTicket(t.URL) && c.cfg.Account == "" {
		return t.URL, token, 0, nil
	}
	return t.URL, "", 0, nil // a service token is not for notifiers
}

func (c *Client) token(ctx context.Context) (string, error) {
	if c.cfg.NewToken == nil {
		return c.cfg.Token, nil
	}
	ctx, cancel := context.WithTimeout(ctx, c.cfg.ConnectTimeout)
	defer cancel()
	token, err := c.cfg.NewToken(ctx)
	if err != nil {
		return "", fmt.Errorf("get a token: %w", err)
	}
	return token, nil
}

// lookup asks a gateway.
func (c *Client) lookup(ctx context.Context, token string) (ticket, error) {
	gateway := c.cfg.Gateways[c.gateway%len(c.cfg.Gateways)]
	method, body := http.MethodGet, ""
	if c.cfg.Account != "" {
		b, err := json.Marshal(map[string]string{"account": string(c.cfg.Account)})
		if err != nil {
			return ticket{}, err
		}
		method, body = http.MethodPost, string(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, gateway, strings.NewReader(body))
	if err != nil {
		return ticket{}, fmt.Errorf("ask the gateway: %w", err)
	}
	if body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return ticket{}, fmt.Errorf("ask the gateway: %w", err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxTicketAnswer))
	if err != nil {
		return ticket{}, fmt.Errorf("ask the gateway: %w", err)
	}
	var t ticket
	err = json.Unmarshal(b, &t)
	if resp.StatusCode != http.StatusOK {
		return ticket{}, fmt.Errorf("ask the gateway: %w", &StatusError{
			Status:     resp.StatusCode,
			RetryAfter: max(retryAfter(resp.Header), time.Duration(t.RetryAfterMs)*time.Millisecond),
			Message:    refusalText(b),
		})
	}
	if err != nil {
		return ticket{}, fmt.Errorf("ask the gateway: the answer of %s is not a ticket: %w", gateway, err)
	}
	return t, nil
}

func jsonMessage(b []byte) string {
	var body struct {
		Error struct {
			Message string `json:"message"`
		} `json:"error"`
	}
	_ = json.Unmarshal(b, &body) // something else's answer has no such message
	return body.Error.Message
}

func hasTicket(socket string) bool {
	u, err := url.Parse(socket)
	return err == nil && u.Query().Has("ticket")
}

// stable is how long a connection must have lived to forget the failures before it.
const stable = 10 * time.Second

// failed plans the next attempt after one that failed, or returns what makes further
// ones pointless.
func (c *Client) failed(err error, floor time.Duration) error {
	if status, ok := errors.AsType[*StatusError](err); ok && status.denied() {
		c.denials++
		if c.cfg.NewToken == nil || c.denials > 1 {
			return err
		}
	}
	c.plan(err, floor)
	return nil
}

// plan sets the time of the next attempt and tells of it.
func (c *Client) plan(err error, floor time.Duration) {
	delay := floor
	if !errors.Is(err, errWait) { // then the server has spread its clients already
		delay += c.backoff(c.failures)
		c.failures++
	}
	c.retryAt = time.Now().Add(delay)
	c.cfg.Logger.Debug("not connected", "error", err, "retryIn", delay)
	c.updates = append(c.updates, Update{Kind: Disconnected, Err: err, After: delay})
}

// backoff is full jitter: anything up to base·2ⁿ.
func (c *Client) backoff(failures int) time.Duration {
	limit := c.cfg.BackoffMax
	if d := c.cfg.BackoffBase << min(failures, 30); d > 0 && d>>min(failures, 30) == c.cfg.BackoffBase {
		limit = min(limit, d)
	}
	return time.Duration(rand.Int64N(int64(limit) + 1))
}

// lost plans the way back after a connection ended.
func (c *Client) lost(err error) error {
	now := time.Now()
	c.hangUp()
	if closed, ok := errors.AsType[*CloseError](err); ok && closed.final() {
		return err
	}
	if now.Sub(c.openedAt) >= stable {
		c.failures = 0
	}
	if !c.moveAt.IsZero() { // it was going to end, and the server has spread its clients
		c.retryAt, c.target = c.moveAt, c.moveTo
		c.updates = append(c.updates, Update{Kind: Disconnected, Err: err, After: max(0, c.moveAt.Sub(now))})
		return nil
	}
	c.plan(err, 0)
	return nil
}

// final reports whether coming back would end the same way.
func (e *CloseError) final() bool {
	if e.Code != 1008 {
		return false
	}
	reason := strings.ToLower(e.Reason)
	return strings.Contains(reason, "forbidden") || strings.Contains(reason, "origin") || strings.Contains(reason, "not allowed")
}

// hangUp ends the connection.
func (c *Client) hangUp() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.conn != nil {
		_ = c.conn.Close()
		c.conn = nil
	}
	for _, s := range c.subs {
		s.askedAt, s.retryAt = time.Time{}, time.Time{}
	}
}

// follow remembers where the server wants this client to go.
func (c *Client) follow(f schema.ServerFrame) {
	after := time.Duration(f.AfterMs) * time.Millisecond
	c.moveAt = time.Now().Add(after)
	c.moveTo = ""
	// Never from wss to ws, whoever asks for it.
	if strings.HasPrefix(f.URL, "wss://") || strings.HasPrefix(f.URL, "ws://") && strings.HasPrefix(c.connected, "ws://") {
		c.moveTo = f.URL
	}
	c.updates = append(c.updates, Update{Kind: Moving, Reason: f.Reason, After: after})
}
