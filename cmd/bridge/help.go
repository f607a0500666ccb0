package main

import (
	"fmt"
	"io"
	"slices"

	"bridge/cmd/internal/program"
)

// manual is what the help says of a command.
type manual struct {
	name, arguments string
	// short is its line in the general help; long is its own.
	short, long string
}

// brokerSettings are those of a command that asks only the broker.
const brokerSettings = `Settings: how to reach the broker: NATS_URL and what belongs to it, or
BRIDGE_NATS_LISTEN of a bridge with an embedded server; BRIDGE_STREAM_PREFIX.
`

func manuals() []manual {
	return []manual{
		{"check", "[--json]", "verify the settings, Postgres and the broker; every problem at once", `
Each problem comes with what to do about it. It changes nothing, and may run
beside the bridge. Exit status 0 if nothing is in the way, else 2.

  --json   one JSON document, for machines

Settings: those of the bridge that is to run.

Example:
  DATABASE_URL=postgres://localhost/app BRIDGE_TABLES='users,orders(capture=wal)' bridge check
`},
		{"sql", "[OPTIONS] RELATION", "print the SQL that prepares a table or view for capture", `
It runs nothing: read it, then run it as the table's owner. Where it can prepare
nothing, it prints what must be done first, and the exit status is 1. RELATION may
have options, as in BRIDGE_TABLES; without any, it has those that BRIDGE_TABLES
gives it.

  -role NAME       the role that the bridge logs in as (default lockstep)
  -no-tombstones   without the table of deleted rows' keys, where rows are never deleted
  -no-notify       without the trigger that wakes the bridge: it polls by the clock

Settings: DATABASE_URL, BRIDGE_TABLES; with capture=wal also BRIDGE_NAME.

Examples:
  bridge sql orders | psql -v ON_ERROR_STOP=1 "$DATABASE_URL"
  bridge sql 'orders(capture=wal)' | psql -v ON_ERROR_STOP=1 "$DATABASE_URL"
`},
		{"tail", "RELATION", "subscribe and print a relation's rows", `
First the rows as they are, then each change, a JSON document a line, heartbeats
too, until it is interrupted. It reads the stream, not Postgres.

` + brokerSettings + `
Example:
  bridge tail users
`},
		{"reconcile", "RELATION", "have the running bridge compare a relation with its stream and mend what differs", `
Rows that are missing or stale are published again, rows that are no longer in
Postgres get their deletes, and the counts are printed. Safe while writes go on.
A running bridge does so by itself every BRIDGE_RECONCILE_INTERVAL.

` + brokerSettings + `
Example:
  bridge reconcile users
`},
		{"adopt", "RELATION", "begin a stream anew whose rows came from another database", `
A stream belongs to one database: after DATABASE_URL was pointed to another, the
bridge leaves it alone until this is run. Its positions are void then, and
clients are told so.

Settings: those of the bridge.

Example:
  bridge adopt users
`},
		{"healthcheck", "", "ask the running bridge whether it is ready", `
Exit status 0 if it is, else 1, and what it waits for is printed: the health
check of a container.

Settings: BRIDGE_LISTEN.
`},
	}
}

// printHelp prints the help of the command that args name, or of all.
func printHelp(w io.Writer, args []string) error {
	if len(args) == 0 || args[0] == "" {
		return printGeneralHelp(w)
	}
	all := manuals()
	i := slices.IndexFunc(all, func(m manual) bool { return m.name == args[0] })
	if i < 0 {
		return unknown(args[0])
	}
	m := all[i]
	_, err := fmt.Fprintf(w, "Usage: bridge %s: %s.\n%s", m.usage(), m.short, m.long)
	return err
}

func (m manual) usage() string {
	if m.arguments == "" {
		return m.name
	}
	return m.name + " " + m.arguments
}

func printGeneralHelp(w io.Writer) error {
	_, _ = io.WriteString(w, `bridge captures Postgres tables and views and publishes every changed row, with
heartbeats, to NATS JetStream: one stream per relation.

Usage:
  bridge                            run
`)
	for _, m := range manuals() {
		_, _ = fmt.Fprintf(w, "  bridge %-26s %s\n", m.usage(), m.short)
	}
	_, _ = io.WriteString(w, `  bridge COMMAND --help             more of a command
  bridge --version

Settings, all from the environment:
`)
	program.PrintSettings(w, prefix, &Config{})
	_, err := io.WriteString(w, `
BRIDGE_TABLES lists relations: name or schema.name, in double quotes where SQL
would need them, each with options in parentheses:
  key=a+b        the key's columns (a view must name them)
  txid=column    the column with the transaction ID (default txid)
  deleted=column a boolean, or a timestamp that is not null, that marks a deleted row
  tombstones=30d how long deleted rows stay in the stream (default: for ever)
  history=log    keep every version, bounded by max_age=24h and max_bytes=10GiB
  capture=wal    read the write-ahead log instead of polling: hard deletes, nothing
                 to add to the table; needs wal_level=logical (bridge sql says all)
  actions=a+b    with capture=wal: of insert, update, delete, truncate, only these
* is every table of schema public that qualifies; -name takes one out.

Examples:
  DATABASE_URL=postgres://localhost/app BRIDGE_TABLES=users bridge
  BRIDGE_TABLES='users,public.domains_feed(key=name),audit(history=log;max_age=24h)' bridge check
  bridge sql orders | psql -v ON_ERROR_STOP=1 "$DATABASE_URL"
  bridge sql 'orders(capture=wal)' | psql -v ON_ERROR_STOP=1 "$DATABASE_URL"
`)
	return err
}
