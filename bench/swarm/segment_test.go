package swarm

import (
	"bytes"
	"encoding/hex"
	"testing"
)

func TestSegment(t *testing.T) {
	tests := []struct {
		name string
		s    segment
		want string
	}{
		{"syn", segment{src: 0x0a010000, dst: 0x0a000001, srcPort: 16384, dstPort: 7480, seq: 1, flags: tcpSYN, window: 65535},
			"4500002c00004000400626cb" + "0a0100000a000001" + "40001d38" + "00000001" + "00000000" + "6002ffff09a00000" + "02042300"},
		{"odd payload", segment{src: 0x0a010000, dst: 0x0a000001, srcPort: 16384, dstPort: 7480, seq: 2, ack: 3, flags: tcpACK | tcpPSH, window: 65535, payload: []byte("abc")},
			""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			b := tt.s.append(nil)
			if got := hex.EncodeToString(b); tt.want != "" && got != tt.want {
				t.Errorf("append = %s, want %s", got, tt.want)
			}
			// RFC 1071: the sum over data with its checksum is all ones.
			if fold(sum(b[:ipHeader], 0)) != 0xffff {
				t.Error("the IP header's checksum is wrong")
			}
			pseudo := sum(b[12:20], 0) + 6 + uint64(len(b)-ipHeader)
			if fold(sum(b[ipHeader:], pseudo)) != 0xffff {
				t.Error("TCP's checksum is wrong")
			}
			got, ok := parseSegment(b)
			if !ok || got.src != tt.s.src || got.dst != tt.s.dst || got.srcPort != tt.s.srcPort || got.dstPort != tt.s.dstPort || got.seq != tt.s.seq ||
				got.ack != tt.s.ack || got.flags != tt.s.flags || got.window != tt.s.window || !bytes.Equal(got.payload, tt.s.payload) {
				t.Errorf("parseSegment = %+v, want %+v", got, tt.s)
			}
		})
	}
}

func FuzzParseSegment(f *testing.F) {
	s := segment{src: 1, dst: 2, flags: tcpSYN, payload: []byte("x")}
	f.Add(s.append(nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		if s, ok := parseSegment(b); ok && len(s.payload) > len(b)-ipHeader-tcpHeader {
			t.Errorf("a payload of %d bytes in a packet of %d", len(s.payload), len(b))
		}
	})
}
