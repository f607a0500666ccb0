// Package doctor makes the checks of bridge check: configuration, Postgres,
// every relation and the broker, and reports everything that is wrong at once,
// each with what to do about it. It only looks: it makes no stream, and changes
// nothing in Postgres.
//
// A part that can't be reached is one problem, and what depends on it is left
// out. Only errors make a report bad; warnings are for people to judge.
package doctor

import (
	"context"
	"time"

	"bridge/internal/relation"

	"github.com/nats-io/nats.go"
)

// Config is what to check.
type Config struct {
	// Invalid are the problems of the configuration that the caller found.
	Invalid []Problem
	// DatabaseURL is not connected to where it is empty; nor is Specs looked
	// at then.
	DatabaseURL string
	Specs       relation.Specs
	// Connect connects to the broker; nil leaves it out. A server embedded in
	// a bridge that does not run just now can't be looked at; Embedded then
	// makes one of what would become it.
	Connect  func(context.Context) (*nats.Conn, error)
	Embedded *Embedded
	// Prefix is that of the streams. Replicas is how many of them are wanted,
	// 0 for what the bridge chooses.
	Prefix   string
	Replicas int
	// Name is that of slot and publication. MaxLag is how much WAL the slot may
	// keep, 0 for any.
	Name   string
	MaxLag int64
	// Timeout bounds each of the parts, 15 s if 0.
	Timeout time.Duration
}

// Embedded says where the bridge runs a server of its own.
type Embedded struct {
	Listen, Dir string
}

// Area is the part that a problem is of.
type Area string

const (
	AreaConfig   Area = "config"
	AreaPostgres Area = "postgres"
	AreaRelation Area = "relation"
	AreaBroker   Area = "broker"
)

// Problem is one thing that is wrong.
type Problem struct {
	Severity relation.Severity `json:"severity"`
	Area     Area              `json:"area"`
	// Subject is the variable or relation, where there is one.
	Subject string `json:"subject,omitempty"`
	// What is wrong; Do is the SQL to run, the setting to change.
	What string `json:"what"`
	Do   string `json:"do"`
}

// Report is what Run found.
type Report struct {
	Problems  []Problem  `json:"problems"`
	Postgres  *Postgres  `json:"postgres,omitempty"`
	Relations []Relation `json:"relations"`
	Broker    *Broker    `json:"broker,omitempty"`
}

// Postgres is the server that DATABASE_URL leads to.
type Postgres struct {
	Version  string `json:"version"`
	Database string `json:"database"`
	Role     string `json:"role"`
	// SystemID is text: it does not fit into a JSON number of every reader.
	SystemID string `json:"system_id"`
	Timeline uint32 `json:"timeline"`
	Standby  bool   `json:"standby"`
}

// Relation is one that the bridge would capture.
type Relation struct {
	Name    string   `json:"name"`
	Stream  string   `json:"stream"`
	History string   `json:"history"`
	Key     []string `json:"key,omitempty"`
	// Rows is an estimate, -1 if unknown.
	Rows int64 `json:"rows"`
	// Replicas is how many servers hold its stream, 0 where there is none.
	Replicas int `json:"replicas,omitempty"`
	// OK is set where nothing keeps it from being captured.
	OK bool `json:"ok"`

	spec relation.Spec
}

// Broker is the server that the connection is with.
type Broker struct {
	Version    string `json:"version"`
	Cluster    string `json:"cluster,omitempty"`
	Servers    int    `json:"servers"`
	MaxPayload int64  `json:"max_payload,omitempty"`
	// MemoryLow and MemoryHigh are what the streams that keep the last
	// version of each row take of the broker's memory, about, in bytes.
	MemoryLow  int64 `json:"memory_low"`
	MemoryHigh int64 `json:"memory_high"`
}

// OK reports whether there are no errors.
func (r Report) OK() bool {
	for _, p := range r.Problems {
		if p.Severity == relation.SeverityError {
			return false
		}
	}
	return true
}

// Run makes all the checks. It blocks for as long as servers take to answer,
// bounded by the timeout.
func Run(ctx context.Context, cfg Config) Report {
	if cfg.Timeout == 0 {
		cfg.Timeout = 15 * time.Second
	}
	r := &run{cfg: cfg, Report: Report{Problems: cfg.Invalid, Relations: []Relation{}}}
	r.part(ctx, r.postgres)
	r.part(ctx, r.broker)
	if r.Problems == nil {
		r.Problems = []Problem{}
	}
	return r.Report
}

type run struct {
	cfg Config
	Report
	// source is zero where Postgres could not be asked.
	source relation.Source
}

func (r *run) part(ctx context.Context, check func(context.Context)) {
	ctx, cancel := context.WithTimeout(ctx, r.cfg.Timeout)
	defer cancel()
	check(ctx)
}

func (r *run) fail(area Area, subject, what, do string) {
	r.Problems = append(r.Problems, Problem{relation.SeverityError, area, subject, what, do})
}

func (r *run) warn(area Area, subject, what, do string) {
	r.Problems = append(r.Problems, Problem{relation.SeverityWarning, area, subject, what, do})
}
