// Package roundcubeproc runs Debian's Roundcube in a folder of its own, for tests and benches: php-fpm, nginx with one
// of the configurations of deploy/roundcube/nginx, and an SQLite database. People sign in with what the IMAP server
// takes.
//
// It works as root (PHP then runs as www-data) and as any other user. It needs Debian's roundcube-core,
// roundcube-sqlite3, roundcube-plugins, php8.2-fpm, php8.2-sqlite3 and nginx-light; without them Start fails and says so.
//
// Start starts a goroutine for each of the two programs, which waits for it; Stop ends all.
package roundcubeproc

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

const (
	startTimeout = 20 * time.Second
	stopTimeout  = 10 * time.Second
	portTries    = 5
	pollEvery    = 10 * time.Millisecond
	packages     = "roundcube-core roundcube-sqlite3 roundcube-plugins php8.2-fpm php8.2-sqlite3 nginx-light"
)

// Where Debian has them.
const (
	phpFPM    = "/usr/sbin/php-fpm8.2"
	nginx     = "/usr/sbin/nginx"
	roundcube = "/usr/share/roundcube"
	debian    = "/var/lib/roundcube" // the same, as nginx sees it
)

// Options of a Roundcube.
type Options struct {
	// IMAPAddr is where people's mail is, such as "127.0.0.1:143".
	IMAPAddr string
	// Plugins are on. Each is one of Debian's, or the path of a folder that is copied, and links in it followed.
	Plugins []string
	// Config is added to Roundcube's configuration: lines of PHP, such as `$config['refresh_interval'] = 60;`.
	Config string
	// Site is a configuration for nginx; empty means deploy/roundcube/nginx/same-origin.conf. Its addresses are
	// replaced by those of this machine, and nothing else.
	Site string
	// Notifier is where mailbell takes WebSockets, such as "127.0.0.1:7480"; empty leaves the site's address.
	Notifier string
	// Workers is the number of PHP processes; 0 means 4.
	Workers int
}

// Server is a running Roundcube.
type Server struct {
	dir      string
	addr     string // of mail.example.com
	bellAddr string // of bell.example.com, where the site has it
	programs []*program
}

// program is a child process.
type program struct {
	name   string
	cmd    *exec.Cmd
	output bytes.Buffer  // read only after done
	done   chan struct{} // closed when it has ended
}

// errPortTaken: somebody was faster between the choice of a port and its use.
var errPortTaken = errors.New("a port was taken meanwhile")

// Start starts Roundcube and waits until its login page comes.
func Start(ctx context.Context, opts Options) (*Server, error) {
	for _, need := range []string{phpFPM, nginx, roundcube + "/index.php", debian + "/public_html/index.php",
		roundcube + "/plugins/newmail_notifier", "/etc/php/8.2/fpm/conf.d/20-pdo_sqlite.ini"} {
		if _, err := os.Stat(need); err != nil {
			return nil, fmt.Errorf("roundcube: %s is missing: install it with apt-get install --no-install-recommends %s", need, packages)
		}
	}
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	for try := 1; ; try++ {
		s, err := start(ctx, opts)
		if err == nil || !errors.Is(err, errPortTaken) || try == portTries {
			return s, err
		}
	}
}

func start(ctx context.Context, opts Options) (*Server, error) {
	dir, err := os.MkdirTemp("", "mailbell-roundcube-")
	if err != nil {
		return nil, fmt.Errorf("roundcube: make folder: %w", err)
	}
	s := &Server{dir: dir}
	if err := s.run(ctx, opts); err != nil {
		log := s.Log()
		s.Stop()
		if strings.Contains(log, "Address already in use") {
			return nil, errPortTaken
		}
		return nil, fmt.Errorf("roundcube: start: %w; its logs:\n%s", err, log)
	}
	return s, nil
}

