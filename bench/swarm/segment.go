package swarm

import (
	"encoding/binary"
)

// segment is what matters of a TCP segment in an IPv4 packet (RFC 9293, section 3.1).
type segment struct {
	src, dst         uint32
	srcPort, dstPort uint16
	seq, ack         uint32
	flags            byte
	window           uint16
	payload          []byte
}

const (
	tcpFIN = 1 << iota
	tcpSYN
	tcpRST
	tcpPSH
	tcpACK
)

const (
	ipHeader  = 20
	tcpHeader = 20
)

// parseSegment reads a packet; ok is false when it is not TCP over IPv4. Checksums are the
// kernel's own and not looked at.
func parseSegment(b []byte) (s segment, ok bool) {
	if len(b) < ipHeader+tcpHeader || b[0]>>4 != 4 || b[9] != 6 {
		return s, false
	}
	head, size := int(b[0]&15)*4, int(binary.BigEndian.Uint16(b[2:]))
	if head < ipHeader || size > len(b) || head+tcpHeader > size {
		return s, false
	}
	t := b[head:size]
	data := int(t[12]>>4) * 4
	if data < tcpHeader || data > len(t) {
		return s, false
	}
	return segment{
		src: binary.BigEndian.Uint32(b[12:]), dst: binary.BigEndian.Uint32(b[16:]),
		srcPort: binary.BigEndian.Uint16(t), dstPort: binary.BigEndian.Uint16(t[2:]),
		seq: binary.BigEndian.Uint32(t[4:]), ack: binary.BigEndian.Uint32(t[8:]), flags: t[13], window: binary.BigEndian.Uint16(t[14:]),
		payload: t[data:],
	}, true
}

// append writes the packet. A SYN carries the maximum segment size.
func (s *segment) append(dst []byte) []byte {
	start := len(dst)
	options := 0
	if s.flags&tcpSYN != 0 {
		options = 4
	}
	size := ipHeader + tcpHeader + options + len(s.payload)
	dst = append(dst, 0x45, 0, byte(size>>8), byte(size), 0, 0, 0x40, 0, 64, 6, 0, 0)
	dst = binary.BigEndian.AppendUint32(dst, s.src)
	dst = binary.BigEndian.AppendUint32(dst, s.dst)
	ip := dst[start:]
	binary.BigEndian.PutUint16(ip[10:], ^fold(sum(ip, 0)))
	dst = binary.BigEndian.AppendUint16(dst, s.srcPort)
	dst = binary.BigEndian.AppendUint16(dst, s.dstPort)
	dst = binary.BigEndian.AppendUint32(dst, s.seq)
	dst = binary.BigEndian.AppendUint32(dst, s.ack)
	dst = append(dst, byte((tcpHeader+options)/4)<<4, s.flags, byte(s.window>>8), byte(s.window), 0, 0, 0, 0)
	if options > 0 {
		const mss = deviceMTU - ipHeader - tcpHeader
		dst = append(dst, 2, 4, mss>>8, mss&0xff)
	}
	dst = append(dst, s.payload...)
	t := dst[start+ipHeader:]
	pseudo := uint64(s.src>>16) + uint64(s.src&0xffff) + uint64(s.dst>>16) + uint64(s.dst&0xffff) + 6 + uint64(len(t))
	binary.BigEndian.PutUint16(t[16:], ^fold(sum(t, pseudo)))
	return dst
}

// sum adds up 16-bit words (RFC 1071), four bytes at a time.
func sum(b []byte, acc uint64) uint64 {
	for len(b) >= 4 {
		acc += uint64(binary.BigEndian.Uint32(b))
		b = b[4:]
	}
	if len(b) >= 2 {
		acc += uint64(binary.BigEndian.Uint16(b))
		b = b[2:]
	}
	if len(b) == 1 {
		acc += uint64(b[0]) << 8
	}
	return acc
}

func fold(acc uint64) uint16 {
	for acc>>16 != 0 {
		acc = acc>>16 + acc&0xffff
	}
	return uint16(acc)
}
