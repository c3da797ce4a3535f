package schema

import (
	"encoding/json"
	"fmt"
	"strconv"
	"unicode/utf8"

	"github.com/tidwall/gjson"
)

// MaxSubscribeMailboxes is how many mailboxes one subscribe may name.
const MaxSubscribeMailboxes = 100

// ClientFrame is a frame that a client sent.
type ClientFrame struct {
	Type      FrameType
	ID        uint64
	Account   Account
	Mailboxes []Mailbox // nil: all of the account
	Since     *Position // nil: none was given, or SinceInvalid
	// SinceInvalid says that a position was given that is none of ours. The answer is
	// a resync, not an error: the client may have kept it from another system.
	SinceInvalid bool
}

// FrameError says what is wrong with a client's frame. ID is the frame's, where it could be read.
type FrameError struct {
	ID      uint64
	HasID   bool
	Message string
}

func (e *FrameError) Error() string { return e.Message }

// DecodeClientFrame reads one frame of a client. Unknown keys are ignored, so
// that later clients can talk to this version. The error is a *[FrameError].
func DecodeClientFrame(b []byte) (ClientFrame, error) {
	if !utf8.Valid(b) || !gjson.ValidBytes(b) {
		return ClientFrame{}, &FrameError{Message: "the frame is not valid JSON"}
	}
	root := gjson.ParseBytes(b)
	if !root.IsObject() {
		return ClientFrame{}, &FrameError{Message: `the frame must be a JSON object; for example {"type":"ping","id":1}`}
	}
	d := frameDecoder{}
	root.ForEach(func(key, value gjson.Result) bool {
		d.field(key.String(), value)
		return true
	})
	if d.problem == "" {
		d.complete()
	}
	if d.problem != "" {
		return ClientFrame{}, &FrameError{ID: d.frame.ID, HasID: d.hasID, Message: d.problem}
	}
	return d.frame, nil
}

type frameDecoder struct {
	frame   ClientFrame
	hasID   bool
	problem string
}

func (d *frameDecoder) fail(format string, args ...any) {
	if d.problem == "" {
		d.problem = fmt.Sprintf(format, args...)
	}
}

func (d *frameDecoder) field(key string, v gjson.Result) {
	switch key {
	case "type":
		d.frame.Type = FrameType(d.text(key, v))
	case "id":
		n, err := strconv.ParseUint(v.Raw, 10, 64)
		if v.Type != gjson.Number || err != nil || n > MaxFrameID {
			d.fail(`"id" must be a whole number from 0 to %d`, uint64(MaxFrameID))
			return
		}
		d.frame.ID, d.hasID = n, true
	case "account":
		d.frame.Account = Account(d.text(key, v))
	case "mailboxes":
		d.mailboxes(v)
	case "since":
		if v.Type == gjson.Null {
			return
		}
		p, err := ParsePosition(v.Str)
		if v.Type != gjson.String || err != nil {
			d.frame.SinceInvalid = true
			return
		}
		d.frame.Since = &p
	}
}

func (d *frameDecoder) text(key string, v gjson.Result) string {
	if v.Type != gjson.String {
		d.fail("%q must be a string, not %s", key, typeOf(v))
	}
	return v.Str
}

func (d *frameDecoder) mailboxes(v gjson.Result) {
	if v.Type == gjson.Null {
		return
	}
	if !v.IsArray() {
		d.fail(`"mailboxes" must be an array of names; for example ["INBOX"]`)
		return
	}
	v.ForEach(func(_, item gjson.Result) bool {
		m := Mailbox(item.Str)
		if item.Type != gjson.String {
			d.fail(`"mailboxes" must have only strings; for example ["INBOX"]`)
		} else if err := m.Validate(); err != nil {
			d.fail(`"mailboxes": the name %s %v`, quote(string(m)), err)
		} else if len(d.frame.Mailboxes) == MaxSubscribeMailboxes {
			d.fail(`"mailboxes" has more than %d names; leave it out to hear of all`, MaxSubscribeMailboxes)
		}
		d.frame.Mailboxes = append(d.frame.Mailboxes, m)
		return d.problem == ""
	})
}

// complete checks what the frame's type needs.
func (d *frameDecoder) complete() {
	switch d.frame.Type {
	case FrameSubscribe, FrameUnsubscribe:
		if err := d.frame.Account.Validate(); err != nil {
			d.fail(`"account" %v; for example "alice@example.com"`, err)
		}
		if !d.hasID {
			d.fail(`"id" is missing; the answer repeats it`)
		}
	case FramePing:
		if !d.hasID {
			d.fail(`"id" is missing; the answer repeats it`)
		}
	case "":
		d.fail(`"type" is missing; it is "subscribe", "unsubscribe" or "ping"`)
	default:
		d.fail(`"type" %s is not "subscribe", "unsubscribe" or "ping"`, quote(string(d.frame.Type)))
	}
}

// ServerFrame is a frame that a server sent, for clients written in Go. Fields
// that the type does not have are zero.
type ServerFrame struct {
	Type     FrameType       `json:"type"`
	ID       uint64          `json:"id"`
	Account  Account         `json:"account"`
	Position Position        `json:"-"`
	CatchUp  CatchUp         `json:"catchUp"`
	Event    json.RawMessage `json:"event"`
	Reason   string          `json:"reason"` // of missed and reconnect
	AfterMs  uint32          `json:"afterMs"`
	URL      string          `json:"url"`
	Code     ErrorCode       `json:"code"`
	Message  string          `json:"message"`
}

// DecodeServerFrame reads one frame of a server. Unknown types and keys are no error, so that a client
// can talk to later versions.
func DecodeServerFrame(b []byte) (ServerFrame, error) {
	var wire struct {
		ServerFrame
		Position string `json:"position"`
	}
	if err := json.Unmarshal(b, &wire); err != nil {
		return ServerFrame{}, fmt.Errorf("server frame: %w", err)
	}
	frame := wire.ServerFrame
	if frame.Type == "" {
		return ServerFrame{}, fmt.Errorf(`server frame: "type" is missing`)
	}
	if wire.Position != "" {
		pos, err := ParsePosition(wire.Position)
		if err != nil {
			return ServerFrame{}, fmt.Errorf("server frame: %w", err)
		}
		frame.Position = pos
	}
	return frame, nil
}