func (s *Server) run(ctx context.Context, opts Options) error {
	var err error
	for _, addr := range []*string{&s.addr, &s.bellAddr} {
		if *addr, err = freeAddr(); err != nil {
			return err
		}
	}
	if err := s.writeFiles(opts); err != nil {
		return err
	}
	root := os.Getuid() == 0
	fpm := []string{"--nodaemonize", "--fpm-config", s.path("php-fpm.conf")}
	if root {
		fpm = append(fpm, "--allow-to-run-as-root")
	}
	if err := s.start("php-fpm", phpFPM, fpm...); err != nil {
		return err
	}
	if err := s.wait(ctx, func() error { _, err := os.Stat(s.path("php.sock")); return err }); err != nil {
		return fmt.Errorf("php-fpm does not listen: %w", err)
	}
	if err := s.start("nginx", nginx, "-p", s.dir, "-c", s.path("nginx.conf"), "-e", s.path("logs/nginx-error.log")); err != nil {
		return err
	}
	return s.wait(ctx, func() error { return s.login(ctx) })
}

// login looks for the login page.
func (s *Server) login(ctx context.Context) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.URL()+"/", nil)
	if err != nil {
		return err
	}
	transport := &http.Transport{DisableKeepAlives: true}
	resp, err := transport.RoundTrip(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("the login page is answered with %s", resp.Status)
	}
	return nil
}

// wait tries until it works, a program ends or ctx does.
func (s *Server) wait(ctx context.Context, try func() error) error {
	ticker := time.NewTicker(pollEvery)
	defer ticker.Stop()
	for {
		err := try()
		if err == nil {
			return nil
		}
		for _, p := range s.programs {
			select {
			case <-p.done:
				return fmt.Errorf("%s ended by itself: %s", p.name, p.output.String())
			default:
			}
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return err
		}
	}
}

func (s *Server) start(name, path string, args ...string) error {
	p := &program{name: name, cmd: exec.Command(path, args...), done: make(chan struct{})}
	p.cmd.Stdout, p.cmd.Stderr = &p.output, &p.output
	// Should the test binary be killed, they end with it.
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
	if err := p.cmd.Start(); err != nil {
		return err
	}
	s.programs = append(s.programs, p)
	go func() {
		_ = p.cmd.Wait() // how it ended stands in its log
		close(p.done)
	}()
	return nil
}

func freeAddr() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer l.Close()
	return l.Addr().String(), nil
}

func (s *Server) path(name string) string { return filepath.Join(s.dir, name) }

// URL returns where Roundcube is: its origin, without a slash at the end.
func (s *Server) URL() string { return "http://" + s.addr }

// Addr returns the address of mail.example.com.
func (s *Server) Addr() string { return s.addr }

// BellAddr returns the address of bell.example.com, which only cross-origin.conf has.
func (s *Server) BellAddr() string { return s.bellAddr }

// Dir returns Roundcube's folder, which Stop removes.
func (s *Server) Dir() string { return s.dir }

// PIDs returns the process ids of php-fpm and nginx by name. Each has children that do the work.
func (s *Server) PIDs() map[string]int {
	pids := make(map[string]int)
	for _, p := range s.programs {
		pids[p.name] = p.cmd.Process.Pid
	}
	return pids
}

// Log returns what Roundcube, PHP and nginx have complained of so far.
func (s *Server) Log() string {
	var b strings.Builder
	names, _ := filepath.Glob(s.path("logs/*"))
	for _, name := range names {
		text, err := os.ReadFile(name)
		if err == nil && len(text) > 0 && filepath.Base(name) != accessLog {
			fmt.Fprintf(&b, "--- %s\n%s", filepath.Base(name), text)
		}
	}
	return b.String()
}

// Stop ends nginx and PHP and removes their folder.
func (s *Server) Stop() {
	for i := len(s.programs) - 1; i >= 0; i-- {
		p := s.programs[i]
		_ = p.cmd.Process.Signal(syscall.SIGTERM)
		timer := time.NewTimer(stopTimeout)
		select {
		case <-p.done:
		case <-timer.C:
			_ = p.cmd.Process.Kill()
			<-p.done
		}
		timer.Stop()
	}
	_ = os.RemoveAll(s.dir)
}
