package notifier

import (
	"errors"
	"math"

	"github.com/mailbell/mailbell/internal/auth"
	"github.com/mailbell/mailbell/schema"
	"google.golang.org/protobuf/encoding/protowire"
)

// movedConn is a connection on its way to another process. Times are ticks from now, 0 is never: the two
// processes count from different moments.
type movedConn struct {
	fd            int // not in the record: it travels beside it
	state         slotState
	flags         uint8
	subject, peer string
	expires       uint32
	quiet         uint32
	ahead         uint32 // ms of the frame rate that are used up
	age           uint32 // ticks
	grants        []auth.Grant
	subs          []movedSub
	ops           []movedOp // not in the record either

	// Of its extra.
	in, message, out []byte
	fragmented       bool
	partial          int
	discarded        int
	until            uint32
	half             uint32
	stalled          uint32
}

type movedSub struct {
	account  string
	filtered bool
	boxes    []schema.Mailbox
	floor    int64
	flags    uint32 // subQueued, subMissed
}

// movedOp is a subscribe that waits for an answer, or an unsubscribe that came after it.
type movedOp struct {
	conn         int // in the order of the connections
	kind         opKind
	id           uint64
	account      schema.Account
	filtered     bool
	boxes        []schema.Mailbox
	since        string
	sinceInvalid bool
}

// movedPart is how far a partition has been handed out.
type movedPart struct {
	generation uint64
	known      bool
	epoch      uint64
	offset     int64
}

// The numbers of the fields are for ever: never give one a new meaning.
const (
	connState protowire.Number = iota + 1
	connFlags
	connSubject
	connPeer
	connExpires
	connQuiet
	connAhead
	connGrant
	connSub
	connIn
	connMessage
	connOut
	connFragmented
	connPartial
	connDiscarded
	connUntil
	connHalf
	connStalled
	connAge
)

func (m *movedConn) append(f *fields) {
	f.num(connState, uint64(m.state))
	f.num(connFlags, uint64(m.flags))
	f.text(connSubject, []byte(m.subject))
	f.text(connPeer, []byte(m.peer))
	f.num(connExpires, uint64(m.expires))
	f.num(connQuiet, uint64(m.quiet))
	f.num(connAhead, uint64(m.ahead))
	var inner fields
	for _, g := range m.grants {
		inner = inner[:0]
		inner.text(1, []byte(g.Account))
		inner.flag(2, g.Mailboxes != nil)
		inner.boxes(3, g.Mailboxes)
		f.item(connGrant, inner)
	}
	for i := range m.subs {
		s := &m.subs[i]
		inner = inner[:0]
		inner.text(1, []byte(s.account))
		inner.flag(2, s.filtered)
		inner.boxes(3, s.boxes)
		inner.signed(4, s.floor)
		inner.num(5, uint64(s.flags))
		f.item(connSub, inner)
	}
	f.text(connIn, m.in)
	f.text(connMessage, m.message)
	f.text(connOut, m.out)
	f.flag(connFragmented, m.fragmented)
	f.num(connPartial, uint64(m.partial))
	f.num(connDiscarded, uint64(m.discarded))
	f.num(connUntil, uint64(m.until))
	f.num(connHalf, uint64(m.half))
	f.num(connStalled, uint64(m.stalled))
	f.num(connAge, uint64(m.age))
}

func (f *fields) boxes(n protowire.Number, boxes []schema.Mailbox) {
	for _, b := range boxes {
		f.item(n, []byte(b))
	}
}

// readConn reads a record; what it returns holds no part of it.
func readConn(record []byte) (m movedConn, err error) {
	err = eachField(record, func(n protowire.Number, v uint64, b []byte) error {
		switch n {
		case connState:
			m.state = slotState(v)
		case connFlags:
			m.flags = uint8(v)
		case connSubject:
			m.subject = string(b)
		case connPeer:
			m.peer = string(b)
		case connExpires:
			m.expires = uint32(v)
		case connQuiet:
			m.quiet = uint32(v)
		case connAhead:
			m.ahead = uint32(v)
		case connGrant:
			g, err := readGrant(b)
			m.grants = append(m.grants, g)
			return err
		case connSub:
			s, err := readSub(b)
			m.subs = append(m.subs, s)
			return err
		default:
			m.readExtra(n, v, b)
		}
		return nil
	})
	if err == nil {
		err = m.check()
	}
	return m, err
}

func (m *movedConn) readExtra(n protowire.Number, v uint64, b []byte) {
	switch n {
	case connIn:
		m.in = append([]byte(nil), b...)
	case connMessage:
		m.message = append([]byte(nil), b...)
	case connOut:
		m.out = append([]byte(nil), b...)
	case connFragmented:
		m.fragmented = v != 0
	case connPartial:
		m.partial = int(v)
	case connDiscarded:
		m.discarded = int(v)
	case connUntil:
		m.until = uint32(v)
	case connHalf:
		m.half = uint32(v)
	case connStalled:
		m.stalled = uint32(v)
	case connAge:
		m.age = uint32(v)
	}
}

