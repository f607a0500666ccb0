package program

import (
	"cmp"
	"fmt"
	"runtime"
	"runtime/debug"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
)

// release is the version, for builds that don't know it from version control.
// The linker sets it: -X bridge/cmd/internal/program.release=v1.2.3
var release string

// build returns which version of the program runs. revision is "" if it was not
// built from version control.
func build() (version, revision string) {
	version = release
	if info, ok := debug.ReadBuildInfo(); ok {
		version = cmp.Or(version, info.Main.Version)
		for _, s := range info.Settings {
			if s.Key == "vcs.revision" {
				revision = s.Value
			}
		}
	}
	return cmp.Or(version, "unknown"), revision
}

// Version returns what --version prints.
func Version(name string) string {
	version, revision := build()
	if revision != "" {
		revision = ", revision " + revision
	}
	return fmt.Sprintf("%s %s (%s%s)", name, version, runtime.Version(), revision)
}

// Registry returns a registry with the metrics that both programs have: of the Go
// runtime, of the process, and which version runs.
func Registry() *prometheus.Registry {
	version, revision := build()
	r := prometheus.NewRegistry()
	r.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "lockstep_build_info", Help: "Always 1. The labels say which version of the program runs.",
			ConstLabels: prometheus.Labels{"version": version, "revision": revision, "goversion": runtime.Version()},
		}, func() float64 { return 1 }))
	return r
}
