// Package archtest checks that the packages of this module keep to the import rules, which keep its parts apart. A rule
// that fails says why it exists. Change a rule only if its reason no longer holds. A package that does not exist breaks
// no rule.
package archtest_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

const module = "bridge"

// home is a rule that lets only some packages import something. A path means the package and everything below it. The
// paths in only are relative to the module.
type home struct {
	imports string
	only    []string
	why     string
}

// aids returns the packages that are not shipped. They drive or use the whole system from outside, and may import anything.
func aids() []string {
	return []string{
		"internal/testenv", "internal/simtest", "internal/demo", "internal/mutants", "internal/archtest", "internal/doctest",
		"internal/e2e", "docs/examples", "bench",
	}
}

func homes() []home {
	return []home{
		{
			"github.com/jackc",
			[]string{"internal/relation", "internal/source", "internal/poller", "internal/wal", "internal/doctor", "cmd/bridge"},
			"only captures talk to Postgres, so that serving clients never depends on it",
		},
		{
			"github.com/nats-io/nats.go",
			[]string{"internal/broker", "internal/stream", "internal/follow", "internal/publish", "internal/replay", "internal/doctor", "cmd"},
			"only these packages know how the broker works, so that captures and the edge's handlers can be read without it",
		},
		{
			"github.com/nats-io/nats-server",
			[]string{"internal/broker/embedded"},
			"one package knows how a server is embedded, and only the bridge uses it",
		},
		{
			"github.com/synadia-io/orbit.go",
			[]string{"internal/publish"},
			"batches fence the writer, and there is only one writer",
		},
		{
			"net/http",
			[]string{"internal/edge", "lockstep", "cmd"},
			"only the edge and the client speak HTTP",
		},
		{
			"github.com/kelseyhightower/envconfig",
			[]string{"cmd"},
			"packages get options and never read the environment, so that a test can run two of them side by side",
		},
		{
			"github.com/rs/zerolog/log", nil,
			"a global logger hides which component logs; loggers are arguments",
		},
	}
}

// apart is a rule that forbids packages to depend on something, directly or through others.
type apart struct {
	packages []string
	never    []string
	why      string
}

func aparts() []apart {
	rules := []apart{
		{
			[]string{"cmd/httpedge"},
			[]string{"github.com/jackc", module + "/internal/poller", module + "/internal/wal", module + "/internal/relation"},
			"the edge never talks to Postgres: edges put no load on it, however many there are, and an edge has no password to lose",
		},
		{
			[]string{"cmd/httpedge"},
			[]string{"github.com/nats-io/nats-server"},
			"the edge only connects to NATS; a server inside would be useless weight, and could be attacked",
		},
		{
			[]string{"cmd"},
			[]string{
				"testing", module + "/internal/testenv", module + "/internal/simtest", module + "/internal/demo",
				module + "/internal/mutants", module + "/bench",
			},
			"test code is not shipped",
		},
		{
			[]string{"internal/capture", "internal/stream", "internal/edge"},
			[]string{"github.com/jackc"},
			"the packages between captures and clients must not know where rows come from",
		},
		{
			[]string{"internal/capture", "internal/relation", "internal/poller", "internal/wal"},
			[]string{"github.com/nats-io"},
			"captures give rows to a sink and must not know what it is",
		},
		{
			[]string{"internal/reconcile"},
			[]string{"github.com/jackc", "github.com/nats-io", module + "/internal", module + "/lockstep"},
			"it compares any two sides, so that it can be tested without a server",
		},
	}
	parts := []string{"internal/poller", "internal/wal", "internal/publish", "internal/replay", "internal/edge"}
	for _, p := range parts {
		var others []string
		for _, o := range parts {
			if o != p {
				others = append(others, module+"/"+o)
			}
		}
		rules = append(rules, apart{
			[]string{p},
			others,
			"the parts meet only in cmd, so that each can be read, tested and replaced on its own",
		})
	}
	return rules
}

// listed is what go list says about a package.
type listed struct {
	ImportPath string
	Imports    []string // direct imports of its shipped files
	Deps       []string // direct and indirect imports of its shipped files
}

