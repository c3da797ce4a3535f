package notifier

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/encoding/protowire"
)

// handVersion is the version of what is handed over. Within one, fields may be added: unknown
// ones are skipped. A notifier refuses a successor that speaks another version.
const handVersion = 1

const (
	handBytes = 16 << 20 // of a message at most
	handBatch = 250      // connections a message: the kernel passes 253 descriptors at a time
	handFull  = 1 << 20  // bytes after which a message takes no further connection
)

// handKind says what a message of the handover is. In this order they travel, between the one that runs
// (the former) and the one that takes over (the next).
type handKind uint8

const (
	handHello   handKind = iota + 1 // next: the version that it speaks
	handWelcome                     // former: its version, name and connections; with the listening descriptor
	handTake                        // next: it is linked to the bus and has room
	handParts                       // former, which stands still from here on: how far each partition is handed out
	handTicket                      // former, once for each key: the tickets used
	handConns                       // former, as often as need be: connections, with their descriptors
	handOps                         // former: subscribes that wait for an answer
	handEnd                         // former: how many connections there were
	handReady                       // next: all of it is understood
	handGo                          // former: it touches no socket any more; they are the next one's
	handNo                          // either: why not
)

// handError is the other side's reason not to go on.
type handError string

func (e handError) Error() string { return string(e) }

// handConn is one end of a handover: messages with descriptors over a Unix socket.
type handConn struct{ *net.UnixConn }

const handHeader = 8 // kind, descriptors, two spare bytes, length

// send sends a message, and copies of the descriptors with it.
func (c handConn) send(kind handKind, body []byte, fds ...int) error {
	if len(body) > handBytes {
		return fmt.Errorf("send message %d: %d bytes, the limit is %d", kind, len(body), handBytes)
	}
	var header [handHeader]byte
	header[0], header[1] = byte(kind), byte(len(fds))
	binary.BigEndian.PutUint32(header[4:], uint32(len(body)))
	var rights []byte
	if len(fds) > 0 {
		rights = unix.UnixRights(fds...)
	}
	n, _, err := c.WriteMsgUnix(header[:], rights, nil)
	if err == nil && n < len(header) {
		_, err = c.Write(header[n:])
	}
	if err == nil && len(body) > 0 {
		_, err = c.Write(body)
	}
	if err != nil {
		return fmt.Errorf("send message %d: %w", kind, err)
	}
	return nil
}

// receive returns the next message. The descriptors belong to the caller. A handNo is
// returned as a handError.
func (c handConn) receive() (kind handKind, body []byte, fds []int, err error) {
	var header [handHeader]byte
	rights := make([]byte, unix.CmsgSpace(4*(handBatch+3)))
	for got := 0; got < len(header); {
		n, nr, flags, _, err := c.ReadMsgUnix(header[got:], rights)
		if err == nil && n == 0 {
			err = io.EOF
		}
		if err != nil {
			return 0, nil, fds, err
		}
		more, err := descriptors(rights[:nr])
		fds = append(fds, more...)
		if err == nil && flags&unix.MSG_CTRUNC != 0 {
			err = errors.New("descriptors are lost: raise the limit of open files")
		}
		if err != nil {
			return 0, nil, fds, err
		}
		got += n
	}
	size := binary.BigEndian.Uint32(header[4:])
	if size > handBytes || len(fds) != int(header[1]) {
		return 0, nil, fds, fmt.Errorf("message %d has %d bytes and %d of %d descriptors", header[0], size, len(fds), header[1])
	}
	body = make([]byte, size)
	if _, err := io.ReadFull(c, body); err != nil {
		return 0, nil, fds, err
	}
	if kind = handKind(header[0]); kind == handNo {
		return kind, nil, fds, handError(body)
	}
	return kind, body, fds, nil
}

// expect receives a message of that kind.
func (c handConn) expect(want handKind) (body []byte, fds []int, err error) {
	kind, body, fds, err := c.receive()
	if err == nil && kind != want {
		err = fmt.Errorf("message %d where %d was due", kind, want)
	}
	return body, fds, err
}

func descriptors(rights []byte) (fds []int, err error) {
	messages, err := unix.ParseSocketControlMessage(rights)
	if err != nil {
		return nil, err
	}
	for i := range messages {
		some, err := unix.ParseUnixRights(&messages[i])
		if err != nil {
			return fds, err
		}
		fds = append(fds, some...)
	}
	return fds, nil
}

func closeDescriptors(fds []int) {
	for _, fd := range fds {
		unix.Close(fd)
	}
}

// sameUser fails unless the other side is a process of this user, or of root.
func (c handConn) sameUser() error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var cred *unix.Ucred
	controlErr := raw.Control(func(fd uintptr) { cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) })
	if err = errors.Join(controlErr, err); err != nil {
		return err
	}
	if cred.Uid != 0 && int(cred.Uid) != unix.Getuid() {
		return fmt.Errorf("the other process is of user %d", cred.Uid)
	}
	return nil
}

// fields is a record of numbered fields, as in protocol buffers. Zero and empty values are left out.
type fields []byte

func (f *fields) num(n protowire.Number, v uint64) {
	if v != 0 {
		*f = protowire.AppendVarint(protowire.AppendTag(*f, n, protowire.VarintType), v)
	}
}

func (f *fields) flag(n protowire.Number, v bool) { f.num(n, protowire.EncodeBool(v)) }

func (f *fields) signed(n protowire.Number, v int64) { f.num(n, protowire.EncodeZigZag(v)) }

func (f *fields) text(n protowire.Number, b []byte) {
	if len(b) > 0 {
		f.item(n, b)
	}
}

// item is text of a list, which may be empty.
func (f *fields) item(n protowire.Number, b []byte) {
	*f = protowire.AppendBytes(protowire.AppendTag(*f, n, protowire.BytesType), b)
}

// eachField calls fn for every field of a record; b is a part of the record.
func eachField(record []byte, fn func(n protowire.Number, v uint64, b []byte) error) error {
	for len(record) > 0 {
		n, kind, size := protowire.ConsumeTag(record)
		if size < 0 {
			return protowire.ParseError(size)
		}
		record = record[size:]
		var v uint64
		var b []byte
		switch kind {
		case protowire.VarintType:
			v, size = protowire.ConsumeVarint(record)
		case protowire.BytesType:
			b, size = protowire.ConsumeBytes(record)
		default:
			size = protowire.ConsumeFieldValue(n, kind, record)
		}
		if size < 0 {
			return protowire.ParseError(size)
		}
		record = record[size:]
		if kind != protowire.VarintType && kind != protowire.BytesType {
			continue
		}
		if err := fn(n, v, b); err != nil {
			return err
		}
	}
	return nil
}
