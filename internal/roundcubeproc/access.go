package roundcubeproc

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/url"
	"os"
	"slices"
	"time"
)

// Request is a line of nginx's access log.
type Request struct {
	At       time.Time
	Method   string
	Path     string
	Action   string // Roundcube's _action, such as "refresh"; empty for a page, and for files
	Task     string // Roundcube's _task
	Status   int
	Received int64 // bytes
	Sent     int64
	Took     time.Duration
	Session  string // the cookie of the one who asked
}

// Dynamic tells whether PHP answered it.
func (r Request) Dynamic() bool { return r.Path == "/" || r.Path == "/index.php" }

func (r Request) String() string {
	return fmt.Sprintf("%s %s task=%s action=%s %d", r.Method, r.Path, r.Task, r.Action, r.Status)
}

// Requests returns what nginx has answered since, in the order of its answers. Requests that were begun before since
// and ended after it are among them.
func (s *Server) Requests(since time.Time) ([]Request, error) {
	text, err := os.ReadFile(s.path("logs/" + accessLog))
	if err != nil {
		return nil, fmt.Errorf("roundcube: %w", err)
	}
	var requests []Request
	lines := bufio.NewScanner(bytes.NewReader(text))
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		r, err := parseRequest(lines.Bytes())
		if err != nil {
			return nil, fmt.Errorf("roundcube: access log: %w", err)
		}
		if !r.At.Before(since) {
			requests = append(requests, r)
		}
	}
	return requests, lines.Err()
}

func parseRequest(line []byte) (Request, error) {
	var l struct {
		At             float64
		Method, URI    string
		Status         int
		Received, Sent int64
		Seconds        float64
		Session        string
	}
	if err := json.Unmarshal(line, &l); err != nil {
		return Request{}, err
	}
	u, err := url.ParseRequestURI(l.URI)
	if err != nil {
		return Request{}, err
	}
	return Request{
		At: time.UnixMilli(int64(l.At * 1000)), Method: l.Method, Path: u.Path, Action: u.Query().Get("_action"), Task: u.Query().Get("_task"),
		Status: l.Status, Received: l.Received, Sent: l.Sent, Took: time.Duration(l.Seconds * float64(time.Second)),
		Session: l.Session,
	}, nil
}

// WaitForRequest waits for the first request since then that matches. nginx writes its log after it has answered.
func (s *Server) WaitForRequest(ctx context.Context, since time.Time, match func(Request) bool) (Request, error) {
	ticker := time.NewTicker(pollEvery)
	defer ticker.Stop()
	for {
		requests, err := s.Requests(since)
		if err != nil {
			return Request{}, err
		}
		if i := slices.IndexFunc(requests, match); i >= 0 {
			return requests[i], nil
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return Request{}, fmt.Errorf("roundcube: no such request among %d: %v", len(requests), requests)
		}
	}
}
