// Package doctor makes the checks of bridge check. It checks the configuration,
// Postgres, every relation, and the broker. It puts every problem into one
// report, with what to do about it. It makes no stream and changes nothing in
// Postgres.
//
// A server that can't be reached is one problem; checks that need the server
// are left out. Only errors make a report bad. Warnings are for people to judge.
package doctor

import (
	"context"
	"time"

	"bridge/internal/relation"
	"bridge/internal/report"

	"github.com/nats-io/nats.go/jetstream"
)

// Config is what to check.
type Config struct {
	// Invalid has the problems of the configuration that the caller found.
	Invalid []Problem
	// DatabaseURL leads to Postgres, and Specs are the relations to check there.
	// If DatabaseURL is empty, or can't be used, neither is checked, and Invalid says
	// why.
	DatabaseURL string
	// DatabasePasswordFile has the password for DatabaseURL, if it is not "". If
	// it can't be read, Postgres is not checked, and Invalid says why.
	DatabasePasswordFile string
	Specs                relation.Specs
	// Connect connects to the broker. If it is nil, the broker is not checked.
	Connect func(context.Context) (jetstream.JetStream, error)
	// Orphans returns the relations that have a stream with rows of the source, which
	// are none of own, and which no running bridge has. If it is nil, that is not
	// checked.
	Orphans func(ctx context.Context, js jetstream.JetStream, src relation.Source, own []relation.Name) ([]relation.Name, error)
	// Embedded is set if the bridge runs a server of its own. If Connect fails,
	// Run checks whether the bridge could start that server.
	Embedded *Embedded
	// Prefix begins the names of the streams. Replicas is how many replicas each
	// of them shall have, 0 for what the bridge chooses.
	Prefix   string
	Replicas int
	// Name is the name of slot and publication. MaxLag is how many bytes of WAL
	// the slot may keep, 0 for no limit.
	Name   string
	MaxLag int64
	// Timeout bounds the checks of Postgres, and those of the broker. 0 is 15 s.
	Timeout time.Duration
}

// Embedded says where the bridge's own server listens and keeps its files.
type Embedded struct {
	Listen, Dir string
}

// Area is the part of the system that has a problem.
type Area = report.Area

const (
	AreaConfig   = report.Config
	AreaPostgres = report.Postgres
	AreaRelation = report.Relation
	AreaBroker   = report.Broker
)

// Problem is one thing that is wrong.
type Problem = report.Problem

// Report is what Run found.
type Report struct {
	Problems  report.Problems `json:"problems"`
	Postgres  *Postgres       `json:"postgres,omitempty"`
	Relations []Relation      `json:"relations"`
	Broker    *Broker         `json:"broker,omitempty"`
}

// Postgres is the server that DATABASE_URL leads to.
type Postgres struct {
	Version  string `json:"version"`
	Database string `json:"database"`
	Role     string `json:"role"`
	// SystemID is text, because many JSON readers can't hold so large a number.
	SystemID string `json:"system_id"`
	Timeline uint32 `json:"timeline"`
	Standby  bool   `json:"standby"`
}

// Relation is a relation that the bridge would capture.
type Relation struct {
	Name    string `json:"name"`
	Stream  string `json:"stream"`
	History string `json:"history"`
	// OldRows, of a log that is read from the WAL, says what its updates and deletes
	// show of the row before: "full", or "key".
	OldRows string   `json:"old_rows,omitempty"`
	Key     []string `json:"key,omitempty"`
	// Rows is an estimate, -1 if Postgres has not yet counted the rows.
	Rows int64 `json:"rows"`
	// Replicas is how many servers hold its stream, 0 if there is no stream.
	Replicas int `json:"replicas,omitempty"`
	// OK is true if the relation can be captured.
	OK bool `json:"ok"`

	spec relation.Spec
	// estimate is a guess from the size of the files, if Postgres has not counted.
	estimate int64
}

// Broker is the NATS server that was asked.
type Broker struct {
	Version    string `json:"version"`
	Cluster    string `json:"cluster,omitempty"`
	Servers    int    `json:"servers"`
	MaxPayload int64  `json:"max_payload,omitempty"`
	// MaxRow is about the size of the largest row's document that it takes, in bytes:
	// max_payload, or the limit of its file store, whichever is less.
	MaxRow int64 `json:"max_row,omitempty"`
	// MemoryLow and MemoryHigh estimate how much of the broker's memory the
	// latest streams take, in bytes.
	MemoryLow  int64 `json:"memory_low"`
	MemoryHigh int64 `json:"memory_high"`
}

// OK reports whether there are no errors.
func (r Report) OK() bool { return r.Problems.OK() }

// Run makes all checks. It waits for the servers to answer, up to the timeout.
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
	// source is zero if Postgres could not be asked.
	source relation.Source
}

func (r *run) part(ctx context.Context, check func(context.Context)) {
	ctx, cancel := context.WithTimeout(ctx, r.cfg.Timeout)
	defer cancel()
	check(ctx)
}

func (r *run) fail(area Area, subject, what, do string) {
	r.Problems.Fail(area, subject, what, do)
}

func (r *run) warn(area Area, subject, what, do string) {
	r.Problems.Warn(area, subject, what, do)
}
