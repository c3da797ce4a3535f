package dovecot

import (
	"strings"

	"github.com/mailbell/mailbell/schema"
)

// sharedPrefix is the prefix of a namespace with other users' mailboxes, cut at its variable.
type sharedPrefix struct {
	before, after string
	localPart     bool // the variable is %n, not %u
}

func parseSharedPrefix(prefix string) sharedPrefix {
	i := strings.IndexByte(prefix, '%')
	return sharedPrefix{before: prefix[:i], after: prefix[i+2:], localPart: prefix[i+1] == 'n'}
}

// owner splits the actor's name for a shared mailbox into the owner's account and the
// owner's name for it.
func (p *sharedPrefix) owner(actor schema.Account, m schema.Mailbox) (schema.Account, schema.Mailbox, bool) {
	rest, ok := strings.CutPrefix(string(m), p.before)
	if !ok {
		return "", "", false
	}
	name, mailbox, ok := strings.Cut(rest, p.after)
	if !ok || name == "" || mailbox == "" {
		return "", "", false
	}
	if p.localPart {
		if at := strings.LastIndexByte(string(actor), '@'); at >= 0 {
			name += string(actor[at:])
		}
	}
	return schema.Account(name), schema.Mailbox(mailbox), true
}

// toOwner moves an event about a shared mailbox to its owner's account. Dovecot reports it
// under the actor's account and name for it.
func (a *Agent) toOwner(e *schema.Event) {
	for i := range a.shared {
		account, mailbox, ok := a.shared[i].owner(e.Account, e.Mailbox)
		if !ok {
			continue
		}
		var oldMailbox schema.Mailbox
		if e.OldMailbox != "" {
			oldAccount, old, ok := a.shared[i].owner(e.Account, e.OldMailbox)
			if !ok || oldAccount != account {
				return // moved between owners: leave it as the actor sees it
			}
			oldMailbox = old
		}
		e.Account, e.Mailbox, e.OldMailbox = account, mailbox, oldMailbox
		return
	}
}
