package bench

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/mailbell/mailbell/bench/ledger"
	"github.com/mailbell/mailbell/bench/schedule"
	"github.com/mailbell/mailbell/schema"
	"github.com/mailbell/mailbell/storageadapter"
)

// storeDriver is the mail store's side of a comparison: it makes the changes of a schedule at their times and, on the pushing side, says
// each to the ingest. Accounts are spread over lanes, so that one account's changes stay in order.
type storeDriver struct {
	webmail *webmail
	number  uint32 // of the run
	ingest  string // where events are said; empty on the polling side. A restarted site is where it was
	token   string
	books   *compareBooks
	client  *http.Client

	retries atomic.Int64
	late    atomic.Int64 // changes made over a second after their time
}

const (
	driverLanes    = 64
	driverQueue    = 1024
	ingestRetry    = 250 * time.Millisecond
	ingestPatience = 10 * time.Second // of one request
)

// newStoreDriver makes the driver of one side; the site is nil on the polling side.
func newStoreDriver(w *webmail, s *site, b *compareBooks) *storeDriver {
	d := &storeDriver{webmail: w, books: b, client: &http.Client{
		Timeout: ingestPatience, Transport: &http.Transport{MaxIdleConnsPerHost: driverLanes},
	}}
	if s != nil {
		d.number, d.ingest, d.token = s.run, s.ingest, s.token
	}
	return d
}

// run makes the changes, the first at start, and returns once the last is in the store and acknowledged.
func (d *storeDriver) run(ctx context.Context, changes []schedule.Change, start time.Time) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer d.client.CloseIdleConnections()
	var wg sync.WaitGroup
	failed := make(chan error, driverLanes)
	lanes := make([]chan schedule.Change, driverLanes)
	for i := range lanes {
		lanes[i] = make(chan schedule.Change, driverQueue)
		wg.Go(func() {
			for c := range lanes[i] {
				if err := d.change(ctx, c.Account, start.Add(c.At)); err != nil {
					failed <- err
					cancel()
					for range lanes[i] { // lets the clock go on to its end
					}
				}
			}
		})
	}
	timer := time.NewTimer(0)
	defer timer.Stop()
	for _, c := range changes {
		if wait := time.Until(start.Add(c.At)); wait > 0 {
			timer.Reset(wait)
			select {
			case <-timer.C:
			case <-ctx.Done():
			}
		}
		if ctx.Err() != nil {
			break
		}
		lanes[c.Account%driverLanes] <- c
	}
	for _, lane := range lanes {
		close(lane)
	}
	wg.Wait()
	select {
	case err := <-failed:
		return err
	default:
		return ctx.Err()
	}
}

// change makes one change and says so.
func (d *storeDriver) change(ctx context.Context, account uint32, due time.Time) error {
	if err := d.webmail.change(ctx, account); err != nil {
		return fmt.Errorf("deliver: %w", err)
	}
	at := time.Now()
	if at.Sub(due) > time.Second {
		d.late.Add(1)
	}
	seq := d.books.applied(account, at)
	if d.ingest == "" {
		return nil
	}
	event := newMail(ledger.ID{Run: d.number, Account: account, Seq: seq, SentAt: at.UnixNano()}).AppendJSON(nil)
	for {
		err := d.say(ctx, event)
		if err == nil || ctx.Err() != nil {
			return ctx.Err()
		}
		d.retries.Add(1)
		select {
		case <-ctx.Done():
		case <-time.After(ingestRetry):
		}
	}
}

// say posts one event.
func (d *storeDriver) say(ctx context.Context, event []byte) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+d.ingest+storageadapter.EventsPath, bytes.NewReader(event))
	if err != nil {
		return err
	}
	req.Header.Set("Authorization", "Bearer "+d.token)
	req.Header.Set("Content-Type", "application/json")
	resp, err := d.client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	_, _ = io.Copy(io.Discard, resp.Body)
	if resp.StatusCode/100 != 2 {
		return fmt.Errorf("ingest answers %s", resp.Status)
	}
	return nil
}

// newMail is the event of a delivery.
func newMail(id ledger.ID) *schema.Event {
	messages := id.Seq
	account := schema.Account(ledger.AccountName(id.Account))
	return &schema.Event{
		ID: id.String(), Event: schema.MessageNew, Account: account, Mailbox: "INBOX",
		UIDValidity: 1424683682, UIDSet: fmt.Sprint(id.Seq), UIDNext: id.Seq + 1, ModSeq: fmt.Sprint(uint64(id.Seq) + 1),
		Messages: &messages, Unseen: &messages, User: string(account), Service: "lmtp", Timestamp: time.Unix(0, id.SentAt).UTC(),
	}
}
