package demo

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"strings"
)

// wireHead tells the page what the exchange cost on the wire, "<request bytes>;<response bytes>", because a
// script can't see headers' bytes. It does not count itself.
const wireHead = "Mailbell-Demo-Wire"

// worthZipping is the size from which a JSON answer is compressed, as a good poll server would.
const worthZipping = 512

// dateLine is what net/http adds: the Date header, always of this length.
const dateLine = len("Date: Mon, 02 Jan 2006 15:04:05 GMT\r\n")

// reply writes an answer of the API. A nil body is no body.
func reply(w http.ResponseWriter, r *http.Request, status int, etag string, body any) {
	head := w.Header()
	head.Set("Cache-Control", "no-cache, private")
	head.Set("X-Content-Type-Options", "nosniff")
	if etag != "" {
		head.Set("ETag", etag)
	}
	var raw []byte
	if body != nil {
		var err error
		if raw, err = json.Marshal(body); err != nil {
			http.Error(w, "the answer can't be written as JSON", http.StatusInternalServerError)
			return
		}
		head.Set("Content-Type", "application/json")
		head.Set("Vary", "Accept-Encoding")
		if len(raw) >= worthZipping && strings.Contains(r.Header.Get("Accept-Encoding"), "gzip") {
			raw = zip(raw)
			head.Set("Content-Encoding", "gzip")
		}
		head.Set("Content-Length", strconv.Itoa(len(raw)))
	}
	head.Set(wireHead, fmt.Sprintf("%d;%d", requestBytes(r), responseBytes(status, head)+len(raw)))
	w.WriteHeader(status)
	_, _ = w.Write(raw) // whoever is gone needs no answer
}

func zip(raw []byte) []byte {
	var out bytes.Buffer
	z := gzip.NewWriter(&out)
	_, _ = z.Write(raw)
	_ = z.Close()
	return out.Bytes()
}

// requestBytes is the request as HTTP/1.1 writes it, with its body.
func requestBytes(r *http.Request) int {
	n := len(r.Method) + len(" ") + len(r.URL.RequestURI()) + len(" HTTP/1.1\r\n") + len("Host: ") + len(r.Host) + len("\r\n\r\n")
	return n + headerBytes(r.Header) + max(0, int(r.ContentLength))
}

// responseBytes is the response's head as HTTP/1.1 writes it.
func responseBytes(status int, head http.Header) int {
	return len("HTTP/1.1 200 ") + len(http.StatusText(status)) + len("\r\n\r\n") + dateLine + headerBytes(head)
}

func headerBytes(head http.Header) int {
	n := 0
	for name, values := range head {
		for _, value := range values {
			if name != wireHead {
				n += len(name) + len(": ") + len(value) + len("\r\n")
			}
		}
	}
	return n
}
