package main

import (
	"testing"
	"time"
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
