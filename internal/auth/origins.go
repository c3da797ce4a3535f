package auth

import (
	"fmt"
	"net/http"
	"net/netip"
	"strings"
)

// Origins are the web pages that may connect (RFC 6454). The zero value allows pages of
// the host that is connected to, on any port, since the page and the sockets
// have ports of their own.
type Origins struct {
	any      bool
	patterns []originPattern
}

type originPattern struct {
	scheme string // empty: http or https
	host   string // lower case; with wild, ".example.com"
	port   string // of the scheme when none was named; empty with scheme empty: any
	wild   bool
}

// ParseOrigins reads a list separated by commas: https://mail.example.com,
// https://*.example.com (any depth below, not example.com itself), mail.example.com (http and
// https, any port), or * for all. An empty list is the same host.
func ParseOrigins(list string) (Origins, error) {
	var o Origins
	for _, entry := range strings.Split(list, ",") {
		entry = strings.TrimSpace(entry)
		switch entry {
		case "":
			continue
		case "*":
			o.any = true
			continue
		}
		p, err := parseOriginPattern(entry)
		if err != nil {
			return Origins{}, fmt.Errorf("origins: %q: %w", entry, err)
		}
		o.patterns = append(o.patterns, p)
	}
	return o, nil
}

func parseOriginPattern(entry string) (originPattern, error) {
	scheme, host, port, ok := splitOrigin(entry)
	if !ok && !strings.Contains(entry, "://") {
		scheme = ""
		host, port, ok = splitHostPort(entry)
	}
	if !ok || host == "" || scheme != "" && scheme != "http" && scheme != "https" {
		return originPattern{}, fmt.Errorf("want an origin, such as https://mail.example.com (no path)")
	}
	p := originPattern{scheme: scheme, host: strings.ToLower(host), port: port}
	if rest, wild := strings.CutPrefix(p.host, "*."); wild {
		p.host, p.wild = "."+rest, true
	}
	if strings.Contains(p.host, "*") || p.wild && !strings.Contains(p.host[1:], ".") {
		return originPattern{}, fmt.Errorf("a * may only stand first, before a domain: https://*.example.com")
	}
	if p.port == "" {
		p.port = defaultPort(scheme)
	}
	return p, nil
}

// Allow reports whether a page of the origin may connect to the host (the Host
// header). A request without an Origin does not come from a page.
func (o Origins) Allow(origin, host string) bool {
	if origin == "" || o.any {
		return true
	}
	scheme, from, port, ok := splitOrigin(origin)
	if !ok {
		return false // also "null"
	}
	if len(o.patterns) == 0 {
		to, _, ok := splitHostPort(host)
		return ok && sameHost(from, to)
	}
	if port == "" {
		port = defaultPort(scheme)
	}
	for i := range o.patterns {
		if o.patterns[i].match(scheme, from, port) {
			return true
		}
	}
	return false
}

func (p *originPattern) match(scheme, host, port string) bool {
	if p.scheme != "" && p.scheme != scheme || p.port != "" && p.port != port {
		return false
	}
	if p.wild {
		return len(host) > len(p.host) && strings.EqualFold(host[len(host)-len(p.host):], p.host)
	}
	return strings.EqualFold(host, p.host)
}

// sameHost compares host names; all names of this machine are one.
func sameHost(a, b string) bool {
	return strings.EqualFold(a, b) || loopback(a) && loopback(b)
}

func loopback(host string) bool {
	if strings.EqualFold(host, "localhost") {
		return true
	}
	addr, err := netip.ParseAddr(strings.Trim(host, "[]"))
	return err == nil && addr.IsLoopback()
}

// splitOrigin takes an origin apart without allocating, which url.Parse can't.
func splitOrigin(origin string) (scheme, host, port string, ok bool) {
	scheme, rest, ok := strings.Cut(origin, "://")
	if !ok || scheme == "" {
		return "", "", "", false
	}
	host, port, ok = splitHostPort(rest)
	return scheme, host, port, ok
}

// splitHostPort takes host[:port] apart; an IPv6 address keeps its brackets.
func splitHostPort(s string) (host, port string, ok bool) {
	end := strings.LastIndexByte(s, ':')
	if end >= 0 && strings.IndexByte(s[end:], ']') < 0 {
		host, port = s[:end], s[end+1:]
		if port == "" {
			return "", "", false
		}
	} else {
		host = s
	}
	for i := 0; i < len(port); i++ {
		if port[i] < '0' || port[i] > '9' {
			return "", "", false
		}
	}
	if host == "" || strings.ContainsAny(host, "/?#@\\ ,") || host[0] != '[' && strings.IndexByte(host, ':') >= 0 {
		return "", "", false
	}
	return host, port, true
}

func defaultPort(scheme string) string {
	switch scheme {
	case "http":
		return "80"
	case "https":
		return "443"
	}
	return ""
}

// corsMaxAge is how long a browser may remember a preflight's answer, in seconds.
const corsMaxAge = "600"

// CORS lets pages of these origins call h (Fetch, section 3.2). It answers preflights
// itself; a page that may not gets 403. Cookies are allowed except where every
// origin is.
func (o Origins) CORS(h http.Handler, methods ...string) http.Handler {
	allowed := strings.Join(methods, ", ")
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		origin := r.Header.Get("Origin")
		preflight := r.Method == http.MethodOptions && r.Header.Get("Access-Control-Request-Method") != ""
		w.Header().Add("Vary", "Origin")
		if origin == "" {
			h.ServeHTTP(w, r)
			return
		}
		if !o.Allow(origin, r.Host) {
			http.Error(w, ErrOrigin.Message, ErrOrigin.Status())
			return
		}
		if o.any {
			w.Header().Set("Access-Control-Allow-Origin", "*")
		} else {
			w.Header().Set("Access-Control-Allow-Origin", origin)
			w.Header().Set("Access-Control-Allow-Credentials", "true")
		}
		if !preflight {
			w.Header().Set("Access-Control-Expose-Headers", "Retry-After")
			h.ServeHTTP(w, r)
			return
		}
		w.Header().Set("Access-Control-Allow-Methods", allowed)
		w.Header().Set("Access-Control-Allow-Headers", "Authorization, Content-Type")
		w.Header().Set("Access-Control-Max-Age", corsMaxAge)
		w.WriteHeader(http.StatusNoContent)
	})
}
