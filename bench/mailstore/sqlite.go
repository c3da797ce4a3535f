package mailstore

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/url"
	"sync/atomic"

	_ "modernc.org/sqlite" // the driver "sqlite"

	"github.com/mailbell/mailbell/bench/ledger"
)

const sqliteSchema = `
CREATE TABLE account (name TEXT PRIMARY KEY, version INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE mailbox (
	account TEXT NOT NULL, number INTEGER NOT NULL, name TEXT NOT NULL, uidvalidity INTEGER NOT NULL, uidnext INTEGER NOT NULL,
	messages INTEGER NOT NULL, unseen INTEGER NOT NULL, modseq INTEGER NOT NULL,
	PRIMARY KEY (account, number)
) WITHOUT ROWID;`

// dsn opens a file with a journal that lets readers and one writer go on side by side, and all of it in memory maps.
func dsn(path string, more ...string) string {
	q := url.Values{"_pragma": append([]string{"journal_mode(WAL)", "synchronous(NORMAL)", "busy_timeout(5000)", "mmap_size(268435456)"}, more...)}
	return "file:" + url.PathEscape(path) + "?" + q.Encode()
}

// sqliteReaders is how many connections read at once; each costs a thread's worth of memory maps.
const sqliteReaders = 8

type sqliteStore struct {
	db        *sql.DB
	version   *sql.Stmt
	mailboxes *sql.Stmt
	reads     atomic.Int64
}

func openSQLite(cfg Config) (*sqliteStore, error) {
	db, err := sql.Open("sqlite", dsn(cfg.Path, "query_only(1)"))
	if err != nil {
		return nil, fmt.Errorf("open SQLite: %w", err)
	}
	db.SetMaxOpenConns(sqliteReaders)
	db.SetMaxIdleConns(sqliteReaders)
	s := &sqliteStore{db: db}
	s.version, err = db.Prepare(`SELECT version FROM account WHERE name = ?`)
	if err == nil {
		s.mailboxes, err = db.Prepare(`SELECT name, uidvalidity, uidnext, messages, unseen, modseq FROM mailbox WHERE account = ? ORDER BY number`)
	}
	if err != nil {
		db.Close()
		return nil, fmt.Errorf("open SQLite: %w", err)
	}
	return s, nil
}

// Read asks for the version first: the poll that finds nothing new costs one row.
func (s *sqliteStore) Read(ctx context.Context, account string, have uint64, dst []Mailbox) (uint64, []Mailbox, error) {
	var version uint64
	s.reads.Add(1)
	switch err := s.version.QueryRowContext(ctx, account).Scan(&version); {
	case errors.Is(err, sql.ErrNoRows):
		return 0, nil, ErrNoAccount
	case err != nil:
		return 0, nil, fmt.Errorf("read version: %w", err)
	case version == have:
		return version, nil, nil
	}
	s.reads.Add(1)
	rows, err := s.mailboxes.QueryContext(ctx, account)
	if err != nil {
		return 0, nil, fmt.Errorf("read mailboxes: %w", err)
	}
	defer rows.Close()
	for rows.Next() {
		var b Mailbox
		if err := rows.Scan(&b.Name, &b.UIDValidity, &b.UIDNext, &b.Messages, &b.Unseen, &b.ModSeq); err != nil {
			return 0, nil, fmt.Errorf("read mailboxes: %w", err)
		}
		dst = append(dst, b)
		if b.Name == Inbox {
			version = b.ModSeq // of these rows, not of a moment earlier
		}
	}
	return version, dst, rows.Err()
}

func (s *sqliteStore) Reads() int64 { return s.reads.Load() }

func (s *sqliteStore) Close() error { return s.db.Close() }

// SQLiteWriter is the mail store's delivery.
type SQLiteWriter struct {
	db *sql.DB
}

// CreateSQLite makes the file with all accounts and returns its writer.
func CreateSQLite(ctx context.Context, cfg Config) (*SQLiteWriter, error) {
	db, err := sql.Open("sqlite", dsn(cfg.Path))
	if err != nil {
		return nil, fmt.Errorf("create SQLite: %w", err)
	}
	db.SetMaxOpenConns(1) // SQLite has one writer
	w := &SQLiteWriter{db: db}
	if err := w.fill(ctx, cfg); err != nil {
		db.Close()
		return nil, fmt.Errorf("create SQLite: %w", err)
	}
	return w, nil
}

func (w *SQLiteWriter) fill(ctx context.Context, cfg Config) error {
	if _, err := w.db.ExecContext(ctx, sqliteSchema); err != nil {
		return err
	}
	tx, err := w.db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer func() { _ = tx.Rollback() }()
	names := MailboxNames(cfg.Mailboxes)
	for i := range cfg.Accounts {
		account := ledger.AccountName(i)
		if _, err := tx.ExecContext(ctx, `INSERT INTO account VALUES (?, 1)`, account); err != nil {
			return err
		}
		for n, name := range names {
			if _, err := tx.ExecContext(ctx, `INSERT INTO mailbox VALUES (?, ?, ?, ?, 1, 0, 0, 1)`, account, n, name, UIDValidity); err != nil {
				return err
			}
		}
	}
	return tx.Commit()
}

// Change implements Writer.
func (w *SQLiteWriter) Change(ctx context.Context, account uint32) error {
	tx, err := w.db.BeginTx(ctx, nil)
	if err != nil {
		return fmt.Errorf("change in SQLite: %w", err)
	}
	defer func() { _ = tx.Rollback() }()
	name := ledger.AccountName(account)
	_, err = tx.ExecContext(ctx, `UPDATE account SET version = version + 1 WHERE name = ?`, name)
	if err == nil {
		_, err = tx.ExecContext(ctx, `UPDATE mailbox SET uidnext = uidnext + 1, messages = messages + 1, unseen = unseen + 1, modseq = modseq + 1 WHERE account = ? AND number = 0`, name)
	}
	if err == nil {
		err = tx.Commit()
	}
	if err != nil {
		return fmt.Errorf("change in SQLite: %w", err)
	}
	return nil
}

// Close implements Writer.
func (w *SQLiteWriter) Close() error { return w.db.Close() }
