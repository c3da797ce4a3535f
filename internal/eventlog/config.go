package eventlog

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/segmentio/kafka-go/sasl"
	"github.com/segmentio/kafka-go/sasl/plain"
	"github.com/segmentio/kafka-go/sasl/scram"
)

// DefaultTopic is the topic of events.
const DefaultTopic = "mail-events"

// Config says where the log is. Only Brokers is required.
type Config struct {
	// Brokers are the addresses (host:port) of some brokers; the others are found through them.
	Brokers []string
	// Topic is the topic of events; empty means DefaultTopic.
	Topic string
	// TLS encrypts the connections to the brokers; nil means plain TCP.
	TLS *TLSConfig
	// SASL logs in at the brokers; nil means no login.
	SASL *SASLConfig

	// Create makes Open create the topic when it is missing.
	Create bool
	// Partitions is the number of partitions of a topic that is created; 0 means 256. When Create is not set and
	// Partitions is, an existing topic must have this number.
	Partitions int
	// ReplicationFactor of a topic that is created; 0 means 3, or the number of brokers if there are fewer.
	ReplicationFactor int

	// AppendTimeout ends an Append whose ctx has no deadline; 0 means 30 s.
	AppendTimeout time.Duration
	// AppendBuffer bounds the bytes that wait in Append; further callers wait for room. 0 means 64 MiB.
	AppendBuffer int64
	// ReadBuffer bounds the bytes read ahead of a slow reader, per partition; 0 means 1 MiB.
	ReadBuffer int

	// Dial opens connections to brokers; nil means a net.Dialer. Tests cut connections with it.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
	// Logger takes the log lines; nil means slog.Default().
	Logger *slog.Logger
	// Registerer takes the metrics; nil means none.
	Registerer prometheus.Registerer
}

// TLSConfig names the files of a TLS connection. The zero value trusts the system's authorities.
type TLSConfig struct {
	CAFile            string // PEM certificates to trust instead of the system's
	CertFile, KeyFile string // PEM client certificate and key, for brokers that ask for one
	ServerName        string // the name in the brokers' certificates, if not the host of their address
	Insecure          bool   // do not check the brokers' certificates: for trying things out only
}

// SASLConfig is a login.
type SASLConfig struct {
	Mechanism string // PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512
	User      string
	Password  string
}

// The limits of a Config.
const (
	maxPartitions     = 10_000
	defaultPartitions = 256
)

func (c Config) withDefaults() Config {
	if c.Topic == "" {
		c.Topic = DefaultTopic
	}
	if c.AppendTimeout == 0 {
		c.AppendTimeout = 30 * time.Second
	}
	if c.AppendBuffer == 0 {
		c.AppendBuffer = 64 << 20
	}
	if c.ReadBuffer == 0 {
		c.ReadBuffer = 1 << 20
	}
	if c.Dial == nil {
		c.Dial = (&net.Dialer{Timeout: 5 * time.Second, KeepAlive: 15 * time.Second}).DialContext
	}
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
	return c
}

// Validate returns what is wrong with c, each with an example of what is right.
func (c Config) Validate() error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf("log config: "+format, args...)) }
	if len(c.Brokers) == 0 {
		bad("no brokers: name at least one, such as kafka1.example.com:9092")
	}
	for _, b := range c.Brokers {
		if !isHostPort(b) {
			bad("broker %q is not host:port, such as kafka1.example.com:9092", b)
		}
	}
	if c.Topic != "" {
		if problem := topicProblem(c.Topic); problem != "" {
			bad("topic %q %s; mail-events is a good name", c.Topic, problem)
		}
	}
	if c.Partitions < 0 || c.Partitions > maxPartitions {
		bad("%d partitions: choose 1 to %d, 256 is a good number", c.Partitions, maxPartitions)
	}
	if c.ReplicationFactor < 0 || c.ReplicationFactor > 32767 {
		bad("replication factor %d: choose the number of copies of each record, 3 is a good number", c.ReplicationFactor)
	}
	if c.AppendTimeout < 0 {
		bad("append timeout %v is negative; 30s is a good value", c.AppendTimeout)
	}
	if c.AppendBuffer < 0 || c.ReadBuffer < 0 {
		bad("a buffer size is negative: append %d, read %d bytes", c.AppendBuffer, c.ReadBuffer)
	}
	errs = append(errs, c.TLS.validate(), c.SASL.validate())
	return errors.Join(errs...)
}

func isHostPort(address string) bool {
	host, port, err := net.SplitHostPort(address)
	if err != nil || host == "" || strings.ContainsAny(host, " /") {
		return false
	}
	n, err := strconv.ParseUint(port, 10, 16)
	return err == nil && n > 0
}

// topicProblem returns what Kafka would not like about a topic name.
func topicProblem(topic string) string {
	switch {
	case topic == "." || topic == "..":
		return "is not a name"
	case len(topic) > 249:
		return fmt.Sprintf("has %d characters, more than 249", len(topic))
	}
	for _, r := range topic {
		if !strings.ContainsRune("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-", r) {
			return fmt.Sprintf("has the character %q; only letters, digits, '.', '_' and '-' are allowed", r)
		}
	}
	return ""
}

func (t *TLSConfig) validate() error {
	if t == nil {
		return nil
	}
	if (t.CertFile == "") != (t.KeyFile == "") {
		return errors.New("log config: tls has only one of certificate and key: name both files, or neither")
	}
	return nil
}

func (s *SASLConfig) validate() error {
	if s == nil {
		return nil
	}
	if s.User == "" || s.Password == "" {
		return errors.New("log config: sasl needs a user and a password")
	}
	_, err := s.mechanism()
	return err
}

func (s *SASLConfig) mechanism() (sasl.Mechanism, error) {
	if s == nil {
		return nil, nil
	}
	switch s.Mechanism {
	case "PLAIN":
		return plain.Mechanism{Username: s.User, Password: s.Password}, nil
	case "SCRAM-SHA-256":
		return scram.Mechanism(scram.SHA256, s.User, s.Password)
	case "SCRAM-SHA-512":
		return scram.Mechanism(scram.SHA512, s.User, s.Password)
	}
	return nil, fmt.Errorf("log config: sasl mechanism %q is not one of PLAIN, SCRAM-SHA-256, SCRAM-SHA-512", s.Mechanism)
}

// config reads the files and returns what crypto/tls needs; nil for a nil t.
func (t *TLSConfig) config() (*tls.Config, error) {
	if t == nil {
		return nil, nil
	}
	c := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: t.ServerName, InsecureSkipVerify: t.Insecure} //nolint:gosec // asked for by the operator
	if t.CAFile != "" {
		pem, err := os.ReadFile(t.CAFile)
		if err != nil {
			return nil, fmt.Errorf("log config: tls: read the authorities: %w", err)
		}
		c.RootCAs = x509.NewCertPool()
		if !c.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("log config: tls: %s holds no PEM certificate", t.CAFile)
		}
	}
	if t.CertFile != "" {
		pair, err := tls.LoadX509KeyPair(t.CertFile, t.KeyFile)
		if err != nil {
			return nil, fmt.Errorf("log config: tls: read the client certificate: %w", err)
		}
		c.Certificates = []tls.Certificate{pair}
	}
	return c, nil
}
