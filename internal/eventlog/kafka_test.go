package eventlog

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/mailbell/mailbell/internal/kafkaproc"
)

// The tests in this file need Apache Kafka; what the embedded log does as well is tested there.

// writePEM makes a key and a certificate for 127.0.0.1 that vouches for itself.
func writePEM(t *testing.T, dir string) (cert, key string) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "kafka"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}
	der, err := x509.CreateCertificate(rand.Reader, &template, &template, private.Public(), private)
	if err != nil {
		t.Fatal(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	cert, key = filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	certPEM := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	err = errors.Join(os.WriteFile(cert, certPEM, 0o600),
		os.WriteFile(key, append(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8}), certPEM...), 0o600))
	if err != nil {
		t.Fatal(err)
	}
	return cert, key
}

// appendAndRead writes some records and reads them back.
func appendAndRead(t *testing.T, l *Log) {
	t.Helper()
	ctx := testContext(t, 30*time.Second)
	at, err := l.Append(ctx, benchRecords(500, 1)...)
	if err != nil {
		t.Fatal(err)
	}
	seen := make(map[Appended]bool)
	for p := range int32(l.Partitions()) {
		first, next, err := l.Bounds(ctx, p)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range readUntil(t, l, p, first, next) {
			seen[Appended{p, m.Offset}] = true
		}
	}
	for _, a := range at {
		if !seen[a] {
			t.Fatalf("the record at %v was not read", a)
		}
	}
}

func TestKafkaTLSAndLogin(t *testing.T) {
	cert, key := writePEM(t, t.TempDir())
	c := kafkaproc.ClusterForTest(t, kafkaproc.Options{
		Brokers:   3,
		Listeners: []kafkaproc.Listener{{Name: "SECURE", Protocol: "SASL_SSL"}, {Name: "LOGIN", Protocol: "SASL_PLAINTEXT"}, {Name: "TLS", Protocol: "SSL"}},
		Properties: map[string]string{
			"ssl.keystore.type":                                   "PEM",
			"ssl.keystore.location":                               key,
			"sasl.enabled.mechanisms":                             "PLAIN,SCRAM-SHA-256,SCRAM-SHA-512",
			"listener.name.secure.plain.sasl.jaas.config":         `org.apache.kafka.common.security.plain.PlainLoginModule required user_alice="plain-password";`,
			"listener.name.login.plain.sasl.jaas.config":          `org.apache.kafka.common.security.plain.PlainLoginModule required user_alice="plain-password";`,
			"listener.name.secure.scram-sha-256.sasl.jaas.config": `org.apache.kafka.common.security.scram.ScramLoginModule required;`,
			"listener.name.secure.scram-sha-512.sasl.jaas.config": `org.apache.kafka.common.security.scram.ScramLoginModule required;`,
			"listener.name.login.scram-sha-256.sasl.jaas.config":  `org.apache.kafka.common.security.scram.ScramLoginModule required;`,
			"listener.name.login.scram-sha-512.sasl.jaas.config":  `org.apache.kafka.common.security.scram.ScramLoginModule required;`,
		},
		Scram: []kafkaproc.ScramUser{{Mechanism: "SCRAM-SHA-256", Name: "bob", Password: "scram-password"}, {Mechanism: "SCRAM-SHA-512", Name: "bob", Password: "scram-password"}},
	})
	trust := &TLSConfig{CAFile: cert}
	tests := []struct {
		name     string
		listener string
		tls      *TLSConfig
		sasl     *SASLConfig
		want     string // part of the error; "" for none
	}{
		{"tls and plain", "SECURE", trust, &SASLConfig{"PLAIN", "alice", "plain-password"}, ""},
		{"tls and scram 256", "SECURE", trust, &SASLConfig{"SCRAM-SHA-256", "bob", "scram-password"}, ""},
		{"tls and scram 512", "SECURE", trust, &SASLConfig{"SCRAM-SHA-512", "bob", "scram-password"}, ""},
		{"scram without tls", "LOGIN", nil, &SASLConfig{"SCRAM-SHA-512", "bob", "scram-password"}, ""},
		{"tls alone", "TLS", trust, nil, ""},
		{"tls, not checked", "TLS", &TLSConfig{Insecure: true}, nil, ""},
		{"wrong password", "SECURE", trust, &SASLConfig{"PLAIN", "alice", "wrong"}, "log in with PLAIN"},
		{"wrong scram password", "SECURE", trust, &SASLConfig{"SCRAM-SHA-256", "bob", "wrong"}, "log in with SCRAM-SHA-256"},
		{"unknown authority", "TLS", &TLSConfig{}, nil, "certificate"},
		{"other name", "TLS", &TLSConfig{CAFile: cert, ServerName: "kafka.example.com"}, nil, "certificate"},
		{"plain to a TLS port", "TLS", nil, nil, "does this port want TLS?"},
	}
	openLog(t, Config{Brokers: c.Brokers(), Create: true, Partitions: 4})
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			cfg := Config{Brokers: c.Addrs(tt.listener), TLS: tt.tls, SASL: tt.sasl, Logger: quiet()}
			if tt.want != "" {
				_, err := Open(testContext(t, 3*time.Second), cfg)
				wantError(t, err, tt.want)
				return
			}
			l := openLog(t, cfg)
			appendAndRead(t, l)
			if tt.sasl != nil && tt.tls != nil {
				n := joinGroup(t, l, strings.ReplaceAll(tt.name, " ", "-"), "bus-1")
				waitFor(t, func() bool { return complete(4, n) })
			}
		})
	}
}

