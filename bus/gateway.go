package bus

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"mime"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"time"

	"github.com/mailbell/mailbell/bus/placement"
	"github.com/mailbell/mailbell/internal/auth"
	"github.com/mailbell/mailbell/schema"
)

// ConnectPath is the gateway's door.
const ConnectPath = "/v1/connect"

const (
	ticketTTL      = 30 * time.Second
	maxConnectBody = 64 << 10
	verifyTimeout  = 5 * time.Second // a key that has to be fetched
	retryAfter     = 2 * time.Second // when no notifier takes clients
)

// ConnectAnswer is what the gateway answers.
type ConnectAnswer struct {
	URL          string `json:"url"`          // with the ticket, to be used once
	ExpiresIn    int    `json:"expiresIn"`    // seconds
	RetryAfterMs int    `json:"retryAfterMs"` // wait so long before connecting
}

// gatewayError is an answer that is not 200.
type gatewayError struct {
	status     int
	code       string // as the socket's error codes where they mean the same
	message    string
	retryAfter time.Duration
}

func (e *gatewayError) Error() string { return e.message }

func refuse(status int, code, format string, args ...any) *gatewayError {
	return &gatewayError{status: status, code: code, message: fmt.Sprintf(format, args...)}
}

// Gateway answers [ConnectPath]: GET with a user's token, POST with a service token on behalf of a user.
func (n *Node) Gateway() http.Handler {
	var h http.Handler = http.HandlerFunc(n.serveConnect)
	cors := n.cfg.Origins.CORS(h, http.MethodGet, http.MethodPost)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Cache-Control", "no-store")
		if origin := r.Header.Get("Origin"); !n.cfg.Origins.Allow(origin, r.Host) {
			n.refuse(w, refuse(http.StatusForbidden, "forbidden", "%s", auth.ErrOrigin.Message))
			return
		}
		cors.ServeHTTP(w, r)
	})
}

func (n *Node) serveConnect(w http.ResponseWriter, r *http.Request) {
	var access auth.Access
	var address string
	var err error
	switch r.Method {
	case http.MethodGet:
		access, err = n.accessOfUser(r)
		address = n.clientAddress(r)
	case http.MethodPost:
		access, address, err = n.accessForUser(w, r)
	case http.MethodOptions:
		w.Header().Set("Allow", "GET, POST, OPTIONS")
		w.WriteHeader(http.StatusNoContent)
		return
	default:
		w.Header().Set("Allow", "GET, POST, OPTIONS")
		err = refuse(http.StatusMethodNotAllowed, "badRequest", "method %s: use GET with a user's token, or POST with a service token", r.Method)
	}
	if err != nil {
		n.refuse(w, err)
		return
	}
	answer, err := n.Connect(r.Context(), access, address)
	if errors.Is(err, auth.ErrTicketSize) && r.Method == http.MethodPost {
		err = refuse(http.StatusBadRequest, "badRequest", "body: %v", err) // here the list is the request's, not a token's
	}
	if err != nil {
		n.refuse(w, err)
		return
	}
	n.metrics.gateway.WithLabelValues("ok").Inc()
	writeJSON(w, http.StatusOK, answer)
}

// Connect picks a notifier for someone and makes the ticket. address is the client's; where it is not known the account stands for
// it. A notifier that has just come is waited for until its address has been tried.
func (n *Node) Connect(ctx context.Context, access auth.Access, address string) (ConnectAnswer, error) {
	client := placement.Client{Account: string(access.Subject), Address: cmp.Or(address, string(access.Subject))}
	chosen, wait, ok := n.fleet.pick(client, time.Now())
	if !ok && n.fleet.waitTried(ctx, probeTimeout) {
		chosen, wait, ok = n.fleet.pick(client, time.Now())
	}
	if !ok {
		return ConnectAnswer{}, &gatewayError{http.StatusServiceUnavailable, "unavailable",
			"no notifier takes clients at the moment; try again, here or at another bus node", wait}
	}
	n.metrics.gatewayWait.Observe(wait.Seconds())
	ticket, err := n.tickets.Sign(access, chosen.Node, ticketTTL)
	if err != nil {
		return ConnectAnswer{}, err
	}
	u, err := url.Parse(chosen.URL)
	if err != nil {
		return ConnectAnswer{}, err
	}
	q := u.Query()
	q.Set("ticket", ticket)
	u.RawQuery = q.Encode()
	return ConnectAnswer{URL: u.String(), ExpiresIn: int(ticketTTL.Seconds()), RetryAfterMs: int(wait.Milliseconds())}, nil
}

