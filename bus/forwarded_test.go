package bus

import (
	"net/http"
	"net/netip"
	"strings"
	"testing"

	"github.com/mailbell/mailbell/bus/placement"
)

func TestClientAddress(t *testing.T) {
	n := &Node{cfg: Config{TrustedProxies: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("fd00::/8")}}}
	for _, tt := range []struct {
		name, peer string
		header     http.Header
		want       string
	}{
		{"nobody in front", "192.0.2.1:1000", nil, "192.0.2.1"},
		{"a proxy that says nothing", "10.0.0.1:1000", nil, "10.0.0.1"},
		{"a stranger who claims", "192.0.2.1:1000", http.Header{"X-Forwarded-For": {"198.51.100.7"}}, "192.0.2.1"},
		{"a proxy", "10.0.0.1:1000", http.Header{"X-Forwarded-For": {"198.51.100.7"}}, "198.51.100.7"},
		{"a proxy behind a client who claims", "10.0.0.1:1000", http.Header{"X-Forwarded-For": {"203.0.113.9, 198.51.100.7"}}, "198.51.100.7"},
		{"a claim in a line of its own", "10.0.0.1:1000", http.Header{"X-Forwarded-For": {"203.0.113.9", "198.51.100.7"}}, "198.51.100.7"},
		{"two proxies", "10.0.0.1:1000", http.Header{"X-Forwarded-For": {"203.0.113.9, 198.51.100.7, 10.0.0.2"}}, "198.51.100.7"},
		{"with ports", "[fd00::1]:1000", http.Header{"X-Forwarded-For": {"[2001:db8::7]:4711"}}, "2001:db8::7"},
		{"IPv4 in IPv6", "[::ffff:10.0.0.1]:1000", http.Header{"X-Forwarded-For": {"::ffff:198.51.100.7"}}, "198.51.100.7"},
		{"not an address", "10.0.0.1:1000", http.Header{"X-Forwarded-For": {"203.0.113.9, unknown"}}, "10.0.0.1"},
		{"Forwarded", "10.0.0.1:1000", http.Header{"Forwarded": {`for=203.0.113.9, For="[2001:db8::7]:4711";proto=https`}}, "2001:db8::7"},
		{"Forwarded, hidden", "10.0.0.1:1000", http.Header{"Forwarded": {"for=_x"}}, "10.0.0.1"},
		{"both, of which one is the client's own", "10.0.0.1:1000", http.Header{"Forwarded": {"for=203.0.113.9"}, "X-Forwarded-For": {"198.51.100.7"}}, "10.0.0.1"},
		{"no address at all", "@", http.Header{"X-Forwarded-For": {"198.51.100.7"}}, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := n.clientAddress(&http.Request{RemoteAddr: tt.peer, Header: tt.header}); got != tt.want {
				t.Errorf("%q, want %q", got, tt.want)
			}
		})
	}
}

// noteAddress places nobody and remembers who asked.
type noteAddress struct{ seen *[]string }

func (p noteAddress) Place(c placement.Client, _ []placement.Node) int {
	*p.seen = append(*p.seen, c.Address)
	return 0
}

// TestPlacementGetsTheAddress asks the gateway in each way there is.
func TestPlacementGetsTheAddress(t *testing.T) {
	var seen []string
	g := newGateway(t, func(c *Config) {
		c.Placement, c.TrustedProxies = noteAddress{&seen}, []netip.Prefix{netip.MustParsePrefix("127.0.0.1/32")}
	})
	g.join(t, "n1")
	g.do(t, "GET", "", "Authorization", "Bearer "+g.user, "X-Forwarded-For", "198.51.100.7")
	g.do(t, "POST", `{"account":"bob@example.com","address":"::ffff:198.51.100.8"}`, "Authorization", "Bearer "+g.service, "X-Forwarded-For", "192.0.2.1")
	g.do(t, "POST", `{"account":"bob@example.com"}`, "Authorization", "Bearer "+g.service)
	if got := strings.Join(seen, " "); got != "198.51.100.7 198.51.100.8 bob@example.com" {
		t.Errorf("seen %s", got)
	}
}
