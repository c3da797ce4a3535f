package schema

// Subprotocol is what a client offers in Sec-WebSocket-Protocol, and SocketPath
// where its WebSocket is.
const (
	Subprotocol = "mailbell.v1"
	SocketPath  = "/v1/ws"
)

// FrameType is the "type" of a frame of mailbell.v1.
type FrameType string

// What a client sends, and what a server sends.
const (
	FrameSubscribe   FrameType = "subscribe"
	FrameUnsubscribe FrameType = "unsubscribe"
	FramePing        FrameType = "ping"

	FrameSubscribed   FrameType = "subscribed"
	FrameUnsubscribed FrameType = "unsubscribed"
	FrameEvent        FrameType = "event"
	FrameMissed       FrameType = "missed"
	FrameReconnect    FrameType = "reconnect"
	FramePong         FrameType = "pong"
	FrameErr          FrameType = "error"
)

// CatchUp says what happened since the position that a subscription named.
type CatchUp string

const (
	Fresh   CatchUp = "fresh"   // no position was given
	Current CatchUp = "current" // nothing happened: the 304 that cost the store nothing
	Replay  CatchUp = "replay"  // the missed events follow, in order
	Resync  CatchUp = "resync"  // can't be told: fetch from the store once
)

// MissedReason says why events could not be given.
type MissedReason string

const (
	MissedSlow   MissedReason = "slow"   // the client read too slowly and its backlog was dropped
	MissedWindow MissedReason = "window" // the window does not reach back far enough
)

// ReconnectReason says why a client should come back elsewhere.
type ReconnectReason string

const (
	ReconnectDrain     ReconnectReason = "drain"
	ReconnectRebalance ReconnectReason = "rebalance"
)

// ErrorCode is the "code" of an error frame.
type ErrorCode string

const (
	CodeForbidden   ErrorCode = "forbidden"   // the token does not allow it: don't try again with it
	CodeBadRequest  ErrorCode = "badRequest"  // the frame is wrong: don't send it again
	CodeTooMany     ErrorCode = "tooMany"     // a limit: unsubscribe from something first, or send less
	CodeUnavailable ErrorCode = "unavailable" // not now: try again later
)

// MaxFrameID is the largest "id" of a client's frame: what JavaScript's numbers
// hold exactly.
const MaxFrameID = 1<<53 - 1

// AppendSubscribed appends the answer to a subscribe. An afterMs above 0, for Resync, asks the client to
// wait that long before it fetches.
func AppendSubscribed(dst []byte, id uint64, account Account, pos Position, c CatchUp, afterMs uint32) []byte {
	dst = append(dst, `{"type":"subscribed"`...)
	dst = appendNumber(dst, "id", id)
	dst = appendPlace(dst, account, pos)
	dst = appendText(dst, "catchUp", string(c))
	return appendEnd(dst, afterMs)
}

// AppendEvent appends an event frame around the event's JSON as it stands on the log.
func AppendEvent(dst []byte, account Account, pos Position, event []byte) []byte {
	dst = append(dst, `{"type":"event"`...)
	dst = appendPlace(dst, account, pos)
	dst = append(dst, `,"event":`...)
	dst = append(dst, event...)
	return append(dst, '}')
}

// AppendMissed appends the frame that says that everything of the account up to pos may have been missed.
func AppendMissed(dst []byte, account Account, pos Position, reason MissedReason, afterMs uint32) []byte {
	dst = append(dst, `{"type":"missed"`...)
	dst = appendPlace(dst, account, pos)
	dst = appendText(dst, "reason", string(reason))
	return appendEnd(dst, afterMs)
}

// AppendReconnect appends the request to come back in afterMs; an empty url means by way of the gateway.
func AppendReconnect(dst []byte, afterMs uint32, reason ReconnectReason, url string) []byte {
	dst = append(dst, `{"type":"reconnect"`...)
	dst = appendNumber(dst, "afterMs", afterMs)
	dst = appendText(dst, "reason", string(reason))
	dst = appendText(dst, "url", url)
	return append(dst, '}')
}

// AppendPong appends the answer to a ping.
func AppendPong(dst []byte, id uint64) []byte {
	return append(appendNumber(append(dst, `{"type":"pong"`...), "id", id), '}')
}

// AppendUnsubscribed appends the answer to an unsubscribe.
func AppendUnsubscribed(dst []byte, id uint64) []byte {
	return append(appendNumber(append(dst, `{"type":"unsubscribed"`...), "id", id), '}')
}

// AppendError appends an error; hasID is false for an error that answers no frame with an id.
func AppendError(dst []byte, id uint64, hasID bool, code ErrorCode, message string) []byte {
	dst = append(dst, `{"type":"error"`...)
	if hasID {
		dst = appendNumber(dst, "id", id)
	}
	dst = appendText(dst, "code", string(code))
	dst = appendText(dst, "message", message)
	return append(dst, '}')
}

func appendPlace(dst []byte, account Account, pos Position) []byte {
	dst = appendText(dst, "account", string(account))
	dst = append(dst, `,"position":"`...)
	dst = pos.AppendText(dst)
	return append(dst, '"')
}

func appendEnd(dst []byte, afterMs uint32) []byte {
	if afterMs > 0 {
		dst = appendNumber(dst, "afterMs", afterMs)
	}
	return append(dst, '}')
}
