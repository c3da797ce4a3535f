package swarm

import (
	"bytes"
	"encoding/binary"
	"strconv"

	"github.com/mailbell/mailbell/bench/ledger"
	"github.com/mailbell/mailbell/schema"
)

type state uint8

const (
	idle        state = iota // not connected, waits for its turn
	looking                  // asks the gateway
	connecting               // connect(2) is under way
	shaking                  // waits for the 101
	subscribing              // waits for "subscribed"
	live
	over // will not come back
)

// conn is one client. A process has up to 20,000 of them.
type conn struct {
	fd       int32
	state    state
	tries    uint8
	deadline int64 // of coming up, or when to try again, Unix nanoseconds
	heardAt  int64 // Unix nanoseconds
	pinged   bool  // and not heard of since

	observer ledger.Observer
	since    int64 // offset at the first subscribe; -1 before
	position schema.Position
	hasPos   bool
}

// A fixed key and its answer (RFC 6455, section 1.3): the swarm tests the server's load, not its luck.
const (
	handshakeKey    = "dGhlIHNhbXBsZSBub25jZQ=="
	handshakeAccept = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
)

func appendHandshake(dst []byte, path, host, token string) []byte {
	dst = append(dst, "GET "...)
	dst = append(dst, path...)
	dst = append(dst, " HTTP/1.1\r\nHost: "...)
	dst = append(dst, host...)
	dst = append(dst, "\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: "+handshakeKey+
		"\r\nSec-WebSocket-Protocol: "+schema.Subprotocol+"\r\n"...)
	if token != "" {
		dst = append(dst, "Authorization: Bearer "...)
		dst = append(dst, token...)
		dst = append(dst, "\r\n"...)
	}
	return append(dst, "\r\n"...)
}

// appendClientFrame appends a masked frame (RFC 6455, section 5.2) with the mask 0, which is as
// legal as any other and leaves the payload as it is.
func appendClientFrame(dst []byte, opcode byte, payload []byte) []byte {
	dst = append(dst, 0x80|opcode)
	switch n := len(payload); {
	case n < 126:
		dst = append(dst, 0x80|byte(n))
	default:
		dst = append(dst, 0x80|126, byte(n>>8), byte(n))
	}
	dst = append(dst, 0, 0, 0, 0)
	return append(dst, payload...)
}

func appendSubscribe(dst []byte, account string, c *conn) []byte {
	payload := make([]byte, 0, 128)
	payload = append(payload, `{"type":"subscribe","id":1,"account":"`...)
	payload = append(payload, account...)
	if c.hasPos {
		payload = append(payload, `","since":"`...)
		payload = c.position.AppendText(payload)
	}
	payload = append(payload, `"}`...)
	return appendClientFrame(dst, opText, payload)
}

const (
	opText  = 1
	opClose = 8
	opPing  = 9
	opPong  = 10
)

// nextFrame splits the first server frame off b. n is 0 when b holds only a part of it.
func nextFrame(b []byte) (opcode byte, payload []byte, n int) {
	if len(b) < 2 {
		return 0, nil, 0
	}
	size, head := int(b[1]&0x7f), 2
	switch size {
	case 126:
		if len(b) < 4 {
			return 0, nil, 0
		}
		size, head = int(binary.BigEndian.Uint16(b[2:])), 4
	case 127:
		if len(b) < 10 {
			return 0, nil, 0
		}
		size, head = int(binary.BigEndian.Uint64(b[2:])), 10
	}
	if size < 0 || len(b)-head < size {
		return 0, nil, 0
	}
	return b[0] & 0x0f, b[head : head+size], head + size
}

// handshakeEnd returns where the server's answer ends, 0 when it is not complete; status is its code.
func handshakeEnd(b []byte) (end, status int) {
	i := bytes.Index(b, []byte("\r\n\r\n"))
	if i < 0 {
		return 0, 0
	}
	if len(b) > 12 {
		status, _ = strconv.Atoi(string(b[9:12]))
	}
	if status == 101 && !bytes.Contains(b[:i], []byte(handshakeAccept)) {
		status = 0
	}
	return i + 4, status
}

// The frames that matter under load are read without a JSON decoder; their form is fixed by the
// golden bytes of package schema.
var (
	eventPrefix    = []byte(`{"type":"event",`)
	positionMarker = []byte(`"position":"`)
	idMarker       = []byte(`"event":{"id":"`)
)

// parseEvent reads an event frame; ok is false when it is something else.
func parseEvent(payload []byte) (id ledger.ID, pos []byte, ok bool) {
	if !bytes.HasPrefix(payload, eventPrefix) {
		return ledger.ID{}, nil, false
	}
	_, rest, found := bytes.Cut(payload, positionMarker)
	if !found {
		return ledger.ID{}, nil, false
	}
	pos, rest, found = bytes.Cut(rest, []byte{'"'})
	if !found {
		return ledger.ID{}, nil, false
	}
	_, rest, found = bytes.Cut(rest, idMarker)
	if !found {
		return ledger.ID{}, pos, true // an event of somebody else
	}
	text, _, _ := bytes.Cut(rest, []byte{'"'})
	id, _ = ledger.ParseID(text)
	return id, pos, true
}
