package swarm

import (
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"
)

// device is a tun device (IP packets, no more) of this process's network namespace. It goes when it is closed.
type device struct {
	fd int
}

const deviceMTU = 9000

// openDevice makes the device with an address; all of the address's network is behind it.
func openDevice(name string, prefix netip.Prefix) (*device, error) {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open /dev/net/tun: %w", err)
	}
	d := &device{fd: fd}
	if err := d.setUp(name, prefix); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("make the device %s: %w", name, err)
	}
	return d, nil
}

func (d *device) setUp(name string, prefix netip.Prefix) error {
	req, err := unix.NewIfreq(name)
	if err != nil {
		return err
	}
	req.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
	if err := unix.IoctlIfreq(d.fd, unix.TUNSETIFF, req); err != nil {
		return err
	}
	sock, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(sock)
	mask := [4]byte{}
	for i := range prefix.Bits() {
		mask[i/8] |= 0x80 >> (i % 8)
	}
	addr := prefix.Addr().As4()
	steps := []struct {
		call uint
		set  func(*unix.Ifreq) error
	}{
		{unix.SIOCSIFTXQLEN, func(r *unix.Ifreq) error { r.SetUint32(100_000); return nil }},
		{unix.SIOCSIFMTU, func(r *unix.Ifreq) error { r.SetUint32(deviceMTU); return nil }},
		{unix.SIOCSIFADDR, func(r *unix.Ifreq) error { return r.SetInet4Addr(addr[:]) }},
		{unix.SIOCSIFNETMASK, func(r *unix.Ifreq) error { return r.SetInet4Addr(mask[:]) }},
		{unix.SIOCSIFFLAGS, func(r *unix.Ifreq) error { r.SetUint16(unix.IFF_UP | unix.IFF_RUNNING); return nil }},
	}
	for _, s := range steps {
		req, err := unix.NewIfreq(name)
		if err != nil {
			return err
		}
		if err := s.set(req); err != nil {
			return err
		}
		if err := unix.IoctlIfreq(sock, s.call, req); err != nil {
			return fmt.Errorf("ioctl %#x: %w", s.call, err)
		}
	}
	return nil
}

// read returns 0 when there is nothing.
func (d *device) read(b []byte) (int, error) {
	for {
		n, err := unix.Read(d.fd, b)
		switch err {
		case unix.EINTR:
		case unix.EAGAIN:
			return 0, nil
		default:
			return n, err
		}
	}
}

// write sends one packet. One that the kernel has no room for is lost, as on any wire.
func (d *device) write(b []byte) { _, _ = unix.Write(d.fd, b) }

func (d *device) close() { unix.Close(d.fd) }
