package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"github.com/mailbell/mailbell/internal/auth"
	"github.com/mailbell/mailbell/internal/eventlog"
	"github.com/mailbell/mailbell/storageadapter"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/spf13/pflag"
)

// The settings that more than one command has. A flag means the same wherever it
// appears, so each is registered in one place.

// defaultPartitions of a topic that is created on Kafka.
const defaultPartitions = 256

// gatewayPath is where clients ask for a notifier.
const gatewayPath = "/v1/connect"

// Ports, as the documentation names them.
const (
	portSockets = "7480"
	portLink    = "7481"
	portHTTP    = "8480"
	addrOps     = "127.0.0.1:7489"
)

func jsonFlag(fs *pflag.FlagSet, v *bool) {
	fs.BoolVar(v, "json", false, "print JSON, for programs")
}

func dataFlag(fs *pflag.FlagSet, v *string) {
	fs.StringVar(v, "data", "./mailbell-data", "`folder` for what must survive a restart: the log and keys of run, the adapter's spool")
}

func httpFlag(fs *pflag.FlagSet, v *string, host, what string) {
	fs.StringVar(v, "http", host+":"+portHTTP, "listen for HTTP on this `address`: "+what)
}

func opsFlag(fs *pflag.FlagSet, v *string) {
	fs.StringVar(v, "ops", addrOps, "listen for metrics, health and profiles on this `address`")
}

func socketsFlag(fs *pflag.FlagSet, v *string, host string) {
	fs.StringVar(v, "sockets", host+":"+portSockets, "listen for the clients' WebSockets on this `address`")
}

func linkFlag(fs *pflag.FlagSet, v *string, host string) {
	fs.StringVar(v, "link", host+":"+portLink, "listen for notifiers on this `address`")
}

func busFlag(fs *pflag.FlagSet, v *[]string) {
	fs.StringSliceVar(v, "bus", nil, "link `addresses` of the bus nodes to connect to; a name that stands for several addresses means all of them")
}

func publicURLFlag(fs *pflag.FlagSet, v *string) {
	fs.StringVar(v, "public-url", "", "what clients are told, such as wss://n1.example.com/v1/ws (default: from --sockets)")
}

func drainFlag(fs *pflag.FlagSet, v *time.Duration, d time.Duration) {
	fs.DurationVar(v, "drain", d, "on the way out, spread the clients' return over this `time`")
}

func nodeFlag(fs *pflag.FlagSet, v *string) {
	fs.StringVar(v, "node", "", "`name` of this node, unique among its kind (default: host name and port)")
}

// parseNetworks reads the networks that a flag lists; an address is a network of one.
func parseNetworks(flag string, texts []string) (networks []netip.Prefix, err error) {
	for _, text := range texts {
		network, err := netip.ParsePrefix(text)
		if addr, addrErr := netip.ParseAddr(text); addrErr == nil {
			network, err = netip.PrefixFrom(addr, addr.BitLen()), nil
		}
		if err != nil {
			return nil, fmt.Errorf("%s %q: want networks such as 10.0.0.0/8, or addresses", flag, text)
		}
		networks = append(networks, network)
	}
	return networks, nil
}

// keyFlags are who may listen and who may publish.
type keyFlags struct {
	jwtKeys       string
	issuer        string
	audience      string
	cookie        string
	serviceTokens string
	origins       string
}

func (k *keyFlags) registerJWT(fs *pflag.FlagSet) {
	fs.StringVar(&k.jwtKeys, "jwt-keys", "", "`file or URL` of the keys that users' tokens are checked with: PEM public keys, a JWKS, or an HS256 secret of 32 bytes or more (run makes its own in --data)")
	fs.StringVar(&k.issuer, "jwt-issuer", "", "accept only tokens whose `iss` is this")
	fs.StringVar(&k.audience, "jwt-audience", "", "accept only tokens whose `aud` has this")
	fs.StringVar(&k.cookie, "jwt-cookie", "mailbell_token", "`name` of the cookie that may hold the token")
}

