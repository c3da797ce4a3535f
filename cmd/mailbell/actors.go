package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"time"

	"github.com/mailbell/mailbell/internal/ops"
	"github.com/oklog/run"
)

// actors is a run.Group whose parts stop in the order in which they were added,
// each only when the one before has returned: clients before sockets' owners,
// readers before the log.
type actors struct {
	group run.Group
}

// add adds a part. execute blocks until its ctx ends, or until it fails.
func (a *actors) add(name string, execute func(context.Context) error) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	a.group.Add(func() error {
		defer close(done)
		if err := execute(ctx); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		if ctx.Err() == nil {
			return fmt.Errorf("%s: ended unexpectedly", name)
		}
		return nil
	}, func(error) {
		cancel()
		<-done
	})
}

// run blocks until ctx ends or a part fails, then stops all parts and waits for
// them. It returns nil when ctx ended it, and says so.
func (a *actors) run(ctx context.Context, logger *slog.Logger) error {
	stop := make(chan struct{})
	interrupted := errors.New("interrupted")
	a.group.Add(func() error {
		select {
		case <-ctx.Done():
			_ = ops.NotifyStopping()
			return interrupted
		case <-stop:
			return nil
		}
	}, func(error) { close(stop) })
	if err := a.group.Run(); !errors.Is(err, interrupted) {
		return err
	}
	logger.Info("stopped")
	return nil
}

// readyInterval is how often waitReady looks.
const readyInterval = 20 * time.Millisecond

// waitReady blocks until every check has answered nil, or ctx ends.
func waitReady(ctx context.Context, checks ...func(context.Context) error) error {
	tick := time.NewTicker(readyInterval)
	defer tick.Stop()
	for _, check := range checks {
		for check(ctx) != nil {
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-tick.C:
			}
		}
	}
	return nil
}

// announce waits for the checks, then calls ready once and tells systemd; it
// keeps systemd's watchdog quiet until ctx ends.
func announce(ctx context.Context, logger *slog.Logger, ready func(), checks ...func(context.Context) error) error {
	if waitReady(ctx, checks...) != nil {
		return nil // stopping
	}
	ready()
	if err := ops.NotifyReady(); err != nil {
		logger.Warn("systemd was not told", "err", err)
	}
	return ops.Watchdog(ctx, nil)
}

// Limits of our HTTP server. Bodies have limits of their own, at each door.
const (
	httpHeaderTimeout   = 5 * time.Second
	httpReadTimeout     = 30 * time.Second
	httpIdleTimeout     = 2 * time.Minute
	httpShutdownTimeout = 3 * time.Second
	httpHeaderBytes     = 16 << 10
)

// httpServer is the listener of --http with what is served there.
type httpServer struct {
	listener net.Listener
	server   *http.Server
}

func listenHTTP(addr string, handler http.Handler, logger *slog.Logger) (*httpServer, error) {
	listener, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("http: %w (choose another address with --http)", err)
	}
	return &httpServer{listener: listener, server: &http.Server{
		Handler:           handler,
		ReadHeaderTimeout: httpHeaderTimeout,
		ReadTimeout:       httpReadTimeout,
		IdleTimeout:       httpIdleTimeout,
		MaxHeaderBytes:    httpHeaderBytes,
		ErrorLog:          slog.NewLogLogger(logger.Handler(), slog.LevelDebug),
	}}, nil
}

// Addr is where the server listens, with the real port.
func (s *httpServer) Addr() string { return s.listener.Addr().String() }

// Run serves until ctx ends, then lets requests finish for a moment.
func (s *httpServer) Run(ctx context.Context) error {
	failed := make(chan error, 1)
	go func() { failed <- s.server.Serve(s.listener) }()
	select {
	case err := <-failed:
		return err
	case <-ctx.Done():
	}
	grace, cancel := context.WithTimeout(context.Background(), httpShutdownTimeout)
	defer cancel()
	if s.server.Shutdown(grace) != nil {
		_ = s.server.Close()
	}
	<-failed
	return nil
}

// closeAll closes what was opened before a start failed, the last first.
type closers []func() error

func (c *closers) add(f func() error) { *c = append(*c, f) }

func (c closers) close() {
	for i := len(c) - 1; i >= 0; i-- {
		_ = c[i]()
	}
}
