// Package check decodes what deploy/ holds for other programs strictly into those programs' own Go types, in a module of
// its own so that mailbell does not depend on them.
package check

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/compose-spec/compose-go/v2/loader"
	"github.com/compose-spec/compose-go/v2/types"
	bootstrap "github.com/envoyproxy/go-control-plane/envoy/config/bootstrap/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/router/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/proxy_protocol/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/raw_buffer/v3"
	"google.golang.org/protobuf/encoding/protojson"
	appsv1 "k8s.io/api/apps/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	policyv1 "k8s.io/api/policy/v1"
	"sigs.k8s.io/yaml"
)

// TestKubernetes decodes each manifest into its type; a field that the type does not have is an error.
func TestKubernetes(t *testing.T) {
	var kustomization struct {
		APIVersion string              `json:"apiVersion"`
		Kind       string              `json:"kind"`
		Namespace  string              `json:"namespace"`
		Resources  []string            `json:"resources"`
		Images     []map[string]string `json:"images"`
	}
	strictly(t, read(t, "../kubernetes/kustomization.yaml"), &kustomization)
	files, err := filepath.Glob("../kubernetes/*.yaml")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		name := filepath.Base(f)
		if name != "kustomization.yaml" && name != "keda.yaml" && !slices.Contains(kustomization.Resources, name) {
			t.Errorf("%s is not in kustomization.yaml", name)
		}
	}
	for _, name := range kustomization.Resources {
		for i, doc := range bytes.Split(read(t, "../kubernetes/"+name), []byte("\n---\n")) {
			var head struct {
				APIVersion string `json:"apiVersion"`
				Kind       string `json:"kind"`
				Metadata   struct {
					Namespace string `json:"namespace"`
				} `json:"metadata"`
			}
			if err := yaml.Unmarshal(doc, &head); err != nil {
				t.Fatalf("%s, %d: %v", name, i, err)
			}
			object := map[string]any{
				"v1 Namespace": &corev1.Namespace{}, "v1 ConfigMap": &corev1.ConfigMap{}, "v1 Service": &corev1.Service{},
				"apps/v1 Deployment": &appsv1.Deployment{}, "apps/v1 StatefulSet": &appsv1.StatefulSet{},
				"policy/v1 PodDisruptionBudget":          &policyv1.PodDisruptionBudget{},
				"networking.k8s.io/v1 NetworkPolicy":     &networkingv1.NetworkPolicy{},
				"autoscaling/v2 HorizontalPodAutoscaler": &autoscalingv2.HorizontalPodAutoscaler{},
			}[head.APIVersion+" "+head.Kind]
			if object == nil {
				t.Errorf("%s: %s %s is not known here", name, head.APIVersion, head.Kind)
				continue
			}
			strictly(t, doc, object)
			if head.Kind != "Namespace" && head.Metadata.Namespace != kustomization.Namespace {
				t.Errorf("%s: %s is in namespace %q", name, head.Kind, head.Metadata.Namespace)
			}
			if s, ok := object.(*appsv1.StatefulSet); ok && *s.Spec.Template.Spec.TerminationGracePeriodSeconds <= 305 {
				t.Errorf("%s: a notifier is killed before its drain is over", name)
			}
		}
	}
}

