package doctor

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"

	"bridge/internal/relation"
)

// JSON writes the report as one indented JSON document. Its field ok says
// whether there are no errors.
func (r Report) JSON(w io.Writer) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	enc.SetEscapeHTML(false)
	err := enc.Encode(struct {
		OK bool `json:"ok"`
		Report
	}{r.OK(), r})
	if err != nil {
		return fmt.Errorf("write the report: %w", err)
	}
	return nil
}

// Text writes the report for people: what was found, then the problems, errors
// first.
func (r Report) Text(w io.Writer) error {
	var b strings.Builder
	if p := r.Postgres; p != nil {
		kind := "primary"
		if p.Standby {
			kind = "standby"
		}
		fmt.Fprintf(&b, "Postgres %s, %s, database %s as role %s\n", p.Version, kind, p.Database, p.Role)
	}
	if n := r.Broker; n != nil {
		fmt.Fprintf(&b, "nats-server %s, ", n.Version)
		if n.Cluster != "" {
			fmt.Fprintf(&b, "cluster %s of %d, ", n.Cluster, n.Servers)
		}
		if n.MaxPayload > 0 {
			fmt.Fprintf(&b, "max_payload %s, ", size(n.MaxPayload))
			if n.MaxRow < n.MaxPayload {
				fmt.Fprintf(&b, "rows up to %s, ", size(n.MaxRow))
			}
		}
		fmt.Fprintf(&b, "memory for rows about %s to %s\n", size(n.MemoryLow), size(n.MemoryHigh))
	}
	for _, rel := range r.Relations {
		fmt.Fprintf(&b, "%-5s %s → %s, history %s", mark(rel.OK), rel.Name, rel.Stream, rel.History)
		if len(rel.Key) > 0 {
			fmt.Fprintf(&b, ", key %s", strings.Join(rel.Key, "+"))
		}
		if rel.Rows >= 0 {
			fmt.Fprintf(&b, ", about %d rows", rel.Rows)
		}
		if rel.Replicas > 0 {
			fmt.Fprintf(&b, ", on %s", count(rel.Replicas, "server"))
		}
		b.WriteByte('\n')
	}
	counts := map[relation.Severity]int{}
	for _, severity := range []relation.Severity{relation.SeverityError, relation.SeverityWarning} {
		for _, p := range r.Problems {
			if p.Severity != severity {
				continue
			}
			counts[severity]++
			fmt.Fprintf(&b, "\n%s ", strings.ToUpper(string(severity)))
			if p.Subject != "" {
				fmt.Fprintf(&b, "%s: ", p.Subject)
			}
			fmt.Fprintf(&b, "%s\n  to do: %s\n", p.What, p.Do)
		}
	}
	fmt.Fprintf(&b, "\n%s: %s, %s\n", mark(r.OK()), count(counts[relation.SeverityError], "error"), count(counts[relation.SeverityWarning], "warning"))
	if _, err := io.WriteString(w, b.String()); err != nil {
		return fmt.Errorf("write the report: %w", err)
	}
	return nil
}

func mark(ok bool) string {
	if ok {
		return "ok"
	}
	return "bad"
}

func count(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}
