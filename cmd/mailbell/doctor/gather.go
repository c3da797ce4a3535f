package doctor

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/mailbell/mailbell/internal/eventlog"
)

// Where says whom to ask.
type Where struct {
	Log   eventlog.Config // no brokers: the log is not looked at
	Nodes []string        // ops addresses
	Links []string        // link addresses of bus nodes; a name may stand for several
}

// askTimeout bounds what one node may take.
const askTimeout = 5 * time.Second

// Gather asks everybody at once. It takes as long as the slowest, and no longer than ctx.
func Gather(ctx context.Context, w Where) Facts {
	f := Facts{Files: ownFiles()}
	links := resolve(ctx, w.Links)
	f.Nodes = make([]Node, len(w.Nodes)+len(links))
	var asking sync.WaitGroup
	if len(w.Log.Brokers) > 0 {
		asking.Go(func() { f.Log, f.LogErr = eventlog.Describe(ctx, w.Log) })
	}
	for i, address := range w.Nodes {
		asking.Go(func() { f.Nodes[i] = askNode(ctx, address) })
	}
	for i, address := range links {
		asking.Go(func() { f.Nodes[len(w.Nodes)+i] = askLink(ctx, address) })
	}
	asking.Wait()
	return f
}

// resolve replaces names that stand for several addresses, as a notifier does. A name that can't be resolved stays, and is
// found unreachable.
func resolve(ctx context.Context, links []string) (addresses []string) {
	for _, link := range links {
		host, port, err := net.SplitHostPort(link)
		if err != nil {
			addresses = append(addresses, link)
			continue
		}
		ips, err := net.DefaultResolver.LookupHost(ctx, host)
		if err != nil || len(ips) < 2 {
			addresses = append(addresses, link)
			continue
		}
		for _, ip := range ips {
			addresses = append(addresses, net.JoinHostPort(ip, port))
		}
	}
	return addresses
}

func askLink(ctx context.Context, address string) Node {
	n := Node{Address: address, Link: true}
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	began := time.Now()
	var d net.Dialer
	conn, err := d.DialContext(ctx, "tcp", address)
	if err != nil {
		n.Err = err
		return n
	}
	n.Took = time.Since(began)
	conn.Close()
	return n
}

func askNode(ctx context.Context, address string) Node {
	n := Node{Address: address}
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	n.Err = n.ask(ctx, client, "http://"+strings.TrimSuffix(strings.TrimPrefix(address, "http://"), "/"))
	return n
}

func (n *Node) ask(ctx context.Context, client *http.Client, base string) error {
	began := time.Now()
	resp, err := get(ctx, client, base+"/readyz")
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	n.Took = time.Since(began)
	body, err := io.ReadAll(io.LimitReader(resp.Body, 4<<10))
	if err != nil {
		return err
	}
	n.Ready = resp.StatusCode == http.StatusOK
	n.Problem = strings.TrimSpace(string(body))
	if date, err := http.ParseTime(resp.Header.Get("Date")); err == nil {
		// The header is cut to the second: on average half a second is missing.
		n.Ahead = date.Add(time.Second / 2).Sub(began.Add(n.Took / 2))
		n.Blur = time.Second/2 + n.Took/2
	}
	metrics, err := get(ctx, client, base+"/metrics")
	if err != nil {
		return err
	}
	defer metrics.Body.Close()
	n.Files = filesIn(metrics.Body)
	return nil
}

func get(ctx context.Context, client *http.Client, url string) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, fmt.Errorf("ask node: %w", err)
	}
	return client.Do(req)
}

// filesIn reads the two metrics that every Go process with Prometheus's process collector has.
func filesIn(r io.Reader) (f Files) {
	lines := bufio.NewScanner(io.LimitReader(r, 16<<20))
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		name, value, _ := strings.Cut(lines.Text(), " ")
		v, err := strconv.ParseFloat(value, 64)
		if err != nil {
			continue
		}
		switch name {
		case "process_open_fds":
			f.Open = uint64(v)
		case "process_max_fds":
			f.Max = uint64(v)
		}
	}
	return f
}

func ownFiles() (f Files) {
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		return Files{}
	}
	f.Max = limit.Cur
	if entries, err := os.ReadDir("/proc/self/fd"); err == nil || errors.Is(err, os.ErrNotExist) {
		f.Open = uint64(len(entries))
	}
	return f
}
