package notifier

import (
	"bytes"
	"encoding/binary"
	"unicode/utf8"

	"github.com/gobwas/ws"
)

// headroom is kept before a payload that is being built, for the longest header of an
// unmasked frame (RFC 6455, section 5.2).
const headroom = 10

// newFrame begins a frame in dst[:0]: append the payload to it, then seal it.
func newFrame(dst []byte) []byte { return append(dst[:0], make([]byte, headroom)...) }

// seal puts the header right before the payload b[headroom:] and returns the frame, a part of b: one
// buffer, one send.
func seal(b []byte, op ws.OpCode) []byte {
	n := len(b) - headroom
	start := headroom - 2
	switch {
	case n < 126:
		b[start+1] = byte(n)
	case n <= 0xffff:
		start = headroom - 4
		b[start+1] = 126
		binary.BigEndian.PutUint16(b[start+2:], uint16(n))
	default:
		start = headroom - 10
		b[start+1] = 127
		binary.BigEndian.PutUint64(b[start+2:], uint64(n))
	}
	b[start] = 0x80 | byte(op)
	return b[start:]
}

// closing is why and how a connection is closed. Its label is a metric's; the text is for
// the client's developer, at most 123 bytes (RFC 6455, section 5.5).
type closing struct {
	code  ws.StatusCode
	label string
	text  string
}

// Why connections are closed by us. Codes are those of RFC 6455, section 7.4.1, and the
// registry that it began.
var (
	closeNormal    = closing{ws.StatusNormalClosure, "client", ""}
	closeShutdown  = closing{ws.StatusGoingAway, "shutdown", "the server is going away: connect again"}
	closeUnmasked  = closing{ws.StatusProtocolError, "protocol", "a client's frames must be masked (RFC 6455, section 5.3)"}
	closeReserved  = closing{ws.StatusProtocolError, "protocol", "reserved bits without an extension (RFC 6455, section 5.2)"}
	closeOpCode    = closing{ws.StatusProtocolError, "protocol", "reserved opcode (RFC 6455, section 5.2)"}
	closeControl   = closing{ws.StatusProtocolError, "protocol", "control frames are whole and have at most 125 bytes (RFC 6455, section 5.5)"}
	closeFragments = closing{ws.StatusProtocolError, "protocol", "continuation out of order (RFC 6455, section 5.4)"}
	closeLength    = closing{ws.StatusProtocolError, "protocol", "a length of more than 63 bits (RFC 6455, section 5.2)"}
	closeCloseCode = closing{ws.StatusProtocolError, "protocol", "a close frame that is not one (RFC 6455, sections 5.5.1 and 7.4)"}
	closeBinary    = closing{ws.StatusUnsupportedData, "binary", "mailbell.v1 has text frames only"}
	closeUTF8      = closing{ws.StatusInvalidFramePayloadData, "utf8", "text that is not UTF-8 (RFC 6455, section 8.1)"}
	closeExpired   = closing{ws.StatusPolicyViolation, "expired", "the token has expired: get a new one and connect again"}
	closeRate      = closing{ws.StatusPolicyViolation, "rate", "too many frames: slow down and connect again later"}
	closeHalf      = closing{ws.StatusPolicyViolation, "half_frame", "a frame or message was not finished in time"}
	closeStalled   = closing{ws.StatusPolicyViolation, "stalled", "nothing was read for too long: connect again"}
	closeSilent    = closing{ws.StatusPolicyViolation, "silent", "a ping was not answered: connect again"}
	closeTooBig    = closing{ws.StatusMessageTooBig, "too_big", "the message is longer than the limit"}
	closeMoved     = closing{statusServiceRestart, "moved", "as the reconnect frame said: connect again"}
)

// statusServiceRestart is 1012 of the registry of close codes: the client may come back.
const statusServiceRestart ws.StatusCode = 1012

// labels of ends that are not ours to explain.
const (
	endPeer    = "peer"    // the peer closed or reset its side
	endError   = "error"   // the socket failed
	endRefused = "refused" // the handshake's answer could not be sent
	endUnread  = "unread"  // answers were not read
	endTimeout = "timeout" // the peer did not finish what it had begun
	endStop    = "stop"    // the process ends
)

// closeFrame builds the close frame.
func (c closing) frame() []byte {
	b := newFrame(nil)
	b = binary.BigEndian.AppendUint16(b, uint16(c.code))
	return seal(append(b, c.text...), ws.OpClose)
}

// parser takes frames apart. It belongs to one goroutine; its buffers are used again for each frame.
type parser struct {
	reader  bytes.Reader
	header  [ws.MaxHeaderSize]byte
	maxSize int
}

// next reads the header of the first frame in b. It wants more when b does not hold the whole
// frame; it never wants more than a client may send.
func (p *parser) next(b []byte, state ws.State, assembled int) (h ws.Header, size int, more bool, bad *closing) {
	need := 2
	if len(b) >= 2 {
		need = headerSize(b[1])
	}
	if len(b) < need {
		return h, 0, true, p.early(b, state)
	}
	p.reader.Reset(b[:need])
	h, err := ws.ReadHeaderBuffer(&p.reader, p.header[:0])
	if err != nil {
		return h, 0, false, &closeLength
	}
	if bad := check(h, state); bad != nil {
		return h, 0, false, bad
	}
	if !h.OpCode.IsControl() && h.Length > int64(p.maxSize-assembled) {
		return h, 0, false, &closeTooBig
	}
	return h, need, len(b)-need < int(h.Length), nil
}

// early refuses what is wrong in the first bytes of a header already.
func (p *parser) early(b []byte, state ws.State) *closing {
	if len(b) < 2 {
		return nil
	}
	h := ws.Header{Fin: b[0]&0x80 != 0, Rsv: b[0] & 0x70 >> 4, OpCode: ws.OpCode(b[0] & 0x0f), Masked: b[1]&0x80 != 0, Length: int64(b[1] & 0x7f)}
	return check(h, state)
}

// headerSize is how long a header with this second byte is.
func headerSize(second byte) int {
	n := 2
	switch second & 0x7f {
	case 126:
		n += 2
	case 127:
		n += 8
	}
	if second&0x80 != 0 {
		n += 4
	}
	return n
}

// check is ws.CheckHeader with a reason that a client's developer can act on.
func check(h ws.Header, state ws.State) *closing {
	switch err := ws.CheckHeader(h, state); err {
	case nil:
		return nil
	case ws.ErrProtocolMaskRequired:
		return &closeUnmasked
	case ws.ErrProtocolNonZeroRsv:
		return &closeReserved
	case ws.ErrProtocolOpCodeReserved:
		return &closeOpCode
	case ws.ErrProtocolControlNotFinal, ws.ErrProtocolControlPayloadOverflow:
		return &closeControl
	default:
		return &closeFragments
	}
}

// checkClose checks the payload of a client's close frame (RFC 6455, section 5.5.1).
func checkClose(payload []byte) *closing {
	if len(payload) == 0 {
		return nil
	}
	if len(payload) == 1 {
		return &closeCloseCode
	}
	if !utf8.Valid(payload[2:]) {
		return &closeUTF8
	}
	code := ws.StatusCode(binary.BigEndian.Uint16(payload))
	if code >= 1012 && code <= 1014 { // registered since
		return nil
	}
	if ws.CheckCloseFrameData(code, "") != nil || code >= 5000 {
		return &closeCloseCode
	}
	return nil
}
