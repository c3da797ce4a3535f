package bench

import (
	"context"
	"encoding/json"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/mailbell/mailbell/bench/cputime"
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

	// deliverySeconds is what Dovecot uses for a delivery, which is no part of hearing of it; 0 for other stores, whose changes
	// are made by the bench itself.
	deliverySeconds float64

	mu     sync.Mutex // guards changes, and the server's stdin
	memory []uint32   // changes by account, for a server that begins anew
}

func newWebmail(ctx context.Context, ps *processes, cfg CompareConfig, kind sideKind, dir string) (*webmail, error) {
	w := &webmail{processes: ps, memory: make([]uint32, cfg.Users), cfg: pollserver.Config{
		Addr: anyPort, Store: mailstore.Config{Kind: cfg.Store, Accounts: uint32(cfg.Users), Mailboxes: cfg.Mailboxes},
	}}
	if kind == pushing { // who polls never lets a connection be idle for long
		w.cfg.KeepAlive = cfg.KeepAlive
	}
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
	if w.dovecot, err = dovecotproc.Start(ctx, dovecotproc.Options{IMAPProcesses: cfg.Users + spareProcesses}); err != nil {
		return err
	}
	w.cfg.Store.IMAP, w.cfg.Store.Password, w.cfg.Store.Sessions = w.dovecot.IMAPAddr(), dovecotproc.Password, cfg.Users
	w.writer = &dovecotWriter{server: w.dovecot}
	cfg.Progress.say("making %d mailboxes of %d users in Dovecot", cfg.Mailboxes, cfg.Users)
	if err := mailstore.FillDovecot(ctx, w.cfg.Store, 0, w.cfg.Store.Accounts); err != nil {
		return err
	}
	return w.weighDelivery(ctx, cfg)
}

const (
	spareProcesses   = 50  // of IMAP, beside one for each user
	weighedDelivered = 200 // messages by which the cost of a delivery is measured
)

// weighDelivery measures what a delivery costs, with accounts that nobody has. Each gets as many messages as a user will: the
// first in a mailbox costs more than those after it.
func (w *webmail) weighDelivery(ctx context.Context, cfg CompareConfig) error {
	s := cfg.schedule()
	each := max(1, int(math.Round(cfg.ChangeRate*(s.RunIn+s.Duration).Hours())))
	first, accounts := w.cfg.Store.Accounts, uint32((weighedDelivered+each-1)/each)
	if err := mailstore.FillDovecot(ctx, w.cfg.Store, first, accounts); err != nil {
		return err
	}
	var err error
	w.deliverySeconds, err = cputime.PerCall(w.dovecot.PID(), weighedDelivered, func(i int) error {
		return w.writer.Change(ctx, first+uint32(i)%accounts)
	})
	if err != nil {
		return fmt.Errorf("measure deliveries: %w", err)
	}
	cfg.Progress.say("a delivery costs Dovecot %.2f ms of CPU", 1000*w.deliverySeconds)
	return nil
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
		all = append(all, processTree{name: mailstore.Dovecot, pid: w.dovecot.PID()})
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
	cpuTime() (cputime.Time, error)
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

func (t processTree) cpuTime() (cputime.Time, error) { return cputime.Tree(t.pid) }

// resident is proportional: what processes share counts once.
func (t processTree) resident() (bytes int64, err error) {
	pids, err := cputime.Descendants(t.pid)
	for _, pid := range pids {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
		if err != nil {
			continue // has ended
		}
		for line := range strings.Lines(string(b)) {
			if f := strings.Fields(line); len(f) == 3 && f[0] == "Pss:" {
				kb, _ := strconv.ParseInt(f[1], 10, 64)
				bytes += kb << 10
			}
		}
	}
	return bytes, err
}
