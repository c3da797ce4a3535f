package doctor

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/mailbell/mailbell/internal/eventlog"
	"github.com/mailbell/mailbell/internal/kafkaproc"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var wants = Wants{Topic: "mail-events", Window: 15 * time.Minute, Index: 72 * time.Hour}

// healthy is a site with nothing to say about.
func healthy() Facts {
	return Facts{
		Log: &eventlog.Description{
			Brokers:    []eventlog.BrokerState{{ID: 1, Address: "k1:9092"}, {ID: 2, Address: "k2:9092"}, {ID: 3, Address: "k3:9092"}},
			Partitions: 256, Replicas: 3,
			Settings: map[string]string{"cleanup.policy": "delete", "max.message.bytes": "1048588", "message.timestamp.type": "CreateTime",
				"min.insync.replicas": "2", "retention.bytes": "-1", "retention.ms": "604800000", "unclean.leader.election.enable": "false"},
		},
		Nodes: []Node{{Address: "b1:7489", Ready: true, Ahead: 300 * time.Millisecond, Blur: time.Second / 2, Files: Files{100, 1 << 20}},
			{Address: "b1:7481", Link: true}},
		Files: Files{10, 20_000},
	}
}

func find(findings []Finding, check string) Finding {
	for _, f := range findings {
		if f.Check == check {
			return f
		}
	}
	return Finding{}
}

func TestJudgeHealthy(t *testing.T) {
	findings := Judge(healthy(), wants)
	for _, f := range findings {
		if f.Level != Good || f.Change != "" {
			t.Errorf("%+v", f)
		}
	}
	if len(findings) < 15 || Worst(findings) != Good {
		t.Errorf("%d findings, the worst %s", len(findings), Worst(findings))
	}
}

func TestJudge(t *testing.T) {
	set := func(key, value string) func(*Facts) { return func(f *Facts) { f.Log.Settings[key] = value } }
	tests := []struct {
		name   string
		change func(*Facts)
		check  string
		level  Level
		advice string // part of what to change
	}{
		{"no broker", func(f *Facts) { f.Log, f.LogErr = nil, errors.New("refused") }, "brokers", Bad, "--brokers"},
		{"a broker is not reached", func(f *Facts) { f.Log.Brokers[1].Err = errors.New("timeout") }, "broker 2", Bad, "advertised.listeners"},
		{"one broker", func(f *Facts) { f.Log.Brokers = f.Log.Brokers[:1] }, "brokers", Warn, "run three"},
		{"no topic", func(f *Facts) { *f.Log = eventlog.Description{Brokers: f.Log.Brokers, Missing: true} }, "topic", Bad, "256 partitions"},
		{"few partitions", func(f *Facts) { f.Log.Partitions = 3 }, "partitions", Warn, "256"},
		{"one copy", func(f *Facts) { f.Log.Replicas = 1 }, "replication", Bad, "3"},
		{"two copies", func(f *Facts) { f.Log.Replicas = 2 }, "replication", Warn, "3"},
		{"no leader", func(f *Facts) { f.Log.Leaderless = 1 }, "replicas in step", Bad, "broker"},
		{"a replica behind", func(f *Facts) { f.Log.UnderReplicated = 4 }, "replicas in step", Warn, "broker"},
		{"insync one", set("min.insync.replicas", "1"), "min.insync.replicas", Bad, "min.insync.replicas=2"},
		{"insync all", set("min.insync.replicas", "3"), "min.insync.replicas", Warn, "min.insync.replicas=2"},
		{"compacted", set("cleanup.policy", "compact"), "cleanup.policy", Bad, "cleanup.policy=delete"},
		{"compacted too", set("cleanup.policy", "compact,delete"), "cleanup.policy", Bad, "cleanup.policy=delete"},
		{"retention below the window", set("retention.ms", "600000"), "retention", Bad, "retention.ms=259200000"},
		{"retention below the index", set("retention.ms", "86400000"), "retention", Warn, "kafka-configs.sh --bootstrap-server k1:9092 --alter --topic mail-events --add-config retention.ms=259200000"},
		{"retention of run", func(f *Facts) { f.Log.Embedded, f.Log.Settings["retention.ms"] = true, "86400000" }, "retention", Warn, "mailbell run with --retention 72h0m0s"},
		{"for ever", set("retention.ms", "-1"), "retention", Good, ""},
		{"bytes", set("retention.bytes", "1000"), "retention.bytes", Warn, "retention.bytes=-1"},
		{"small messages", set("max.message.bytes", "1000"), "max.message.bytes", Bad, "1048588"},
		{"unclean", set("unclean.leader.election.enable", "true"), "unclean leaders", Bad, "false"},
		{"append time", set("message.timestamp.type", "LogAppendTime"), "message.timestamp.type", Warn, "CreateTime"},
		{"settings unreadable", func(f *Facts) { f.Log.Settings, f.Log.SettingsErr = nil, errors.New("not allowed") }, "settings", Warn, "DescribeConfigs"},
		{"from the future", func(f *Facts) { f.Log.FromTheFuture = 2 }, "record times", Warn, "clock"},
		{"node gone", func(f *Facts) { f.Nodes[0].Err = errors.New("refused") }, "b1:7489", Bad, "start it"},
		{"link gone", func(f *Facts) { f.Nodes[1].Err = errors.New("refused") }, "b1:7481", Bad, "start it"},
		{"not ready", func(f *Facts) { f.Nodes[0].Ready, f.Nodes[0].Problem = false, "log: no brokers" }, "b1:7489", Bad, "log"},
		{"clock off", func(f *Facts) { f.Nodes[0].Ahead = -10 * time.Second }, "clock of b1:7489", Warn, "NTP"},
		{"clock far off", func(f *Facts) { f.Nodes[0].Ahead = time.Minute }, "clock of b1:7489", Bad, "NTP"},
		{"files nearly used up", func(f *Facts) { f.Nodes[0].Files = Files{990_000, 1_000_000} }, "files of b1:7489", Bad, "LimitNOFILE"},
		{"few files", func(f *Facts) { f.Files.Max = 1024 }, "files here", Warn, "LimitNOFILE"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			f := healthy()
			tt.change(&f)
			findings := Judge(f, wants)
			got := find(findings, tt.check)
			if got.Level != tt.level || !strings.Contains(got.Change, tt.advice) || tt.level != Good && got.Found == "" {
				t.Errorf("%+v, want %s and %q", got, tt.level, tt.advice)
			}
			if worst := Worst(findings); worst != tt.level {
				t.Errorf("the worst is %s", worst)
			}
		})
	}
}

