package bench

import (
	"bytes"
	"encoding/json"
	"io"
	"strings"
	"sync"
)

// logTail keeps the end of a child's stderr, and the attributes of each message
// that it logged as JSON, the last of each.
type logTail struct {
	mu      sync.Mutex // guards the rest
	tail    []byte
	line    []byte
	seen    map[string]map[string]any
	changed chan struct{} // closed and replaced at each new line
	copy    io.Writer     // takes everything too; nil for nobody
}

const (
	tailBytes      = 4 << 10
	maxLogLine     = 64 << 10
	maxLogMessages = 256
)

func newLogTail() *logTail {
	return &logTail{seen: make(map[string]map[string]any), changed: make(chan struct{})}
}

func (t *logTail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.copy != nil {
		_, _ = t.copy.Write(p)
	}
	t.tail = append(t.tail, p...)
	if len(t.tail) > tailBytes {
		t.tail = append(t.tail[:0], t.tail[len(t.tail)-tailBytes:]...)
	}
	rest := p
	for {
		line, after, complete := bytes.Cut(rest, []byte{'\n'})
		if len(t.line)+len(line) <= maxLogLine {
			t.line = append(t.line, line...)
		}
		if !complete {
			return len(p), nil
		}
		t.book(t.line)
		t.line, rest = t.line[:0], after
	}
}

func (t *logTail) book(line []byte) {
	var attrs map[string]any
	if json.Unmarshal(line, &attrs) != nil {
		return
	}
	if msg, ok := attrs["msg"].(string); ok && len(t.seen) < maxLogMessages {
		t.seen[msg] = attrs
		close(t.changed)
		t.changed = make(chan struct{})
	}
}

// find returns the attributes of the last line with a message, or nil and a channel that is
// closed when there is something new.
func (t *logTail) find(message string) (map[string]any, <-chan struct{}) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.seen[message], t.changed
}

func (t *logTail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return strings.TrimSpace(string(t.tail))
}

// copyTo has all that is said from now on written to w too.
func (t *logTail) copyTo(w io.Writer) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.copy = w
}