func TestKafkaGroup(t *testing.T) {
	brokers := kafkaproc.ForTest(t, 1)
	open := func() *Log { return openLog(t, Config{Brokers: brokers, Create: true, Partitions: 64}) }
	testGroup(t, open)
	l := open()
	appendAndRead(t, l)
	epoch, err := l.Epoch(testContext(t, 10*time.Second), 3)
	if err != nil {
		t.Fatal(err)
	}
	if again, err := open().Epoch(testContext(t, 10*time.Second), 3); err != nil || again != epoch {
		t.Fatalf("epoch %d, then %d, %v", epoch, again, err)
	}
}

// What deploy/kafka/start.sh starts is a Kafka that takes and gives records, and an end of the script ends it.
func TestKafkaStartScript(t *testing.T) {
	if testing.Short() {
		t.Skip("needs Apache Kafka")
	}
	port := freePort(t)
	broker := net.JoinHostPort("127.0.0.1", strconv.Itoa(port))
	var output bytes.Buffer
	script := exec.Command("bash", "../../deploy/kafka/start.sh", "-p", strconv.Itoa(port))
	script.Stdout, script.Stderr = &output, &output
	script.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := script.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- script.Wait() }()
	t.Cleanup(func() {
		_ = syscall.Kill(-script.Process.Pid, syscall.SIGKILL) // only what a failed test leaves behind
		if t.Failed() {
			t.Logf("start.sh:\n%s", &output)
		}
	})
	l, err := Open(testContext(t, time.Minute), Config{Brokers: []string{broker}, Create: true, Partitions: 2, Logger: quiet()})
	if err != nil {
		t.Error(err)
	} else {
		appendAndRead(t, l)
		_ = l.Close()
	}
	if err := script.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := <-ended; err != nil {
		t.Errorf("start.sh ended with %v", err)
	}
	if conn, err := net.Dial("tcp", broker); err == nil {
		_ = conn.Close()
		t.Error("the broker outlives the script")
	}
}

// freePort returns a port that is free, as is the one 1000 above, which the script takes for its controller.
func freePort(t *testing.T) int {
	t.Helper()
	for {
		first, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		port := first.Addr().(*net.TCPAddr).Port
		_ = first.Close()
		second, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port+1000)))
		if err != nil {
			continue
		}
		_ = second.Close()
		return port
	}
}

