package deploy

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestFrontFindsThePod runs Kubernetes' HAProxy with a name server that knows one pod, which is here. The path leads to it, and it is
// told who comes.
func TestFrontFindsThePod(t *testing.T) {
	const pod = "127.0.0.17"
	names, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer names.Close()
	go answerNames(names, "notifier-2.notifiers.mailbell.svc.cluster.local", net.ParseIP(pod))
	sockets, err := net.Listen("tcp", pod+":0")
	if err != nil {
		t.Fatal(err)
	}
	defer sockets.Close()
	heard := make(chan string, 1)
	go func() {
		for {
			conn, err := sockets.Accept()
			if err != nil {
				return
			}
			heard <- proxied(conn)
		}
	}()
	_, port, _ := net.SplitHostPort(sockets.Addr().String())
	front := startFront(t, names.LocalAddr().String(), port)

	get := func(path string) int {
		t.Helper()
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+front+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		transport := &http.Transport{DialContext: (&net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP("127.0.0.23")}}).DialContext, DisableKeepAlives: true,
			TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}
		resp, err := transport.RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		return resp.StatusCode
	}
	if status := get("/n/notifier-2/v1/ws?ticket=x"); status != http.StatusUpgradeRequired {
		t.Fatalf("status %d", status)
	}
	if got := <-heard; got != "127.0.0.23 GET /v1/ws?ticket=x" {
		t.Errorf("the pod heard %q", got)
	}
	for path, want := range map[string]int{"/n/notifier-3/v1/ws": 503, "/n/kafka/v1/ws": 404, "/n/notifier-2.evil/v1/ws": 404, "/n/notifier-2/metrics": 404, "/v1/ws": 404, "/healthz": 200} {
		if status := get(path); status != want {
			t.Errorf("%s: status %d, want %d", path, status, want)
		}
	}
}

// writeCertificate puts a key and a certificate where a secret of Kubernetes has them.
func writeCertificate(t *testing.T, dir string) {
	t.Helper()
	s := httptest.NewTLSServer(nil)
	defer s.Close()
	certificate := s.TLS.Certificates[0]
	key, err := x509.MarshalPKCS8PrivateKey(certificate.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	for name, block := range map[string]*pem.Block{"tls.crt": {Type: "CERTIFICATE", Bytes: certificate.Certificate[0]}, "tls.key": {Type: "PRIVATE KEY", Bytes: key}} {
		if err := os.WriteFile(filepath.Join(dir, name), pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// startFront runs HAProxy with a name server, a certificate and a notifiers' port of ours, and returns where it listens.
func startFront(t *testing.T, nameServer, port string) string {
	t.Helper()
	b, err := os.ReadFile("kubernetes/haproxy.cfg")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	writeCertificate(t, dir)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	front := l.Addr().String()
	l.Close()
	config := string(b)
	for _, r := range [][2]string{
		{"bind :8443 ssl crt /tls/", "bind " + front + " ssl crt " + dir + "/"},
		{"parse-resolv-conf", "nameserver here " + nameServer},
		{"int(7480)", "int(" + port + ")"},
		{"maxconn 50000", "maxconn 1000"},
	} {
		if !strings.Contains(config, r[0]) {
			t.Fatalf("kubernetes/haproxy.cfg has no %q", r[0])
		}
		config = strings.ReplaceAll(config, r[0], r[1])
	}
	file := filepath.Join(dir, "haproxy.cfg")
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	proxy := exec.Command("haproxy", "-db", "-f", file)
	var said strings.Builder
	proxy.Stderr = &said
	if err := proxy.Start(); err != nil {
		t.Fatalf("%v: run make deps", err)
	}
	t.Cleanup(func() {
		_ = proxy.Process.Kill()
		_ = proxy.Wait()
		if t.Failed() {
			t.Log(said.String())
		}
	})
	listens(t, front)
	return front
}

// proxied reads a header of PROXY protocol v2 and a request, refuses it as a notifier does, and says who asked for what.
func proxied(conn net.Conn) string {
	defer conn.Close()
	r := bufio.NewReader(conn)
	head := make([]byte, 16)
	if _, err := io.ReadFull(r, head); err != nil || string(head[:12]) != "\r\n\r\n\x00\r\nQUIT\n" {
		return fmt.Sprintf("no header: %q, %v", head, err)
	}
	addresses := make([]byte, binary.BigEndian.Uint16(head[14:]))
	if _, err := io.ReadFull(r, addresses); err != nil || len(addresses) < 4 {
		return fmt.Sprintf("half a header: %v", err)
	}
	req, err := http.ReadRequest(r)
	if err != nil {
		return err.Error()
	}
	_, _ = io.WriteString(conn, "HTTP/1.1 426 Upgrade Required\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
	return net.IP(addresses[:4]).String() + " " + req.Method + " " + req.RequestURI
}

// answerNames is a name server (RFC 1035, section 4.1) that knows the address of one name, until conn is closed.
func answerNames(conn net.PacketConn, name string, address net.IP) {
	var encoded []byte
	for _, label := range strings.Split(name, ".") {
		encoded = append(append(encoded, byte(len(label))), label...)
	}
	encoded = append(encoded, 0)
	buf := make([]byte, 4096)
	for {
		n, from, err := conn.ReadFrom(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		end := 12
		for end < n && buf[end] != 0 {
			end += 1 + int(buf[end])
		}
		if err != nil || end+5 > n {
			continue
		}
		question := buf[12 : end+5]
		known := strings.EqualFold(string(question[:len(question)-4]), string(encoded)) && binary.BigEndian.Uint16(question[len(question)-4:]) == 1
		// The question's number and the question, one answer or "no such name" (code 3), and no more.
		answer := append([]byte{buf[0], buf[1], 0x81, 0x83, 0, 1, 0, 0, 0, 0, 0, 0}, question...)
		if known {
			answer[3], answer[7] = 0x80, 1
			answer = append(answer, 0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 1, 0, 4)
			answer = append(answer, address.To4()...)
		}
		_, _ = conn.WriteTo(answer, from)
	}
}
