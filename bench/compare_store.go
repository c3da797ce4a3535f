package bench

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/mailbell/mailbell/bench/ledger"
	"github.com/mailbell/mailbell/bench/mailstore"
	"github.com/mailbell/mailbell/bench/pollserver"
	"github.com/mailbell/mailbell/internal/dovecotproc"
)

// webmail is the poll server's process and the mail store behind it. A store whose server is a process of its own,
// or a webmail of another kind, comes in here: it has to say where polls go, how a message is delivered, and what
// its processes have cost.
type webmail struct {
	processes *processes
	cfg       pollserver.Config
	server    *process // nil while there is none
	dovecot   *dovecotproc.Server
	writer    mailstore.Writer // nil for memory

	mu     sync.Mutex // guards changes, and the server's stdin
	memory []uint32   // changes by account, for a server that begins anew
}

func newWebmail(ctx context.Context, ps *processes, cfg CompareConfig, dir string) (*webmail, error) {
	w := &webmail{processes: ps, memory: make([]uint32, cfg.Users), cfg: pollserver.Config{
		Addr: anyPort, Store: mailstore.Config{Kind: cfg.Store, Accounts: uint32(cfg.Users), Mailboxes: cfg.Mailboxes},
	}}
	var err error
	switch cfg.Store {
	case mailstore.SQLite:
		w.cfg.Store.Path = filepath.Join(dir, "mail.db")
		w.writer, err = mailstore.CreateSQLite(ctx, w.cfg.Store)
	case mailstore.Dovecot:
		err = w.startDovecot(ctx, cfg)
	}
	if err == nil {
		err = w.start(ctx)
	}
	if err != nil {
		w.stop()
		return nil, err
	}
	return w, nil
}

// startDovecot starts one and makes its users' mailboxes.
func (w *webmail) startDovecot(ctx context.Context, cfg CompareConfig) error {
	var err error
	if w.dovecot, err = dovecotproc.Start(ctx, dovecotproc.Options{}); err != nil {
		return err
	}
	w.cfg.Store.IMAP, w.cfg.Store.Password = w.dovecot.IMAPAddr(), dovecotproc.Password
	w.writer = &dovecotWriter{server: w.dovecot}
	cfg.Progress.say("making %d mailboxes of %d users in Dovecot", cfg.Mailboxes, cfg.Users)
	return mailstore.FillDovecot(ctx, w.cfg.Store)
}

// start starts the poll server, where it was before if it was.
func (w *webmail) start(ctx context.Context) error {
	p, err := w.processes.start("pollserver", "bench", "pollserver")
	if err != nil {
		return err
	}
	if err := p.say(w.cfg); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	reply, err := pollReply(ctx, p)
	if err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.server, w.cfg.Addr = p, reply.Addr
	if w.writer != nil {
		return nil
	}
	for account, n := range w.memory { // what memory forgot
		if n > 0 {
			if err := p.tell(strings.TrimSuffix(strings.Repeat(strconv.Itoa(account)+"\n", int(n)), "\n")); err != nil {
				return err
			}
		}
	}
	return nil
}

func pollReply(ctx context.Context, p *process) (pollserver.Reply, error) {
	var r pollserver.Reply
	line, err := p.next(ctx)
	if err != nil {
		return r, err
	}
	return r, json.Unmarshal(line, &r)
}

// kill ends the poll server at once; the mail store lives on.
func (w *webmail) kill() {
	w.mu.Lock()
	p := w.server
	w.server = nil
	w.mu.Unlock()
	if p != nil {
		p.kill()
	}
}

// change delivers a message.
func (w *webmail) change(ctx context.Context, account uint32) error {
	if w.writer != nil {
		return w.writer.Change(ctx, account)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.memory[account]++
	if w.server == nil {
		return nil
	}
	_ = w.server.tell(strconv.FormatUint(uint64(account), 10)) // a server that has ended is told by start, or missed by who measures it
	return nil
}

// reads returns how often the store was asked.
func (w *webmail) reads(ctx context.Context) (int64, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := w.server.tell(pollserver.CommandReads); err != nil {
		return 0, err
	}
	r, err := pollReply(ctx, w.server)
	return r.Reads, err
}

// servers returns what counts as a server.
func (w *webmail) servers() []meter {
	var all []meter
	if w.server != nil {
		all = append(all, w.server)
	}
	if w.dovecot != nil {
		all = append(all, processTree{name: "dovecot", pid: w.dovecot.PID()})
	}
	return all
}

func (w *webmail) stop() {
	w.kill()
	if w.writer != nil {
		_ = w.writer.Close()
	}
	if w.dovecot != nil {
		w.dovecot.Stop()
	}
}

// dovecotWriter delivers by LMTP, as a mail exchanger does.
type dovecotWriter struct{ server *dovecotproc.Server }

func (d *dovecotWriter) Change(ctx context.Context, account uint32) error {
	to := ledger.AccountName(account)
	return d.server.Deliver(ctx, to, dovecotproc.Message("sender@example.org", to, "News", "Something has happened."))
}

func (d *dovecotWriter) Close() error { return nil }

// meter is something whose cost is measured: a process, or one with its children.
type meter interface {
	label() string
	cpuTimes() (user, system float64, err error)
	resident() (int64, error)
}

func (p *process) label() string            { return p.name }
func (p *process) resident() (int64, error) { return p.memory("VmRSS") }

// processTree is a process with all that descend from it, those that have ended and were waited for among them.
type processTree struct {
	name string
	pid  int
}

func (t processTree) label() string { return t.name }

func (t processTree) cpuTimes() (user, system float64, err error) {
	err = t.each(func(_ int, f []string) {
		for i, sum := range map[int]*float64{11: &user, 12: &system, 13: &user, 14: &system} { // the last two: of children that ended
			v, _ := strconv.ParseFloat(f[i], 64)
			*sum += v / clockTick
		}
	})
	return user, system, err
}

// resident is proportional: what processes share counts once.
func (t processTree) resident() (bytes int64, err error) {
	err = t.each(func(pid int, _ []string) {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
		if err != nil {
			return
		}
		for line := range strings.Lines(string(b)) {
			if f := strings.Fields(line); len(f) == 3 && f[0] == "Pss:" {
				kb, _ := strconv.ParseInt(f[1], 10, 64)
				bytes += kb << 10
			}
		}
	})
	return bytes, err
}

// each calls fn with the fields of /proc/PID/stat of the process and its descendants.
func (t processTree) each(fn func(pid int, fields []string)) error {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return fmt.Errorf("processes of %s: %w", t.name, err)
	}
	stats, children := make(map[int][]string), make(map[int][]int)
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			continue // has ended
		}
		if f := statFields(b); len(f) > 14 {
			parent, _ := strconv.Atoi(f[1])
			stats[pid], children[parent] = f, append(children[parent], pid)
		}
	}
	if stats[t.pid] == nil {
		return fmt.Errorf("processes of %s: %w", t.name, errors.New("it has ended"))
	}
	for todo := []int{t.pid}; len(todo) > 0; todo = todo[1:] {
		fn(todo[0], stats[todo[0]])
		todo = append(todo, children[todo[0]]...)
	}
	return nil
}
