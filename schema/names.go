package schema

import (
	"fmt"
	"unicode/utf8"
)

// Limits of names, in bytes of UTF-8.
const (
	MaxAccountBytes = 320  // 64 local part, "@", 255 domain: RFC 5321, section 4.5.3.1
	MaxMailboxBytes = 1024 // a path of mailbox names, each at most 255 bytes in every store known
)

// Account names the owner of mailboxes, such as "alice@example.com". It is the
// routing key: the Kafka record's key and what notifiers subscribe to. Names are
// compared byte for byte.
type Account string

// Mailbox names one folder of an account, such as "INBOX" or "Lists/golang".
type Mailbox string

// Validate returns an error unless the name has 1 to [MaxAccountBytes] bytes of
// UTF-8 without control characters and without a space at either end.
func (a Account) Validate() error { return validateName(string(a), MaxAccountBytes) }

// Validate returns an error unless the name has 1 to [MaxMailboxBytes] bytes of
// UTF-8 without control characters. Spaces are allowed anywhere, as in IMAP.
func (m Mailbox) Validate() error {
	if m != "" && (m[0] == ' ' || m[len(m)-1] == ' ') {
		return validateName("x"+string(m)+"x", MaxMailboxBytes+2)
	}
	return validateName(string(m), MaxMailboxBytes)
}

func validateName(s string, limit int) error {
	switch {
	case s == "":
		return fmt.Errorf("is empty")
	case len(s) > limit:
		return fmt.Errorf("has %d bytes, the limit is %d", len(s), limit)
	case !utf8.ValidString(s):
		return fmt.Errorf("is not valid UTF-8")
	case s[0] == ' ' || s[len(s)-1] == ' ':
		return fmt.Errorf("begins or ends with a space")
	}
	for i := 0; i < len(s); i++ {
		if s[i] < 0x20 || s[i] == 0x7f {
			return fmt.Errorf("has a control character at byte %d", i)
		}
	}
	return nil
}

// EventName is the name of an event as RFC 5423, section 4, has it, or begins
// with "vnd." for everything else.
type EventName string

// The events of RFC 5423, section 4.
const (
	MessageAppend      EventName = "MessageAppend"
	MessageExpire      EventName = "MessageExpire"
	MessageExpunge     EventName = "MessageExpunge"
	MessageNew         EventName = "MessageNew"
	MessageRead        EventName = "MessageRead"
	MessageTrash       EventName = "MessageTrash"
	FlagsSet           EventName = "FlagsSet"
	FlagsClear         EventName = "FlagsClear"
	MailboxCreate      EventName = "MailboxCreate"
	MailboxDelete      EventName = "MailboxDelete"
	MailboxRename      EventName = "MailboxRename"
	MailboxSubscribe   EventName = "MailboxSubscribe"
	MailboxUnSubscribe EventName = "MailboxUnSubscribe"
	QuotaExceed        EventName = "QuotaExceed"
	QuotaWithin        EventName = "QuotaWithin"
	QuotaChange        EventName = "QuotaChange"
	Login              EventName = "Login"
	Logout             EventName = "Logout"
)

// VendorPrefix begins the name of every event that RFC 5423 does not know.
const VendorPrefix = "vnd."

// maxEventNameBytes bounds vendor names.
const maxEventNameBytes = 128

// kind says which fields an event must have.
type kind uint8

const (
	kindUnknown kind = iota
	kindMessage      // about messages: mailbox, uidValidity, uidset
	kindMailbox      // about a mailbox: mailbox
	kindAccount      // about an account: nothing more
)

func (n EventName) kind() kind {
	switch n {
	case MessageAppend, MessageExpire, MessageExpunge, MessageNew, MessageRead, MessageTrash, FlagsSet, FlagsClear:
		return kindMessage
	case MailboxCreate, MailboxDelete, MailboxRename, MailboxSubscribe, MailboxUnSubscribe:
		return kindMailbox
	case QuotaExceed, QuotaWithin, QuotaChange, Login, Logout:
		return kindAccount
	}
	if len(n) > len(VendorPrefix) && len(n) <= maxEventNameBytes && n[:len(VendorPrefix)] == VendorPrefix && printable(string(n)) {
		return kindAccount
	}
	return kindUnknown
}

// printable reports whether s has only printable ASCII without spaces.
func printable(s string) bool {
	for i := 0; i < len(s); i++ {
		if s[i] <= 0x20 || s[i] >= 0x7f {
			return false
		}
	}
	return true
}
