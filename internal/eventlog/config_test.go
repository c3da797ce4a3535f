package eventlog

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestConfigValidate(t *testing.T) {
	good := Config{Brokers: []string{"localhost:9092"}}
	tests := []struct {
		name   string
		change func(*Config)
		want   string // part of the error; "" for none
	}{
		{"brokers only", func(*Config) {}, ""},
		{"no brokers", func(c *Config) { c.Brokers = nil }, "name at least one, such as kafka1.example.com:9092"},
		{"broker without port", func(c *Config) { c.Brokers = []string{"kafka1"} }, `broker "kafka1" is not host:port`},
		{"broker without host", func(c *Config) { c.Brokers = []string{":9092"} }, `broker ":9092" is not host:port`},
		{"broker with a word for a port", func(c *Config) { c.Brokers = []string{"kafka1:ninety"} }, `broker "kafka1:ninety" is not host:port`},
		{"broker with a port too high", func(c *Config) { c.Brokers = []string{"kafka1:90920"} }, `broker "kafka1:90920" is not host:port`},
		{"broker with a space", func(c *Config) { c.Brokers = []string{"kafka1:9092", " kafka2:9092"} }, `broker " kafka2:9092" is not host:port`},
		{"broker as a URL", func(c *Config) { c.Brokers = []string{"kafka://kafka1:9092"} }, `broker "kafka://kafka1:9092" is not host:port`},
		{"broker of IPv6", func(c *Config) { c.Brokers = []string{"[::1]:9092"} }, ""},
		{"topic with a space", func(c *Config) { c.Topic = "mail events" }, `has the character ' '`},
		{"topic of dots", func(c *Config) { c.Topic = ".." }, "is not a name"},
		{"topic too long", func(c *Config) { c.Topic = strings.Repeat("x", 250) }, "more than 249"},
		{"too many partitions", func(c *Config) { c.Partitions = 10_001 }, "10001 partitions: choose 1 to 10000"},
		{"negative partitions", func(c *Config) { c.Partitions = -1 }, "-1 partitions"},
		{"negative replicas", func(c *Config) { c.ReplicationFactor = -1 }, "replication factor -1"},
		{"negative timeout", func(c *Config) { c.AppendTimeout = -time.Second }, "append timeout -1s is negative"},
		{"negative buffer", func(c *Config) { c.ReadBuffer = -1 }, "a buffer size is negative"},
		{"half a client certificate", func(c *Config) { c.TLS = &TLSConfig{CertFile: "a.pem"} }, "only one of certificate and key"},
		{"unknown mechanism", func(c *Config) { c.SASL = &SASLConfig{Mechanism: "GSSAPI", User: "u", Password: "p"} }, `"GSSAPI" is not one of PLAIN, SCRAM-SHA-256, SCRAM-SHA-512`},
		{"no password", func(c *Config) { c.SASL = &SASLConfig{Mechanism: "PLAIN", User: "u"} }, "sasl needs a user and a password"},
		{"scram", func(c *Config) { c.SASL = &SASLConfig{Mechanism: "SCRAM-SHA-512", User: "u", Password: "p"} }, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			cfg := good
			tt.change(&cfg)
			wantError(t, cfg.Validate(), tt.want)
		})
	}
}

func wantError(t *testing.T, err error, want string) {
	t.Helper()
	switch {
	case want == "" && err != nil:
		t.Fatalf("unexpected error: %v", err)
	case want != "" && err == nil:
		t.Fatalf("no error, want one with %q", want)
	case want != "" && !strings.Contains(err.Error(), want):
		t.Fatalf("got %q, want it to contain %q", err, want)
	}
}

func TestTLSFiles(t *testing.T) {
	dir := t.TempDir()
	empty := filepath.Join(dir, "empty.pem")
	if err := os.WriteFile(empty, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name string
		tls  TLSConfig
		want string
	}{
		{"system's authorities", TLSConfig{}, ""},
		{"missing authorities", TLSConfig{CAFile: filepath.Join(dir, "none.pem")}, "read the authorities"},
		{"empty authorities", TLSConfig{CAFile: empty}, "holds no PEM certificate"},
		{"empty client certificate", TLSConfig{CertFile: empty, KeyFile: empty}, "read the client certificate"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := tt.tls.config()
			wantError(t, err, tt.want)
		})
	}
}

func TestEmbeddedConfigValidate(t *testing.T) {
	tests := []struct {
		name string
		cfg  EmbeddedConfig
		want string
	}{
		{"folder only", EmbeddedConfig{Dir: "x"}, ""},
		{"no folder", EmbeddedConfig{}, "say where the data goes"},
		{"bad topic", EmbeddedConfig{Dir: "x", Topic: "a b"}, "has the character"},
		{"too many partitions", EmbeddedConfig{Dir: "x", Partitions: 257}, "choose 1 to 256"},
		{"short retention", EmbeddedConfig{Dir: "x", Retention: time.Second}, "at least 1m"},
		{"small retention", EmbeddedConfig{Dir: "x", RetentionBytes: 1}, "is too small"},
		{"bad port", EmbeddedConfig{Dir: "x", Port: 70_000}, "port 70000 is none"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) { wantError(t, tt.cfg.Validate(), tt.want) })
	}
}

func TestGroupConfigValidate(t *testing.T) {
	nothing := GroupConfig{NodeID: "bus-1", OnAssigned: discardAssigned}
	tests := []struct {
		name   string
		change func(*GroupConfig)
		want   string
	}{
		{"defaults", func(*GroupConfig) {}, ""},
		{"no node", func(c *GroupConfig) { c.NodeID = "" }, "give each node a name of its own"},
		{"no function", func(c *GroupConfig) { c.OnAssigned = nil }, "no OnAssigned"},
		{"slow heartbeat", func(c *GroupConfig) { c.Heartbeat = 3 * time.Second }, "too seldom"},
		{"negative", func(c *GroupConfig) { c.Session = -1 }, "negative"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			cfg := nothing
			tt.change(&cfg)
			wantError(t, cfg.Validate(), tt.want)
		})
	}
}