func TestJudgeWithoutBrokers(t *testing.T) {
	f := healthy()
	f.Log = nil
	findings := Judge(f, wants)
	if findings[0].Check != "b1:7489" || Worst(findings) != Good {
		t.Errorf("%+v", findings)
	}
}

func TestJudgeNotTold(t *testing.T) {
	f := healthy()
	delete(f.Log.Settings, "unclean.leader.election.enable")
	if got := find(Judge(f, wants), "unclean leaders"); got.Level != Good || got.Found != "not told" {
		t.Errorf("%+v", got)
	}
}

func TestGatherNodes(t *testing.T) {
	node := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Date", time.Now().Add(time.Minute).UTC().Format(http.TimeFormat))
		if r.URL.Path == "/readyz" {
			http.Error(w, "bus: not yet in the group", http.StatusServiceUnavailable)
			return
		}
		fmt.Fprint(w, "# TYPE process_max_fds gauge\nprocess_max_fds 1024\nprocess_open_fds 1.2e+01\n")
	}))
	defer node.Close()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	closed := l.Addr().String()
	l.Close()
	address := strings.TrimPrefix(node.URL, "http://")
	f := Gather(context.Background(), Where{Nodes: []string{address, closed}, Links: []string{address, closed}})
	if f.Log != nil || f.LogErr != nil || f.Files.Max == 0 {
		t.Errorf("%+v", f)
	}
	n := f.Nodes[0]
	if n.Err != nil || n.Ready || n.Problem != "bus: not yet in the group" || n.Files != (Files{12, 1024}) || (n.Ahead-time.Minute).Abs() > n.Blur+50*time.Millisecond {
		t.Errorf("%+v", n)
	}
	if f.Nodes[1].Err == nil || f.Nodes[2].Err != nil || f.Nodes[3].Err == nil || !f.Nodes[3].Link {
		t.Errorf("%+v", f.Nodes)
	}
}

// TestGatherKafka looks at a real cluster before and after a topic is there.
func TestGatherKafka(t *testing.T) {
	brokers := kafkaproc.ForTest(t, 1)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	cfg := eventlog.Config{Brokers: brokers, Logger: slog.New(slog.DiscardHandler)}
	f := Gather(ctx, Where{Log: cfg})
	if f.LogErr != nil || !f.Log.Missing || len(f.Log.Brokers) != 1 || f.Log.Brokers[0].Err != nil {
		t.Fatalf("%+v", f)
	}
	create := cfg
	create.Create, create.Partitions = true, 4
	log, err := eventlog.Open(ctx, create)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	f = Gather(ctx, Where{Log: cfg})
	d := f.Log
	if f.LogErr != nil || d.Missing || d.Partitions != 4 || d.Replicas != 1 || d.SettingsErr != nil || d.Settings["cleanup.policy"] != "delete" || d.FromTheFuture != 0 {
		t.Fatalf("%+v", d)
	}
	if got := find(Judge(f, wants), "replication"); got.Level != Bad {
		t.Errorf("%+v", got)
	}
}
