package bus

import (
	"bufio"
	"context"
	"crypto/rand"
	"crypto/sha1"
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"time"

	"github.com/mailbell/mailbell/internal/auth"
	"github.com/mailbell/mailbell/schema"
)

// Two probes of probeTimeout each, one interval apart at most, stay below the 3 seconds within which a notifier whose
// address does not work is taken out.
const (
	probeTimeout  = 850 * time.Millisecond
	probeFailures = 2
	probeAgain    = 100 * time.Millisecond // after a first failure
	// busyAccepts is at how many accepts a second a notifier that answers slowly counts as busy.
	busyAccepts = 50
	// probeExcuses is how often in a row it is excused for that.
	probeExcuses = 2
	// probeAccount is whom a probe's ticket names. Nothing is subscribed.
	probeAccount = schema.Account("mailbell-probe")
)

// errProbeSlow is a connection that was made but not answered in time.
var errProbeSlow = errors.New("no answer in time")

// probe tries a notifier's public address until its link ends. That it does not work is logged once each time, also if it
// never did.
func (n *Node) probe(ctx context.Context, notifier Notifier) {
	for failures := 0; ctx.Err() == nil; {
		pause := n.cfg.ProbeInterval
		ticket, took, err := n.connectTo(ctx, notifier)
		if ctx.Err() != nil {
			return
		}
		was, is := n.fleet.tried(notifier.Link, took, ticket, err)
		if err != nil {
			n.metrics.probes.WithLabelValues("failed").Inc()
			failures++
			if was {
				pause = min(pause, probeAgain)
			}
		} else {
			n.metrics.probes.WithLabelValues("ok").Inc()
			failures = 0
		}
		if !is && (was || failures == probeFailures) {
			n.log.Warn("a notifier's public address does not work: it gets no clients", "notifier", notifier.Node, "url", notifier.URL, "err", err)
		} else if is && !was {
			n.log.Info("a notifier's public address works", "notifier", notifier.Node, "url", notifier.URL, "took", took)
		}
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		}
	}
}

// connectTo opens a WebSocket as a client would, and closes it. A notifier that is full or is being drained answers
// so: its address works. ticket says that one was used.
func (n *Node) connectTo(ctx context.Context, notifier Notifier) (ticket bool, took time.Duration, err error) {
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	signed, err := n.tickets.Sign(auth.Access{Subject: probeAccount, Grants: []auth.Grant{{Account: probeAccount}}}, notifier.Node, ticketTTL)
	if err != nil {
		return false, 0, err
	}
	u, err := url.Parse(notifier.URL)
	if err != nil {
		return false, 0, err
	}
	q := u.Query()
	q.Set("ticket", signed)
	u.RawQuery = q.Encode()
	began := time.Now()
	conn, err := dialURL(ctx, u, n.cfg.ProbeTLS)
	if err != nil {
		return false, 0, err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	status, err := shakeHands(conn, u)
	switch {
	case err != nil && ctx.Err() != nil:
		return false, 0, errProbeSlow
	case err != nil:
		return false, 0, err
	case status == http.StatusSwitchingProtocols:
		// A close frame with code 1000, masked with zeros (RFC 6455, section 5.5.1).
		_, _ = conn.Write([]byte{0x88, 0x82, 0, 0, 0, 0, 0x03, 0xe8})
		return true, time.Since(began), nil
	}
	return false, time.Since(began), nil
}

func dialURL(ctx context.Context, u *url.URL, config *tls.Config) (net.Conn, error) {
	port := u.Port()
	if port == "" {
		port = map[string]string{"ws": "80", "wss": "443"}[u.Scheme]
	}
	addr := net.JoinHostPort(u.Hostname(), port)
	if u.Scheme == "wss" {
		return (&tls.Dialer{Config: config}).DialContext(ctx, "tcp", addr)
	}
	return new(net.Dialer).DialContext(ctx, "tcp", addr)
}

// saysBusy reports whether a 503 is the notifier's own, which is full, drained or busy, and not that of a proxy which does not
// reach it.
func saysBusy(body io.Reader) bool {
	var answer struct {
		Error struct {
			Code string `json:"code"`
		} `json:"error"`
	}
	if json.NewDecoder(io.LimitReader(body, 4096)).Decode(&answer) != nil {
		return false
	}
	switch answer.Error.Code {
	case "full", "draining", "busy":
		return true
	}
	return false
}

// shakeHands sends the request of RFC 6455, section 4.1, and reads the answer. 101 and a 503 of the notifier itself are returned, all else is an error.
func shakeHands(conn net.Conn, u *url.URL) (status int, err error) {
	var nonce [16]byte
	_, _ = rand.Read(nonce[:])
	key := base64.StdEncoding.EncodeToString(nonce[:])
	request := fmt.Sprintf("GET %s HTTP/1.1\r\nHost: %s\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: %s\r\nSec-WebSocket-Protocol: %s\r\nUser-Agent: mailbell-probe\r\n\r\n",
		u.RequestURI(), u.Host, key, schema.Subprotocol)
	if _, err := conn.Write([]byte(request)); err != nil {
		return 0, err
	}
	resp, err := http.ReadResponse(bufio.NewReaderSize(conn, 4096), nil)
	if err != nil {
		return 0, fmt.Errorf("read the answer: %w", err)
	}
	defer resp.Body.Close()
	sum := sha1.Sum([]byte(key + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"))
	switch {
	case resp.StatusCode == http.StatusServiceUnavailable && saysBusy(resp.Body):
		return resp.StatusCode, nil
	case resp.StatusCode != http.StatusSwitchingProtocols:
		return 0, fmt.Errorf("the answer is %s", resp.Status)
	case resp.Header.Get("Sec-WebSocket-Accept") != base64.StdEncoding.EncodeToString(sum[:]):
		return 0, errors.New("the answer is not that of a WebSocket")
	}
	return resp.StatusCode, nil
}
