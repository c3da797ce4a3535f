// Package dovecotproc runs a real Dovecot in a folder of its own, for tests: IMAP and LMTP
// on free ports of the loopback interface, any user with one password, and the push
// notifications of deploy/dovecot pointed at an agent.
//
// It works as root (mail then belongs to nobody) and as any other user. It needs Debian's
// dovecot-imapd and dovecot-lmtpd; without them Start fails and says so.
//
// Start starts one goroutine, which waits for the process; Stop ends both.
package dovecotproc

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// Password is the password of every user.
const Password = "secret"

const (
	startTimeout = 15 * time.Second
	stopTimeout  = 10 * time.Second
	portTries    = 5
	pollEvery    = 5 * time.Millisecond
	packages     = "dovecot-imapd dovecot-lmtpd"
)

// Options of a Dovecot. The zero value has no push notifications.
type Options struct {
	// AgentURL is where the agent is, such as "http://127.0.0.1:8480". Empty turns Lua off.
	AgentURL string
	// Script is the Lua script; empty means deploy/dovecot/mailbell.lua of this module. It
	// is copied.
	Script string
	// Conf is a file like deploy/dovecot/mailbell.conf that is included, with this Dovecot's script and agent in place
	// of its own; empty means settings of the same effect. It needs AgentURL, and takes no Token.
	Conf string
	// Token is the service token that the script sends; empty sends none.
	Token string
	// OXURL is the whole URL for the OX driver, such as
	// "http://mailbell:token@127.0.0.1:8480/preliminary/http-notify/v1/notify?account=%u".
	// Empty turns it off. Only users with the metadata of SetOXUser are reported.
	OXURL string
	// Plugin adds settings to the plugin section.
	Plugin map[string]string
	// IMAPProcesses is how many IMAP sessions there may be at once; each is a process. 0 means
	// Dovecot's own limit, 1,024.
	IMAPProcesses int
	// Shared makes mailboxes shared by ACL appear under shared/<owner>/.
	Shared bool
}

// Server is a running Dovecot.
type Server struct {
	dir      string
	imapAddr string
	lmtpAddr string
	cmd      *exec.Cmd
	done     chan struct{} // closed when the process has ended
}

// Start starts Dovecot and waits until it answers on both ports.
func Start(ctx context.Context, opts Options) (*Server, error) {
	binary, err := find()
	if err != nil {
		return nil, err
	}
	if opts.Script == "" && opts.AgentURL != "" {
		if opts.Script, err = scriptOfModule(); err != nil {
			return nil, err
		}
	}
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	for try := 1; ; try++ {
		s, err := start(ctx, binary, opts)
		if err == nil || !errors.Is(err, errPortTaken) || try == portTries {
			return s, err
		}
	}
}

// errPortTaken: somebody was faster between the choice of a port and its use.
var errPortTaken = errors.New("a port was taken meanwhile")

// find returns the dovecot program, or an error that names the packages to install.
func find() (string, error) {
	binary, err := exec.LookPath("dovecot")
	if err != nil {
		binary = "/usr/sbin/dovecot"
	}
	for _, need := range []string{binary, "/usr/lib/dovecot/imap", "/usr/lib/dovecot/lmtp", "/usr/lib/dovecot/modules/lib22_push_notification_lua_plugin.so"} {
		if _, err := os.Stat(need); err != nil {
			return "", fmt.Errorf("dovecot: %s is missing: install it with apt-get install --no-install-recommends %s", need, packages)
		}
	}
	return binary, nil
}

// scriptOfModule finds the script from the folder that a test runs in.
func scriptOfModule() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", fmt.Errorf("dovecot: find script: %w", err)
	}
	for ; ; dir = filepath.Dir(dir) {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return filepath.Join(dir, "deploy", "dovecot", "mailbell.lua"), nil
		}
		if dir == filepath.Dir(dir) {
			return "", errors.New("dovecot: find script: not inside the module: set Options.Script")
		}
	}
}

func start(ctx context.Context, binary string, opts Options) (*Server, error) {
	dir, err := os.MkdirTemp("", "mailbell-dovecot-")
	if err != nil {
		return nil, fmt.Errorf("dovecot: make folder: %w", err)
	}
	s := &Server{dir: dir, done: make(chan struct{})}
	if err := s.run(ctx, binary, opts); err != nil {
		log := s.Log()
		s.Stop()
		if strings.Contains(log, "Address already in use") {
			return nil, errPortTaken
		}
		return nil, fmt.Errorf("dovecot: start: %w; its log:\n%s", err, log)
	}
	return s, nil
}

func (s *Server) run(ctx context.Context, binary string, opts Options) error {
	var err error
	if s.imapAddr, err = freeAddr(); err != nil {
		return err
	}
	if s.lmtpAddr, err = freeAddr(); err != nil {
		return err
	}
	conf, err := s.writeFiles(opts)
	if err != nil {
		return err
	}
	var stderr bytes.Buffer
	s.cmd = exec.Command(binary, "-F", "-c", conf)
	s.cmd.Stdout, s.cmd.Stderr = &stderr, &stderr
	// Should the test binary be killed, Dovecot ends with it.
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
	if err := s.cmd.Start(); err != nil {
		s.cmd = nil
		return err
	}
	go func() {
		_ = s.cmd.Wait() // how it ended stands in its log
		close(s.done)
	}()
	for _, addr := range []string{s.imapAddr, s.lmtpAddr} {
		if err := s.waitFor(ctx, addr); err != nil {
			select {
			case <-s.done:
				return fmt.Errorf("%w: %s", err, stderr.String())
			default:
				return err
			}
		}
	}
	return nil
}

