package main

import (
	"bytes"
	"errors"
	"io"
	"testing"
	"time"

	"github.com/mailbell/mailbell/internal/wsclient"
)

func TestEventLine(t *testing.T) {
	tests := []struct{ name, event, want string }{
		{"a new message",
			`{"id":"1","event":"MessageNew","account":"alice@example.com","mailbox":"INBOX","uidValidity":1,"uidset":"5","messages":12,"unseen":3,"user":"alice@example.com","service":"lmtp","timestamp":"2026-11-21T05:17:58Z"}`,
			"05:17:58  INBOX  MessageNew  uid 5, 3 of 12 unseen, by lmtp"},
		{"somebody else's flags",
			`{"id":"1","event":"FlagsSet","account":"team@example.com","mailbox":"INBOX","uidValidity":1,"uidset":"5:9,12","flagNames":["\\Seen"],"user":"bob@example.com","service":"imap","timestamp":"2026-11-21T05:17:58Z"}`,
			`05:17:58  INBOX  FlagsSet  uids 5:9,12, \Seen, by bob@example.com imap`},
		{"a rename",
			`{"id":"1","event":"MailboxRename","account":"alice@example.com","mailbox":"New","oldMailbox":"Old","timestamp":"2026-11-21T05:17:58Z"}`,
			"05:17:58  Old → New  MailboxRename  "},
		{"no mailbox", `{"id":"1","event":"Login","account":"a","service":"imap","timestamp":"2026-11-21T05:17:58Z"}`,
			"05:17:58  -  Login  by imap"},
		{"truncated", `{"id":"1","event":"MessageExpunge","account":"a","mailbox":"INBOX","uidValidity":1,"truncated":true,"messages":0,"timestamp":"2026-11-21T05:17:58Z"}`,
			"05:17:58  INBOX  MessageExpunge  many messages, 0 messages"},
		{"escape sequences", `{"id":"1","event":"Login","account":"a","service":"\u001b[2Jx\u009bx","timestamp":"2026-11-21T05:17:58Z"}`,
			"05:17:58  -  Login  by ·[2Jx·x"},
		{"not an event", `{"event":"Later"}`, `{"event":"Later"}`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := eventLine([]byte(tt.event), time.UTC); got != tt.want {
				t.Errorf("eventLine =\n%q, want\n%q", got, tt.want)
			}
		})
	}
}

func TestWatchSaysWhyItIsAlone(t *testing.T) {
	refused := errors.New("connection refused")
	tests := []struct {
		name string
		told []wsclient.Update
		want string
	}{
		{"a drain", []wsclient.Update{{Kind: wsclient.Moving, Reason: "drain"}, {Kind: wsclient.Disconnected, Err: io.EOF}, {Kind: wsclient.Disconnected, Err: refused}},
			"moving to another notifier (drain)\nthe notifier has left; trying again\n"},
		{"a shutdown", []wsclient.Update{{Kind: wsclient.Disconnected, Err: &wsclient.CloseError{Code: 1001, Reason: "shutdown"}}},
			"the notifier has left; trying again\n"},
		{"no answer", []wsclient.Update{{Kind: wsclient.Disconnected, Err: refused}}, "not connected: connection refused; trying again\n"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var out bytes.Buffer
			w := watcher{t: terminal{err: &out}}
			for _, u := range tt.told {
				if err := w.showText(u); err != nil {
					t.Fatal(err)
				}
			}
			if out.String() != tt.want {
				t.Errorf("watch says %q, want %q", out.String(), tt.want)
			}
		})
	}
}
