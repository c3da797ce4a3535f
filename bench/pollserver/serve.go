package pollserver

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"runtime/debug"
	"strconv"
	"time"

	"github.com/mailbell/mailbell/bench/mailstore"
)

// Config says what is served and where.
type Config struct {
	Addr      string           `json:"addr"` // host:port; port 0 takes a free one
	Store     mailstore.Config `json:"store"`
	KeepAlive time.Duration    `json:"keepAlive,omitempty"` // close connections that were idle for this long; 0 = never
}

// Reply is one line of Serve's output: the address once it is served, then the store's reads in answer
// to CommandReads.
type Reply struct {
	Addr  string `json:"addr,omitempty"`
	Reads int64  `json:"reads"`
}

// CommandReads is a line that Serve takes after the configuration: it asks for a Reply. The store in memory
// takes an account's number for each change beside it.
const CommandReads = "reads"

// gcPercent lets the garbage collector run a fifth as often as by default: memory is cheaper than cores here.
const gcPercent = 400

// Serve serves for a parent process: the configuration is the first line of in, replies go to out. The end of
// in, or of ctx, ends it.
func Serve(ctx context.Context, in io.Reader, out io.Writer) error {
	debug.SetGCPercent(gcPercent)
	lines := bufio.NewReaderSize(in, 64<<10)
	first, err := lines.ReadBytes('\n')
	if err != nil {
		return fmt.Errorf("poll server: read configuration: %w", err)
	}
	var cfg Config
	if err := json.Unmarshal(first, &cfg); err != nil {
		return fmt.Errorf("poll server: read configuration: %w", err)
	}
	store, err := mailstore.Open(cfg.Store)
	if err != nil {
		return fmt.Errorf("poll server: %w", err)
	}
	defer store.Close()
	l, err := net.Listen("tcp", cfg.Addr)
	if err != nil {
		return fmt.Errorf("poll server: %w", err)
	}
	srv := &http.Server{Handler: newHandler(store), IdleTimeout: cfg.KeepAlive, MaxHeaderBytes: 8 << 10}
	stop := context.AfterFunc(ctx, func() { _ = srv.Close() })
	defer stop()
	enc := json.NewEncoder(out)
	if err := enc.Encode(Reply{Addr: l.Addr().String()}); err != nil {
		return err
	}
	go func() { // ends with its input; the process ends right after Serve
		obey(lines, store, enc)
		_ = srv.Close()
	}()
	if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("poll server: %w", err)
	}
	return nil
}

// obey follows the parent's lines until their end.
func obey(lines *bufio.Reader, store mailstore.Store, enc *json.Encoder) {
	memory, _ := store.(*mailstore.MemoryStore)
	for {
		line, err := lines.ReadSlice('\n')
		if err != nil {
			return
		}
		word := string(line[:len(line)-1])
		if word == CommandReads {
			_ = enc.Encode(Reply{Reads: store.Reads()})
			continue
		}
		if n, err := strconv.ParseUint(word, 10, 32); err == nil && memory != nil {
			memory.Change(uint32(n))
		}
	}
}
