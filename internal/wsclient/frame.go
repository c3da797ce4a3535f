package wsclient

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strconv"

	"github.com/gobwas/ws"
	"github.com/mailbell/mailbell/schema"
	"github.com/tidwall/gjson"
)

// Frame is one WebSocket frame of a server (RFC 6455, section 5.2).
type Frame struct {
	Op      ws.OpCode
	Fin     bool
	Payload []byte // a part of what was parsed
}

// ErrProtocol says that a server broke RFC 6455.
var ErrProtocol = errors.New("websocket: the server broke the protocol")

// ParseFrame reads the frame at the beginning of b and says how many bytes it has.
// 0 bytes and no error: it is not whole yet; need is then how long b must be at least.
// A payload over limit is an error before it is there.
func ParseFrame(b []byte, limit int) (f Frame, n, need int, err error) {
	if len(b) < 2 {
		return Frame{}, 0, 2, nil
	}
	f.Fin, f.Op = b[0]&0x80 != 0, ws.OpCode(b[0]&0x0f)
	size, head := uint64(b[1]&0x7f), 2
	switch {
	case b[0]&0x70 != 0:
		return Frame{}, 0, 0, fmt.Errorf("%w: reserved bits are set", ErrProtocol)
	case b[1]&0x80 != 0:
		return Frame{}, 0, 0, fmt.Errorf("%w: a frame is masked", ErrProtocol)
	case f.Op.IsReserved():
		return Frame{}, 0, 0, fmt.Errorf("%w: opcode %d", ErrProtocol, f.Op)
	case f.Op.IsControl() && (!f.Fin || size > ws.MaxControlFramePayloadSize):
		return Frame{}, 0, 0, fmt.Errorf("%w: a control frame is fragmented or too long", ErrProtocol)
	}
	switch size {
	case 126:
		if head = 4; len(b) >= head {
			size = uint64(binary.BigEndian.Uint16(b[2:]))
		}
	case 127:
		if head = 10; len(b) >= head {
			size = binary.BigEndian.Uint64(b[2:])
		}
	}
	if len(b) < head {
		return Frame{}, 0, head, nil
	}
	if size > uint64(limit) {
		return Frame{}, 0, 0, fmt.Errorf("websocket: a frame of %d bytes, the limit is %d", size, limit)
	}
	end := head + int(size)
	if len(b) < end {
		return Frame{}, 0, end, nil
	}
	f.Payload = b[head:end:end]
	return f, end, 0, nil
}

// AppendFrame appends a client's frame, which is masked (RFC 6455, section 5.3).
func AppendFrame(dst []byte, op ws.OpCode, payload []byte, mask [4]byte) []byte {
	const final, masked = 0x80, 0x80
	dst = append(dst, final|byte(op))
	switch n := len(payload); {
	case n < 126:
		dst = append(dst, masked|byte(n))
	case n <= 0xffff:
		dst = binary.BigEndian.AppendUint16(append(dst, masked|126), uint16(n))
	default:
		dst = binary.BigEndian.AppendUint64(append(dst, masked|127), uint64(n))
	}
	dst = append(dst, mask[:]...)
	body := len(dst)
	dst = append(dst, payload...)
	ws.Cipher(dst[body:], mask, 0)
	return dst
}

// AppendSubscribe appends the JSON of a subscribe. No mailboxes means all; an empty
// since means none.
func AppendSubscribe(dst []byte, id uint64, account schema.Account, mailboxes []schema.Mailbox, since string) []byte {
	dst = append(dst, `{"type":"subscribe","id":`...)
	dst = strconv.AppendUint(dst, id, 10)
	dst = append(dst, `,"account":`...)
	dst = gjson.AppendJSONString(dst, string(account))
	for i, m := range mailboxes {
		if i == 0 {
			dst = append(dst, `,"mailboxes":[`...)
		} else {
			dst = append(dst, ',')
		}
		dst = gjson.AppendJSONString(dst, string(m))
		if i == len(mailboxes)-1 {
			dst = append(dst, ']')
		}
	}
	if since != "" {
		dst = append(dst, `,"since":`...)
		dst = gjson.AppendJSONString(dst, since)
	}
	return append(dst, '}')
}

// AppendUnsubscribe appends the JSON of an unsubscribe.
func AppendUnsubscribe(dst []byte, id uint64, account schema.Account) []byte {
	dst = append(dst, `{"type":"unsubscribe","id":`...)
	dst = strconv.AppendUint(dst, id, 10)
	dst = append(dst, `,"account":`...)
	dst = gjson.AppendJSONString(dst, string(account))
	return append(dst, '}')
}

// AppendPing appends the JSON of a ping.
func AppendPing(dst []byte, id uint64) []byte {
	dst = append(dst, `{"type":"ping","id":`...)
	dst = strconv.AppendUint(dst, id, 10)
	return append(dst, '}')
}
