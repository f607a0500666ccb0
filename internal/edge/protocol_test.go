package edge_test

import (
	"fmt"
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"bridge/internal/edge"
)

// The specification lists every refusal that the edge sends, and no other. So does the document for authors of clients.
func TestRefusals_AreTheProtocols(t *testing.T) {
	t.Parallel()
	var want []string
	for code, status := range edge.Statuses() {
		want = append(want, fmt.Sprintf("%d %s", status, code))
	}
	slices.Sort(want)
	for file, form := range map[string]string{
		"../../lockstep/doc.go": `(?m)^//\t([45]\d\d) (\w+)`,
		"../../docs/http.md":    "(?m)^\\| ([45]\\d\\d) \\| `(\\w+)`",
	} {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		listed := map[string]bool{}
		for _, m := range regexp.MustCompile(form).FindAllStringSubmatch(string(text), -1) {
			listed[m[1]+" "+m[2]] = true
		}
		if got := slices.Sorted(maps.Keys(listed)); !slices.Equal(got, want) {
			t.Errorf("%s lists the refusals %s; the edge has %s", file, strings.Join(got, ", "), strings.Join(want, ", "))
		}
	}
}
