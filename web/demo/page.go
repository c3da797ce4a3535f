package demo

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"io/fs"
	"mime"
	"net/http"
	"path"
	"strings"
	"time"

	"github.com/mailbell/mailbell/web"
)

// page serves the files of package web from memory, with the headers that a page of mail deserves.
type page struct {
	// Static after newPage.
	files  map[string]asset // by URL path
	policy string
}

type asset struct {
	kind string // Content-Type
	etag string
	body []byte
}

// kinds are the types of what the page consists of; the machine's own list may lack or differ.
var kinds = map[string]string{
	".html": "text/html; charset=utf-8",
	".css":  "text/css; charset=utf-8",
	".js":   "text/javascript; charset=utf-8",
	".svg":  "image/svg+xml",
}

func newPage(cfg Config) (*page, error) {
	p := &page{files: map[string]asset{}, policy: policy(cfg.SocketOrigins)}
	err := fs.WalkDir(web.Files, ".", func(name string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		body, err := web.Files.ReadFile(name)
		if err != nil {
			return err
		}
		kind := kinds[path.Ext(name)]
		if kind == "" {
			kind = mime.TypeByExtension(path.Ext(name))
		}
		sum := sha256.Sum256(body)
		p.files[urlPath(name)] = asset{kind: kind, etag: `"` + base64.RawURLEncoding.EncodeToString(sum[:12]) + `"`, body: body}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("demo: read the page's files: %w", err)
	}
	return p, nil
}

// urlPath puts demo/page/x at /demo/x and everything else at the root.
func urlPath(name string) string {
	if rest, ok := strings.CutPrefix(name, "demo/page/"); ok {
		if rest == "index.html" {
			rest = ""
		}
		return "/demo/" + rest
	}
	return "/" + name
}

// policy allows what the page itself brings and nothing else; sockets go to the notifiers.
func policy(sockets []string) string {
	if len(sockets) == 0 {
		sockets = []string{"ws:", "wss:"}
	}
	return "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; " +
		"connect-src 'self' " + strings.Join(sockets, " ") + "; " +
		"form-action 'none'; base-uri 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
}

func (p *page) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	file, ok := p.files[r.URL.Path]
	if !ok {
		http.NotFound(w, r)
		return
	}
	head := w.Header()
	head.Set("Content-Type", file.kind)
	head.Set("ETag", file.etag)
	head.Set("Cache-Control", "no-cache")
	head.Set("X-Content-Type-Options", "nosniff")
	head.Set("Referrer-Policy", "no-referrer")
	head.Set("Content-Security-Policy", p.policy)
	if strings.HasPrefix(r.URL.Path, "/demo/") {
		head.Set("X-Frame-Options", "DENY")
		head.Set("Cross-Origin-Opener-Policy", "same-origin")
		head.Set("Cross-Origin-Resource-Policy", "same-origin")
		head.Set("Permissions-Policy", "camera=(), geolocation=(), microphone=(), payment=(), usb=()")
	} else {
		// The client is for pages of other origins too: a webmail beside mailbell.
		head.Set("Access-Control-Allow-Origin", "*")
		head.Set("Cross-Origin-Resource-Policy", "cross-origin")
	}
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(file.body))
}
