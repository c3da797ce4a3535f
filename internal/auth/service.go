package auth

import (
	"bufio"
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// Scope is what a service token is good for.
type Scope string

// The scopes.
const (
	ScopePublish Scope = "publish" // post events
	ScopeConnect Scope = "connect" // ask for tickets on behalf of users
)

const (
	servicePrefix    = "mbs_" // lets a scanner for leaked secrets find them
	serviceBytes     = 32     // of randomness
	maxServiceTokens = 1000   // each is compared with
	maxServiceName   = 64
)

// ServiceTokens are the tokens of programs: mail stores that publish, webmail servers
// that ask for tickets. Their file has a line each,
//
//	name scope[,scope] sha256:<hex>
//
// with # before comments; two lines may have one name, for a change of tokens without
// a gap. The file is read again when it changes; a file that can't be read then
// leaves the last tokens in force. A nil *ServiceTokens knows none.
type ServiceTokens struct {
	set atomic.Pointer[[]serviceToken]

	mu sync.Mutex
	// Guarded by mu.
	file *watchedFile
	err  error // of the last reload
}

type serviceToken struct {
	name   string
	scopes []Scope
	hash   [sha256.Size]byte
}

// LoadServiceTokens reads a file of service tokens.
func LoadServiceTokens(path string) (*ServiceTokens, error) {
	s := &ServiceTokens{file: &watchedFile{path: path}}
	if err := s.Reload(); err != nil {
		return nil, err
	}
	return s, nil
}

// Reload reads the file again, whether it changed or not.
func (s *ServiceTokens) Reload() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.err = s.read()
	return s.err
}

func (s *ServiceTokens) read() error {
	b, err := s.file.read()
	if err != nil {
		return fmt.Errorf("service tokens: read %s: %w; check --service-tokens", s.file.path, err)
	}
	set, err := parseServiceTokens(b)
	if err != nil {
		return fmt.Errorf("service tokens: %s:%w", s.file.path, err)
	}
	s.set.Store(&set)
	return nil
}

// Err is what went wrong when the file was last read, nil when nothing did.
func (s *ServiceTokens) Err() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err
}

func (s *ServiceTokens) reloadIfChanged() {
	if !s.file.due(time.Now()) {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if changed, _ := s.file.changed(); !changed {
		return
	}
	if s.err = s.read(); s.err != nil {
		slog.Default().Warn("service tokens could not be read again; the last ones stay in force", "error", s.err)
	}
}

// parseServiceTokens reads a file's text; an error begins with the line's number.
func parseServiceTokens(b []byte) ([]serviceToken, error) {
	var set []serviceToken
	lines := bufio.NewScanner(bytes.NewReader(b))
	lines.Buffer(nil, maxSourceBytes)
	for n := 1; lines.Scan(); n++ {
		line, _, _ := strings.Cut(lines.Text(), "#")
		fields := strings.Fields(line)
		if len(fields) == 0 {
			continue
		}
		t, err := parseServiceToken(fields)
		if err != nil {
			return nil, fmt.Errorf("%d: %w", n, err)
		}
		if len(set) == maxServiceTokens {
			return nil, fmt.Errorf("%d: more than %d tokens", n, maxServiceTokens)
		}
		set = append(set, t)
	}
	return set, lines.Err()
}

func parseServiceToken(fields []string) (serviceToken, error) {
	if len(fields) != 3 {
		return serviceToken{}, fmt.Errorf("has %d fields: want name scope[,scope] sha256:<hex>", len(fields))
	}
	t := serviceToken{name: fields[0]}
	for _, s := range strings.Split(fields[1], ",") {
		t.scopes = append(t.scopes, Scope(s))
	}
	if err := checkService(t.name, t.scopes); err != nil {
		return serviceToken{}, err
	}
	text, ok := strings.CutPrefix(fields[2], "sha256:")
	hash, err := hex.DecodeString(text)
	if !ok || err != nil || len(hash) != len(t.hash) {
		return serviceToken{}, fmt.Errorf("the third field must be sha256: and %d hexadecimal digits", 2*len(t.hash))
	}
	copy(t.hash[:], hash)
	return t, nil
}

func checkService(name string, scopes []Scope) error {
	if name == "" || len(name) > maxServiceName || strings.ContainsFunc(name, notInServiceName) {
		return fmt.Errorf("name %q: want 1 to %d letters, digits, dots, dashes or underscores", name, maxServiceName)
	}
	if len(scopes) == 0 {
		return fmt.Errorf("no scope: want %s, %s or both", ScopePublish, ScopeConnect)
	}
	for _, s := range scopes {
		if s != ScopePublish && s != ScopeConnect {
			return fmt.Errorf("scope %q: want %s or %s", s, ScopePublish, ScopeConnect)
		}
	}
	return nil
}

func notInServiceName(r rune) bool {
	return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '.' || r == '-' || r == '_')
}

// Check returns the name of the token's owner. It takes the same time for any
// token of a length. ErrUnknown and ErrMissing are for 401, ErrScope for 403.
func (s *ServiceTokens) Check(token string, scope Scope) (name string, err error) {
	if token == "" {
		return "", ErrMissing
	}
	if s == nil || len(token) > MaxTokenBytes {
		return "", ErrUnknown
	}
	s.reloadIfChanged()
	hash := sha256.Sum256([]byte(token))
	set := *s.set.Load()
	at := -1
	for i := range set {
		at = subtle.ConstantTimeSelect(subtle.ConstantTimeCompare(hash[:], set[i].hash[:]), i, at)
	}
	if at < 0 {
		return "", ErrUnknown
	}
	t := &set[at]
	if !slices.Contains(t.scopes, scope) {
		return "", refuse(ReasonScope, "service token: %q has no scope %q", t.name, scope)
	}
	return t.name, nil
}

// NewServiceToken makes a token. The plain text goes to the program, the line to the file.
func NewServiceToken(name string, scopes ...Scope) (plain, line string, err error) {
	if err := checkService(name, scopes); err != nil {
		return "", "", fmt.Errorf("new service token: %w", err)
	}
	var b [serviceBytes]byte
	if _, err := rand.Read(b[:]); err != nil {
		return "", "", fmt.Errorf("new service token: %w", err)
	}
	plain = servicePrefix + base64.RawURLEncoding.EncodeToString(b[:])
	return plain, serviceLine(name, scopes, plain), nil
}

func serviceLine(name string, scopes []Scope, plain string) string {
	names := make([]string, len(scopes))
	for i, s := range scopes {
		names[i] = string(s)
	}
	hash := sha256.Sum256([]byte(plain))
	return name + " " + strings.Join(names, ",") + " sha256:" + hex.EncodeToString(hash[:])
}
