package pollswarm

import (
	"bytes"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mailbell/mailbell/bench/ledger"
	"github.com/mailbell/mailbell/bench/pollserver"
)

// etag is an ETag of the poll server with its quotes: at most 16 hexadecimal digits.
type etag struct {
	n    uint8
	text [18]byte
}

func (e *etag) set(b []byte) {
	e.n = 0
	if len(b) <= len(e.text) {
		e.n = uint8(copy(e.text[:], b))
	}
}

// ask sends a user's request, over a new connection if it has none. Called with mu held, as all below.
func (s *Swarm) ask(i int32, now int64) {
	u := &s.users[i]
	switch u.state {
	case connecting, waiting:
		u.again = true
		return
	case open:
		s.send(i, now)
		return
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		s.fail(i, now)
		return
	}
	_ = unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
	u.fd, u.state, u.sentAt = int32(fd), connecting, now
	s.byFD[u.fd] = i
	s.counts.Connects++
	if err := unix.Connect(fd, &s.target); err != nil && err != unix.EINPROGRESS {
		s.fail(i, now)
		return
	}
	if err := unix.EpollCtl(s.epoll, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: unix.EPOLLOUT | unix.EPOLLRDHUP, Fd: u.fd}); err != nil {
		s.fail(i, now)
	}
}

// send writes the request: the fewest bytes that HTTP/1.1 allows, where a browser sends some 500.
func (s *Swarm) send(i int32, now int64) {
	u := &s.users[i]
	b := append(s.out[:0], "GET "+pollserver.Prefix...)
	b = append(b, ledger.AccountName(s.cfg.First+uint32(i))...)
	b = append(b, " HTTP/1.1\r\nHost: "...)
	b = append(b, s.cfg.Target...)
	if u.etag.n > 0 {
		b = append(b, "\r\nIf-None-Match: "...)
		b = append(b, u.etag.text[:u.etag.n]...)
	}
	b = append(b, "\r\n\r\n"...)
	s.out = b
	n, err := unix.SendmsgN(int(u.fd), b, nil, nil, unix.MSG_NOSIGNAL|unix.MSG_DONTWAIT)
	if err != nil || n != len(b) {
		s.lostWhileIdle(i, now)
		return
	}
	u.state, u.sentAt = waiting, now
	s.counts.BytesOut += int64(n)
}

// lostWhileIdle is a connection that the server has closed meanwhile: a browser opens another.
func (s *Swarm) lostWhileIdle(i int32, now int64) {
	s.hangUp(&s.users[i])
	s.ask(i, now)
}

// ready handles what epoll says of one user.
func (s *Swarm) ready(i int32, now int64) {
	u := &s.users[i]
	if u.state != connecting {
		s.read(i, now)
		return
	}
	if code, err := unix.GetsockoptInt(int(u.fd), unix.SOL_SOCKET, unix.SO_ERROR); err != nil || code != 0 {
		s.fail(i, now)
		return
	}
	if err := unix.EpollCtl(s.epoll, unix.EPOLL_CTL_MOD, int(u.fd), &unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLRDHUP, Fd: u.fd}); err != nil {
		s.fail(i, now)
		return
	}
	s.send(i, now)
}

func (s *Swarm) read(i int32, now int64) {
	u := &s.users[i]
	held := copy(s.buf, s.partial[u.fd])
	n, err := unix.Read(int(u.fd), s.buf[held:])
	if err == unix.EAGAIN || err == unix.EINTR {
		return
	}
	if err != nil || n == 0 {
		if u.state == open {
			s.hangUp(u)
		} else {
			s.fail(i, now)
		}
		return
	}
	s.counts.BytesIn += int64(n)
	b := s.buf[:held+n]
	status, tag, body, whole := parseAnswer(b)
	if !whole && len(b) == len(s.buf) { // it never will be
		s.fail(i, now)
		return
	}
	if !whole {
		s.partial[u.fd] = append([]byte(nil), b...)
		return
	}
	delete(s.partial, u.fd)
	u.state = open
	s.answered(i, status, tag, body, now)
}

// answered books an answer, and asks again if there was something to ask for meanwhile.
func (s *Swarm) answered(i int32, status int, tag, body []byte, now int64) {
	u := &s.users[i]
	if status != 200 && status != 304 {
		s.fail(i, now)
		return
	}
	s.counts.Requests++
	u.tries = 0
	_ = s.hist.RecordValue(max(1, (now-u.sentAt)/1000))
	if !u.known {
		u.known = true
		s.counts.Users++
	}
	if status == 304 {
		s.counts.NotModified++
	} else {
		u.etag.set(tag)
		if seq := changesOf(body); seq > u.seq {
			u.seq = seq
			s.news = append(s.news, Known{Account: s.cfg.First + uint32(i), Seq: seq, At: time.Now().UnixNano()})
		}
	}
	again := u.again
	u.again = false
	switch {
	case u.want > u.seq: // the event was faster than the store
		s.counts.Stale++
		s.setDue(i, now+int64(20*time.Millisecond))
	case again && s.cfg.Interval == 0 && u.want == 0:
		s.ask(i, now)
	}
}

// fail is a request without an answer. Who polls will poll again; who fetches tries again.
func (s *Swarm) fail(i int32, now int64) {
	u := &s.users[i]
	s.counts.Failed++
	s.hangUp(u)
	u.again = false
	if s.cfg.Interval == 0 {
		s.retry(i, now)
	}
}

func (s *Swarm) hangUp(u *user) {
	if u.state == closed {
		return
	}
	delete(s.byFD, u.fd)
	delete(s.partial, u.fd)
	unix.Close(int(u.fd))
	u.state = closed
}

var (
	headEnd       = []byte("\r\n\r\n")
	etagHeader    = []byte("\r\nEtag: ")
	lengthHeader  = []byte("\r\nContent-Length: ")
	uidNextMember = []byte(`"mailbox":"INBOX"`)
)

// parseAnswer splits an answer; whole is false while a part of it is missing. The status is 0 if nobody can tell where it ends.
func parseAnswer(b []byte) (status int, tag, body []byte, whole bool) {
	end := bytes.Index(b, headEnd)
	if end < 12 {
		return 0, nil, nil, false
	}
	head := b[:end]
	status, _ = strconv.Atoi(string(head[9:12]))
	tag = header(head, etagHeader)
	length := 0
	if status != 304 {
		var err error
		if length, err = strconv.Atoi(string(header(head, lengthHeader))); err != nil || length < 0 {
			return 0, nil, nil, true
		}
	}
	body = b[end+len(headEnd):]
	if len(body) < length {
		return 0, nil, nil, false
	}
	return status, tag, body[:length], true
}

func header(head, name []byte) []byte {
	_, rest, ok := bytes.Cut(head, name)
	if !ok {
		return nil
	}
	value, _, _ := bytes.Cut(rest, []byte{'\r'})
	return value
}

// changesOf reads INBOX's UIDNEXT, less one.
func changesOf(body []byte) uint32 {
	_, inbox, ok := bytes.Cut(body, uidNextMember)
	if !ok {
		return 0
	}
	_, rest, ok := bytes.Cut(inbox, []byte(`"uidnext":`))
	if !ok {
		return 0
	}
	digits := 0
	for digits < len(rest) && rest[digits] >= '0' && rest[digits] <= '9' {
		digits++
	}
	next, err := strconv.ParseUint(string(rest[:digits]), 10, 32)
	if err != nil || next == 0 {
		return 0
	}
	return uint32(next - 1)
}