func TestImports_KeepToTheRules(t *testing.T) {
	t.Parallel()
	out, err := exec.Command("go", "list", "-json=ImportPath,Imports,Deps", module+"/...").Output()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		t.Fatalf("go list: %v\n%s", err, exit.Stderr)
	}
	if err != nil {
		t.Fatal(err)
	}
	var pkgs []listed
	for dec := json.NewDecoder(bytes.NewReader(out)); ; {
		var p listed
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		pkgs = append(pkgs, p)
	}
	if len(pkgs) < 2 {
		t.Fatalf("go list names only %d packages, so no rule is checked", len(pkgs))
	}
	for _, v := range violations(pkgs) {
		t.Error(v)
	}
}

// within says whether path is the package prefix, or below it.
func within(path, prefix string) bool {
	return path == prefix || strings.HasPrefix(path, prefix+"/")
}

func withinAny(path string, prefixes []string) bool {
	return slices.ContainsFunc(prefixes, func(p string) bool { return within(path, p) })
}

func violations(pkgs []listed) []string {
	var found []string
	for _, p := range pkgs {
		name := strings.TrimPrefix(p.ImportPath, module+"/")
		if withinAny(name, aids()) {
			continue
		}
		for _, h := range homes() {
			for _, imp := range p.Imports {
				if within(imp, h.imports) && !withinAny(name, h.only) {
					found = append(found, p.ImportPath+" must not import "+imp+": "+h.why)
				}
			}
		}
		for _, a := range aparts() {
			for _, dep := range p.Deps {
				if withinAny(name, a.packages) && withinAny(dep, a.never) {
					found = append(found, p.ImportPath+" must not depend on "+dep+": "+a.why)
				}
			}
		}
		for _, imp := range p.Imports {
			// Paths of the standard library have no dot in their first element.
			first, _, _ := strings.Cut(imp, "/")
			if within(name, "lockstep") && (strings.Contains(first, ".") || first == module && !within(imp, module+"/lockstep")) {
				found = append(found, p.ImportPath+" must not import "+imp+": a program that imports the protocol gets only the standard library with it")
			}
		}
	}
	return found
}

// A rule that can't fail checks nothing.
func TestViolations_AreFound(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		pkg, imports, deps string
		want               int
	}{
		{"cmd/httpedge", "", "github.com/jackc/pgx/v5/pgconn", 1},
		{"cmd/httpedge", "github.com/nats-io/nats.go", "bridge/internal/broker", 0},
		{"cmd/httpedge", "", "github.com/nats-io/nats-server/v2/server", 1},
		{"internal/broker", "github.com/nats-io/nats-server/v2/server", "", 1},
		{"cmd/bridge", "github.com/jackc/pgx/v5", "testing", 1},
		{"internal/poller", "bridge/internal/publish", "bridge/internal/publish", 1},
		{"internal/wal", "github.com/jackc/pglogrepl", "bridge/internal/relation", 0},
		{"internal/publish", "github.com/jackc/pgx/v5", "", 1},
		{"internal/publish", "github.com/synadia-io/orbit.go/jetstreamext", "", 0},
		{"internal/edge", "github.com/nats-io/nats.go/jetstream", "", 1},
		{"internal/edge", "net/http", "net/http", 0},
		{"internal/stream", "net/http", "", 1},
		{"internal/broker", "github.com/kelseyhightower/envconfig", "", 1},
		{"cmd/bridge", "github.com/rs/zerolog/log", "", 1},
		{"cmd/bridge", "github.com/rs/zerolog", "", 0},
		{"lockstep", "net/http", "", 0},
		{"lockstep", "github.com/rs/zerolog", "", 1},
		{"lockstep", "bridge/internal/stream", "", 1},
		{"lockstep/internal/frame", "bridge/lockstep", "", 0},
		{"internal/reconcile", "", "hash/maphash", 0},
		{"internal/reconcile", "", "bridge/internal/capture", 1},
		{"internal/reconcile", "", "github.com/nats-io/nats.go", 1},
		{"internal/reconcile", "github.com/jackc/pgx/v5", "github.com/jackc/pgx/v5", 2},
		{"internal/poller", "bridge/internal/reconcile", "bridge/internal/reconcile", 0},
		{"internal/simtest", "github.com/jackc/pgx/v5", "testing", 0},
		{"internal/simtester", "github.com/jackc/pgx/v5", "", 1},
	} {
		got := violations([]listed{{
			ImportPath: module + "/" + tc.pkg,
			Imports:    strings.Fields(tc.imports),
			Deps:       strings.Fields(tc.deps),
		}})
		if len(got) != tc.want {
			t.Errorf("%+v: got %q, want %d violations", tc, got, tc.want)
		}
	}
}
