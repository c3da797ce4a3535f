// Package check decodes what deploy/ holds for other programs strictly into those programs' own Go types, in a module of
// its own so that mailbell does not depend on them.
package check

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
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
	for name, s := range project.Services {
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
