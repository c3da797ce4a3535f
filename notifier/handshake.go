package notifier

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"time"
	"unsafe"

	"github.com/gobwas/ws"
	"github.com/mailbell/mailbell/internal/auth"
	"github.com/mailbell/mailbell/schema"
)

// headEnd returns the length of the request's head in b with its blank line, or 0 when that has not come
// yet. Bytes before `from` have been looked at before. Lines may end in a bare LF, as gobwas/ws and
// RFC 9112, section 2.2, allow.
func headEnd(b []byte, from int) int {
	for i := max(0, from-3); ; {
		n := bytes.IndexByte(b[i:], '\n')
		if n < 0 {
			return 0
		}
		i += n + 1
		if i < len(b) && b[i] == '\n' {
			return i + 1
		}
		if i+1 < len(b) && b[i] == '\r' && b[i+1] == '\n' {
			return i + 2
		}
	}
}

// refusal is a handshake that is answered with an HTTP error.
type refusal struct {
	status  int
	code    string // in the body, and the metric's label
	message string
	retry   int // least seconds of Retry-After, 0 is none
}

func (r *refusal) Error() string { return r.message }

// Refusals that carry nothing of the request.
var (
	refuseSlow     = &refusal{408, "timeout", "the request's head was not finished in time", 0}
	refuseHead     = &refusal{431, "headTooLarge", "the request's head has more than 8 KiB", 0}
	refusePath     = &refusal{404, "notFound", "nothing is here; the socket is at " + schema.SocketPath, 0}
	refuseMethod   = &refusal{405, "badMethod", "a WebSocket is opened with GET", 0}
	refuseVersion  = &refusal{505, "badVersion", "a WebSocket needs HTTP/1.1", 0}
	refuseUpgrade  = &refusal{426, "upgradeRequired", "this is a WebSocket: send Upgrade: websocket, Connection: Upgrade and Sec-WebSocket-Version: 13", 0}
	refuseProtocol = &refusal{400, "badSubprotocol", "offer the subprotocol: Sec-WebSocket-Protocol: " + schema.Subprotocol, 0}
	refuseOrigin   = &refusal{403, string(auth.ReasonOrigin), auth.ErrOrigin.Message, 0}
	refuseFull     = &refusal{503, "full", "this node holds as many connections as it may: ask the gateway again", 5}
	refuseDrain    = &refusal{503, "draining", "this node is being drained: ask the gateway again", 1}
	refuseBusy     = &refusal{503, "busy", "too many requests are under way, and this one did not come: connect again", 1}
	refuseKeys     = &refusal{503, "keysBusy", "the token's key is not known here yet, and others wait for it already: connect again", 5}
	refuseAddress  = &refusal{429, "perAddress", "too many connections from this address", 30}
	refuseAccount  = &refusal{429, "perAccount", "too many connections of this account: close some", 30}

	// errWait is no answer: the token's key has to be fetched first.
	errWait = errors.New("notifier: the key has to be fetched")
)

// response is the whole HTTP answer; retry is the seconds of Retry-After, 0 for none.
func (r *refusal) response(retry int) []byte {
	// As the gateway and the ingest answer.
	body, err := json.Marshal(map[string]map[string]string{"error": {"code": r.code, "message": r.message}})
	if err != nil {
		panic("notifier: two strings can't be marshaled: " + err.Error())
	}
	b := fmt.Appendf(nil, "HTTP/1.1 %d %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\nConnection: close\r\nCache-Control: no-store\r\n",
		r.status, http.StatusText(r.status), len(body))
	switch r.status {
	case http.StatusUpgradeRequired:
		b = append(b, "Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"...)
	case http.StatusMethodNotAllowed:
		b = append(b, "Allow: GET\r\n"...)
	case http.StatusUnauthorized:
		b = append(b, "WWW-Authenticate: Bearer\r\n"...)
	}
	if retry > 0 {
		b = fmt.Appendf(b, "Retry-After: %d\r\n", retry)
	}
	return append(append(b, "\r\n"...), body...)
}

// verifier is what the gate needs of auth.Keys; a test has one that waits.
type verifier interface {
	VerifyNow(token string) (auth.Access, error)
	Verify(ctx context.Context, token string) (auth.Access, error)
}

// gate decides who may connect. It is used by all shards and workers at once.
type gate struct {
	// Static after construction.
	node    string
	cookie  string
	keys    verifier
	tickets *auth.TicketKeys
	origins auth.Origins
	now     func() time.Time
	admit   func() *refusal // nil: there is room
	waits   chan struct{}   // room for those who wait for a key
}

// check verifies what the request brought. Without a ctx it does not wait, and
// returns errWait where it would have to.
func (g *gate) check(ctx context.Context, r *applicant) (auth.Access, error) {
	if !g.origins.Allow(view(r.origin), view(r.host)) {
		return auth.Access{}, refuseOrigin
	}
	if r.ticket != "" {
		return g.tickets.Verify(r.ticket, g.node, g.now())
	}
	access, err := g.keys.VerifyNow(r.token)
	if !errors.Is(err, auth.ErrUnknownKey) {
		return access, err
	}
	if ctx == nil {
		return access, errWait
	}
	// Invented keys must leave workers free for those who can be answered at once.
	select {
	case g.waits <- struct{}{}:
		defer func() { <-g.waits }()
		return g.keys.Verify(ctx, r.token)
	default:
		return auth.Access{}, refuseKeys
	}
}

// view is b as a string, for a call that does not keep it.
func view(b []byte) string { return unsafe.String(unsafe.SliceData(b), len(b)) }

// applicant is what a handshake's head says about who asks, and what
// else gobwas/ws does not look at.
type applicant struct {
	ticket   string
	token    string // of the header or, failing that, of the cookie
	origin   []byte
	host     []byte
	protocol bool // ours was offered
}

