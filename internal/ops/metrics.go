package ops

import (
	"cmp"
	"runtime"
	"runtime/debug"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
)

// newRegistry makes a registry with what every process of ours exports.
func newRegistry(version string) *prometheus.Registry {
	reg := prometheus.NewRegistry()
	build := BuildInfo(version)
	info := prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "mailbell_build_info",
		Help: "Always 1; the labels say which build runs.",
		ConstLabels: prometheus.Labels{
			"version": build.Version, "commit": build.Commit, "go": build.Go,
		},
	})
	info.Set(1)
	reg.MustRegister(
		info,
		collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
	)
	return reg
}

// Build says which build runs.
type Build struct {
	Version string // release, or what the module system stamped, or "devel"
	Commit  string // "-dirty" appended when the tree had changes; else what the Makefile linked, or "unknown"
	Go      string
}

// linkedCommit is set by the Makefile's -ldflags, for where the go command does not stamp the binary.
var linkedCommit = ""

// BuildInfo reads what the toolchain stamped into the binary; a version that is
// not empty wins over the stamped one.
func BuildInfo(version string) Build {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		info = &debug.BuildInfo{}
	}
	return buildOf(info, version, linkedCommit)
}

func buildOf(info *debug.BuildInfo, version, linked string) Build {
	b := Build{Version: version, Go: runtime.Version()}
	if b.Version == "" {
		b.Version = info.Main.Version
	}
	if b.Version == "" || b.Version == "(devel)" {
		b.Version = "devel"
	}
	dirty := false
	for _, s := range info.Settings {
		switch s.Key {
		case "vcs.revision":
			b.Commit = s.Value
		case "vcs.modified":
			dirty = s.Value == "true"
		}
	}
	if dirty && b.Commit != "" {
		b.Commit += "-dirty"
	}
	b.Commit = cmp.Or(b.Commit, linked, "unknown")
	return b
}
