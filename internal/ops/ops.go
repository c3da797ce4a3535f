// Package ops is a process's operations port: metrics, health, readiness and
// profiles over plain HTTP, and what the process tells its service manager.
//
// Invariants:
//   - /healthz answers as long as the process can answer at all; it asks nobody.
//   - /readyz is 200 only when every registered check answered nil in time, and
//     otherwise names each one that did not.
//   - A check is never run twice at the same time, however many ask, so a hung
//     one costs one goroutine.
//   - The port has no authentication: it belongs on loopback or behind a network
//     policy, since profiles show the command line.
//
// Goroutines: New starts none. Run starts the HTTP server and waits for it, its
// requests, and every check still running.
package ops

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/pprof"
	"sync"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"golang.org/x/sys/unix"
)

// DefaultAddr is where the operations port listens unless told otherwise.
const DefaultAddr = "127.0.0.1:7489"

const (
	readHeaderTimeout = 5 * time.Second
	readTimeout       = 10 * time.Second
	// A CPU profile of a minute must fit.
	writeTimeout    = 2 * time.Minute
	idleTimeout     = time.Minute
	shutdownTimeout = 3 * time.Second
	maxHeaderBytes  = 16 << 10
	// Scrapes at the same time; further ones get a 503.
	maxScrapes = 4
)

// Config says where the operations port listens and who it is. The zero value
// listens on DefaultAddr.
type Config struct {
	// Addr is host:port; port 0 takes a free one. Empty means DefaultAddr.
	Addr string
	// Version is the release that mailbell_build_info shows; empty means what
	// the Go toolchain stamped into the binary.
	Version string
	// Share lets another process of this user listen on the same address (SO_REUSEPORT), as long as it asks
	// for that too: a successor starts while its predecessor still serves.
	Share bool
	// CheckTimeout bounds one readiness check; 0 means 2 s.
	CheckTimeout time.Duration
	// Logger is where the server's own errors go; nil means slog.Default().
	Logger *slog.Logger
}

// Validate tells what is wrong with c, if anything.
func (c Config) Validate() error {
	if c.Addr != "" {
		if _, _, err := net.SplitHostPort(c.Addr); err != nil {
			return fmt.Errorf("ops: address %q: want host:port, such as %s: %w", c.Addr, DefaultAddr, err)
		}
	}
	if c.CheckTimeout < 0 {
		return fmt.Errorf("ops: check timeout %v: must not be negative", c.CheckTimeout)
	}
	return nil
}

func (c Config) withDefaults() Config {
	if c.Addr == "" {
		c.Addr = DefaultAddr
	}
	if c.CheckTimeout == 0 {
		c.CheckTimeout = 2 * time.Second
	}
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
	return c
}

// Server is the operations port. Make it with New.
type Server struct {
	// Static after construction.
	cfg      Config
	listener net.Listener
	registry *prometheus.Registry
	mux      *http.ServeMux
	ready    *readiness

	closeOnce sync.Once
}

// New listens on cfg.Addr and answers nothing until Run. A Server that is never
// run must be closed.
func New(cfg Config) (*Server, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	cfg = cfg.withDefaults()
	var lc net.ListenConfig
	if cfg.Share {
		lc.Control = sharePort
	}
	l, err := lc.Listen(context.Background(), "tcp", cfg.Addr)
	if err != nil {
		return nil, fmt.Errorf("ops: %w (choose another address with --ops)", err)
	}
	s := &Server{
		cfg:      cfg,
		listener: l,
		registry: newRegistry(cfg.Version),
		mux:      http.NewServeMux(),
		ready:    newReadiness(cfg.CheckTimeout),
	}
	s.routes()
	return s, nil
}

func sharePort(_, _ string, raw syscall.RawConn) error {
	var err error
	controlErr := raw.Control(func(fd uintptr) {
		err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEPORT, 1)
	})
	return errors.Join(controlErr, err)
}

func (s *Server) routes() {
	s.mux.Handle("GET /metrics", promhttp.HandlerFor(s.registry, promhttp.HandlerOpts{
		ErrorLog:            slog.NewLogLogger(s.cfg.Logger.Handler(), slog.LevelError),
		ErrorHandling:       promhttp.ContinueOnError,
		Registry:            s.registry,
		MaxRequestsInFlight: maxScrapes,
		EnableOpenMetrics:   true,
	}))
	s.mux.HandleFunc("GET /healthz", serveHealth)
	s.mux.Handle("GET /readyz", s.ready)
	s.mux.HandleFunc("/debug/pprof/", pprof.Index)
	s.mux.HandleFunc("/debug/pprof/cmdline", pprof.Cmdline)
	s.mux.HandleFunc("/debug/pprof/profile", pprof.Profile)
	s.mux.HandleFunc("/debug/pprof/symbol", pprof.Symbol)
	s.mux.HandleFunc("/debug/pprof/trace", pprof.Trace)
}

func serveHealth(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("Cache-Control", "no-store")
	_, _ = w.Write([]byte("ok\n"))
}

// Addr is where the port listens, with the real port.
func (s *Server) Addr() string { return s.listener.Addr().String() }

// Registry is where the parts of this process register their metrics. It has
// Go's and the process's own already.
func (s *Server) Registry() *prometheus.Registry { return s.registry }

// Ready adds a check to /readyz. It must return when its ctx ends; what it
// returns is shown to the operator. The same name again replaces the check.
func (s *Server) Ready(name string, check func(context.Context) error) {
	s.ready.add(name, check)
}

// Handle serves a further path. The pattern is net/http's; a pattern that is
// taken panics, as there.
func (s *Server) Handle(pattern string, h http.Handler) { s.mux.Handle(pattern, h) }

// Run serves until ctx ends, then lets requests finish for at most 3 s. It
// returns nil when ctx ended it.
func (s *Server) Run(ctx context.Context) error {
	defer s.ready.stop()
	srv := &http.Server{
		Handler:           s.mux,
		ReadHeaderTimeout: readHeaderTimeout,
		ReadTimeout:       readTimeout,
		WriteTimeout:      writeTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeaderBytes,
		ErrorLog:          slog.NewLogLogger(s.cfg.Logger.Handler(), slog.LevelDebug),
	}
	stopped := make(chan struct{})
	served := make(chan struct{})
	go func() {
		defer close(stopped)
		select {
		case <-ctx.Done():
		case <-served:
		}
		grace, cancel := context.WithTimeout(context.Background(), shutdownTimeout)
		defer cancel()
		if srv.Shutdown(grace) != nil {
			_ = srv.Close()
		}
	}()
	err := srv.Serve(s.listener)
	close(served)
	<-stopped
	if errors.Is(err, http.ErrServerClosed) || ctx.Err() != nil {
		return nil
	}
	return fmt.Errorf("ops: serve: %w", err)
}

// Close releases the address of a Server that is not running; Run has done so
// when it returns.
func (s *Server) Close() error {
	var err error
	s.closeOnce.Do(func() { err = s.listener.Close() })
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}
