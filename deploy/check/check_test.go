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
	"reflect"
	"regexp"
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
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	adapterconfig "sigs.k8s.io/prometheus-adapter/pkg/config"
	"sigs.k8s.io/yaml"
)

// kustomization is what is used of kustomize's file.
type kustomization struct {
	APIVersion         string              `json:"apiVersion"`
	Kind               string              `json:"kind"`
	Namespace          string              `json:"namespace"`
	Resources          []string            `json:"resources"`
	Images             []map[string]string `json:"images"`
	ConfigMapGenerator []struct {
		Name  string   `json:"name"`
		Files []string `json:"files"`
	} `json:"configMapGenerator"`
}

// TestKubernetes decodes each manifest into its type; a field that the type does not have is an error.
func TestKubernetes(t *testing.T) {
	var k kustomization
	strictly(t, read(t, "../kubernetes/kustomization.yaml"), &k)
	used := append([]string{"kustomization.yaml", "keda.yaml", "prometheus-adapter.yaml"}, k.Resources...)
	configs := map[string]bool{}
	for _, g := range k.ConfigMapGenerator {
		configs[g.Name] = true
		used = append(used, g.Files...)
		for _, name := range g.Files {
			read(t, "../kubernetes/"+name)
		}
	}
	files, err := filepath.Glob("../kubernetes/*.yaml")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if name := filepath.Base(f); !slices.Contains(used, name) {
			t.Errorf("%s is not in kustomization.yaml", name)
		}
	}
	services := map[string]bool{}
	for _, name := range k.Resources {
		for i, doc := range bytes.Split(read(t, "../kubernetes/"+name), []byte("\n---\n")) {
			switch object := decodeObject(t, name, i, doc, k.Namespace).(type) {
			case *corev1.Service:
				services[object.Name] = true
			case *appsv1.Deployment:
				checkPod(t, object.Name, object.Spec.Template.Spec, configs)
			case *appsv1.StatefulSet:
				checkPod(t, object.Name, object.Spec.Template.Spec, configs)
				if *object.Spec.Template.Spec.TerminationGracePeriodSeconds <= 305 {
					t.Errorf("%s: a notifier is killed before its drain is over", name)
				}
			}
		}
	}
	for _, name := range used {
		for _, match := range regexp.MustCompile(`([a-z-]+)\.`+k.Namespace+`\.svc`).FindAllSubmatch(read(t, "../kubernetes/"+name), -1) {
			if !services[string(match[1])] {
				t.Errorf("%s: there is no service %s", name, match[1])
			}
		}
	}
}

func decodeObject(t *testing.T, name string, i int, doc []byte, namespace string) any {
	t.Helper()
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
		"v1 Namespace": &corev1.Namespace{}, "v1 Service": &corev1.Service{},
		"apps/v1 Deployment": &appsv1.Deployment{}, "apps/v1 StatefulSet": &appsv1.StatefulSet{},
		"policy/v1 PodDisruptionBudget":          &policyv1.PodDisruptionBudget{},
		"networking.k8s.io/v1 NetworkPolicy":     &networkingv1.NetworkPolicy{},
		"autoscaling/v2 HorizontalPodAutoscaler": &autoscalingv2.HorizontalPodAutoscaler{},
	}[head.APIVersion+" "+head.Kind]
	if object == nil {
		t.Errorf("%s: %s %s is not known here", name, head.APIVersion, head.Kind)
		return nil
	}
	strictly(t, doc, object)
	if head.Kind != "Namespace" && head.Metadata.Namespace != namespace {
		t.Errorf("%s: %s is in namespace %q", name, head.Kind, head.Metadata.Namespace)
	}
	return object
}

// checkPod looks whether what a pod's containers mount is there.
func checkPod(t *testing.T, name string, pod corev1.PodSpec, configs map[string]bool) {
	t.Helper()
	volumes := map[string]bool{}
	for _, v := range pod.Volumes {
		volumes[v.Name] = true
		if v.ConfigMap != nil && !configs[v.ConfigMap.Name] {
			t.Errorf("%s: no generator makes the ConfigMap %s", name, v.ConfigMap.Name)
		}
	}
	for _, c := range pod.Containers {
		for _, m := range c.VolumeMounts {
			if !volumes[m.Name] {
				t.Errorf("%s: there is no volume %s", name, m.Name)
			}
		}
	}
}

