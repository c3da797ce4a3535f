package swarm

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"time"

	"github.com/mailbell/mailbell/bench/ledger"
)

// gateway asks bus nodes for tickets on behalf of the swarm's users.
type gateway struct {
	urls   []string
	token  string
	client *http.Client
}

// lookupTimeout is what a client gives one bus node before it asks the next.
const lookupTimeout = 4 * time.Second

func newGateway(cfg Config) *gateway {
	return &gateway{urls: cfg.Gateways, token: cfg.ServiceToken, client: &http.Client{
		Timeout: lookupTimeout, Transport: &http.Transport{MaxIdleConnsPerHost: 16},
	}}
}

// lookUp asks one gateway after the other, beginning with the connection's own.
func (g *gateway) lookUp(ctx context.Context, conn int, account uint32) answer {
	a := answer{conn: conn}
	for k := range g.urls {
		a = g.ask(ctx, g.urls[(conn+k)%len(g.urls)], conn, account)
		if a.failed == "" {
			return a
		}
	}
	return a
}

func (g *gateway) ask(ctx context.Context, base string, conn int, account uint32) answer {
	body, err := json.Marshal(map[string]string{"account": ledger.AccountName(account)})
	if err != nil {
		return answer{conn: conn, failed: err.Error()}
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, base+"/v1/connect", bytes.NewReader(body))
	if err != nil {
		return answer{conn: conn, failed: err.Error()}
	}
	req.Header.Set("Authorization", "Bearer "+g.token)
	req.Header.Set("Content-Type", "application/json")
	resp, err := g.client.Do(req)
	if err != nil {
		return answer{conn: conn, failed: "unreachable"}
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		seconds, _ := strconv.Atoi(resp.Header.Get("Retry-After"))
		return answer{conn: conn, failed: fmt.Sprint(resp.StatusCode), wait: time.Duration(seconds) * time.Second}
	}
	var reply struct {
		URL          string `json:"url"`
		RetryAfterMs int64  `json:"retryAfterMs"`
	}
	if err := json.NewDecoder(resp.Body).Decode(&reply); err != nil {
		return answer{conn: conn, failed: "bad answer"}
	}
	return answer{conn: conn, url: reply.URL, wait: time.Duration(reply.RetryAfterMs) * time.Millisecond}
}
