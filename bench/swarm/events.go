package swarm

import (
	"time"

	"golang.org/x/sys/unix"

	"github.com/mailbell/mailbell/bench/ledger"
	"github.com/mailbell/mailbell/schema"
)

// ready handles what epoll says of one connection. Called with mu held.
func (s *Swarm) ready(i int, events uint32) {
	c := &s.conns[i]
	if c.state == connecting {
		s.connected(i)
		return
	}
	if events&(unix.EPOLLIN|unix.EPOLLRDHUP|unix.EPOLLHUP|unix.EPOLLERR) != 0 {
		s.read(i)
	}
}

func (s *Swarm) connected(i int) {
	c := &s.conns[i]
	if code, err := unix.GetsockoptInt(int(c.fd), unix.SOL_SOCKET, unix.SO_ERROR); err != nil || code != 0 {
		s.counts.fail("connect: %v", unix.Errno(code))
		s.drop(i, time.Now(), 0)
		return
	}
	handshake := s.partial[c.fd]
	delete(s.partial, c.fd)
	c.state = shaking
	if !s.send(i, handshake) {
		return
	}
	if err := unix.EpollCtl(s.epoll, unix.EPOLL_CTL_MOD, int(c.fd), &unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLRDHUP, Fd: c.fd}); err != nil {
		s.counts.fail("epoll: %v", err)
		s.drop(i, time.Now(), 0)
	}
}

// send writes all of b, which always fits into an empty socket buffer.
func (s *Swarm) send(i int, b []byte) bool {
	c := &s.conns[i]
	n, err := unix.SendmsgN(int(c.fd), b, nil, nil, unix.MSG_NOSIGNAL|unix.MSG_DONTWAIT)
	if err != nil || n != len(b) {
		s.counts.fail("send: %v", err)
		s.drop(i, time.Now(), 0)
		return false
	}
	s.counts.BytesOut += int64(n)
	return true
}

func (s *Swarm) read(i int) {
	c := &s.conns[i]
	fd := c.fd
	held := copy(s.buf, s.partial[fd])
	n, err := unix.Read(int(fd), s.buf[held:])
	if err == unix.EAGAIN || err == unix.EINTR {
		return
	}
	if err != nil || n == 0 {
		if c.state != live {
			s.counts.fail("closed while %s", map[state]string{shaking: "shaking hands", subscribing: "subscribing"}[c.state])
		}
		s.drop(i, time.Now(), 0)
		return
	}
	s.counts.BytesIn += int64(n)
	c.heard(time.Now())
	b := s.buf[:held+n]
	if c.state == shaking {
		end, status := handshakeEnd(b)
		if end == 0 {
			s.keep(fd, b)
			return
		}
		if status != 101 {
			s.counts.fail("handshake: %d", status)
			s.drop(i, time.Now(), 0)
			return
		}
		b = b[end:]
		c.state = subscribing
		s.out = appendSubscribe(s.out[:0], ledger.AccountName(s.cfg.account(i)), c)
		if !s.send(i, s.out) {
			return
		}
	}
	now := time.Now()
	for len(b) > 0 {
		opcode, payload, used := nextFrame(b)
		if used == 0 {
			break
		}
		b = b[used:]
		if !s.frame(i, opcode, payload, now) {
			return
		}
	}
	s.keep(fd, b)
}

// keep stores the start of what is not complete.
func (s *Swarm) keep(fd int32, b []byte) {
	if len(b) == 0 {
		delete(s.partial, fd)
		return
	}
	s.partial[fd] = append([]byte(nil), b...)
}

// frame handles one frame; false says that the connection is gone.
func (s *Swarm) frame(i int, opcode byte, payload []byte, now time.Time) bool {
	switch opcode {
	case opPing:
		s.out = appendClientFrame(s.out[:0], opPong, payload)
		return s.send(i, s.out)
	case opClose:
		code := 0
		if len(payload) >= 2 {
			code = int(payload[0])<<8 | int(payload[1])
		}
		s.counts.fail("close %d", code)
		s.drop(i, now, 0)
		return false
	case opText:
		return s.text(i, payload, now)
	}
	return true
}

func (s *Swarm) text(i int, payload []byte, now time.Time) bool {
	c := &s.conns[i]
	if id, pos, ok := parseEvent(payload); ok {
		s.counts.Events++
		if p, err := schema.ParsePosition(string(pos)); err == nil {
			if c.past(p) { // a client drops it
				c.observer.Duplicate()
				return true
			}
			c.position, c.hasPos = p, true
		}
		if id.Run == s.cfg.Run && id.Seq > 0 && c.observer.Event(id.Seq) {
			_ = s.hist.RecordValue(max(1, (now.UnixNano()-id.SentAt)/1000))
			s.noteLate(id.Account, id.Seq, id.SentAt, now)
			s.news(i, id.Seq, now)
		} else if id.Seq == 0 && s.cfg.Reports {
			s.reported(i, payload, now)
		}
		return true
	}
	f, err := schema.DecodeServerFrame(payload)
	if err != nil {
		s.counts.fail("frame: %v", err)
		return true
	}
	switch f.Type {
	case schema.FrameSubscribed:
		s.subscribed(i, f, now)
	case schema.FrameMissed:
		s.counts.Missed++
		if !c.past(f.Position) { // only an answer to a subscribe leads back
			c.position, c.hasPos = f.Position, true
		}
		c.observer.Covered(f.Position.Offset)
		s.news(i, 0, now)
	case schema.FrameReconnect:
		s.drop(i, now, time.Duration(f.AfterMs)*time.Millisecond+1)
		return false
	case schema.FrameErr:
		s.counts.fail("error %s: %s", f.Code, f.Message)
		s.drop(i, now, 0)
		return false
	}
	return true
}

func (s *Swarm) subscribed(i int, f schema.ServerFrame, now time.Time) {
	c := &s.conns[i]
	if s.counts.CatchUp == nil {
		s.counts.CatchUp = make(map[string]int)
	}
	s.counts.CatchUp[string(f.CatchUp)]++
	if c.since < 0 {
		c.since = f.Position.Offset
	}
	if f.CatchUp == schema.Fresh || f.CatchUp == schema.Resync {
		c.observer.Covered(f.Position.Offset)
		if c.past(f.Position) {
			c.observer.LedBack()
		}
		s.news(i, 0, now)
	}
	if !c.hasPos || f.CatchUp != schema.Replay {
		c.position, c.hasPos = f.Position, true
	}
	if c.state != live {
		c.state, c.tries = live, 0
		s.upNow--
		s.counts.Live++
		s.counts.Subscribed++
		s.counts.Peak = max(s.counts.Peak, s.counts.Live)
		if s.counts.Subscribed <= len(s.conns) {
			s.counts.ConnectNanos = int64(now.Sub(s.start))
		}
	}
}
