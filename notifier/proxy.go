package notifier

import (
	"encoding/binary"
	"net/netip"
)

// PROXY protocol, version 2 (HAProxy's doc/proxy-protocol.txt, section 2.2): a signature of 12 bytes, version and command,
// family and transport, the length of what follows, the addresses, and further fields that are not looked at.
const (
	proxySignature = "\r\n\r\n\x00\r\nQUIT\n"
	proxyHeader    = 16
	maxProxy       = 2048 // bytes of a whole header
)

var refuseProxy = &refusal{400, "proxyProtocol", "a connection from this address must begin with a header of PROXY protocol version 2", 0}

// trusts reports whether connections from the address begin with a proxy's header.
func (c *Config) trusts(peer netip.Addr) bool {
	for _, p := range c.ProxyProtocol {
		if p.Contains(peer) {
			return true
		}
	}
	return false
}

// parseProxy reads the header at the start of b. size is 0 while it is not whole. A proxy that speaks for itself, such as to see
// whether the port answers, names no client.
func parseProxy(b []byte) (size int, client netip.Addr, ok bool) {
	have := min(len(b), len(proxySignature))
	if string(b[:have]) != proxySignature[:have] {
		return 0, client, false
	}
	if len(b) < proxyHeader {
		return 0, client, true
	}
	command, family := b[12], b[13]
	size = proxyHeader + int(binary.BigEndian.Uint16(b[14:]))
	if command>>4 != 2 || command&0xf > 1 || size > maxProxy {
		return 0, client, false
	}
	if len(b) < size {
		return 0, client, true
	}
	addresses := b[proxyHeader:size]
	switch {
	case command&0xf == 0: // LOCAL
	case family == 0x11 && len(addresses) >= 12: // TCP over IPv4
		client = netip.AddrFrom4([4]byte(addresses))
	case family == 0x21 && len(addresses) >= 36: // TCP over IPv6
		client = netip.AddrFrom16([16]byte(addresses)).Unmap()
	case family == 0: // the proxy does not know
	default:
		return 0, client, false
	}
	return size, client, true
}

// introduced reads who comes, as the proxy says, and counts the connection as the client's. It returns the
// bytes that it took; the flag stays until the header is whole.
func (sh *shard) introduced(c *slot, b []byte) (size int, bad *refusal) {
	size, client, ok := parseProxy(b)
	switch {
	case !ok:
		return 0, refuseProxy
	case size == 0:
		return 0, nil
	}
	c.flags &^= flagProxied
	if !client.IsValid() {
		return size, nil
	}
	addr, ok := sh.addrs.hold(addressName(client), max(0, sh.cfg.MaxPerAddress))
	if !ok {
		return size, refuseAddress
	}
	sh.addrs.release(c.addr)
	c.addr = addr
	return size, nil
}