// waitFor waits until a greeting comes from addr.
func (s *Server) waitFor(ctx context.Context, addr string) error {
	ticker := time.NewTicker(pollEvery)
	defer ticker.Stop()
	var last error
	for {
		if last = greeted(ctx, addr); last == nil {
			return nil
		}
		select {
		case <-ticker.C:
		case <-s.done:
			return errors.New("it ended by itself")
		case <-ctx.Done():
			return fmt.Errorf("it does not answer on %s: %w", addr, last)
		}
	}
}

func greeted(ctx context.Context, addr string) error {
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", addr)
	if err != nil {
		return err
	}
	defer conn.Close()
	if deadline, ok := ctx.Deadline(); ok {
		_ = conn.SetReadDeadline(deadline)
	}
	_, err = conn.Read(make([]byte, 1))
	return err
}

func freeAddr() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer l.Close()
	return l.Addr().String(), nil
}

// writeFiles writes the configuration, the script and the folders.
func (s *Server) writeFiles(opts Options) (conf string, err error) {
	if err := os.Chmod(s.dir, 0o755); err != nil {
		return "", err
	}
	for _, name := range []string{"mail", "run"} {
		path := filepath.Join(s.dir, name)
		if err := os.Mkdir(path, 0o755); err != nil {
			return "", err
		}
		if name == "mail" {
			if err := os.Chmod(path, 0o777); err != nil {
				return "", err
			}
		}
	}
	if opts.AgentURL != "" {
		script, err := os.ReadFile(opts.Script)
		if err != nil {
			return "", fmt.Errorf("read script: %w", err)
		}
		if err := os.WriteFile(s.scriptPath(), script, 0o644); err != nil {
			return "", err
		}
	}
	if err := s.writeConf(opts); err != nil {
		return "", err
	}
	text, err := s.config(opts)
	if err != nil {
		return "", err
	}
	conf = filepath.Join(s.dir, "dovecot.conf")
	return conf, os.WriteFile(conf, []byte(text), 0o644)
}

// writeConf writes the file that is included.
func (s *Server) writeConf(opts Options) error {
	if opts.Conf == "" {
		return nil
	}
	b, err := os.ReadFile(opts.Conf)
	if err != nil {
		return fmt.Errorf("read configuration: %w", err)
	}
	text := string(b)
	for old, with := range map[string]string{"lua:file=/etc/dovecot/mailbell.lua": "lua:file=" + s.scriptPath(), "= http://127.0.0.1:8480/": "= " + opts.AgentURL + "/"} {
		if !strings.Contains(text, old) {
			return fmt.Errorf("%s: it has no %q to replace", opts.Conf, old)
		}
		text = strings.Replace(text, old, with, 1)
	}
	return os.WriteFile(s.confPath(), []byte(text), 0o600)
}

func (s *Server) confPath() string { return filepath.Join(s.dir, "11-mailbell.conf") }

func (s *Server) scriptPath() string { return filepath.Join(s.dir, "mailbell.lua") }

// owner returns the user and group that mail belongs to, and whether Dovecot runs as root.
func owner() (name, group string, root bool, err error) {
	if os.Getuid() == 0 {
		return "nobody", "nogroup", true, nil
	}
	u, err := user.Current()
	if err != nil {
		return "", "", false, err
	}
	g, err := user.LookupGroupId(u.Gid)
	if err != nil {
		return "", "", false, err
	}
	return u.Username, g.Name, false, nil
}

// IMAPAddr returns the address for IMAP, without TLS.
func (s *Server) IMAPAddr() string { return s.imapAddr }

// PID returns the process id of Dovecot's master, from which all its processes descend.
func (s *Server) PID() int { return s.cmd.Process.Pid }

// LMTPAddr returns the address for LMTP.
func (s *Server) LMTPAddr() string { return s.lmtpAddr }

// Dir returns Dovecot's folder, which Stop removes.
func (s *Server) Dir() string { return s.dir }

// Log returns what Dovecot has logged so far.
func (s *Server) Log() string {
	b, err := os.ReadFile(filepath.Join(s.dir, "log"))
	if err != nil {
		return "(no log: " + err.Error() + ")"
	}
	return string(b)
}

// WaitForLog waits until text stands so many times in what Dovecot has logged. A process of Dovecot
// logs through another one, so a line may come after the answer to its client.
func (s *Server) WaitForLog(ctx context.Context, text string, times int) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	ticker := time.NewTicker(pollEvery)
	defer ticker.Stop()
	for {
		n := strings.Count(s.Log(), text)
		if n >= times {
			return nil
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return fmt.Errorf("dovecot: %q stands %d times in its log, want %d", text, n, times)
		}
	}
}

// SetOXUser makes the OX driver report a user's new messages, under a name of OX's own.
func (s *Server) SetOXUser(ctx context.Context, account, oxUser string) error {
	cmd := exec.CommandContext(ctx, "doveadm", "-c", filepath.Join(s.dir, "dovecot.conf"),
		"mailbox", "metadata", "set", "-u", account, "-s", "", "/private/vendor/vendor.dovecot/http-notify", "user="+oxUser)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("dovecot: set metadata: %w: %s", err, out)
	}
	return nil
}

// Stop ends Dovecot and removes its folder.
func (s *Server) Stop() {
	if s.cmd != nil {
		_ = s.cmd.Process.Signal(syscall.SIGTERM)
		timer := time.NewTimer(stopTimeout)
		defer timer.Stop()
		select {
		case <-s.done:
		case <-timer.C:
			_ = s.cmd.Process.Kill()
			<-s.done
		}
	}
	_ = os.RemoveAll(s.dir)
}
