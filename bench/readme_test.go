package main

import (
	"flag"
	"os"
	"slices"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write the numbers of RESULTS.md into README.md")

// The numbers in README.md are those of RESULTS.md.
func TestReadme_NumbersAreOfResults(t *testing.T) {
	t.Parallel()
	const file, begin, end = "../README.md", "<!-- numbers: from bench/RESULTS.md, by make docs -->\n", "<!-- end of numbers -->"
	readme := read(t, file)
	before, rest, found := strings.Cut(readme, begin)
	got, after, ended := strings.Cut(rest, end)
	if !found || !ended {
		t.Fatal("README.md has no numbers between its two marks")
	}
	want := numbers(t, results{t, read(t, "RESULTS.md")})
	switch {
	case got == want:
	case *update:
		if err := os.WriteFile(file, []byte(before+begin+want+end+after), 0o644); err != nil {
			t.Fatal(err)
		}
	default:
		t.Errorf("README.md has other numbers than RESULTS.md; run make docs, or put this there:\n\n%s", want)
	}
}

func numbers(t *testing.T, r results) string {
	if !strings.Contains(r.text, "\n- 2 cores, ") {
		t.Error("README.md says that the machine has 2 cores, and RESULTS.md does not")
	}
	return "| what | measured, as a median |\n|---|---|\n" +
		"| commit → HTTP client, polling with notifications, 500 transactions a second | " +
		r.cell("NOTIFY: commit → HTTP client", 1) + " ms, 99 % within " + r.cell("NOTIFY: commit → HTTP client", 2) + " ms |\n" +
		"| commit → HTTP client, from the WAL, 200 transactions a second | " +
		r.cell("WAL, beside an edge: commit → HTTP client", 1) + " ms, 99 % within " + r.cell("WAL, beside an edge: commit → HTTP client", 2) + " ms |\n" +
		"| first load of a table with 1,000,000 rows, polling | " + thousands(r.cell("first load, bridge", 2)) + " rows/s |\n" +
		"| a backlog in the WAL with 1 row, or with 100 rows, in each transaction | " + thousands(r.cell("1 row a transaction: socket, bridge", 1)) + " or " +
		thousands(r.cell("100 rows a transaction: socket, bridge", 1)) + " rows/s |\n" +
		"| one HTTP client reads 1,000,000 rows from an edge | " + thousands(r.cell("HTTP client of the edge", 1)) + " rows/s |\n" +
		"| 20 quiet relations, polled with the default settings | bridge " + r.cell("20 quiet relations, CPU of bridge", 1) +
		" of a core, Postgres " + r.cell("20 quiet relations, CPU of postgres", 1) + " |\n" +
		"| peak memory of the bridge, without a NATS server, at 1,000,000 rows in one transaction | polling " +
		r.cell("peak memory, 1000000 rows of 200 bytes", 1) + ", WAL " +
		r.cell("peak memory, WAL, one transaction of 1000000 rows of 200 bytes", 1) + " |\n"
}

// results is the text of RESULTS.md.
type results struct {
	t    *testing.T
	text string
}

// cell returns the median in the cell that stands so many columns after the one with the label.
func (r results) cell(label string, column int) string {
	var found []string
	for line := range strings.SplitSeq(r.text, "\n") {
		cells := strings.Split(line, "|")
		for i := range cells {
			cells[i] = strings.TrimSpace(cells[i])
		}
		if i := slices.Index(cells, label); i >= 0 && i+column < len(cells) {
			median, _, _ := strings.Cut(cells[i+column], " (")
			found = append(found, median)
		}
	}
	if len(found) != 1 || found[0] == "" {
		r.t.Fatalf("RESULTS.md has %d cells with %q: %q", len(found), label, found)
	}
	return found[0]
}

// thousands puts commas into a whole number.
func thousands(n string) string {
	for i := len(n) - 3; i > 0; i -= 3 {
		n = n[:i] + "," + n[i:]
	}
	return n
}

func read(t *testing.T, file string) string {
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}