// accessOfUser is what the request's own token allows.
func (n *Node) accessOfUser(r *http.Request) (auth.Access, error) {
	if n.cfg.Keys == nil {
		return auth.Access{}, refuse(http.StatusServiceUnavailable, "unavailable", "this node has no keys to verify users' tokens with: start it with --jwt-keys")
	}
	token, err := auth.RequestToken(r, n.cfg.CookieName)
	if err != nil {
		return auth.Access{}, err
	}
	ctx, cancel := context.WithTimeout(r.Context(), verifyTimeout)
	defer cancel()
	return n.cfg.Keys.Verify(ctx, token)
}

// connectRequest is the body of POST.
type connectRequest struct {
	Account  schema.Account `json:"account"`
	Accounts []grantRequest `json:"accounts"`
	Address  string         `json:"address"` // the user's; the peer is the service
}

// grantRequest is a further account: a name, or some mailboxes of one.
type grantRequest struct {
	Account   schema.Account   `json:"account"`
	Mailboxes []schema.Mailbox `json:"mailboxes"`
}

func (g *grantRequest) UnmarshalJSON(b []byte) error {
	if b[0] == '"' {
		return json.Unmarshal(b, &g.Account)
	}
	type plain grantRequest
	return decodeStrict(b, (*plain)(g))
}

// accessForUser is what a service asks for a user, and the user's address if the service says it.
func (n *Node) accessForUser(w http.ResponseWriter, r *http.Request) (access auth.Access, address string, err error) {
	token, err := auth.RequestToken(r, "")
	if err != nil {
		return auth.Access{}, "", err
	}
	service, err := n.cfg.ServiceTokens.Check(token, auth.ScopeConnect)
	if err != nil {
		return auth.Access{}, "", err
	}
	if ct := r.Header.Get("Content-Type"); ct != "" {
		if mt, _, err := mime.ParseMediaType(ct); err != nil || mt != "application/json" {
			return auth.Access{}, "", refuse(http.StatusUnsupportedMediaType, "badRequest", "content type %.100q: send application/json", ct)
		}
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxConnectBody))
	if tooLarge := (*http.MaxBytesError)(nil); errors.As(err, &tooLarge) {
		return auth.Access{}, "", refuse(http.StatusRequestEntityTooLarge, "tooLarge", "the body is over %d bytes", maxConnectBody)
	} else if err != nil {
		return auth.Access{}, "", refuse(http.StatusBadRequest, "badRequest", "the body could not be read")
	}
	var req connectRequest
	if err := decodeStrict(body, &req); err != nil {
		return auth.Access{}, "", refuse(http.StatusBadRequest, "badRequest", `body: %v; send such as {"account":"alice@example.com","accounts":["team@example.com"]}`, err)
	}
	access, err = req.access()
	if err != nil {
		return auth.Access{}, "", refuse(http.StatusBadRequest, "badRequest", "body: %v", err)
	}
	if address, err = req.address(); err != nil {
		return auth.Access{}, "", refuse(http.StatusBadRequest, "badRequest", "body: %v", err)
	}
	access.Client, access.Expires = service, time.Now().Add(n.cfg.SessionTTL)
	return access, address, nil
}

