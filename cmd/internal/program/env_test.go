package program_test

import (
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"bridge/cmd/internal/program"
)

// documented returns the settings of a program, as docs/settings.md lists them.
func documented(t *testing.T, name string) []string {
	t.Helper()
	text, err := os.ReadFile("../../../docs/settings.md")
	if err != nil {
		t.Fatal(err)
	}
	_, table, ok := strings.Cut(string(text), "<!-- settings: "+name+" -->")
	table, _, ok2 := strings.Cut(table, "<!-- end of settings -->")
	if !ok || !ok2 {
		t.Fatalf("docs/settings.md has no settings of %s", name)
	}
	var names []string
	for _, m := range regexp.MustCompile("(?m)^\\| `([A-Z_]+)`").FindAllStringSubmatch(table, -1) {
		names = append(names, m[1])
	}
	return names
}

// A misspelt setting is found, whatever part of its name is misspelt, and the warning names the setting (issue 14, number
// 19). What belongs to others is no misspelt setting.
func TestSettings_MisspeltVariables(t *testing.T) {
	bridge, edge := documented(t, "bridge"), documented(t, "httpedge")
	for _, name := range slices.Concat(bridge, edge) {
		t.Setenv(name, "") // a setting that is set is not misspelt, too
	}
	for _, c := range []struct {
		program, name, want string // want is "-" if nothing is proposed, "" if there is no warning
	}{
		{"BRIDGE", "BRIDGE_TABLE", "BRIDGE_TABLES"},
		{"BRIDGE", "BRIGDE_TABLES", "BRIDGE_TABLES"},
		{"BRIDGE", "BRDIGE_TABELS", "BRIDGE_TABLES"},
		{"BRIDGE", "bridge_tables", "BRIDGE_TABLES"},
		{"BRIDGE", "BRIDGE_POLL_INTERVALL", "BRIDGE_POLL_INTERVAL"},
		{"BRIDGE", "BRIDGE_RECONCILE", "BRIDGE_RECONCILE_INTERVAL"},
		{"BRIDGE", "BRIDGE_NATS_URL", "NATS_URL"},
		{"BRIDGE", "BRIDGE_LOG_LEVEL", "LOG_LEVEL"},
		{"BRIDGE", "BRIDGE_SOMETHING_ELSE_ALTOGETHER", "-"},
		{"BRIDGE", "DATABASE_URI", "DATABASE_URL"},
		{"BRIDGE", "DATBASE_URL", "DATABASE_URL"},
		{"BRIDGE", "DATABASE_PASSWORDFILE", "DATABASE_PASSWORD_FILE"},
		{"BRIDGE", "NATS_URI", "NATS_URL"},
		{"BRIDGE", "NATS_CRED", "NATS_CREDS"},
		{"BRIDGE", "LOGLEVEL", "LOG_LEVEL"},
		{"BRIDGE", "LOG_LEVLE", "LOG_LEVEL"},
		{"HTTPEDGE", "HTTPEGDE_LISTEN", "HTTPEDGE_LISTEN"},
		{"HTTPEDGE", "HTTP_EDGE_LISTEN", "HTTPEDGE_LISTEN"},
		{"HTTPEDGE", "HTTPEDGE_LISTENS", "HTTPEDGE_LISTEN"},
		{"HTTPEDGE", "HTTPEDGE_CACHE", "HTTPEDGE_CACHE_BYTES"},
		{"HTTPEDGE", "HTTPEDGE_NATS_URL", "NATS_URL"},
		{"HTTPEDGE", "HTTPEDGE_PREFIX", "HTTPEDGE_STREAM_PREFIX"},
		{"BRIDGE", "NATS_PORT", ""},
		{"BRIDGE", "NATS_SERVICE_HOST", ""},
		{"BRIDGE", "NATS_PORT_4222_TCP_ADDR", ""},
		{"BRIDGE", "NATS_USER", ""},
		{"BRIDGE", "PGPASSFILE", ""},
		{"BRIDGE", "DATABASE_HOST", ""},
		{"BRIDGE", "HOME", ""},
		{"BRIDGE", "PATH", ""},
		{"HTTPEDGE", "LOG_FORMAT", ""},
	} {
		known := map[string][]string{"BRIDGE": bridge, "HTTPEDGE": edge}[c.program]
		got := program.Misspelt(c.name, c.program+"_", known)
		switch {
		case c.want == "" && got != "", c.want != "" && !strings.HasPrefix(got, c.name+" is not a setting; "),
			c.want == "-" && strings.Contains(got, "did you mean"),
			c.want != "" && c.want != "-" && !strings.HasSuffix(got, "did you mean "+c.want+"?"):
			t.Errorf("%s of %s: %q, want %q", c.name, c.program, got, c.want)
		}
	}
	t.Setenv("LOG_LEVEL", "info")
	if got := program.Misspelt("LOGLEVEL", "BRIDGE_", bridge); got != "" {
		t.Errorf("LOG_LEVEL is set, and LOGLEVEL another program's: %s", got)
	}
	// Both programs may read one file of settings.
	for _, name := range edge {
		if got := program.Misspelt(name, "BRIDGE_", bridge); got != "" {
			t.Errorf("bridge says of a setting of httpedge: %s", got)
		}
	}
	for _, name := range bridge {
		if got := program.Misspelt(name, "HTTPEDGE_", edge); got != "" {
			t.Errorf("httpedge says of a setting of bridge: %s", got)
		}
	}
}