// TestAutoscaling: what Kubernetes' autoscaler asks for is what the adapter answers, within the API's limits, and KEDA is told the same.
func TestAutoscaling(t *testing.T) {
	var hpa autoscalingv2.HorizontalPodAutoscaler
	strictly(t, read(t, "../kubernetes/autoscale.yaml"), &hpa)
	var adapter adapterconfig.MetricsDiscoveryConfig
	strictly(t, read(t, "../kubernetes/prometheus-adapter.yaml"), &adapter)
	external := hpa.Spec.Metrics[0].External
	rule := adapter.ExternalRules[0]
	if external.Metric.Name != rule.Name.As || rule.Resources.Namespaced == nil || *rule.Resources.Namespaced {
		t.Errorf("asked for %s; the answer is %+v", external.Metric.Name, rule)
	}
	query := strings.NewReplacer("<<.Series>>", rule.SeriesQuery, "{<<.LabelMatchers>>}", "").Replace(rule.MetricsQuery)
	for _, policies := range [][]autoscalingv2.HPAScalingPolicy{hpa.Spec.Behavior.ScaleUp.Policies, hpa.Spec.Behavior.ScaleDown.Policies} {
		for _, p := range policies {
			if p.PeriodSeconds > 1800 {
				t.Errorf("a period of %d s: the API takes 1800 at most", p.PeriodSeconds)
			}
		}
	}
	if s := *hpa.Spec.Behavior.ScaleDown.StabilizationWindowSeconds; s > 3600 {
		t.Errorf("a window of %d s: the API takes 3600 at most", s)
	}
	keda := readScaledObject(t)
	if keda.Spec.ScaleTargetRef != hpa.Spec.ScaleTargetRef || *keda.Spec.MinReplicaCount != *hpa.Spec.MinReplicas || *keda.Spec.MaxReplicaCount != hpa.Spec.MaxReplicas {
		t.Errorf("keda.yaml scales %+v, autoscale.yaml %+v", keda.Spec, hpa.Spec)
	}
	if got := keda.Spec.Triggers[0].Metadata; got["query"] != query || got["threshold"] != strconv.FormatInt(external.Target.AverageValue.Value(), 10) {
		t.Errorf("keda.yaml asks for %v, autoscale.yaml for %s and %s", got, query, external.Target.AverageValue)
	}
	if got := keda.Spec.Advanced.HorizontalPodAutoscalerConfig.Behavior; !reflect.DeepEqual(got, hpa.Spec.Behavior) {
		t.Errorf("keda.yaml behaves as %+v, autoscale.yaml as %+v", got, hpa.Spec.Behavior)
	}
}

// scaledObject is KEDA's resource, as far as it is used here (its apis/keda/v1alpha1); its module does not build beside this Kubernetes.
type scaledObject struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata"`
	Spec              struct {
		ScaleTargetRef  autoscalingv2.CrossVersionObjectReference `json:"scaleTargetRef"`
		MinReplicaCount *int32                                    `json:"minReplicaCount"`
		MaxReplicaCount *int32                                    `json:"maxReplicaCount"`
		Advanced        struct {
			HorizontalPodAutoscalerConfig struct {
				Behavior *autoscalingv2.HorizontalPodAutoscalerBehavior `json:"behavior"`
			} `json:"horizontalPodAutoscalerConfig"`
		} `json:"advanced"`
		Triggers []struct {
			Type     string            `json:"type"`
			Metadata map[string]string `json:"metadata"`
		} `json:"triggers"`
	} `json:"spec"`
}

func readScaledObject(t *testing.T) (s scaledObject) {
	t.Helper()
	strictly(t, read(t, "../kubernetes/keda.yaml"), &s)
	if s.APIVersion != "keda.sh/v1alpha1" || s.Kind != "ScaledObject" || len(s.Spec.Triggers) == 0 {
		t.Fatalf("keda.yaml holds %s %s with %d triggers", s.APIVersion, s.Kind, len(s.Spec.Triggers))
	}
	return s
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
