// Package pollserver is the poll server that mailbell is compared with: `GET /v1/mailboxes/{account}` with ETag
// and If-None-Match, over a store of package mailstore. It is as cheap as net/http allows: connections
// are kept alive, no request allocates what it does not need, nobody's token is checked, and nothing is logged.
//
// A bench starts it as a process of its own (see Serve). It runs net/http's goroutines, one for each connection, and
// one that follows its parent's words.
package pollserver

import (
	"errors"
	"net/http"
	"strconv"
	"strings"
	"sync"

	"github.com/mailbell/mailbell/bench/mailstore"
)

// Prefix is the path of an account's mailboxes, less the account.
const Prefix = "/v1/mailboxes/"

// maxMailboxes is how many mailboxes the pooled buffers begin with.
const maxMailboxes = 16

// handler answers polls.
type handler struct {
	store   mailstore.Store
	buffers sync.Pool // of *buffer
}

// buffer is what one answer is made in.
type buffer struct {
	boxes []mailstore.Mailbox
	body  []byte
}

func newHandler(s mailstore.Store) *handler {
	return &handler{store: s, buffers: sync.Pool{New: func() any {
		return &buffer{boxes: make([]mailstore.Mailbox, 0, maxMailboxes), body: make([]byte, 0, 2048)}
	}}}
}

var (
	contentType = []string{"application/json"}
	errVersion  = errors.New("not an ETag of ours")
)

func (h *handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	account, ok := strings.CutPrefix(r.URL.Path, Prefix)
	if !ok || r.Method != http.MethodGet {
		http.NotFound(w, r)
		return
	}
	have, err := parseETag(r.Header["If-None-Match"])
	if err != nil {
		have = 0
	}
	b := h.buffers.Get().(*buffer)
	defer h.buffers.Put(b)
	version, boxes, err := h.store.Read(r.Context(), account, have, b.boxes[:0])
	switch {
	case errors.Is(err, mailstore.ErrNoAccount):
		http.NotFound(w, r)
		return
	case err != nil:
		http.Error(w, err.Error(), http.StatusBadGateway)
		return
	}
	header := w.Header()
	header["Etag"] = []string{`"` + strconv.FormatUint(version, 16) + `"`}
	if version == have {
		w.WriteHeader(http.StatusNotModified)
		return
	}
	b.boxes = boxes
	b.body = appendState(b.body[:0], account, boxes)
	header["Content-Type"] = contentType
	header["Content-Length"] = []string{strconv.Itoa(len(b.body))} // net/http would answer in chunks what its buffer cannot hold
	_, _ = w.Write(b.body)
}

func parseETag(values []string) (uint64, error) {
	if len(values) == 0 {
		return 0, nil
	}
	v := values[0]
	if len(v) < 3 || v[0] != '"' || v[len(v)-1] != '"' {
		return 0, errVersion
	}
	return strconv.ParseUint(v[1:len(v)-1], 16, 64)
}

// appendState appends what a webmail needs to draw its folders.
func appendState(dst []byte, account string, boxes []mailstore.Mailbox) []byte {
	dst = append(dst, `{"account":`...)
	dst = strconv.AppendQuote(dst, account)
	dst = append(dst, `,"mailboxes":[`...)
	for i, m := range boxes {
		if i > 0 {
			dst = append(dst, ',')
		}
		dst = append(dst, `{"mailbox":`...)
		dst = strconv.AppendQuote(dst, m.Name)
		dst = append(dst, `,"uidValidity":`...)
		dst = strconv.AppendUint(dst, uint64(m.UIDValidity), 10)
		dst = append(dst, `,"uidnext":`...)
		dst = strconv.AppendUint(dst, uint64(m.UIDNext), 10)
		dst = append(dst, `,"messages":`...)
		dst = strconv.AppendUint(dst, uint64(m.Messages), 10)
		dst = append(dst, `,"unseen":`...)
		dst = strconv.AppendUint(dst, uint64(m.Unseen), 10)
		dst = append(dst, `,"modseq":"`...)
		dst = strconv.AppendUint(dst, m.ModSeq, 10)
		dst = append(dst, `"}`...)
	}
	return append(dst, "]}"...)
}
