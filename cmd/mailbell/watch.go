package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/mailbell/mailbell/internal/auth"
	"github.com/mailbell/mailbell/internal/wsclient"
	"github.com/mailbell/mailbell/schema"
	"github.com/spf13/cobra"
)

const watchLong = `Follow an account in the terminal: one line an event, until Ctrl-C.

It asks the gateway of --server for a notifier, as a browser does, and comes back by
position when the connection is gone. Without --token, a token is made with the key
that "mailbell run" made in --data.`

// watchFlags are the settings of `mailbell watch`.
type watchFlags struct {
	server    serverFlags
	log       logFlags
	account   string
	mailboxes []string
	since     string
	count     int
	json      bool
}

func newWatchCommand(t terminal) *cobra.Command {
	var f watchFlags
	cmd := &cobra.Command{
		Use:   "watch --account ACCOUNT",
		Short: "Follow an account in the terminal",
		Long:  watchLong,
		Example: `  mailbell watch --account alice@example.com
  mailbell watch --account alice@example.com --mailboxes INBOX --json | jq .event
  mailbell watch --account alice@example.com --server https://mail.example.com --token "$JWT"`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return f.run(cmd, t) },
	}
	fs := cmd.Flags()
	fs.StringVar(&f.account, "account", "", "whose mail")
	fs.StringSliceVar(&f.mailboxes, "mailboxes", nil, "only these `mailboxes`, with commas (default: all)")
	fs.StringVar(&f.since, "since", "", "first what happened since this `position`, as --json prints it")
	fs.IntVar(&f.count, "count", 0, "end after so many events; 0 never")
	f.server.register(fs)
	jsonFlag(fs, &f.json)
	f.log.register(fs)
	return cmd
}

func (f *watchFlags) config(cmd *cobra.Command) (wsclient.Config, error) {
	base, err := f.server.base(cmd)
	if err != nil {
		return wsclient.Config{}, err
	}
	logger, err := f.log.logger(cmd)
	if err != nil {
		return wsclient.Config{}, err
	}
	cfg := wsclient.Config{Gateways: []string{base + gatewayPath}, Token: f.server.token, Logger: logger}
	if cfg.Token == "" {
		key, err := madeByRun(f.server.data, "--token", func(d auth.Dev) string { return d.PrivateKeyFile })
		if err != nil {
			return wsclient.Config{}, err
		}
		cfg.NewToken = func(context.Context) (string, error) {
			return auth.MintToken(key, auth.Claims{Account: schema.Account(f.account)})
		}
	}
	return cfg, nil
}

func (f *watchFlags) run(cmd *cobra.Command, t terminal) error {
	if f.account == "" {
		return wrong(cmd, "--account is missing: whose mail? For example --account alice@example.com")
	}
	cfg, err := f.config(cmd)
	if err != nil {
		return err
	}
	client, err := wsclient.New(cfg)
	if err != nil {
		return err
	}
	defer client.Close()
	var mailboxes []schema.Mailbox
	for _, m := range f.mailboxes {
		mailboxes = append(mailboxes, schema.Mailbox(m))
	}
	if err := client.Subscribe(schema.Account(f.account), mailboxes, f.since); err != nil {
		return wrong(cmd, "--account: %w", err)
	}
	ctx := cmd.Context()
	w := watcher{t: t, json: f.json, left: f.count}
	for {
		u, err := client.Next(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return fmt.Errorf("watch: %w", err)
		}
		done, err := w.show(u)
		if err != nil || done {
			return err
		}
	}
}

// watcher prints what a client tells. Lines of events go to stdout, words about the
// connection to stderr.
type watcher struct {
	t        terminal
	json     bool
	left     int
	moving   bool // the notifier has told it to go elsewhere
	troubled bool // the last word was of trouble: it is not said again
}

// show prints one update; done says that enough has been seen.
func (w *watcher) show(u wsclient.Update) (done bool, err error) {
	if w.json {
		err = w.showJSON(u)
	} else {
		err = w.showText(u)
	}
	switch u.Kind {
	case wsclient.Refused:
		return true, fmt.Errorf("watch %s: refused: %s (%s)", u.Account, u.Message, u.Code)
	case wsclient.Event:
		w.left--
		return w.left == 0, err
	}
	return false, err
}

func (w *watcher) showText(u wsclient.Update) error {
	switch u.Kind {
	case wsclient.Event:
		_, err := fmt.Fprintln(w.t.out, eventLine(u.Event, time.Local))
		return err
	case wsclient.Missed:
		_, err := fmt.Fprintf(w.t.out, "%s  -  events were missed (%s)\n", time.Now().Format("15:04:05"), u.Reason)
		return err
	case wsclient.Subscribed:
		w.troubled, w.moving = false, false
		fmt.Fprintf(w.t.err, "watching %s: %s\n", printable(string(u.Account)), catchUpWords(u.CatchUp))
	case wsclient.Disconnected:
		if !w.troubled {
			w.troubled = true
			fmt.Fprintf(w.t.err, "%s; trying again\n", w.trouble(u.Err))
		}
	case wsclient.Moving:
		w.moving = true
		fmt.Fprintf(w.t.err, "moving to another notifier (%s)\n", u.Reason)
	}
	return nil
}

// goingAway is the code with which a server closes that ends. RFC 6455, section 7.4.1.
const goingAway = 1001

// trouble says why there is no connection.
func (w *watcher) trouble(err error) string {
	closed, ok := errors.AsType[*wsclient.CloseError](err)
	if w.moving || ok && closed.Code == goingAway {
		return "the notifier has left"
	}
	return fmt.Sprintf("not connected: %v", rootCause(err))
}

func catchUpWords(c schema.CatchUp) string {
	switch c {
	case schema.Fresh:
		return "from now on"
	case schema.Current:
		return "nothing happened meanwhile"
	case schema.Replay:
		return "here is what happened meanwhile"
	}
	return "what happened meanwhile can't be told; from now on"
}

func (w *watcher) showJSON(u wsclient.Update) error {
	r := watchRecord{Type: string(u.Kind), Account: u.Account, Reason: u.Reason, CatchUp: u.CatchUp, Event: u.Event}
	switch u.Kind {
	case wsclient.Subscribed, wsclient.Event, wsclient.Missed:
		r.Position = u.Position.String()
	case wsclient.Disconnected:
		r.Reason = errorText(u.Err)
	case wsclient.Connected, wsclient.Moving, wsclient.Refused:
		return nil
	}
	line, err := json.Marshal(r)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(w.t.out, "%s\n", line)
	return err
}

func errorText(err error) string {
	if err == nil {
		return ""
	}
	return rootCause(err).Error()
}
