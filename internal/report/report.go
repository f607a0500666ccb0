// Package report is what bridge check and httpedge check have in common: problems,
// each with what to do about it, and how they are printed. It imports the standard
// library alone.
package report

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
)

// Severity says how bad a problem is.
type Severity string

const (
	// Error is for what must be corrected.
	Error Severity = "error"
	// Warning is for people to judge.
	Warning Severity = "warning"
)

// Area is the part of the system that has a problem.
type Area string

// The areas.
const (
	Config   Area = "config"
	Postgres Area = "postgres"
	Relation Area = "relation"
	Broker   Area = "broker"
)

// Problem is one thing that is wrong.
type Problem struct {
	Severity Severity `json:"severity"`
	Area     Area     `json:"area"`
	// Subject is the variable or the relation that has the problem, if any.
	Subject string `json:"subject,omitempty"`
	// What says what is wrong. Do says what to do: the SQL to run, or the
	// setting to change.
	What string `json:"what"`
	Do   string `json:"do"`
}

// Problems are all that a check found.
type Problems []Problem

// Fail adds an error.
func (ps *Problems) Fail(area Area, subject, what, do string) {
	*ps = append(*ps, Problem{Error, area, subject, what, do})
}

// Warn adds a warning.
func (ps *Problems) Warn(area Area, subject, what, do string) {
	*ps = append(*ps, Problem{Warning, area, subject, what, do})
}

// OK reports whether there are no errors.
func (ps Problems) OK() bool { return ps.count(Error) == 0 }

func (ps Problems) count(s Severity) (n int) {
	for _, p := range ps {
		if p.Severity == s {
			n++
		}
	}
	return n
}

// Text returns the problems for people, errors first, and how many there are.
func (ps Problems) Text() string {
	var b strings.Builder
	for _, severity := range []Severity{Error, Warning} {
		for _, p := range ps {
			if p.Severity != severity {
				continue
			}
			fmt.Fprintf(&b, "\n%s ", strings.ToUpper(string(severity)))
			if p.Subject != "" {
				fmt.Fprintf(&b, "%s: ", p.Subject)
			}
			fmt.Fprintf(&b, "%s\n  to do: %s\n", p.What, p.Do)
		}
	}
	fmt.Fprintf(&b, "\n%s: %s, %s\n", Mark(ps.OK()), Count(ps.count(Error), "error"), Count(ps.count(Warning), "warning"))
	return b.String()
}

// Mark is how text shows whether something is as it should be.
func Mark(ok bool) string {
	if ok {
		return "ok"
	}
	return "bad"
}

// Count returns a number of things: 1 error, 2 errors.
func Count(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// JSON writes a document as --json shows it.
func JSON(w io.Writer, doc any) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	enc.SetEscapeHTML(false)
	if err := enc.Encode(doc); err != nil {
		return fmt.Errorf("write the report: %w", err)
	}
	return nil
}
