package roundcube

import (
	"fmt"
	"net"
	"syscall"

	"golang.org/x/sys/unix"
)

// traffic returns what a TCP connection sent, as far as it was acknowledged, and received: bytes, without TCP's own.
func traffic(conn net.Conn) (sent, received int64, err error) {
	c, ok := conn.(syscall.Conn)
	if !ok {
		return 0, 0, fmt.Errorf("count bytes: %T is no TCP connection", conn)
	}
	raw, err := c.SyscallConn()
	if err != nil {
		return 0, 0, fmt.Errorf("count bytes: %w", err)
	}
	var info *unix.TCPInfo
	var failed error
	if err := raw.Control(func(fd uintptr) { info, failed = unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO) }); err != nil {
		return 0, 0, fmt.Errorf("count bytes: %w", err)
	}
	if failed != nil {
		return 0, 0, fmt.Errorf("count bytes: %w", failed)
	}
	return int64(info.Bytes_acked), int64(info.Bytes_received), nil
}
