package archtest

import (
	"strings"
	"testing"
)

// project is the shape of mailbell, as docs/design.md describes it.
var project = Rules{
	Ours: map[string][]string{
		"schema":             {"schema"},
		"internal":           {"schema"},
		"internal/kafkaproc": {"deploy/kafka"},
		"storageadapter":     {"schema", "internal", "storageadapter"},
		"bus":                {"schema", "internal", "bus"},
		"notifier":           {"schema", "internal", "notifier"},
		"web":                {"schema", "internal", "web"},
		"deploy":             {"schema", "internal"},
		"docs":               {"schema", "internal"},
		"bench":              {"schema", "internal", "storageadapter", "bus", "notifier", "web", "bench"},
		"cmd":                {"schema", "internal", "storageadapter", "bus", "notifier", "web", "bench", "cmd"},
	},
	OursInTests: map[string][]string{
		"internal": {"internal"},
		"web":      {"cmd"},
		"deploy":   {"storageadapter", "cmd"},
	},
	Forbidden: map[string][]string{
		"notifier": {"internal/eventlog"},
	},
	ThirdParty: map[string][]string{
		"github.com/segmentio/kafka-go":       {"internal/eventlog"},
		"github.com/twmb/franz-go":            {"internal/eventlog"},
		"github.com/mailru/easygo":            {"notifier"},
		"github.com/gobwas/ws":                {"notifier", "internal/wsclient", "bench"},
		"github.com/gobwas/httphead":          {"notifier", "internal/wsclient", "bench"},
		"github.com/tidwall/gjson":            {"schema", "storageadapter", "internal/auth", "internal/wsclient"},
		"github.com/emersion/go-imap/v2":      {"bench/mailstore"},
		"modernc.org/sqlite":                  {"bench/mailstore"},
		"github.com/dop251/goja":              {"bench/report"},
		"github.com/oklog/ulid/v2":            {"schema"},
		"github.com/oklog/run":                {"cmd"},
		"github.com/spf13":                    {"cmd"},
		"go.yaml.in/yaml/v3":                  {"cmd"},
		"github.com/golang-jwt/jwt/v5":        {"internal/auth"},
		"github.com/MicahParks":               {"internal/auth"},
		"github.com/coreos/go-systemd/v22":    {"internal/ops"},
		"google.golang.org/grpc":              {"bus", "notifier", "schema/link"},
		"google.golang.org/protobuf":          {"bus", "notifier", "schema/link", "internal/trace"},
		"github.com/prometheus/client_golang": {"internal", "storageadapter", "bus", "notifier", "bench", "cmd"},
		"github.com/prometheus/client_model":  {"bench"},
		"github.com/HdrHistogram":             {"bench"},
		"go.opentelemetry.io/otel":            {"internal/trace"},
		"github.com/chromedp":                 {"internal/chromiumproc"},
		"golang.org/x/term":                   {"bench", "cmd"},
		"golang.org/x/sys":                    {"notifier", "internal", "storageadapter", "bench", "cmd"},
		"golang.org/x/sync":                   {anywhere},
		"golang.org/x/time":                   {"storageadapter", "bus", "notifier", "bench"},
	},
	ThirdPartyInTests: map[string][]string{
		"go.uber.org/goleak":                  {anywhere},
		"github.com/prometheus/client_golang": {"internal", "storageadapter", "bus", "notifier", "bench", "cmd"},
		"github.com/prometheus/client_model":  {"internal", "storageadapter", "bus", "notifier", "bench", "cmd"},
		"github.com/rogpeppe/go-internal":     {"cmd"},
		"github.com/getkin/kin-openapi":       {"cmd"},
		"github.com/chromedp":                 {"web", "cmd", "bench"},
		"github.com/emersion/go-imap/v2":      {"cmd", "storageadapter", "bench"},
		"google.golang.org/grpc":              {"bus", "notifier"},
	},
}

func TestImports(t *testing.T) {
	imports, err := Imports("../..")
	if err != nil {
		t.Fatal(err)
	}
	if len(imports) == 0 {
		t.Fatal("no Go file found: the test looks in the wrong place")
	}
	for _, line := range project.Check(imports) {
		t.Error(line)
	}
}

// The rules are worth what they catch.
func TestRulesCatch(t *testing.T) {
	const m = Module + "/"
	tests := []struct {
		name string
		imp  Import
		want string // part of the complaint; "" means allowed
	}{
		{"schema imports nothing of ours", Import{Dir: "schema", Path: m + "internal/auth"}, "may not import internal/auth"},
		{"schema's own parts", Import{Dir: "schema/link", Path: m + "schema"}, ""},
		{"internal sees schema", Import{Dir: "internal/auth", Path: m + "schema"}, ""},
		{"internal sees no internal", Import{Dir: "internal/auth", Path: m + "internal/ops"}, "may not import"},
		{"but its tests do", Import{Dir: "internal/eventlog", Path: m + "internal/kafkaproc", InTest: true}, ""},
		{"bus and notifier apart", Import{Dir: "bus", Path: m + "notifier"}, "may not import notifier"},
		{"in tests as well", Import{Dir: "bus", Path: m + "notifier", InTest: true}, "may not import notifier"},
		{"a name that begins alike", Import{Dir: "bus", Path: m + "internals"}, "may not import internals"},
		{"notifier without the log", Import{Dir: "notifier", Path: m + "internal/eventlog"}, "never import"},
		{"cmd wires", Import{Dir: "cmd/mailbell", Path: m + "notifier"}, ""},
		{"nobody imports cmd", Import{Dir: "bench", Path: m + "cmd/mailbell"}, "may not import"},
		{"an unknown folder", Import{Dir: "misc", Path: m + "schema"}, "has no rule"},
		{"kafka in its place", Import{Dir: "internal/eventlog", Path: "github.com/segmentio/kafka-go/sasl"}, ""},
		{"kafka elsewhere", Import{Dir: "bus", Path: "github.com/segmentio/kafka-go"}, "belongs to internal/eventlog"},
		{"a test tool in a test", Import{Dir: "bus", Path: "go.uber.org/goleak", InTest: true}, ""},
		{"a test tool in the product", Import{Dir: "bus", Path: "go.uber.org/goleak"}, "no folder owns"},
		{"a newcomer", Import{Dir: "bus", Path: "example.com/left/pad"}, "no folder owns"},
		{"the standard library", Import{Dir: "schema", Path: "encoding/json"}, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := strings.Join(project.Check([]Import{tt.imp}), "\n")
			if tt.want == "" && got != "" || !strings.Contains(got, tt.want) {
				t.Errorf("Check = %q, want %q", got, tt.want)
			}
		})
	}
}
