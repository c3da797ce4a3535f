// Package rungs is the servers of `bench ladder`: the steps by which "A Million WebSockets and Go" (Mail.ru, 2017)
// came from 72 GB for 3,000,000 connections to a few. Each is an echo server over WebSocket, built as the article has it,
// that differs from the one before in one thing. The last step, mailbell's notifier, is not here: it is itself.
//
// Goroutines are those that the step is about; a server ends with its process.
package rungs

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"runtime/debug"
	"strings"
	"sync"

	"github.com/gobwas/ws"
)

// Kind is a step.
type Kind struct {
	Name string // for Serve
	What string
}

// Kinds returns the steps, first to last.
func Kinds() []Kind {
	return []Kind{
		{"pair", "two goroutines with bufio each, upgraded through net/http"},
		{"netpoll", "netpoll and buffers from a pool, a goroutine per event"},
		{"pool", "netpoll, buffers and goroutines from pools"},
		{"zeroCopy", "the same, upgraded without net/http"},
	}
}

// Config is the first line that Serve reads.
type Config struct {
	Kind string `json:"kind"`
}

// Ready is Serve's first answer. After it, each line of input has the server give back what memory it can, and
// is answered by an empty object: nobody's garbage shall count.
type Ready struct {
	Addr string `json:"addr"`
}

// Serve runs one of the servers on a loopback port until its input ends.
func Serve(ctx context.Context, in io.Reader, out io.Writer) error {
	lines := bufio.NewReader(in)
	first, err := lines.ReadBytes('\n')
	if err != nil {
		return fmt.Errorf("rung: read configuration: %w", err)
	}
	var cfg Config
	if err := json.Unmarshal(first, &cfg); err != nil {
		return fmt.Errorf("rung: read configuration: %w", err)
	}
	l, err := (&net.ListenConfig{KeepAlive: -1}).Listen(ctx, "tcp4", "127.0.0.1:0")
	if err != nil {
		return fmt.Errorf("rung: %w", err)
	}
	defer l.Close()
	serve, err := serverOf(cfg.Kind)
	if err != nil {
		return fmt.Errorf("rung: %w", err)
	}
	go serve(l) // until l is closed; the process ends then
	enc := json.NewEncoder(out)
	if err := enc.Encode(Ready{Addr: l.Addr().String()}); err != nil {
		return err
	}
	for {
		if _, err := lines.ReadString('\n'); err != nil {
			return nil
		}
		debug.FreeOSMemory()
		if err := enc.Encode(struct{}{}); err != nil {
			return err
		}
	}
}

func serverOf(kind string) (func(net.Listener), error) {
	switch kind {
	case "pair":
		return func(l net.Listener) { serveHTTP(l, startPair) }, nil
	case "netpoll":
		p, err := newPoll(func(f func()) { go f() })
		return func(l net.Listener) { serveHTTP(l, p.add) }, err
	case "pool":
		p, err := newPoll(newPool(128))
		return func(l net.Listener) { serveHTTP(l, p.add) }, err
	case "zeroCopy":
		p, err := newPoll(newPool(128))
		return func(l net.Listener) { serveRaw(l, p.add) }, err
	}
	return nil, fmt.Errorf("no kind is named %q", kind)
}

// serveHTTP upgrades through net/http.
func serveHTTP(l net.Listener, started func(net.Conn)) {
	up := ws.HTTPUpgrader{Protocol: func(string) bool { return true }}
	server := http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		conn, _, _, err := up.Upgrade(r, w)
		if err == nil {
			started(conn)
		}
	})}
	_ = server.Serve(l)
}

// serveRaw upgrades on the connection itself.
func serveRaw(l net.Listener, started func(net.Conn)) {
	up := ws.Upgrader{Protocol: func([]byte) bool { return true }}
	pool := newPool(128)
	for {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		pool(func() {
			if _, err := up.Upgrade(conn); err != nil {
				conn.Close()
				return
			}
			started(conn)
		})
	}
}

// startPair is the article's Channel: a reader and a writer, with a buffer each.
func startPair(conn net.Conn) {
	send := make(chan ws.Frame, 1)
	go func() {
		defer close(send)
		r := bufio.NewReader(conn)
		for {
			f, err := readFrame(r)
			if err != nil {
				return
			}
			send <- f
		}
	}()
	go func() {
		defer conn.Close()
		w := bufio.NewWriter(conn)
		for f := range send {
			if ws.WriteFrame(w, f) != nil || w.Flush() != nil {
				return
			}
		}
	}()
}

// readFrame reads a client's frame and returns the echo.
func readFrame(r io.Reader) (ws.Frame, error) {
	//lint:ignore SA1019 The article's server reads so, and its clients here are ours.
	f, err := ws.ReadFrame(r)
	if err != nil {
		return f, err
	}
	return ws.NewFrame(f.Header.OpCode, true, ws.UnmaskFrameInPlace(f).Payload), nil
}

var (
	readers = sync.Pool{New: func() any { return bufio.NewReader(strings.NewReader("")) }}
	writers = sync.Pool{New: func() any { return bufio.NewWriter(io.Discard) }}
)

// echo answers one frame with buffers from the pools.
func echo(conn net.Conn) error {
	r, w := readers.Get().(*bufio.Reader), writers.Get().(*bufio.Writer)
	defer readers.Put(r)
	defer writers.Put(w)
	r.Reset(conn)
	w.Reset(conn)
	f, err := readFrame(r)
	if err != nil {
		return err
	}
	if err := ws.WriteFrame(w, f); err != nil {
		return err
	}
	return w.Flush()
}

// newPool returns a runner that has at most so many goroutines, and waits for one to be free.
func newPool(workers int) func(func()) {
	work := make(chan func())
	slots := make(chan struct{}, workers)
	return func(f func()) {
		select {
		case work <- f:
		case slots <- struct{}{}:
			go func() {
				for {
					f()
					f = <-work
				}
			}()
		}
	}
}
