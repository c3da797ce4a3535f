package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"time"

	"github.com/mailbell/mailbell/schema"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"golang.org/x/term"
)

const publishLong = `Publish one event made from flags, or the events that come on stdin, one JSON
object a line. It ends with 0 only when every event is on the log.

Events go to the HTTP ingest of --server (of "mailbell run" or "mailbell adapter"),
or straight to Kafka with --brokers. Without --token, the service token that
"mailbell run" made in --data is used.

Events on stdin are sent as they stand: id, event, account and timestamp are
required, and the first bad line stops the rest.`

// publishFlags are the settings of `mailbell publish`.
type publishFlags struct {
	server serverFlags
	kafka  kafkaFlags
	event  eventFlags
	log    logFlags
	json   bool
}

func newPublishCommand(t terminal) *cobra.Command {
	var f publishFlags
	cmd := &cobra.Command{
		Use:   "publish",
		Short: "Publish an event, or events from stdin",
		Long:  publishLong,
		Example: `  mailbell publish --account alice@example.com --mailbox INBOX --uidvalidity 1 --uid 1 --unseen 1
  mailbell publish --account alice@example.com --event MailboxCreate --mailbox Archive/2026
  mailbell publish --server https://mail.example.com --token "$TOKEN" < events.ndjson
  mailbell publish --brokers kafka1:9092 < events.ndjson`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return f.run(cmd, t) },
	}
	fs := cmd.Flags()
	f.event.register(fs)
	f.server.register(fs)
	f.kafka.register(fs)
	jsonFlag(fs, &f.json)
	f.log.register(fs)
	return cmd
}

// eventFlags make one event.
type eventFlags struct {
	account, event, mailbox, oldMailbox, uids, modseq, user, service, session, id string
	uidValidity, uidNext                                                          uint32
	messages, unseen                                                              int64
	flags                                                                         []string
}

func (e *eventFlags) register(fs *pflag.FlagSet) {
	fs.StringVar(&e.account, "account", "", "whose mail: the owner of the mailbox")
	fs.StringVar(&e.event, "event", string(schema.MessageNew), "what happened: a `name` of RFC 5423, or one that starts with vnd.")
	fs.StringVar(&e.mailbox, "mailbox", "", "where, such as INBOX")
	fs.StringVar(&e.oldMailbox, "old-mailbox", "", "for MailboxRename: the name before")
	fs.Uint32Var(&e.uidValidity, "uidvalidity", 0, "of the mailbox; needed for events about messages")
	fs.StringVar(&e.uids, "uid", "", "the messages, as an IMAP sequence `set` such as 5 or 1:300,405; needed for events about messages")
	fs.Uint32Var(&e.uidNext, "uidnext", 0, "of the mailbox after the event")
	fs.StringVar(&e.modseq, "modseq", "", "highest mod-sequence of the mailbox after the event")
	fs.Int64Var(&e.messages, "messages", -1, "messages in the mailbox after the event; -1 unknown")
	fs.Int64Var(&e.unseen, "unseen", -1, "of them without \\Seen; -1 unknown")
	fs.StringSliceVar(&e.flags, "flags", nil, "flags set or cleared, such as \\Seen,\\Flagged")
	fs.StringVar(&e.user, "user", "", "who caused it, if not the owner")
	fs.StringVar(&e.service, "service", "", "through what, such as imap")
	fs.StringVar(&e.session, "session", "", "the store's session that caused it")
	fs.StringVar(&e.id, "id", "", "the event's id (default: a new one)")
}

// given returns a flag of an event that was set, or nothing.
func (e *eventFlags) given(fs *pflag.FlagSet) string {
	own, name := pflag.NewFlagSet("", pflag.ContinueOnError), ""
	(&eventFlags{}).register(own)
	own.VisitAll(func(flag *pflag.Flag) {
		if fs.Changed(flag.Name) {
			name = flag.Name
		}
	})
	return name
}

func (e *eventFlags) encode(now time.Time) ([]byte, error) {
	event := schema.Event{
		ID: e.id, Event: schema.EventName(e.event), Account: schema.Account(e.account),
		Mailbox: schema.Mailbox(e.mailbox), OldMailbox: schema.Mailbox(e.oldMailbox),
		UIDValidity: e.uidValidity, UIDNext: e.uidNext, ModSeq: e.modseq, FlagNames: e.flags,
		User: e.user, Service: e.service, Session: e.session, Timestamp: now,
	}
	if event.ID == "" {
		event.ID = schema.NewID()
	}
	if e.uids != "" {
		set, err := schema.ParseUIDSet(e.uids)
		if err != nil {
			return nil, fmt.Errorf("--uid: %w", err)
		}
		event.SetUIDs(&set)
	}
	var err error
	if event.Messages, err = count("--messages", e.messages); err != nil {
		return nil, err
	}
	if event.Unseen, err = count("--unseen", e.unseen); err != nil {
		return nil, err
	}
	return event.Encode()
}

func count(flag string, n int64) (*uint32, error) {
	if n == -1 {
		return nil, nil
	}
	if n < 0 || n > math.MaxUint32 {
		return nil, fmt.Errorf("%s %d: must be a number of messages, or -1 for unknown", flag, n)
	}
	v := uint32(n)
	return &v, nil
}

