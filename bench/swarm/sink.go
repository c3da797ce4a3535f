package swarm

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/mailbell/mailbell/schema"
)

// SinkConfig is the first line that ServeSink reads.
type SinkConfig struct {
	Target      string `json:"target"` // host:port
	Connections int    `json:"connections"`
	Echo        bool   `json:"echo,omitempty"` // each opens a WebSocket, has one frame echoed, and is idle from then on
}

// SinkReport is one line of its answers: after it has connected, and for each line that it reads.
type SinkReport struct {
	Connected int   `json:"connected"`
	Bytes     int64 `json:"bytes"` // heard so far
}

// sink is clients that throw away what they hear, as cheaply as the kernel allows.
type sink struct {
	epoll int
	fds   []int
	bytes int64
}

// ServeSink connects many sockets that read and forget, for a parent process that wants to know what
// sending costs. It ends with its input.
func ServeSink(ctx context.Context, in io.Reader, out io.Writer) error {
	lines := bufio.NewReader(in)
	first, err := lines.ReadBytes('\n')
	if err != nil {
		return fmt.Errorf("sink: read configuration: %w", err)
	}
	var cfg SinkConfig
	if err := json.Unmarshal(first, &cfg); err != nil {
		return fmt.Errorf("sink: read configuration: %w", err)
	}
	epoll, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return fmt.Errorf("sink: epoll: %w", err)
	}
	s := &sink{epoll: epoll}
	defer s.close()
	if err := s.connect(cfg); err != nil {
		return fmt.Errorf("sink: %w", err)
	}
	enc := json.NewEncoder(out)
	if err := enc.Encode(SinkReport{Connected: len(s.fds)}); err != nil {
		return err
	}
	asked := make(chan error)
	go func() { // ends with its input, and the process with it
		for {
			_, err := lines.ReadString('\n')
			asked <- err
			if err != nil {
				return
			}
		}
	}()
	for ctx.Err() == nil {
		if err := s.drain(10); err != nil {
			return fmt.Errorf("sink: %w", err)
		}
		select {
		case err := <-asked:
			if err != nil {
				return nil
			}
			if err := enc.Encode(SinkReport{Connected: len(s.fds), Bytes: s.bytes}); err != nil {
				return err
			}
		default:
		}
	}
	return nil
}

func (s *sink) connect(cfg SinkConfig) error {
	target, err := netip.ParseAddrPort(cfg.Target)
	if err != nil || !target.Addr().Is4() {
		return fmt.Errorf("target %q is no IPv4 address and port", cfg.Target)
	}
	for range cfg.Connections {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("socket: %w", err)
		}
		s.fds = append(s.fds, fd)
		if err := unix.Connect(fd, &unix.SockaddrInet4{Port: int(target.Port()), Addr: target.Addr().As4()}); err != nil {
			return fmt.Errorf("connect: %w", err)
		}
		if cfg.Echo {
			if err := s.echo(fd, cfg.Target); err != nil {
				return fmt.Errorf("connection %d: %w", len(s.fds), err)
			}
		}
		if err := unix.EpollCtl(s.epoll, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(fd)}); err != nil {
			return fmt.Errorf("epoll: %w", err)
		}
	}
	return nil
}

// echo shakes hands with an echo server, and has it echo what a client of ours would say first.
func (s *sink) echo(fd int, host string) error {
	if err := s.converse(fd, appendHandshake(nil, schema.SocketPath, host, ""), []byte("\r\n\r\n")); err != nil {
		return fmt.Errorf("handshake: %w", err)
	}
	payload := []byte(`{"type":"subscribe","id":1,"account":"u0000001@bench.example"}`)
	if err := s.converse(fd, appendClientFrame(nil, opText, payload), payload); err != nil {
		return fmt.Errorf("echo: %w", err)
	}
	return nil
}

// converse sends b and reads until the answer ends with want.
func (s *sink) converse(fd int, b, want []byte) error {
	if _, err := unix.Write(fd, b); err != nil {
		return err
	}
	var buf [4096]byte
	n := 0
	for !bytes.HasSuffix(buf[:n], want) {
		k, err := unix.Read(fd, buf[n:])
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return err
		}
		if k == 0 {
			return fmt.Errorf("closed or too long after %q", buf[:n])
		}
		n += k
	}
	return nil
}

// drain reads what is there. MSG_TRUNC has TCP throw bytes away without copying them (tcp(7)).
func (s *sink) drain(timeout int) error {
	var events [512]unix.EpollEvent
	var b [64 << 10]byte
	n, err := unix.EpollWait(s.epoll, events[:], timeout)
	if err == unix.EINTR {
		return nil
	}
	if err != nil {
		return fmt.Errorf("epoll wait: %w", err)
	}
	for _, ev := range events[:n] {
		k, _, err := unix.Recvfrom(int(ev.Fd), b[:], unix.MSG_TRUNC|unix.MSG_DONTWAIT)
		if err == nil && k == 0 || err != nil && err != unix.EAGAIN {
			_ = unix.EpollCtl(s.epoll, unix.EPOLL_CTL_DEL, int(ev.Fd), nil)
			continue
		}
		s.bytes += int64(max(k, 0))
	}
	return nil
}

func (s *sink) close() {
	for _, fd := range s.fds {
		unix.Close(fd)
	}
	unix.Close(s.epoll)
}