// TestCompose loads the file as docker compose does: schema, anchors, references.
func TestCompose(t *testing.T) {
	project, err := loader.LoadWithContext(context.Background(), types.ConfigDetails{
		WorkingDir:  "../compose",
		ConfigFiles: []types.ConfigFile{{Filename: "../compose/compose.yaml", Content: read(t, "../compose/compose.yaml")}},
	}, func(o *loader.Options) { o.SetProjectName("mailbell", true) })
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"kafka", "bus1", "bus2", "notifier1", "notifier2", "notifier3", "adapter", "prometheus", "grafana"} {
		if _, err := project.GetService(name); err != nil {
			t.Error(err)
		}
	}
	for _, name := range []string{"notifier1", "notifier2", "notifier3"} {
		checkNotifier(t, project, name)
	}
	if b := read(t, "../compose/Dockerfile"); !bytes.Contains(b, []byte("--chown=65532:65532 /spool /spool")) {
		t.Error("the adapter's new volume belongs to root")
	}
	checkDashboards(t, project)
	for name, s := range project.Services {
		if s.Environment["MAILBELL_PROBE_INTERVAL"] != nil {
			t.Errorf("%s: probes are off", name)
		}
		for _, p := range s.Ports {
			if p.HostIP != "127.0.0.1" {
				t.Errorf("%s: port %s is open to the network", name, p.Published)
			}
		}
		for _, v := range s.Volumes {
			if v.Type == "bind" && filepath.Base(v.Source) != "secrets" {
				if _, err := os.Stat(v.Source); err != nil {
					t.Errorf("%s: %v", name, err)
				}
			}
		}
	}
}

// checkNotifier looks whether a notifier's public URL leads to where it listens, from this machine and in the network.
func checkNotifier(t *testing.T, project *types.Project, name string) {
	t.Helper()
	s, err := project.GetService(name)
	if err != nil || s.Environment["MAILBELL_PUBLIC_URL"] == nil || len(s.Ports) != 1 {
		t.Fatalf("%s: %v, %v", name, err, s.Ports)
	}
	u, err := url.Parse(*s.Environment["MAILBELL_PUBLIC_URL"])
	if err != nil {
		t.Fatal(err)
	}
	port := u.Port()
	if s.Ports[0].Published != port || strconv.Itoa(int(s.Ports[0].Target)) != port || !slices.Contains(s.Command, ":"+port) {
		t.Errorf("%s: clients are told port %s; it listens by %v and %v is published", name, port, s.Command, s.Ports[0])
	}
	if !strings.HasSuffix(u.Hostname(), ".localhost") || !slices.Contains(s.Networks["inside"].Aliases, u.Hostname()) {
		t.Errorf("%s: bus nodes can't reach %s", name, u)
	}
}

// checkDashboards looks whether Grafana's provider reads the folder where the dashboards are.
func checkDashboards(t *testing.T, project *types.Project) {
	t.Helper()
	var config struct {
		APIVersion int `json:"apiVersion"`
		Providers  []struct {
			Name    string            `json:"name"`
			Options map[string]string `json:"options"`
		} `json:"providers"`
	}
	strictly(t, read(t, "../compose/grafana-dashboards.yml"), &config)
	grafana, err := project.GetService("grafana")
	if err != nil || len(config.Providers) != 1 {
		t.Fatalf("%v, %+v", err, config)
	}
	mounted := map[string]string{}
	for _, v := range grafana.Volumes {
		mounted[v.Target] = v.Source
	}
	dashboards, _ := filepath.Glob(filepath.Join(mounted[config.Providers[0].Options["path"]], "*.json"))
	if len(dashboards) == 0 || mounted["/etc/grafana/provisioning/dashboards/mailbell.yml"] == "" {
		t.Errorf("no dashboards at %v of %v", config.Providers, mounted)
	}
}

// TestEnvoy decodes the bootstrap, typed configurations included.
func TestEnvoy(t *testing.T) {
	b, err := yaml.YAMLToJSON(read(t, "../envoy/envoy.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	var config bootstrap.Bootstrap
	if err := protojson.Unmarshal(b, &config); err != nil {
		t.Fatal(err)
	}
	if err := config.ValidateAll(); err != nil {
		t.Fatal(err)
	}
}

func strictly(t *testing.T, b []byte, v any) {
	t.Helper()
	if err := yaml.UnmarshalStrict(b, v); err != nil && !errors.Is(err, io.EOF) {
		t.Errorf("%T: %v", v, err)
	}
}

func read(t *testing.T, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}