func (f *publishFlags) run(cmd *cobra.Command, t terminal) error {
	var one []byte
	if f.event.account != "" {
		var err error
		if one, err = f.event.encode(time.Now()); err != nil {
			return wrong(cmd, "%w", err)
		}
	} else if name := f.event.given(cmd.Flags()); name != "" {
		return wrong(cmd, "--account is missing: --%s makes an event, which needs one", name)
	} else if file, ok := t.in.(*os.File); ok && term.IsTerminal(int(file.Fd())) {
		return wrong(cmd, "--account is missing: give an event by flags, or events on stdin, one JSON object a line")
	}
	sink, closeSink, err := f.open(cmd)
	if err != nil {
		return err
	}
	defer closeSink()
	p := publishing{sink: sink, out: t.out, json: f.json}
	if one != nil {
		return p.batch(cmd.Context(), batch{events: [][]byte{one}}, true)
	}
	return p.lines(cmd.Context(), t)
}

// open chooses where events go.
func (f *publishFlags) open(cmd *cobra.Command) (eventSink, func(), error) {
	if len(f.kafka.brokers) > 0 {
		if err := f.kafka.checkBrokers(); err != nil {
			return nil, nil, &usageError{command: cmd.CommandPath(), err: err}
		}
		logger, err := f.log.logger(cmd)
		if err != nil {
			return nil, nil, err
		}
		return openLogSink(cmd.Context(), &f.kafka, logger)
	}
	sink, err := f.server.ingest(cmd)
	return sink, func() {}, err
}

// A batch goes to the sink in one piece.
type batch struct {
	events [][]byte
	lines  []int // where each stood on stdin
}

// Limits of a batch; the ingest takes more.
const (
	maxBatchEvents = 1000
	maxBatchBytes  = 1 << 20
)

// publishing is one run of the command.
type publishing struct {
	sink      eventSink
	out       io.Writer
	json      bool
	published int
}

func (p *publishing) batch(ctx context.Context, b batch, say bool) error {
	positions, err := p.sink.publish(ctx, b.events)
	if err != nil {
		var bad *badEventError
		if errors.As(err, &bad) && bad.index < len(b.lines) {
			return fmt.Errorf("line %d: %w (%d events before it are on the log)", b.lines[bad.index], bad.err, p.published)
		}
		if len(b.lines) > 0 {
			return fmt.Errorf("lines %d to %d: %w (%d events before them are on the log)", b.lines[0], b.lines[len(b.lines)-1], err, p.published)
		}
		return err
	}
	p.published += len(positions)
	for i, position := range positions {
		switch {
		case p.json:
			line, err := json.Marshal(map[string]string{"id": eventID(b.events[i]), "position": position})
			if err != nil {
				return err
			}
			if _, err := fmt.Fprintf(p.out, "%s\n", line); err != nil {
				return err
			}
		case say:
			if _, err := fmt.Fprintf(p.out, "published %s at %s\n", eventID(b.events[i]), position); err != nil {
				return err
			}
		}
	}
	return nil
}

func eventID(event []byte) string {
	var v struct {
		ID string `json:"id"`
	}
	_ = json.Unmarshal(event, &v) // it was valid when it was published
	return v.ID
}

// lines publishes what comes on stdin, each time what has come so far, so that a
// slow pipe is not held up and a fast one goes in large batches.
func (p *publishing) lines(ctx context.Context, t terminal) error {
	chunks := make(chan batch)
	failed := make(chan error, 1)
	// This goroutine outlives the call when a signal ends it: a read of a
	// terminal or a pipe can't be interrupted. The process ends right after.
	go func() {
		defer close(chunks)
		failed <- readBatches(ctx, t.in, chunks)
	}()
	for {
		select {
		case <-ctx.Done():
			return fmt.Errorf("interrupted: %d events are on the log", p.published)
		case b, more := <-chunks:
			if !more {
				if err := <-failed; err != nil {
					return err
				}
				if !p.json {
					fmt.Fprintf(t.out, "published %d events\n", p.published)
				}
				return nil
			}
			if err := p.batch(ctx, b, false); err != nil {
				return err
			}
		}
	}
}

// readBatches cuts r into lines, and hands on the complete ones after each read.
func readBatches(ctx context.Context, r io.Reader, to chan<- batch) error {
	var rest []byte
	buf := make([]byte, maxBatchBytes/4)
	line := 0
	for {
		n, err := r.Read(buf)
		rest = append(rest, buf[:n]...)
		if errors.Is(err, io.EOF) && len(rest) > 0 && rest[len(rest)-1] != '\n' {
			rest = append(rest, '\n')
		}
		for {
			var b batch
			b, rest, line = cutBatch(rest, line)
			if len(b.events) == 0 {
				break
			}
			select {
			case to <- b:
			case <-ctx.Done():
				return nil
			}
		}
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return fmt.Errorf("stdin: %w", err)
		case len(rest) > schema.MaxEventBytes+1:
			return fmt.Errorf("line %d: more than %d bytes: an event a line is wanted", line+1, schema.MaxEventBytes)
		}
	}
}

// cutBatch takes complete lines off rest, of which line came before.
func cutBatch(rest []byte, line int) (batch, []byte, int) {
	var b batch
	size := 0
	for len(b.events) < maxBatchEvents && size < maxBatchBytes {
		raw, after, ok := bytes.Cut(rest, []byte{'\n'})
		if !ok {
			break
		}
		rest, line = after, line+1
		if event := bytes.TrimSpace(raw); len(event) > 0 {
			b.events = append(b.events, bytes.Clone(event))
			b.lines = append(b.lines, line)
			size += len(event)
		}
	}
	return b, rest, line
}