// upgrader runs handshakes over memory, one at a time: gobwas/ws never sees the socket, so
// that it can neither block nor read on. It belongs to one goroutine.
type upgrader struct {
	// Static after construction.
	ws   ws.Upgrader
	gate *gate

	// Of the handshake at hand.
	in     bytes.Reader
	out    []byte
	ctx    context.Context // nil: must not wait
	req    applicant
	access auth.Access

	// Used again for each.
	hostBuf, originBuf []byte
}

func newUpgrader(g *gate) *upgrader {
	u := &upgrader{gate: g}
	u.ws = ws.Upgrader{
		ReadBufferSize:  maxHead,
		WriteBufferSize: 512,
		ProtocolCustom:  u.onProtocol,
		OnRequest:       u.onRequest,
		OnHost:          u.onHost,
		OnHeader:        u.onHeader,
		OnBeforeUpgrade: u.onBeforeUpgrade,
	}
	return u
}

func (u *upgrader) Read(p []byte) (int, error) { return u.in.Read(p) }

func (u *upgrader) Write(p []byte) (int, error) {
	u.out = append(u.out, p...)
	return len(p), nil
}

// upgrade answers the request's head, which it may change but does not keep. The response is valid until the next
// call. A refused handshake has the refusal as its error and no response, one that would have to wait errWait.
func (u *upgrader) upgrade(head []byte) (response []byte, access auth.Access, err error) {
	u.in.Reset(head)
	u.out = u.out[:0]
	u.req, u.access = applicant{}, auth.Access{}
	_, err = u.ws.Upgrade(u)
	access = u.access
	u.ctx, u.req, u.access = nil, applicant{}, auth.Access{}
	if err == nil {
		return u.out, access, nil
	}
	if errors.Is(err, errWait) {
		return nil, access, errWait
	}
	return nil, access, refusalOf(err)
}

// upgradeWaiting is upgrade for a goroutine that may wait.
func (u *upgrader) upgradeWaiting(ctx context.Context, head []byte) (response []byte, access auth.Access, err error) {
	u.ctx = ctx
	return u.upgrade(head)
}

// refusalOf says how an error of the handshake is answered.
func refusalOf(err error) *refusal {
	if r, ok := errors.AsType[*refusal](err); ok {
		return r
	}
	if e, ok := errors.AsType[*auth.Error](err); ok {
		r := &refusal{status: e.Status(), code: string(e.Reason), message: e.Message}
		if r.status == http.StatusServiceUnavailable {
			r.retry = 5
		}
		return r
	}
	switch err {
	case ws.ErrHandshakeBadMethod:
		return refuseMethod
	case ws.ErrHandshakeBadProtocol:
		return refuseVersion
	case ws.ErrHandshakeUpgradeRequired, ws.ErrHandshakeBadUpgrade, ws.ErrHandshakeBadConnection, ws.ErrHandshakeBadSecVersion:
		return refuseUpgrade
	}
	return &refusal{status: http.StatusBadRequest, code: "badRequest", message: err.Error()}
}

func (u *upgrader) onRequest(uri []byte) error {
	path, query, _ := bytes.Cut(uri, []byte("?"))
	if string(path) != schema.SocketPath {
		return refusePath
	}
	for len(query) > 0 {
		var pair []byte
		pair, query, _ = bytes.Cut(query, []byte("&"))
		key, value, _ := bytes.Cut(pair, []byte("="))
		if string(key) != "ticket" {
			continue
		}
		ticket, err := url.QueryUnescape(string(value)) // a copy
		if err != nil {
			return &refusal{status: http.StatusBadRequest, code: "badRequest", message: "the ticket is not escaped as in a URL"}
		}
		u.req.ticket = ticket
	}
	return nil
}

func (u *upgrader) onHost(host []byte) error {
	u.hostBuf = append(u.hostBuf[:0], host...) // it is valid only here
	u.req.host = u.hostBuf
	return nil
}

func (u *upgrader) onProtocol(offered []byte) (string, bool) {
	for len(offered) > 0 {
		var p []byte
		p, offered, _ = bytes.Cut(offered, []byte(","))
		if string(bytes.TrimSpace(p)) == schema.Subprotocol {
			u.req.protocol = true
			return schema.Subprotocol, true
		}
	}
	return "", true
}

func (u *upgrader) onHeader(key, value []byte) error {
	switch string(key) {
	case "Origin":
		u.originBuf = append(u.originBuf[:0], value...)
		u.req.origin = u.originBuf
	case "Authorization":
		if token, err := auth.BearerToken(view(value)); err == nil {
			u.req.token = strings.Clone(token)
		}
	case "Cookie":
		if u.req.token == "" {
			u.req.token = strings.Clone(cookieValue(view(value), u.gate.cookie))
		}
	case "Content-Length", "Transfer-Encoding":
		if string(value) != "0" {
			return &refusal{status: http.StatusBadRequest, code: "badRequest", message: "a handshake has no body"}
		}
	}
	return nil
}

func (u *upgrader) onBeforeUpgrade() (ws.HandshakeHeader, error) {
	if !u.req.protocol {
		return nil, refuseProtocol
	}
	if r := u.gate.admit(); r != nil {
		return nil, r
	}
	access, err := u.gate.check(u.ctx, &u.req)
	u.access = access
	return nil, err
}

// cookieValue finds a cookie in a Cookie header (RFC 6265, section 4.2).
func cookieValue(header, name string) string {
	for header != "" {
		var pair string
		pair, header, _ = strings.Cut(header, ";")
		if key, value, ok := strings.Cut(strings.TrimSpace(pair), "="); ok && key == name {
			return strings.Trim(value, `"`)
		}
	}
	return ""
}
