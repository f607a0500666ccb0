package main

import (
	"fmt"
	"io"
	"slices"

	"bridge/cmd/internal/program"
)

// manual is what the help says about a command.
type manual struct {
	name, arguments string
	// short is its line in the general help; long follows in its own help.
	short, long string
}

// brokerSettings are the settings of a command that connects only to the broker.
const brokerSettings = `Settings: NATS_URL and NATS_* as for the bridge (BRIDGE_NATS_LISTEN if it runs an
embedded server); BRIDGE_STREAM_PREFIX.
`

func manuals() []manual {
	return []manual{
		{"check", "[--json]", "check the settings, Postgres and the broker; print every problem", `
It prints each problem with what to do about it. It changes nothing, and may run
while the bridge runs. The exit status is 2 if there is an error, else 0.

  --json   print one JSON document

Settings: the same as for the bridge.

Example:
  DATABASE_URL=postgres://localhost/app BRIDGE_TABLES='users,orders(capture=wal)' bridge check
`},
		{"sql", "[OPTIONS] RELATION...", "print the SQL that prepares tables and views for capture", `
It only prints: read the SQL, then run it as the owner of the table or as a
superuser (ADMIN_URL below). The role of the bridge may not run it. If the table
can't be prepared yet, or if something that is not the bridge's has a name that the
SQL needs, it prints what to do first, and the exit status is 1.

RELATION may have options, as in BRIDGE_TABLES; without options, those in
BRIDGE_TABLES apply. '*' is every table of schema public. For a table, the SQL
makes a feed view: it shows the rows and the keys of deleted rows. The last line
of the SQL is what to put into BRIDGE_TABLES.

It never changes a column txid that is the application's: it proposes another
name, as in 'orders(txid=ls_txid)'.

  -role NAME       the role that the bridge logs in as (default lockstep)
  -as NAME         use NAME in place of lockstep in all other names
  -no-tombstones   skip tombstones and the feed view (only if rows are never deleted)
  -no-notify       skip the trigger that wakes the bridge (it then polls by the clock)

Settings: DATABASE_URL, DATABASE_PASSWORD_FILE, BRIDGE_TABLES; with capture=wal
also BRIDGE_NAME.

Examples:
  DATABASE_URL="$ADMIN_URL" bridge sql orders | psql -v ON_ERROR_STOP=1 "$ADMIN_URL"
  DATABASE_URL="$ADMIN_URL" bridge sql 'orders(capture=wal)' | psql -v ON_ERROR_STOP=1 "$ADMIN_URL"
  DATABASE_URL="$ADMIN_URL" bridge sql '*(capture=wal),-secrets' > setup.sql
`},
		{"tail", "RELATION", "print the rows of a relation's stream, and follow it", `
It prints what the stream holds, then what comes, until it is interrupted: rows
and heartbeats, one JSON document a line. After an outage of the broker it goes
on where it was. It does not read Postgres.

` + brokerSettings + `
Example:
  bridge tail users
`},
		{"reconcile", "RELATION", "have the running bridge compare a relation with its stream and repair it", `
The bridge publishes rows that the stream lacks or has with other content, and
deletes of rows that are no longer in Postgres. This command waits and prints the
counts. Writes may go on meanwhile. The bridge also does this by itself, every
BRIDGE_RECONCILE_INTERVAL.

` + brokerSettings + `
Example:
  bridge reconcile users
`},
		{"adopt", "RELATION", "start a stream over, with the rows of another database", `
A stream belongs to one database. If DATABASE_URL names another, the bridge does
not touch the stream until you run this. The stream then starts over: positions
of clients are void, and clients are told so.

Settings: the same as for the bridge.

Example:
  bridge adopt users
`},
		{"remove", "[--yes] RELATION", "remove the stream of a relation that is captured no more", `
First take the relation out of BRIDGE_TABLES, and restart every bridge that had it.
The command refuses while a running bridge has it, and names that bridge. It
removes the stream, and clients that read it get 404. If the bridge or bridge sql
made the publication, it takes the table out. With the last table it drops the
publication and the slot. What bridge sql added to the table stays.
Without DATABASE_URL it removes the stream alone.

  --yes   do not ask; needed if the input is no terminal

Settings: the same as for the bridge.

Example:
  bridge remove users
`},
		{"healthcheck", "[--ready]", "ask the running bridge whether it runs", `
For the health check of a container. If the bridge runs, the exit status is 0,
else it is 1. A first load, or a database that is away, makes no bridge unhealthy:
a restart would not help.

  --ready   ask whether every relation is live; if not, print which and why

Settings: BRIDGE_LISTEN.
`},
	}
}

// printHelp prints the help of the command that args name, or the general help.
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
	_, _ = io.WriteString(w, `bridge captures Postgres tables and views. It publishes every changed row, and
heartbeats, to NATS JetStream: one stream per relation.

Usage:
  bridge                            run
`)
	for _, m := range manuals() {
		_, _ = fmt.Fprintf(w, "  bridge %-26s %s\n", m.usage(), m.short)
	}
	_, _ = io.WriteString(w, `  bridge COMMAND --help             more about a command
  bridge --version

Settings, from the environment:
`)
	program.PrintSettings(w, prefix, &Config{})
	_, err := io.WriteString(w, `
BRIDGE_TABLES is a comma-separated list of relations: name or schema.name, in
double quotes where SQL needs them. Options follow in parentheses, with ; between:
  key=a+b        the columns of the key (a view must name them)
  txid=column    the column with the transaction ID (default txid)
  deleted=column marks deleted rows: a boolean, or a timestamp (deleted if not null)
  tombstones=30d how long deleted rows stay in the stream (default: for ever)
  reconcile=10s  how often to compare the stream with the relation (default:
                 BRIDGE_RECONCILE_INTERVAL); for views whose rows change unseen
  history=log    keep every version; limit it by max_age=24h, max_bytes=10GiB
  capture=wal    read the write-ahead log instead of polling: sees deletes, adds
                 nothing to the table, needs wal_level=logical (see bridge sql)
  actions=a+b    with capture=wal: publish only these of insert, update, delete,
                 truncate
  events=true    with capture=wal: say in a header which change a row comes from,
                 and when that was committed (history=log always says it)
  republish=s    the subject for copies of stored rows, for example
                 events.{schema}.{table} or orders.{key}; off for none (default:
                 the row's own subject)
* is every table of schema public that can be polled: one with a key and a column
txid. *(capture=wal) is every one that is fit for a publication. -name leaves one
out.

Examples:
  DATABASE_URL=postgres://localhost/app BRIDGE_TABLES=users bridge
  BRIDGE_TABLES='users,public.domains_feed(key=name),audit(history=log;max_age=24h)' bridge check
  # ADMIN_URL names the owner of the table, or a superuser:
  DATABASE_URL="$ADMIN_URL" bridge sql orders | psql -v ON_ERROR_STOP=1 "$ADMIN_URL"
  DATABASE_URL="$ADMIN_URL" bridge sql 'orders(capture=wal)' | psql -v ON_ERROR_STOP=1 "$ADMIN_URL"
`)
	return err
}
