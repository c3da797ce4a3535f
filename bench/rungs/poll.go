package rungs

import (
	"fmt"
	"net"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// poll is an epoll of our own beside the runtime's: it tells of a readable connection once, and a runner
// reads it.
type poll struct {
	fd  int
	run func(func())

	mu    sync.Mutex
	conns map[int]net.Conn // guarded by mu
}

func newPoll(run func(func())) (*poll, error) {
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("epoll: %w", err)
	}
	p := &poll{fd: fd, run: run, conns: make(map[int]net.Conn)}
	go p.wait() // ends with the process
	return p, nil
}

func (p *poll) wait() {
	events := make([]unix.EpollEvent, 128)
	for {
		n, err := unix.EpollWait(p.fd, events, -1)
		if err != nil && err != unix.EINTR {
			return
		}
		for _, ev := range events[:max(n, 0)] {
			fd := int(ev.Fd)
			p.mu.Lock()
			conn := p.conns[fd]
			p.mu.Unlock()
			if conn == nil {
				continue
			}
			p.run(func() {
				if echo(conn) != nil || p.arm(unix.EPOLL_CTL_MOD, fd) != nil {
					p.mu.Lock()
					delete(p.conns, fd)
					p.mu.Unlock()
					conn.Close()
				}
			})
		}
	}
}

func (p *poll) arm(op, fd int) error {
	return unix.EpollCtl(p.fd, op, fd, &unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLRDHUP | unix.EPOLLONESHOT, Fd: int32(fd)})
}

// add watches a connection.
func (p *poll) add(conn net.Conn) {
	raw, err := conn.(syscall.Conn).SyscallConn()
	if err != nil {
		conn.Close()
		return
	}
	err = raw.Control(func(fd uintptr) {
		p.mu.Lock()
		p.conns[int(fd)] = conn
		p.mu.Unlock()
		if err := p.arm(unix.EPOLL_CTL_ADD, int(fd)); err != nil {
			conn.Close()
		}
	})
	if err != nil {
		conn.Close()
	}
}