// check refuses what would break an invariant here.
func (m *movedConn) check() error {
	switch {
	case m.state < slotHead || m.state > slotLingering:
		return errors.New("a connection in a state that is not known here")
	case m.peer == "" || len(m.peer) > math.MaxUint16:
		return errors.New("a connection without an address")
	case len(m.subject) > math.MaxUint16 || m.state == slotOpen && m.subject == "":
		return errors.New("a WebSocket without an account")
	case len(m.subs) > maxSubscriptions || m.state != slotOpen && len(m.subs) > 0:
		return errors.New("a connection with subscriptions that it can't have")
	case m.partial < 0 || m.partial > len(m.out) || m.discarded < 0:
		return errors.New("a backlog that begins beyond its end")
	}
	seen := make(map[string]bool, len(m.subs))
	for _, s := range m.subs {
		if schema.Account(s.account).Validate() != nil || seen[s.account] {
			return errors.New("a connection's subscriptions name an account twice, or none")
		}
		seen[s.account] = true
	}
	for at := m.partial; at < len(m.out); {
		size := wholeFrame(m.out[at:])
		if size == 0 {
			return errors.New("a backlog that ends within a frame")
		}
		at += size
	}
	return nil
}

// wholeFrame is frameAt for bytes that may not be a whole frame; then it is 0.
func wholeFrame(b []byte) (size int) {
	if len(b) < 2 || len(b) < headerSize(b[1]&0x7f) {
		return 0
	}
	if b[1]&0x7f == 127 && b[2] >= 0x80 {
		return 0
	}
	size, _ = frameSize(b)
	if size < 0 || size > len(b) {
		return 0
	}
	return size
}

func readGrant(record []byte) (g auth.Grant, err error) {
	err = eachField(record, func(n protowire.Number, v uint64, b []byte) error {
		switch {
		case n == 1:
			g.Account = schema.Account(b)
		case n == 2 && v != 0 && g.Mailboxes == nil:
			g.Mailboxes = []schema.Mailbox{}
		case n == 3:
			g.Mailboxes = append(g.Mailboxes, schema.Mailbox(b))
		}
		return nil
	})
	return g, err
}

func readSub(record []byte) (s movedSub, err error) {
	err = eachField(record, func(n protowire.Number, v uint64, b []byte) error {
		switch n {
		case 1:
			s.account = string(b)
		case 2:
			s.filtered = v != 0
		case 3:
			s.boxes = append(s.boxes, schema.Mailbox(b))
		case 4:
			s.floor = protowire.DecodeZigZag(v)
		case 5:
			s.flags = uint32(v) & (subQueued | subMissed)
		}
		return nil
	})
	return s, err
}

func (m *movedOp) append(f *fields) {
	f.num(1, uint64(m.conn))
	f.num(2, uint64(m.kind))
	f.num(3, m.id)
	f.text(4, []byte(m.account))
	f.flag(5, m.filtered)
	f.boxes(6, m.boxes)
	f.text(7, []byte(m.since))
	f.flag(8, m.sinceInvalid)
}

func readOp(record []byte) (m movedOp, err error) {
	err = eachField(record, func(n protowire.Number, v uint64, b []byte) error {
		switch n {
		case 1:
			m.conn = int(min(v, math.MaxInt32))
		case 2:
			m.kind = opKind(v)
		case 3:
			m.id = v
		case 4:
			m.account = schema.Account(b)
		case 5:
			m.filtered = v != 0
		case 6:
			m.boxes = append(m.boxes, schema.Mailbox(b))
		case 7:
			m.since = string(b)
		case 8:
			m.sinceInvalid = v != 0
		}
		return nil
	})
	if err == nil && (m.account.Validate() != nil || m.kind != opSubscribe && m.kind != opCancel) {
		err = errors.New("a subscribe that is none")
	}
	return m, err
}

// op is the op for the inbox.
func (m *movedOp) op(h handle) op {
	o := op{kind: m.kind, h: h, id: m.id, account: m.account, boxes: boxesOf(m.filtered, m.boxes), sinceInvalid: m.sinceInvalid}
	if m.since != "" {
		if pos, err := schema.ParsePosition(m.since); err == nil {
			o.since = &pos
		} else {
			o.sinceInvalid = true
		}
	}
	return o
}

// boxesOf is nil, all of them, only without a filter.
func boxesOf(filtered bool, boxes []schema.Mailbox) []schema.Mailbox {
	if filtered && boxes == nil {
		return []schema.Mailbox{}
	}
	return boxes
}

func (m *movedPart) append(f *fields) {
	f.num(1, m.generation)
	f.flag(2, m.known)
	f.num(3, m.epoch)
	f.signed(4, m.offset)
}

func readPart(record []byte) (m movedPart, err error) {
	err = eachField(record, func(n protowire.Number, v uint64, _ []byte) error {
		switch n {
		case 1:
			m.generation = v
		case 2:
			m.known = v != 0
		case 3:
			m.epoch = v
		case 4:
			m.offset = protowire.DecodeZigZag(v)
		}
		return nil
	})
	return m, err
}