func (k *keyFlags) registerServiceTokens(fs *pflag.FlagSet) {
	fs.StringVar(&k.serviceTokens, "service-tokens", "", "`file` that says who may publish and who may ask for tickets on behalf of users (run makes its own in --data)")
}

func (k *keyFlags) registerOrigins(fs *pflag.FlagSet) {
	fs.StringVar(&k.origins, "origins", "", "web origins that may use sockets and gateway, such as https://mail.example.com; `list` with commas (default: the same host)")
}

// keysDir is where run keeps the keys that it makes.
func keysDir(data string) string { return filepath.Join(data, "keys") }

const noJWTKeys = `--jwt-keys is missing: without keys nobody's token can be checked.
  Give it your identity provider's JWKS URL, or make a key pair:
    openssl genpkey -algorithm ed25519 -out jwt.pem && openssl pkey -in jwt.pem -pubout -out jwt.pub
  Start bus and notifier with --jwt-keys jwt.pub, and sign tokens with jwt.pem:
    mailbell token --key jwt.pem --account alice@example.com`

const noServiceTokens = `--service-tokens is missing: without it nobody may publish or ask for tickets.
  Make the first token; the line goes into the file, the token to the publisher:
    mailbell token service --name my-mail-store --scopes publish,connect --file service-tokens`

func (k *keyFlags) checkJWT() error {
	if k.jwtKeys == "" {
		return errors.New(noJWTKeys)
	}
	return nil
}

func (k *keyFlags) checkServiceTokens() error {
	if k.serviceTokens == "" {
		return errors.New(noServiceTokens)
	}
	return nil
}

// kafkaFlags are how the log is reached.
type kafkaFlags struct {
	brokers     []string
	topic       string
	create      bool
	partitions  int
	replication int

	tls                     bool
	ca, cert, key           string
	serverName              string
	mechanism, user, passwd string
}

func (k *kafkaFlags) register(fs *pflag.FlagSet) {
	fs.StringSliceVar(&k.brokers, "brokers", nil, "Kafka's bootstrap servers, such as kafka1:9092,kafka2:9092")
	fs.StringVar(&k.topic, "topic", "mail-events", "Kafka topic of the events")
	fs.BoolVar(&k.tls, "kafka-tls", false, "speak TLS with Kafka")
	fs.StringVar(&k.ca, "kafka-ca", "", "PEM `file` of the authorities that signed Kafka's certificates (implies TLS; default: the system's)")
	fs.StringVar(&k.cert, "kafka-cert", "", "PEM `file` of our certificate for Kafka (implies TLS)")
	fs.StringVar(&k.key, "kafka-key", "", "PEM `file` of the certificate's key")
	fs.StringVar(&k.serverName, "kafka-server-name", "", "`name` to expect in Kafka's certificates (default: the broker's host)")
	fs.StringVar(&k.mechanism, "kafka-sasl", "", "SASL `mechanism`: PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512")
	fs.StringVar(&k.user, "kafka-user", "", "SASL user")
	fs.StringVar(&k.passwd, "kafka-password", "", "SASL password; better as MAILBELL_KAFKA_PASSWORD or in the file, since command lines show in ps")
}

// registerCreate adds what is needed where the topic may be made.
func (k *kafkaFlags) registerCreate(fs *pflag.FlagSet, partitions int) {
	fs.BoolVar(&k.create, "create-topic", true, "create the topic if it is missing")
	fs.IntVar(&k.partitions, "partitions", partitions, "partitions of the topic, if it has to be created")
	fs.IntVar(&k.replication, "replication", 0, "replicas of the topic, if it has to be created (default: 3, or as many as there are brokers)")
}

const noBrokers = `--brokers is missing: name Kafka's bootstrap servers, such as --brokers kafka1:9092,kafka2:9092.
  To try mailbell without Kafka, start everything in one process: mailbell run`

func (k *kafkaFlags) checkBrokers() error {
	if len(k.brokers) == 0 {
		return errors.New(noBrokers)
	}
	return k.config().Validate()
}

