package demo

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"maps"
	"net/http"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/mailbell/mailbell/schema"
)

const (
	maxBody     = 16 << 10
	listed      = 100 // messages in a state; the newest
	previewLen  = 90  // bytes of text in a list
	sessionHead = "Mailbell-Session"
	maxSession  = 64
)

type mailboxJSON struct {
	Name        schema.Mailbox `json:"name"`
	UIDValidity uint32         `json:"uidValidity"`
	UIDNext     uint32         `json:"uidnext"`
	Messages    uint32         `json:"messages"`
	Unseen      uint32         `json:"unseen"`
}

type messageJSON struct {
	UID     uint32   `json:"uid"`
	Flags   []string `json:"flags"`
	Date    string   `json:"date"`
	From    string   `json:"from,omitempty"`
	Subject string   `json:"subject,omitempty"`
	Preview string   `json:"preview,omitempty"`
	Text    string   `json:"text,omitempty"`
}

type stateJSON struct {
	Account   schema.Account `json:"account"`
	Mailboxes []mailboxJSON  `json:"mailboxes"`
	Mailbox   schema.Mailbox `json:"mailbox"`
	Messages  []messageJSON  `json:"messages"` // the newest of Mailbox, newest first
}

// login answers POST {"account":"…"} with the session for this API and a token for the gateway.
func (h *Handler) login(w http.ResponseWriter, r *http.Request) {
	var body struct {
		Account schema.Account `json:"account"`
	}
	if err := decode(w, r, &body); err != nil {
		fail(w, r, err)
		return
	}
	if err := body.Account.Validate(); err != nil {
		fail(w, r, refuse(http.StatusBadRequest, "account %s; for example \"alice@example.com\"", err))
		return
	}
	token, err := h.cfg.MintToken(string(body.Account), tokenTTL)
	if err != nil {
		h.cfg.Logger.Error("demo: token", "account", body.Account, "err", err)
		fail(w, r, refuse(http.StatusInternalServerError, "no token could be made; the log of the server says why"))
		return
	}
	h.store.login(body.Account, time.Now())
	reply(w, r, http.StatusOK, "", map[string]any{
		"account": body.Account, "session": h.session(body.Account), "token": token,
		"expiresIn": int(tokenTTL.Seconds()), "gateway": h.cfg.Gateway,
	})
}

// session is the account and the proof that this process gave it out. It travels in a header, not in a
// cookie: two windows can be two people, and no other site can use it.
func (h *Handler) session(a schema.Account) string {
	return base64.RawURLEncoding.EncodeToString([]byte(a)) + "." + base64.RawURLEncoding.EncodeToString(h.proof(string(a)))
}

func (h *Handler) proof(account string) []byte {
	mac := hmac.New(sha256.New, h.key)
	mac.Write([]byte(account))
	return mac.Sum(nil)[:16]
}

// signedIn returns the account of a request, or answers 401.
func (h *Handler) signedIn(w http.ResponseWriter, r *http.Request) *account {
	session := strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer ")
	name, proof, _ := strings.Cut(session, ".")
	rawName, errName := base64.RawURLEncoding.DecodeString(name)
	rawProof, errProof := base64.RawURLEncoding.DecodeString(proof)
	if errName == nil && errProof == nil && hmac.Equal(rawProof, h.proof(string(rawName))) {
		if a := h.store.account(schema.Account(rawName)); a != nil {
			return a
		}
	}
	fail(w, r, refuse(http.StatusUnauthorized, "no session; log in with POST /demo/api/login"))
	return nil
}

// state answers what a poll wants to know: the mailboxes with their counts, and the messages of one.
func (h *Handler) state(w http.ResponseWriter, r *http.Request) {
	a := h.signedIn(w, r)
	if a == nil {
		return
	}
	box := schema.Mailbox(r.URL.Query().Get("mailbox"))
	state, etag := h.store.state(a, box, r.Header.Get("If-None-Match"))
	if state == nil {
		reply(w, r, http.StatusNotModified, etag, nil)
		return
	}
	reply(w, r, http.StatusOK, etag, state)
}

