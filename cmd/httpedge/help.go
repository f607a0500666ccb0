package main

import (
	"fmt"
	"io"

	"bridge/cmd/internal/program"
)

// printHelp prints the help of the command that args name, or the general help.
func printHelp(w io.Writer, args []string) error {
	command := ""
	if len(args) > 0 {
		command = args[0]
	}
	switch command {
	case "", "-h", "--help":
		printGeneralHelp(w)
		return nil
	case "check":
		_, err := io.WriteString(w, `Usage: httpedge check [--json]: check the settings, the address and the broker; print every problem.

It prints each problem with what to do about it, and which relations the broker
has. It changes nothing, and may run while the edge runs. The exit status is 2 if
there is an error, else 0.

  --json   print one JSON document

Settings: the same as for the edge.

Example:
  NATS_URL=nats://nats.internal:4222 httpedge check
`)
		return err
	case "healthcheck":
		_, err := io.WriteString(w, `Usage: httpedge healthcheck [--ready]: `+healthcheckDoes+`.

For the health check of a container. If the answer is good, the exit status is 0.
Else it is 1, and the reason is printed.

  --ready   ask whether it is ready: whether it serves every relation

Settings: HTTPEDGE_LISTEN.
`)
		return err
	}
	return unknown(command)
}

const healthcheckDoes = "ask the running edge whether it runs"

func printGeneralHelp(w io.Writer) {
	_, _ = fmt.Fprintf(w, `httpedge serves the streams that the bridge fills to HTTP clients. A client sends
the last transaction ID that it has seen. It gets everything since then, and new
rows as they come.

Usage:
  httpedge                        run
  httpedge check [--json]         check the settings, the address and the broker; print every problem
  httpedge healthcheck [--ready]  %s
  httpedge COMMAND --help         more about a command
  httpedge --version

Requests:
  GET /                  the relations, as JSON
  GET /RELATION          every row, then what changes; RELATION is a name that GET / lists
  GET /RELATION?since=N  what changed since transaction N, then what changes
  ... &follow=0          the answer ends when the client has the current state; a row
                         may come in several versions, the last one counts
  ... &cursor=C          what comes after an exact place, without repeats; an empty
                         cursor asks the edge to tell such places
  ... &follow=0&limit=N  a page of N rows; the header Link has the next one
  ... &follow=0&wait_for=T  the current state, with what transaction T wrote
  ... &format=flat       the older dialect: columns at the top level

Settings, from the environment:
`, healthcheckDoes)
	program.PrintSettings(w, prefix, &Config{})
	_, _ = io.WriteString(w, `
Examples:
  NATS_URL=nats://nats.internal:4222 HTTPEDGE_LISTEN=0.0.0.0:8080 httpedge
  curl -sN 'http://127.0.0.1:8080/users?since=551033'
`)
}