// The count changes under a log, and under one that was opened before and is opened again.
func TestKafkaPartitionsChanged(t *testing.T) {
	brokers := kafkaproc.ForTest(t, 1)
	cfg := Config{Brokers: brokers, Topic: "grows", Create: true, Partitions: 2}
	l := openLog(t, cfg)
	if _, err := l.Epoch(testContext(t, 10*time.Second), 0); err != nil { // writes the beacon that names the count
		t.Fatal(err)
	}
	testPartitionsChanged(t, l)
	cfg.Logger = quiet()
	_, err := Open(testContext(t, 10*time.Second), cfg)
	wantError(t, err, "partitions")
}

// Brokers die and stall one after the other while records are written and read: what is acknowledged is read, once per
// acknowledgement and in order, and nothing is acknowledged that is not on the log.
func TestKafkaBrokersDie(t *testing.T) {
	c := kafkaproc.ClusterForTest(t, kafkaproc.Options{Brokers: 3, Properties: map[string]string{
		"broker.session.timeout.ms": "3000", "broker.heartbeat.interval.ms": "500", "replica.lag.time.max.ms": "4000",
		"controller.quorum.election.timeout.ms": "1000", "controller.quorum.fetch.timeout.ms": "1500"}})
	const partitions, writers = 6, 6
	l := openLog(t, Config{Brokers: c.Brokers(), Create: true, Partitions: partitions})
	if got := l.cluster.current.Load().replicas; got != 3 {
		t.Fatalf("%d replicas", got)
	}
	ctx, cancel := context.WithCancel(testContext(t, 3*time.Minute))
	defer cancel()
	var mu sync.Mutex
	acked, read := make(map[Appended]string), make(map[Appended]string)
	var readers, writing sync.WaitGroup
	for p := range int32(partitions) {
		next := int64(0)
		readers.Go(func() {
			err := l.Read(ctx, p, 0, func(batch []Message) error {
				mu.Lock()
				defer mu.Unlock()
				for _, m := range batch {
					if m.Offset != next {
						return fmt.Errorf("partition %d: offset %d after %d", p, m.Offset, next-1)
					}
					next++
					read[Appended{p, m.Offset}] = string(m.Value)
				}
				return nil
			})
			if err != nil {
				t.Error(err)
			}
		})
	}
	var stop atomic.Bool
	for w := range writers {
		writing.Go(func() {
			for i := 0; !stop.Load(); i++ {
				recs := []Record{{Key: fmt.Sprint("a", w), Value: fmt.Appendf(nil, "%d-%d", w, i)}, {Key: fmt.Sprint("b", w), Value: fmt.Appendf(nil, "%d-%d", w, i)}}
				at, err := l.Append(ctx, recs...)
				if err != nil {
					t.Logf("append: %v", err) // an error is allowed, silence is not
					continue
				}
				mu.Lock()
				for j, a := range at {
					acked[a] = string(recs[j].Value)
				}
				mu.Unlock()
				time.Sleep(2 * time.Millisecond) // the writers' pace
			}
		})
	}
	count := func() int { mu.Lock(); defer mu.Unlock(); return len(acked) }
	progress := func(after string) {
		t.Helper()
		before, started := count(), time.Now()
		waitFor(t, func() bool { return count() > before+200 })
		t.Logf("%s: 200 records after %v", after, time.Since(started).Round(time.Millisecond))
	}
	progress("start")
	for i := range 2 {
		c.Kill(i)
		progress("kill")
		if err := c.Restart(ctx, i); err != nil {
			t.Fatal(err)
		}
		progress("restart")
	}
	if err := c.Pause(2); err != nil {
		t.Fatal(err)
	}
	progress("pause")
	if err := c.Resume(2); err != nil {
		t.Fatal(err)
	}
	progress("resume")
	stop.Store(true)
	writing.Wait()
	missing := func() (n int) {
		mu.Lock()
		defer mu.Unlock()
		for a, v := range acked {
			if got, ok := read[a]; !ok {
				n++
			} else if got != v {
				t.Fatalf("%v: acknowledged %q, read %q", a, v, got)
			}
		}
		return n
	}
	waitFor(t, func() bool { return missing() == 0 || t.Failed() })
	cancel()
	readers.Wait()
	t.Logf("%d acknowledged, %d read", len(acked), len(read))
}
