package main

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/spf13/cobra"
)

// toy is a tree with one setting of each kind, and one of another command.
func toy() (root, cmd *cobra.Command, values *toyValues) {
	values = &toyValues{}
	root = &cobra.Command{Use: "mailbell"}
	root.PersistentFlags().String("config", "", "file")
	cmd = &cobra.Command{Use: "part", Run: func(*cobra.Command, []string) {}}
	cmd.Flags().StringVar(&values.topic, "topic", "mail-events", "topic")
	cmd.Flags().StringSliceVar(&values.brokers, "brokers", nil, "brokers")
	cmd.Flags().IntVar(&values.partitions, "partitions", 16, "partitions")
	cmd.Flags().DurationVar(&values.drain, "drain", 10*time.Second, "drain")
	cmd.Flags().BoolVar(&values.tls, "kafka-tls", false, "tls")
	other := &cobra.Command{Use: "other", Run: func(*cobra.Command, []string) {}}
	other.Flags().String("public-url", "", "url")
	root.AddCommand(cmd, other)
	return root, cmd, values
}

type toyValues struct {
	topic      string
	brokers    []string
	partitions int
	drain      time.Duration
	tls        bool
}

func TestPrecedence(t *testing.T) {
	tests := []struct {
		name string
		file string
		env  []string
		args []string
		want string
	}{
		{"default", "", nil, nil, "mail-events"},
		{"file over default", "topic: from-file\n", nil, nil, "from-file"},
		{"environment over file", "topic: from-file\n", []string{"MAILBELL_TOPIC=from-env"}, nil, "from-env"},
		{"flag over environment", "topic: from-file\n", []string{"MAILBELL_TOPIC=from-env"}, []string{"--topic", "from-flag"}, "from-flag"},
		{"flag over file, even when it is the default", "topic: from-file\n", nil, []string{"--topic", "mail-events"}, "mail-events"},
		{"other programs' variables", "", []string{"TOPIC=no", "MAILBELLTOPIC=no"}, nil, "mail-events"},
		{"Kubernetes' variables", "", []string{"MAILBELL_BUS_SERVICE_HOST=10.0.0.1", "MAILBELL_PORT_7481_TCP_ADDR=10.0.0.1", "MAILBELL_PORT=tcp://10.0.0.1:7481"}, nil, "mail-events"},
		{"an empty file", "# nothing\n", nil, nil, "mail-events"},
		{"a key of another command", "public-url: ws://x/v1/ws\n", []string{"MAILBELL_PUBLIC_URL=ws://x"}, nil, "mail-events"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, cmd, values := toy()
			args := tt.args
			if tt.file != "" {
				args = append(args, "--config", writeFile(t, tt.file))
			}
			if err := cmd.ParseFlags(args); err != nil {
				t.Fatal(err)
			}
			if err := applySettings(cmd, tt.env); err != nil {
				t.Fatal(err)
			}
			if values.topic != tt.want {
				t.Errorf("topic = %q, want %q", values.topic, tt.want)
			}
		})
	}
}

func TestConfigFileFromEnvironment(t *testing.T) {
	_, cmd, values := toy()
	path := writeFile(t, "brokers: [kafka1:9092, kafka2:9092]\npartitions: 64\ndrain: 1m30s\nkafka-tls: true\n")
	if err := cmd.ParseFlags(nil); err != nil {
		t.Fatal(err)
	}
	if err := applySettings(cmd, []string{"MAILBELL_CONFIG=" + path}); err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(values.brokers, " "); got != "kafka1:9092 kafka2:9092" {
		t.Errorf("brokers = %q", got)
	}
	if values.partitions != 64 || values.drain != 90*time.Second || !values.tls {
		t.Errorf("values = %+v", *values)
	}
}

