package bus

import (
	"net/http"
	"net/netip"
	"slices"
	"strings"
)

// clientAddress is who asks: the peer, or whom the peer forwards if it is a trusted proxy. Only names that a trusted proxy added
// count, the last ones, since whoever is before it may have written anything. Empty means that it is not known.
func (n *Node) clientAddress(r *http.Request) string {
	peer, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil {
		return ""
	}
	client := peer.Addr().Unmap()
	if !n.trusts(client) {
		return client.String()
	}
	for _, hop := range slices.Backward(forwardedFor(r.Header)) {
		addr, ok := hopAddress(hop)
		if !ok {
			break
		}
		if client = addr; !n.trusts(client) {
			break
		}
	}
	return client.String()
}

func (n *Node) trusts(a netip.Addr) bool {
	for _, network := range n.cfg.TrustedProxies {
		if network.Contains(a) {
			return true
		}
	}
	return false
}

// forwardedFor lists whom the proxies on the way name, the nearest last. A proxy sets X-Forwarded-For or Forwarded and passes the
// other one through as it came: when both are there, nobody can say which one it wrote.
func forwardedFor(h http.Header) (hops []string) {
	lists, standard := h.Values("X-Forwarded-For"), h.Values("Forwarded")
	if len(lists) > 0 && len(standard) > 0 {
		return nil
	}
	for _, hop := range strings.Split(strings.Join(lists, ","), ",") {
		if hop != "" {
			hops = append(hops, hop)
		}
	}
	for _, element := range strings.Split(strings.Join(standard, ","), ",") {
		for _, pair := range strings.Split(element, ";") {
			if name, value, ok := strings.Cut(pair, "="); ok && strings.EqualFold(strings.TrimSpace(name), "for") {
				hops = append(hops, strings.Trim(strings.TrimSpace(value), `"`))
			}
		}
	}
	return hops
}

// hopAddress reads an address with or without a port; RFC 7239, section 6, puts IPv6 into brackets, and lets a proxy say
// "unknown" or a name of its own.
func hopAddress(text string) (netip.Addr, bool) {
	text = strings.TrimSpace(text)
	if withPort, err := netip.ParseAddrPort(text); err == nil {
		return withPort.Addr().Unmap(), true
	}
	addr, err := netip.ParseAddr(strings.TrimSuffix(strings.TrimPrefix(text, "["), "]"))
	return addr.WithZone("").Unmap(), err == nil
}
