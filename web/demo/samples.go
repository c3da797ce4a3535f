package demo

import (
	"time"

	"github.com/mailbell/mailbell/schema"
)

// sampleMails is what the demo delivers, in turn. It is never written to.
var sampleMails = [...]content{
	{from: "Mira Okafor", subject: "Tickets for Saturday", text: "Two seats on the balcony, row C. The doors open at seven, shall we eat before?\n\nI booked the small place by the river, just in case.\n\nMira"},
	{from: "Harbour Library", subject: "The book you reserved is here", text: "“The Bell” is waiting for you at the counter until the end of next week.\n\nPlease bring your card.\n\nHarbour Library"},
	{from: "Jonas Lindqvist", subject: "Re: draft of the talk", text: "Slides 4 to 9 are great now. I'd drop the table on 12 and say the number instead: three people will remember a number, nobody remembers a table.\n\nSee you at ten,\nJonas"},
	{from: "Night watch", subject: "Disk of db-3 back below 70 %", text: "The alert has cleared by itself at 03:12 after the old snapshots went.\n\nNothing to do. Sleep on."},
	{from: "Lena Fischer", subject: "Bread, second attempt", text: "It rose! The trick was the colder water and to leave it alone overnight.\n\nI'll bring half of it tomorrow."},
	{from: "Bicycle workshop", subject: "Your bicycle is ready", text: "New chain, new brake pads, and the bell rings again.\n\nWe are here until six."},
	{from: "Amit Rao", subject: "Minutes of today", text: "Decided: we stop asking every minute and let the server tell us.\nOpen: who writes the note to the users.\nNext: Thursday at eleven.\n\nAmit"},
	{from: "Anna and Tom", subject: "Postcard without the card", text: "The sea is exactly as cold as promised. Tom went in anyway.\n\nLove,\nAnna"},
	{from: "City council", subject: "Works in your street on Tuesday", text: "Between nine and three there will be no water on the even side of the street.\n\nWe are sorry for the trouble."},
	{from: "Chess club", subject: "Your move", text: "Knight takes e5. You have three days, as always.\n\nNo hurry, but the others are watching."},
}

// sample is the content of the nth mail delivered.
func sample(n uint32, now time.Time) content {
	mail := sampleMails[n%uint32(len(sampleMails))]
	mail.date = now
	return mail
}

// seed fills a new account, so that there is something to read and to move. It needs store.mu.
func (s *store) seed(a *account, now time.Time) {
	seeds := []struct {
		mailbox schema.Mailbox
		mail    int
		age     time.Duration
		flags   []string
	}{
		{inbox, 9, 74 * time.Hour, []string{flagSeen}},
		{inbox, 4, 51 * time.Hour, []string{`\Answered`, flagSeen}},
		{inbox, 8, 29 * time.Hour, []string{flagSeen}},
		{inbox, 2, 26 * time.Hour, []string{`\Flagged`, flagSeen}},
		{inbox, 6, 5 * time.Hour, nil},
		{inbox, 0, 2 * time.Hour, nil},
		{"Archive", 5, 340 * time.Hour, []string{flagSeen}},
		{"Archive", 7, 290 * time.Hour, []string{flagSeen}},
		{"Sent", 3, 100 * time.Hour, []string{flagSeen}},
	}
	for _, seed := range seeds {
		box := s.ensure(a, seed.mailbox)
		if box == nil {
			continue
		}
		mail := sampleMails[seed.mail]
		mail.date = now.Add(-seed.age)
		box.rows = append(box.rows, &message{uid: box.uidNext, flags: withFlags(nil, seed.flags, true), content: mail})
		box.uidNext++
		box.messages++
		if !box.rows[len(box.rows)-1].has(flagSeen) {
			box.unseen++
		}
	}
}