func TestBadSettings(t *testing.T) {
	tests := []struct {
		name string
		file string
		env  []string
		want []string // each a part of the error
	}{
		{"unknown key", "brokrs: kafka1:9092\n", nil, []string{`line 1: unknown key "brokrs"`, `nearest known one is "brokers"`}},
		{"every unknown key", "topic: a\ntopics: b\ndrian: 1s\n", nil, []string{`line 2: unknown key "topics"`, `line 3: unknown key "drian"`, `"drain"`}},
		{"unknown variable", "", []string{"MAILBELL_TOPICS=x"}, []string{"unknown variable MAILBELL_TOPICS", "MAILBELL_TOPIC"}},
		{"key twice", "topic: a\ntopic: b\n", nil, []string{`line 2: "topic" is given twice`}},
		{"no value", "topic:\n", nil, []string{`"topic" has no value`}},
		{"nested", "topic:\n  name: a\n", nil, []string{`"topic": want a value or a list`}},
		{"nested list", "brokers:\n  - {host: a}\n", nil, []string{"want a list of plain values"}},
		{"a list at the top", "- topic\n", nil, []string{"want lines of the form `key: value`"}},
		{"not YAML", "topic: [a\n", nil, []string{"not YAML"}},
		{"config in config", "config: other.yaml\n", nil, []string{"cannot name another one"}},
		{"not a number", "partitions: many\n", nil, []string{"line 1: partitions:", "want a whole number, such as 16"}},
		{"not a duration", "", []string{"MAILBELL_DRAIN=10"}, []string{`MAILBELL_DRAIN="10"`, "such as 30s, 5m or 1h"}},
		{"not a bool", "kafka-tls: perhaps\n", nil, []string{"want true or false"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, cmd, _ := toy()
			var args []string
			if tt.file != "" {
				args = []string{"--config", writeFile(t, tt.file)}
			}
			if err := cmd.ParseFlags(args); err != nil {
				t.Fatal(err)
			}
			err := applySettings(cmd, tt.env)
			if err == nil {
				t.Fatal("no error")
			}
			for _, want := range tt.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("error %q lacks %q", err, want)
				}
			}
		})
	}
}

func TestMissingConfigFile(t *testing.T) {
	_, cmd, _ := toy()
	if err := cmd.ParseFlags([]string{"--config", filepath.Join(t.TempDir(), "none.yaml")}); err != nil {
		t.Fatal(err)
	}
	if err := applySettings(cmd, nil); err == nil || !strings.Contains(err.Error(), "no such file: create it") {
		t.Errorf("error = %v", err)
	}
}

func TestNearest(t *testing.T) {
	names := []string{"brokers", "bus", "public-url", "topic"}
	for name, want := range map[string]string{
		"brokrs": "brokers", "publicurl": "public-url", "Topic": "topic", "bs": "bus", "b": "", "kafka": "", "topic": "topic",
	} {
		if got := nearest(name, names); got != want {
			t.Errorf("nearest(%q) = %q, want %q", name, got, want)
		}
	}
	if got := nearest("x", nil); got != "" {
		t.Errorf("nearest of nothing = %q", got)
	}
}

func FuzzParseConfig(f *testing.F) {
	f.Add([]byte("topic: a\nbrokers: [b, c]\n"))
	f.Add([]byte("topic: &x a\nbrokers: *x\n"))
	f.Add([]byte("- a"))
	f.Fuzz(func(t *testing.T, data []byte) {
		values, err := parseConfig(data, []string{"topic", "brokers"})
		if err != nil {
			return
		}
		for key := range values {
			if key != "topic" && key != "brokers" {
				t.Errorf("let the unknown key %q through", key)
			}
		}
	})
}

func writeFile(t *testing.T, content string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "mailbell.yaml")
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestDeployedSettings gives each part what deploy/ has for it: a key or a variable that no flag has is an error, and so is a value that
// its flag does not take.
func TestDeployedSettings(t *testing.T) {
	t.Setenv("MAILBELL_CONFIG", "")
	variables := regexp.MustCompile(`(?m)(MAILBELL_[A-Z_]+)[:=] *(?:"([^"]*)"|([^\s,}#]*))`)
	var environ []string
	for _, file := range []string{"compose/compose.yaml", "systemd/README.md"} {
		b, err := os.ReadFile(filepath.Join("../../deploy", file))
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range variables.FindAllStringSubmatch(string(b), -1) {
			value := m[2] + m[3]
			value, _, _ = strings.Cut(strings.ReplaceAll(value, "%d", "1"), `\n`)
			environ = append(environ, m[1]+"="+value)
		}
	}
	if len(environ) < 20 {
		t.Fatalf("only %q", environ)
	}
	root := newRoot(terminal{})
	for _, part := range []string{"bus", "notifier", "adapter"} {
		cmd, _, err := root.Find([]string{part})
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.ParseFlags([]string{"--config", "../../deploy/kubernetes/mailbell.yaml"}); err != nil {
			t.Fatal(err)
		}
		if err := applySettings(cmd, environ); err != nil {
			t.Errorf("%s: %v", part, err)
		}
	}
	bus, _, _ := root.Find([]string{"bus"})
	if got := bus.Flag("trusted-proxies").Value.String(); got != "[10.0.0.0/8]" {
		t.Errorf("bus trusts %s", got)
	}
}
