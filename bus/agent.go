package bus

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"time"
)

// How a load balancer's question is bounded.
const (
	agentTimeout = 2 * time.Second
	maxAgentLine = 256
	maxAgents    = 64 // questions at a time; further ones wait in the kernel's queue
)

// serveAgent answers load balancers until ctx ends: they send a notifier's name and a newline (HAProxy: agent-send) and
// get one line back in the text of HAProxy's agent-check (its configuration manual, section 5.2).
func (n *Node) serveAgent(ctx context.Context) {
	var asking sync.WaitGroup
	defer asking.Wait()
	stop := context.AfterFunc(ctx, func() { n.agent.Close() })
	defer stop()
	places := make(chan struct{}, maxAgents)
	for ctx.Err() == nil {
		conn, err := n.agent.Accept()
		if err != nil {
			if ctx.Err() == nil {
				n.log.Warn("load balancers can't ask", "err", err)
				select {
				case <-ctx.Done():
				case <-time.After(agentTimeout):
				}
			}
			continue
		}
		places <- struct{}{}
		asking.Go(func() {
			n.answerAgent(conn)
			<-places
		})
	}
}

func (n *Node) answerAgent(conn net.Conn) {
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(agentTimeout))
	line, err := bufio.NewReaderSize(io.LimitReader(conn, maxAgentLine), maxAgentLine).ReadString('\n')
	if err != nil {
		return
	}
	_, _ = io.WriteString(conn, n.fleet.agentLine(strings.TrimSpace(line), time.Now())+"\n")
}

// agentLine is a notifier's state as HAProxy understands it. The percentage is of the server's weight there: the fullest
// notifier for its weight has the least.
func (f *Fleet) agentLine(name string, now time.Time) string {
	all := f.Snapshot(now)
	least := -1.0
	for i := range all {
		if all[i].State == Serving {
			if fill := all[i].fill(); least < 0 || fill < least {
				least = fill
			}
		}
	}
	for i := range all {
		n := &all[i]
		if n.Node != name {
			continue
		}
		switch n.State {
		case Serving:
			// At even fill all have 100 %; a node twice as full as the emptiest gets half.
			return fmt.Sprintf("up ready %d%%", max(1, min(100, int(100*(least+100)/(n.fill()+100)))))
		case Draining, Full:
			return "up drain"
		default:
			return "down # " + string(n.State)
		}
	}
	return "down # not linked"
}

func (n *Notifier) fill() float64 { return float64(n.Load.Connections+uint64(n.Pending)) / n.Weight }
