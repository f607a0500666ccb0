package doctor

import (
	"fmt"
	"io"
	"strings"

	"bridge/internal/report"
)

// JSON writes the report as one indented JSON document. Its field ok says
// whether there are no errors.
func (r Report) JSON(w io.Writer) error {
	return report.JSON(w, struct {
		OK bool `json:"ok"`
		Report
	}{r.OK(), r})
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
		fmt.Fprintf(&b, "nats-server %s", n.Version)
		if n.Cluster != "" {
			fmt.Fprintf(&b, ", cluster %s of %d", n.Cluster, n.Servers)
		}
		if n.MaxPayload > 0 {
			fmt.Fprintf(&b, ", max_payload %s", size(n.MaxPayload))
			if n.MaxRow < n.MaxPayload {
				fmt.Fprintf(&b, ", rows up to %s", size(n.MaxRow))
			}
		}
		if n.MemoryHigh > 0 { // else there is no row, or nobody could count
			fmt.Fprintf(&b, ", memory for rows about %s to %s", size(n.MemoryLow), size(n.MemoryHigh))
		}
		b.WriteByte('\n')
	}
	for _, rel := range r.Relations {
		fmt.Fprintf(&b, "%-5s %s → %s, history %s", report.Mark(rel.OK), rel.Name, rel.Stream, rel.History)
		if rel.OldRows != "" {
			fmt.Fprintf(&b, ", old rows: %s", rel.OldRows)
		}
		if len(rel.Key) > 0 {
			fmt.Fprintf(&b, ", key %s", strings.Join(rel.Key, "+"))
		}
		if rel.Rows >= 0 {
			fmt.Fprintf(&b, ", about %d rows", rel.Rows)
		}
		if rel.Replicas > 0 {
			fmt.Fprintf(&b, ", on %s", report.Count(rel.Replicas, "server"))
		}
		b.WriteByte('\n')
	}
	b.WriteString(r.Problems.Text())
	if _, err := io.WriteString(w, b.String()); err != nil {
		return fmt.Errorf("write the report: %w", err)
	}
	return nil
}