// linkTLSFlags are the certificates of the link between bus and notifier.
type linkTLSFlags struct {
	ca, cert, key string
}

func (l *linkTLSFlags) register(fs *pflag.FlagSet) {
	fs.StringVar(&l.ca, "link-ca", "", "PEM `file` of the authority that signed both ends' certificates of the link; turns mutual TLS on")
	fs.StringVar(&l.cert, "link-cert", "", "PEM `file` of this node's certificate for the link")
	fs.StringVar(&l.key, "link-key", "", "PEM `file` of that certificate's key")
}

// openJWT opens the keys of users' tokens.
func (k *keyFlags) openJWT(ctx context.Context, logger *slog.Logger, reg prometheus.Registerer) (*auth.Keys, error) {
	return auth.OpenKeys(ctx, auth.KeysConfig{
		Source: k.jwtKeys, Issuer: k.issuer, Audience: k.audience, Logger: logger, Registerer: reg,
	})
}

// server is what the bus listens with; nil without TLS.
func (l *linkTLSFlags) server() (*tls.Config, error) {
	cfg, pool, err := l.load()
	if cfg != nil {
		cfg.ClientAuth, cfg.ClientCAs = tls.RequireAndVerifyClientCert, pool
	}
	return cfg, err
}

// client is what a notifier connects with; nil without TLS.
func (l *linkTLSFlags) client() (*tls.Config, error) {
	cfg, pool, err := l.load()
	if cfg != nil {
		cfg.RootCAs = pool
	}
	return cfg, err
}

func (l *linkTLSFlags) load() (*tls.Config, *x509.CertPool, error) {
	if l.ca == "" && l.cert == "" && l.key == "" {
		return nil, nil, nil
	}
	if l.ca == "" || l.cert == "" || l.key == "" {
		return nil, nil, errors.New("link: --link-ca, --link-cert and --link-key belong together: give all three, or none")
	}
	pool, err := authorities("--link-ca", l.ca)
	if err != nil {
		return nil, nil, fmt.Errorf("link: %w", err)
	}
	pair, err := tls.LoadX509KeyPair(l.cert, l.key)
	if err != nil {
		return nil, nil, fmt.Errorf("link: --link-cert and --link-key: %w", err)
	}
	return &tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{pair}}, pool, nil
}

// authorities are the certificates in the PEM file that a flag names.
func authorities(flag, file string) (*x509.CertPool, error) {
	pem, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", flag, err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("%s %s: holds no PEM certificate", flag, file)
	}
	return pool, nil
}

// config is the log's Config that the flags decide.
func (k *kafkaFlags) config() eventlog.Config {
	cfg := eventlog.Config{
		Brokers: k.brokers, Topic: k.topic, Create: k.create, Partitions: k.partitions, ReplicationFactor: k.replication,
	}
	if k.tls || k.ca != "" || k.cert != "" || k.serverName != "" {
		cfg.TLS = &eventlog.TLSConfig{CAFile: k.ca, CertFile: k.cert, KeyFile: k.key, ServerName: k.serverName}
	}
	if k.mechanism != "" || k.user != "" {
		cfg.SASL = &eventlog.SASLConfig{Mechanism: k.mechanism, User: k.user, Password: k.passwd}
	}
	return cfg
}

// openLog waits for the brokers as long as it takes, and says so.
func (k *kafkaFlags) openLog(ctx context.Context, logger *slog.Logger, reg prometheus.Registerer) (*eventlog.Log, error) {
	logger.Info("opening the log", "brokers", k.brokers, "topic", k.topic)
	return eventlog.Open(ctx, k.observed(logger, reg))
}

// deferLog opens the log while the process runs already.
func (k *kafkaFlags) deferLog(logger *slog.Logger, reg prometheus.Registerer) *storageadapter.DeferredLog {
	return storageadapter.DeferLog(k.observed(logger, reg))
}

func (k *kafkaFlags) observed(logger *slog.Logger, reg prometheus.Registerer) eventlog.Config {
	cfg := k.config()
	cfg.Logger, cfg.Registerer = logger, reg
	return cfg
}