// state returns nil when the asker has it already.
func (s *store) state(a *account, name schema.Mailbox, have string) (*stateJSON, string) {
	a.order.RLock()
	defer a.order.RUnlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	if a.mailboxes[name] == nil {
		name = inbox
	}
	etag := s.etag(a, name)
	if have == etag {
		return nil, etag
	}
	state := &stateJSON{Account: a.name, Mailbox: name, Messages: []messageJSON{}}
	for _, name := range slices.Sorted(maps.Keys(a.mailboxes)) {
		box := a.mailboxes[name]
		state.Mailboxes = append(state.Mailboxes, mailboxJSON{name, box.uidValidity, box.uidNext, box.messages, box.unseen})
	}
	if box := a.mailboxes[name]; box != nil {
		for _, row := range slices.Backward(box.rows[max(0, len(box.rows)-listed):]) {
			state.Messages = append(state.Messages, row.json(false))
		}
	}
	return state, etag
}

func (m *message) json(full bool) messageJSON {
	j := messageJSON{UID: m.uid, Flags: m.flags, Date: m.date.UTC().Format(time.RFC3339), From: m.from, Subject: m.subject}
	if j.Flags == nil {
		j.Flags = []string{}
	}
	if full {
		j.Text = m.text
	}
	j.Preview = strings.ReplaceAll(m.text, "\n", " ")
	if len(j.Preview) > previewLen {
		cut := previewLen
		for cut > 0 && !utf8.RuneStart(j.Preview[cut]) {
			cut--
		}
		j.Preview = j.Preview[:cut] + "…"
	}
	return j
}

// message answers GET ?mailbox=INBOX&uids=5:7 with the messages and their text: what a page asks for after an event.
func (h *Handler) message(w http.ResponseWriter, r *http.Request) {
	a := h.signedIn(w, r)
	if a == nil {
		return
	}
	set, err := schema.ParseUIDSet(r.URL.Query().Get("uids"))
	if err != nil {
		fail(w, r, refuse(http.StatusBadRequest, "uids %s; for example \"1:3,7\"", err))
		return
	}
	uidValidity, messages := h.store.known(a, schema.Mailbox(r.URL.Query().Get("mailbox")), &set)
	reply(w, r, http.StatusOK, "", map[string]any{"uidValidity": uidValidity, "messages": messages})
}

// known lists the messages of a set of which there is more than a UID, with their text. The UIDs are those
// of the uidValidity, and no others.
func (s *store) known(a *account, mailbox schema.Mailbox, set *schema.UIDSet) (uidValidity uint32, messages []messageJSON) {
	a.order.RLock()
	defer a.order.RUnlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	messages = []messageJSON{}
	box := a.mailboxes[mailbox]
	if box == nil {
		return 0, messages
	}
	for _, row := range box.in(set) {
		if row.known() && len(messages) < listed {
			messages = append(messages, row.json(true))
		}
	}
	return box.uidValidity, messages
}

// action answers POST /demo/api/actions once the events of the change are on the log.
func (h *Handler) action(w http.ResponseWriter, r *http.Request) {
	a := h.signedIn(w, r)
	if a == nil {
		return
	}
	var req request
	if err := decode(w, r, &req); err != nil {
		fail(w, r, err)
		return
	}
	if req.session = r.Header.Get(sessionHead); len(req.session) > maxSession || !utf8.ValidString(req.session) {
		fail(w, r, refuse(http.StatusBadRequest, "%s has more than %d bytes", sessionHead, maxSession))
		return
	}
	events, err := h.do(r.Context(), a, req)
	if err != nil {
		fail(w, r, err)
		return
	}
	if events == nil {
		events = []schema.Event{}
	}
	reply(w, r, http.StatusOK, "", map[string]any{"events": events})
}

func decode(w http.ResponseWriter, r *http.Request, into any) error {
	if kind, _, _ := strings.Cut(r.Header.Get("Content-Type"), ";"); kind != "application/json" {
		return refuse(http.StatusUnsupportedMediaType, "Content-Type is %q; send application/json", kind)
	}
	d := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxBody))
	d.DisallowUnknownFields()
	if err := d.Decode(into); err != nil {
		var tooLarge *http.MaxBytesError
		if errors.As(err, &tooLarge) {
			return refuse(http.StatusRequestEntityTooLarge, "the body has more than %d bytes", maxBody)
		}
		return refuse(http.StatusBadRequest, "the body is not what is expected: %s", err)
	}
	return nil
}

// fail answers with an error's message. Every error here is a *problem.
func fail(w http.ResponseWriter, r *http.Request, err error) {
	status := http.StatusInternalServerError
	var p *problem
	if errors.As(err, &p) {
		status = p.status
	}
	if status == http.StatusServiceUnavailable {
		w.Header().Set("Retry-After", "1")
	}
	reply(w, r, status, "", map[string]any{"message": err.Error()})
}