func (req *connectRequest) address() (string, error) {
	if req.Address == "" {
		return "", nil
	}
	addr, err := netip.ParseAddr(req.Address)
	if err != nil {
		return "", fmt.Errorf("address %.50q is not an IP address", req.Address)
	}
	return addr.WithZone("").Unmap().String(), nil
}

func (req *connectRequest) access() (auth.Access, error) {
	if err := req.Account.Validate(); err != nil {
		return auth.Access{}, fmt.Errorf("account %w", err)
	}
	if len(req.Accounts) >= auth.MaxGrants {
		return auth.Access{}, fmt.Errorf("accounts names %d, at most %d are allowed", len(req.Accounts), auth.MaxGrants-1)
	}
	access := auth.Access{Subject: req.Account, Grants: []auth.Grant{{Account: req.Account}}}
	seen := map[schema.Account]bool{req.Account: true}
	for i, g := range req.Accounts {
		if err := g.Account.Validate(); err != nil {
			return auth.Access{}, fmt.Errorf("accounts, entry %d: account %w", i, err)
		}
		if g.Mailboxes != nil && (len(g.Mailboxes) == 0 || len(g.Mailboxes) > auth.MaxGrantMailboxes) {
			return auth.Access{}, fmt.Errorf("accounts, entry %d: mailboxes has %d names, want 1 to %d; leave it out for all of them", i, len(g.Mailboxes), auth.MaxGrantMailboxes)
		}
		for _, m := range g.Mailboxes {
			if err := m.Validate(); err != nil {
				return auth.Access{}, fmt.Errorf("accounts, entry %d: a mailbox %w", i, err)
			}
		}
		if seen[g.Account] {
			return auth.Access{}, fmt.Errorf("accounts, entry %d: %q is named twice", i, g.Account)
		}
		seen[g.Account] = true
		access.Grants = append(access.Grants, auth.Grant{Account: g.Account, Mailboxes: g.Mailboxes})
	}
	return access, nil
}

// decodeStrict reads one JSON value, no unknown keys, and nothing behind it.
func decodeStrict(b []byte, v any) error {
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		if errors.Is(err, io.EOF) {
			return errors.New("is empty")
		}
		return err
	}
	if d.More() {
		return errors.New("something follows the object")
	}
	return nil
}

// refuse answers with an error.
func (n *Node) refuse(w http.ResponseWriter, err error) {
	var ge *gatewayError
	if ae := (*auth.Error)(nil); errors.As(err, &ae) {
		code := map[int]string{http.StatusUnauthorized: "unauthorized", http.StatusForbidden: "forbidden", http.StatusServiceUnavailable: "unavailable"}[ae.Status()]
		if ae.Reason == auth.ReasonTicketSize {
			code = "tooMany" // the token is right, and another like it does not help
		}
		ge = &gatewayError{status: ae.Status(), code: code, message: ae.Message}
		if ae.Status() == http.StatusServiceUnavailable {
			ge.retryAfter = retryAfter
		}
	} else if !errors.As(err, &ge) {
		n.log.Error("gateway", "err", err)
		ge = refuse(http.StatusInternalServerError, "internal", "something went wrong here; the node's log says what")
	}
	if ge.status == http.StatusUnauthorized {
		w.Header().Set("WWW-Authenticate", "Bearer")
	}
	if ge.retryAfter > 0 {
		w.Header().Set("Retry-After", strconv.Itoa(int(math.Ceil(ge.retryAfter.Seconds()))))
	}
	n.metrics.gateway.WithLabelValues(ge.code).Inc()
	var body struct {
		Error struct {
			Code    string `json:"code"`
			Message string `json:"message"`
		} `json:"error"`
	}
	body.Error.Code, body.Error.Message = ge.code, ge.message
	writeJSON(w, ge.status, body)
}

func writeJSON(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(status)
	e := json.NewEncoder(w)
	e.SetEscapeHTML(false)
	_ = e.Encode(v) // the client is gone: nobody to tell
}
