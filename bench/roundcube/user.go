package roundcube

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/mailbell/mailbell/internal/dovecotproc"
	"github.com/mailbell/mailbell/internal/wsclient"
	"github.com/mailbell/mailbell/schema"
)

// user is one signed-in session, as the browser has it.
type user struct {
	// Static after signIn.
	name   string
	base   string
	client *http.Client
	token  string // of requests
	socket string // with a ticket; empty without the plugin
	// traffic is what the socket sent and received so far; nil before listen.
	traffic func() (sent, received int64, err error)

	mu    sync.Mutex
	uids  int     // messages in INBOX; guarded by mu
	known []known // changes, in order; guarded by mu
}

// known says when a change was there, and when an answer told the page.
type known struct{ at, shown time.Time }

var (
	formToken    = regexp.MustCompile(`name="_token" value="([^"]+)"`)
	requestToken = regexp.MustCompile(`"request_token":"([^"]+)"`)
	ticketURL    = regexp.MustCompile(`"ticket":\{"url":"([^"]+)"`)
)

// signIn does what a person and the mail page do until the page is quiet.
func signIn(ctx context.Context, transport http.RoundTripper, base, name string, messages int) (*user, error) {
	jar, err := cookiejar.New(nil)
	if err != nil {
		return nil, err
	}
	u := &user{name: name, base: base, client: &http.Client{Transport: transport, Jar: jar, Timeout: time.Minute}, uids: messages}
	page, err := u.do(ctx, http.MethodGet, base+"/", nil)
	if err != nil {
		return nil, err
	}
	found := formToken.FindStringSubmatch(page)
	if found == nil {
		return nil, fmt.Errorf("sign in as %s: the login page has no form", name)
	}
	page, err = u.do(ctx, http.MethodPost, base+"/?_task=login", url.Values{
		"_token": {found[1]}, "_task": {"login"}, "_action": {"login"}, "_timezone": {"UTC"}, "_url": {""}, "_user": {name}, "_pass": {dovecotproc.Password},
	})
	if err != nil {
		return nil, err
	}
	if found = requestToken.FindStringSubmatch(page); found == nil || !strings.Contains(page, `"task":"mail"`) {
		return nil, fmt.Errorf("sign in as %s: the answer is not the mail page", name)
	}
	u.token = found[1]
	if found = ticketURL.FindStringSubmatch(page); found != nil {
		u.socket = strings.ReplaceAll(found[1], `\/`, "/")
	}
	for _, action := range []string{"list&_mbox=INBOX&_remote=1", "getunread&_remote=1"} {
		if _, err := u.do(ctx, http.MethodGet, base+"/?_task=mail&_action="+action, nil); err != nil {
			return nil, err
		}
	}
	return u, nil
}

func (u *user) do(ctx context.Context, method, address string, form url.Values) (string, error) {
	var body io.Reader
	if form != nil {
		body = strings.NewReader(form.Encode())
	}
	req, err := http.NewRequestWithContext(ctx, method, address, body)
	if err != nil {
		return "", err
	}
	if form != nil {
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	}
	if u.token != "" {
		req.Header.Set("X-Roundcube-Request", u.token)
		req.Header.Set("X-Requested-With", "XMLHttpRequest")
	}
	resp, err := u.client.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		return "", err
	}
	if resp.StatusCode != http.StatusOK {
		return "", fmt.Errorf("%s: %s", address, resp.Status)
	}
	return string(text), nil
}

// ask posts one of the page's requests, and books what its answer shows: all that was there when it was begun.
func (u *user) ask(ctx context.Context, action string) error {
	form := url.Values{"_remote": {"1"}, "_unlock": {"0"}}
	if action != "keep-alive" {
		form.Set("_mbox", openFolder)
		form.Set("_folderlist", "1")
		form.Set("_list", "1")
		form.Set("_quota", "1")
	}
	switch action {
	case "refresh":
		form.Set("_last", strconv.FormatInt(time.Now().Unix(), 10))
		form.Set("_uids", u.shownUIDs())
	case "check-recent":
		form.Set("_mailbell[]", openFolder)
	}
	asked := time.Now()
	text, err := u.do(ctx, http.MethodPost, u.base+"/?_task=mail&_action="+action, form)
	if err != nil {
		return err
	}
	if !strings.Contains(text, `"action":"`+action+`"`) || strings.Contains(text, "session_error") {
		return fmt.Errorf("%s of %s: an answer to something else: %.200s", action, u.name, text)
	}
	if action == "keep-alive" {
		return nil
	}
	now := time.Now()
	u.mu.Lock()
	defer u.mu.Unlock()
	for i := range u.known {
		if k := &u.known[i]; k.shown.IsZero() && k.at.Before(asked) {
			k.shown = now
		}
	}
	return nil
}

// shownUIDs is what the page tells a refresh that it shows: the newest fifty.
func (u *user) shownUIDs() string {
	u.mu.Lock()
	defer u.mu.Unlock()
	var uids []string
	for uid := u.uids; uid > max(0, u.uids-50); uid-- {
		uids = append(uids, strconv.Itoa(uid))
	}
	return strings.Join(uids, ",")
}

// changes books a message that is on its way into the store. A poll at the very moment of a delivery counts as having shown
// it, which is a millisecond in favour of polling.
func (u *user) changes() {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.uids++
	u.known = append(u.known, known{at: time.Now()})
}

// forget returns what was booked, and begins anew.
func (u *user) forget() []known {
	u.mu.Lock()
	defer u.mu.Unlock()
	all := slices.Clone(u.known)
	u.known = nil
	return all
}

// listen opens the page's socket and calls event for each event, until the socket ends.
func (u *user) listen(ctx context.Context, event func([]byte)) (stop func(), err error) {
	conn, err := wsclient.DialConn(ctx, u.socket, wsclient.ConnConfig{Origin: u.base})
	if err != nil {
		return nil, fmt.Errorf("socket of %s: %w", u.name, err)
	}
	u.traffic = func() (sent, received int64, err error) { return traffic(conn.NetConn()) }
	if err := conn.Send([]byte(`{"type":"subscribe","id":1,"account":"` + u.name + `"}`)); err != nil {
		_ = conn.Close()
		return nil, err
	}
	subscribed, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for {
			message, err := conn.Next()
			if err != nil {
				return
			}
			frame, err := schema.DecodeServerFrame(message)
			switch {
			case err != nil:
			case frame.Type == schema.FrameSubscribed:
				close(subscribed)
			case len(frame.Event) > 0:
				event(frame.Event)
			}
		}
	}()
	select {
	case <-subscribed:
	case <-done:
		return nil, fmt.Errorf("socket of %s: closed before it was answered", u.name)
	case <-ctx.Done():
		_ = conn.Close()
		<-done
		return nil, ctx.Err()
	}
	return func() { _ = conn.Close(); <-done }, nil
}
