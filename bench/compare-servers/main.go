// Compare-servers is echo servers on other WebSocket libraries, for `mailbell bench ladder --rivals`. It is a module of
// its own, so that mailbell does not depend on them.
//
//	compare-servers kinds   prints what there is
//	compare-servers serve   reads {"kind":"…"}, prints {"addr":"…"}, then gives memory back at each line
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"runtime/debug"

	"github.com/gorilla/websocket"
	"github.com/lesismal/nbio/logging"
	"github.com/lesismal/nbio/nbhttp"
	nbws "github.com/lesismal/nbio/nbhttp/websocket"
	"github.com/lxzan/gws"
)

type kind struct {
	Name string
	What string
	run  func(addr string) error
}

func kinds() []kind {
	return []kind{
		{"gorilla", "gorilla/websocket, two goroutines", gorilla},
		{"gws", "lxzan/gws, its ReadLoop", gwsServer},
		{"nbio", "lesismal/nbio, its poller", nbio},
	}
}

func main() {
	log.SetFlags(0)
	log.SetPrefix("compare-servers: ")
	if len(os.Args) != 2 {
		log.Fatal("say kinds or serve")
	}
	switch os.Args[1] {
	case "kinds":
		if err := json.NewEncoder(os.Stdout).Encode(kinds()); err != nil {
			log.Fatal(err)
		}
	case "serve":
		if err := serve(os.Stdin, os.Stdout); err != nil {
			log.Fatal(err)
		}
	default:
		log.Fatalf("%q: say kinds or serve", os.Args[1])
	}
}

func serve(in io.Reader, out io.Writer) error {
	lines := bufio.NewReader(in)
	first, err := lines.ReadBytes('\n')
	if err != nil {
		return err
	}
	var cfg struct {
		Kind string `json:"kind"`
	}
	if err := json.Unmarshal(first, &cfg); err != nil {
		return err
	}
	addr, err := freePort()
	if err != nil {
		return err
	}
	var chosen *kind
	for _, k := range kinds() {
		if k.Name == cfg.Kind {
			chosen = &k
		}
	}
	if chosen == nil {
		return fmt.Errorf("no kind is named %q", cfg.Kind)
	}
	if err := chosen.run(addr); err != nil {
		return err
	}
	enc := json.NewEncoder(out)
	if err := enc.Encode(map[string]string{"addr": addr}); err != nil {
		return err
	}
	for {
		if _, err := lines.ReadString('\n'); err != nil {
			return nil
		}
		debug.FreeOSMemory()
		if err := enc.Encode(struct{}{}); err != nil {
			return err
		}
	}
}

// freePort is a loopback address that was free a moment ago: nbio listens by itself.
func freePort() (string, error) {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer l.Close()
	return l.Addr().String(), nil
}

// serveHTTP runs a handler until the process ends.
func serveHTTP(addr string, h http.HandlerFunc) error {
	l, err := net.Listen("tcp4", addr)
	if err != nil {
		return err
	}
	go func() { log.Fatal(http.Serve(l, h)) }()
	return nil
}

// gorilla is as its chat example has it: one goroutine reads, one writes.
func gorilla(addr string) error {
	up := websocket.Upgrader{ReadBufferSize: 4096, WriteBufferSize: 4096, CheckOrigin: func(*http.Request) bool { return true }, Subprotocols: []string{"mailbell.v1"}}
	return serveHTTP(addr, func(w http.ResponseWriter, r *http.Request) {
		conn, err := up.Upgrade(w, r, nil)
		if err != nil {
			return
		}
		send := make(chan []byte, 16)
		go func() {
			defer close(send)
			for {
				_, message, err := conn.ReadMessage()
				if err != nil {
					return
				}
				send <- message
			}
		}()
		go func() {
			defer conn.Close()
			for message := range send {
				if conn.WriteMessage(websocket.TextMessage, message) != nil {
					return
				}
			}
		}()
	})
}

type gwsHandler struct{ gws.BuiltinEventHandler }

func (gwsHandler) OnMessage(conn *gws.Conn, m *gws.Message) {
	defer m.Close()
	_ = conn.WriteMessage(m.Opcode, m.Bytes())
}

func gwsServer(addr string) error {
	up := gws.NewUpgrader(gwsHandler{}, &gws.ServerOption{SubProtocols: []string{"mailbell.v1"}})
	return serveHTTP(addr, func(w http.ResponseWriter, r *http.Request) {
		conn, err := up.Upgrade(w, r)
		if err != nil {
			return
		}
		go conn.ReadLoop()
	})
}

func nbio(addr string) error {
	up := nbws.NewUpgrader()
	up.Subprotocols = []string{"mailbell.v1"}
	up.CheckOrigin = func(*http.Request) bool { return true }
	up.OnMessage(func(c *nbws.Conn, t nbws.MessageType, data []byte) { _ = c.WriteMessage(t, data) })
	logging.SetLevel(logging.LevelNone) // it would log to standard output
	engine := nbhttp.NewEngine(nbhttp.Config{
		Network: "tcp4", Addrs: []string{addr},
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { _, _ = up.Upgrade(w, r, nil) }),
	})
	return engine.Start()
}
