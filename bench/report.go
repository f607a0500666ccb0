package main

import (
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode/utf8"
)

// series is one number from each run.
type series []float64

// median returns the middle value, 0 for no runs.
func (s series) median() float64 {
	if len(s) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(s))
	if n := len(sorted); n%2 == 0 {
		return (sorted[n/2-1] + sorted[n/2]) / 2
	}
	return sorted[len(sorted)/2]
}

// cell returns the median, followed by the least and the greatest in parentheses.
func (s series) cell(format string) string {
	if len(s) == 0 {
		return "not measured"
	}
	text := fmt.Sprintf(format, s.median())
	if len(s) > 1 {
		text += fmt.Sprintf(" ("+format+"–"+format+")", slices.Min(s), slices.Max(s))
	}
	return text
}

// verdict is one line of the summary.
type verdict struct {
	what, value, target string
	met                 bool
}

// section is the report of one item.
type section struct {
	number   int
	title    string
	header   []string
	rows     [][]string
	notes    []string
	verdicts []verdict
}

func (s *section) row(cells ...string) { s.rows = append(s.rows, cells) }

func (s *section) note(format string, args ...any) {
	s.notes = append(s.notes, fmt.Sprintf(format, args...))
}

func (s *section) verdict(what, value, target string, met bool) {
	s.verdicts = append(s.verdicts, verdict{what, value, target, met})
}

func (s *section) markdown() string {
	var b strings.Builder
	fmt.Fprintf(&b, "## %d. %s\n\n", s.number, s.title)
	if len(s.rows) > 0 {
		b.WriteString(table(s.header, s.rows))
	}
	for i, n := range s.notes {
		if i == 0 && len(s.rows) > 0 {
			b.WriteByte('\n')
		}
		fmt.Fprintf(&b, "- %s\n", n)
	}
	return b.String()
}

// report is the report of the whole bench.
type report struct {
	machine  []string
	date     string
	runs     int
	rows     int
	took     time.Duration
	sections []section
}

// summary returns the table of targets.
func (r *report) summary() string {
	var rows [][]string
	for _, s := range r.sections {
		for _, v := range s.verdicts {
			met := "**missed**"
			if v.met {
				met = "met"
			}
			rows = append(rows, []string{fmt.Sprint(s.number), v.what, v.value, v.target, met})
		}
	}
	if len(rows) == 0 {
		return "Nothing with a target was measured."
	}
	return table([]string{"item", "what", "median", "target", ""}, rows)
}

func (r *report) markdown() string {
	var b strings.Builder
	b.WriteString("# Bench\n\n")
	fmt.Fprintf(&b, "Written by `make bench` on %s: medians of %d runs (least–greatest), %d rows in the large tables, %s in all.\n", r.date, r.runs, r.rows, r.took)
	b.WriteString("Compare only numbers of this file. Ratios are similar on other machines, rates are not.\n\n")
	for _, m := range r.machine {
		fmt.Fprintf(&b, "- %s\n", m)
	}
	fmt.Fprintf(&b, "\n%s", r.summary())
	for _, s := range r.sections {
		fmt.Fprintf(&b, "\n%s", s.markdown())
	}
	return b.String()
}

// table formats a Markdown table that is also easy to read as plain text.
func table(header []string, rows [][]string) string {
	widths := make([]int, len(header))
	for _, row := range append([][]string{header}, rows...) {
		for i, cell := range row {
			widths[i] = max(widths[i], utf8.RuneCountInString(cell))
		}
	}
	var b strings.Builder
	line := func(cells []string) {
		for i, cell := range cells {
			fmt.Fprintf(&b, "| %s%s ", cell, strings.Repeat(" ", widths[i]-utf8.RuneCountInString(cell)))
		}
		b.WriteString("|\n")
	}
	line(header)
	for _, w := range widths {
		fmt.Fprintf(&b, "|%s", strings.Repeat("-", w+2))
	}
	b.WriteString("|\n")
	for _, row := range rows {
		line(row)
	}
	return b.String()
}
