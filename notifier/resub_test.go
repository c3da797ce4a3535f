package notifier

import (
	"fmt"
	"testing"
	"time"

	"github.com/mailbell/mailbell/schema"
	"github.com/mailbell/mailbell/schema/link"
)

// recorder keeps what a core sends.
type recorder struct{ sent []*link.FromNotifier }

func (r *recorder) send(_ linkID, m *link.FromNotifier)             { r.sent = append(r.sent, m) }
func (r *recorder) event(nameID, string, schema.Position, []byte)   {}
func (r *recorder) subscribed(*answer) bool                         { return true }
func (r *recorder) denied(handle, uint64, schema.ErrorCode, string) {}
func (r *recorder) missed(nameID, string, schema.Position, uint32)  {}
func (r *recorder) cut(linkID, string)                              {}
func (r *recorder) take() (sent []*link.FromNotifier)               { sent, r.sent = r.sent, nil; return sent }

// A partition with more accounts than one message carries is asked for in several, each with the same position, which
// stands still until all of them are answered.
func TestResubscriptionInBatches(t *testing.T) {
	const accounts = 2*maxBatch + 100
	out := &recorder{}
	c := newCore(out, newNames(), time.Minute)
	c.welcome(1, 1)
	c.owned(1, &link.Owned{Partitions: []*link.OwnedPartition{{Generation: 1, Head: &link.Offset{Epoch: 7, Offset: 10}}}})
	now := time.Unix(0, 0)
	for i := range accounts {
		c.subscribe(&op{h: handle(i + 1), id: 1, account: schema.Account(fmt.Sprintf("user%05d", i))}, now)
	}
	c.flush()
	answer := func(sent []*link.FromNotifier, head int64) (batches, named int) {
		for _, m := range sent {
			switch b := m.Body.(type) {
			case *link.FromNotifier_Subscribe:
				batches, named = batches+1, named+len(b.Subscribe.Accounts)
				if len(b.Subscribe.Accounts) > maxBatch {
					t.Errorf("%d accounts in a message", len(b.Subscribe.Accounts))
				}
				c.subscribed(1, &link.Subscribed{Request: b.Subscribe.Request, Generation: b.Subscribe.Generation, Head: &link.Offset{Epoch: 7, Offset: head}, CatchUp: link.CatchUp_CATCH_UP_CURRENT})
			case *link.FromNotifier_Resume:
				for _, item := range b.Resume.Items {
					c.resumed(1, &link.Resumed{Request: item.Request, Generation: item.Generation, Head: &link.Offset{Epoch: 7, Offset: head}, CatchUp: link.CatchUp_CATCH_UP_FRESH})
				}
			}
		}
		return batches, named
	}
	if batches, named := answer(out.take(), 10); batches != 3 || named != accounts || len(c.pending) != 0 {
		t.Fatalf("%d batches of %d accounts, %d wait", batches, named, len(c.pending))
	}
	c.owned(1, &link.Owned{Partitions: []*link.OwnedPartition{{Generation: 2, Head: &link.Offset{Epoch: 7, Offset: 90}}}})
	sent := out.take()
	if len(sent) != 3 {
		t.Fatalf("%d messages", len(sent))
	}
	for k, m := range sent {
		if after := m.GetSubscribe().GetAfter(); after.GetOffset() != 10 || after.GetEpoch() != 7 {
			t.Errorf("asked for what comes after %v", after)
		}
		if c.parts[0].offset != 10 {
			t.Errorf("the position moved to %d before the answer to batch %d", c.parts[0].offset, k)
		}
		answer(sent[k:k+1], 90)
	}
	if c.parts[0].offset != 90 || len(c.requests) != 0 {
		t.Errorf("position %d, %d requests", c.parts[0].offset, len(c.requests))
	}
}
