package bench

import (
	"encoding/binary"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// What the kernel keeps for one established TCP socket that a server holds in epoll, in bytes, on Linux 6.x
// (x86-64): the objects of these slab caches. Used where /proc/slabinfo can't be read.
var socketObjects = []struct {
	cache string
	size  int64
}{{"TCP", 2368}, {"sock_inode_cache", 832}, {"dentry", 192}, {"filp", 192}, {"eventpoll_epi", 128}}

// socketObjectBytes is the size of a server's socket without what its buffers hold.
func socketObjectBytes() int64 {
	sizes := make(map[string]int64)
	if b, err := os.ReadFile("/proc/slabinfo"); err == nil {
		for line := range strings.Lines(string(b)) {
			if f := strings.Fields(line); len(f) > 3 {
				if n, err := strconv.ParseInt(f[3], 10, 64); err == nil {
					sizes[f[0]] = n
				}
			}
		}
	}
	total := int64(0)
	for _, o := range socketObjects {
		if n := sizes[o.cache]; n > 0 {
			total += n
		} else {
			total += o.size
		}
	}
	return total
}

// kernelMemory returns how many connections to these listeners (host:port) there are on the servers' side, and
// what the kernel keeps for them: the sockets' objects, and what sock_diag(7) says of their buffers.
func kernelMemory(listeners []string) (sockets int, bytes int64, err error) {
	ports := make(map[uint16]bool)
	for _, l := range listeners {
		_, port, err := net.SplitHostPort(l)
		if err != nil {
			return 0, 0, fmt.Errorf("kernel memory of sockets: %w", err)
		}
		n, err := strconv.ParseUint(port, 10, 16)
		if err != nil {
			return 0, 0, fmt.Errorf("kernel memory of sockets: %w", err)
		}
		ports[uint16(n)] = true
	}
	err = socketsOfIPv4(func(localPort uint16, buffers int64) {
		if ports[localPort] {
			sockets++
			bytes += buffers
		}
	})
	return sockets, bytes + int64(sockets)*socketObjectBytes(), err
}

// Of linux/inet_diag.h and linux/sock_diag.h.
const (
	diagRequestSize  = 56
	diagMessageSize  = 72
	diagSKMemInfo    = 7 // INET_DIAG_SKMEMINFO
	tcpEstablished   = 1
	memRcvAlloc      = 0 // SK_MEMINFO_RMEM_ALLOC
	memForwardAlloc  = 4
	memWriteQueued   = 5
	memOptions       = 6
	netlinkMessage   = 16
	netlinkAttribute = 4
)

// socketsOfIPv4 calls fn for each established TCP socket over IPv4 of this network namespace.
func socketsOfIPv4(fn func(localPort uint16, buffers int64)) error {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, unix.NETLINK_INET_DIAG)
	if err != nil {
		return fmt.Errorf("kernel memory of sockets: %w", err)
	}
	defer unix.Close(fd)
	req := make([]byte, netlinkMessage+diagRequestSize)
	order := binary.NativeEndian
	order.PutUint32(req[0:], uint32(len(req)))
	order.PutUint16(req[4:], unix.SOCK_DIAG_BY_FAMILY)
	order.PutUint16(req[6:], unix.NLM_F_REQUEST|unix.NLM_F_DUMP)
	body := req[netlinkMessage:]
	body[0], body[1], body[2] = unix.AF_INET, unix.IPPROTO_TCP, 1<<(diagSKMemInfo-1)
	order.PutUint32(body[4:], 1<<tcpEstablished)
	if err := unix.Sendto(fd, req, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return fmt.Errorf("kernel memory of sockets: %w", err)
	}
	buf := make([]byte, 64<<10)
	for {
		n, _, err := unix.Recvfrom(fd, buf, 0)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return fmt.Errorf("kernel memory of sockets: %w", err)
		}
		done, err := eachDiag(buf[:n], fn)
		if done || err != nil {
			return err
		}
	}
}

// eachDiag walks over the netlink messages of one datagram.
func eachDiag(b []byte, fn func(localPort uint16, buffers int64)) (done bool, err error) {
	order := binary.NativeEndian
	for len(b) >= netlinkMessage {
		size := int(order.Uint32(b))
		if size < netlinkMessage || size > len(b) {
			return true, fmt.Errorf("kernel memory of sockets: a netlink message of %d bytes", size)
		}
		switch order.Uint16(b[4:]) {
		case unix.NLMSG_DONE:
			return true, nil
		case unix.NLMSG_ERROR:
			return true, fmt.Errorf("kernel memory of sockets: sock_diag: %w", unix.Errno(-int32(order.Uint32(b[netlinkMessage:]))))
		case unix.SOCK_DIAG_BY_FAMILY:
			if msg := b[netlinkMessage:size]; len(msg) >= diagMessageSize {
				fn(binary.BigEndian.Uint16(msg[4:]), diagBuffers(msg[diagMessageSize:]))
			}
		}
		b = b[min(len(b), (size+3)&^3):]
	}
	return false, nil
}

// diagBuffers finds the memory among a socket's attributes.
func diagBuffers(attrs []byte) int64 {
	order := binary.NativeEndian
	for len(attrs) >= netlinkAttribute {
		size := int(order.Uint16(attrs))
		if size < netlinkAttribute || size > len(attrs) {
			return 0
		}
		if v := attrs[netlinkAttribute:size]; order.Uint16(attrs[2:]) == diagSKMemInfo && len(v) >= 4*(memOptions+1) {
			at := func(i int) int64 { return int64(order.Uint32(v[4*i:])) }
			return at(memRcvAlloc) + at(memForwardAlloc) + at(memWriteQueued) + at(memOptions)
		}
		attrs = attrs[min(len(attrs), (size+3)&^3):]
	}
	return 0
}
