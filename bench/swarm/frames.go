package swarm

import "github.com/mailbell/mailbell/schema"

// AppendHandshake appends the request that a client of the benches opens its WebSocket with.
func AppendHandshake(dst []byte, host, token string) []byte {
	return appendHandshake(dst, schema.SocketPath, host, token)
}

// AppendMasked appends a client's frame whose first byte is given: FIN, reserved bits and opcode (RFC 6455, section 5.2),
// right or wrong.
func AppendMasked(dst []byte, first byte, payload []byte) []byte {
	start := len(dst)
	dst = appendClientFrame(dst, 0, payload)
	dst[start] = first
	return dst
}
