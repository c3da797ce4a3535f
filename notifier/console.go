package notifier

import (
	"net/netip"

	"github.com/mailbell/mailbell/schema"
)

// Subscriber is a client's subscription to one account, for operators.
type Subscriber struct {
	Address   string           // of the peer
	Mailboxes []schema.Mailbox // nil: all
	Waiting   bool             // events wait for it, or it will be told that it missed some
}

// Subscribers returns at most limit of an account's subscriptions, and how many there are.
func (s *Server) Subscribers(account schema.Account, limit int) (some []Subscriber, all int) {
	for _, sh := range s.shards {
		some, all = sh.subscribers(account, limit, some, all)
	}
	return some, all
}

func (sh *shard) subscribers(account schema.Account, limit int, some []Subscriber, all int) ([]Subscriber, int) {
	sh.enter()
	defer sh.leave()
	a := sh.accounts.wanted(string(account))
	if a == 0 {
		return some, all
	}
	for n := sh.subs.first(a); n != 0; n = sh.subs.all.at(n).next {
		all++
		if len(some) >= limit {
			continue
		}
		sub := sh.subs.all.at(n)
		one := Subscriber{Waiting: sub.filter&(subQueued|subMissed) != 0}
		if f := sub.filter & filterMask; f != 0 {
			one.Mailboxes = append([]schema.Mailbox(nil), sh.filters.all[f].boxes...)
		}
		if ip, ok := netip.AddrFromSlice([]byte(sh.addrs.name(sh.slots.all.at(sub.slot).addr))); ok {
			one.Address = ip.String()
		}
		some = append(some, one)
	}
	return some, all
}
