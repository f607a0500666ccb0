package wal

import (
	"errors"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"
)

// unreadable says why Postgres will never read what the slot still needs. It is empty if
// nothing is known.
type unreadable string

const (
	// noPublication: the slot stands before the publication was made. Postgres looks the
	// publication up as it was there.
	noPublication unreadable = "the publication was dropped and Postgres can't read the WAL from before"
	// undecodable: a fault of Postgres, or WAL that is damaged or gone.
	undecodable unreadable = "Postgres fails again and again at the same place of the WAL"
)

// giveUpAfter is how often Postgres must fail at the same place before the slot is given
// up. What the bridge does then is safe, but costs a comparison.
const giveUpAfter = 5

// Codes of Postgres' errors.
const (
	undefinedObject = "42704"
	undefinedFile   = "58P01"
	internalErrors  = "XX" // a class: internal errors, and corruption
)

// decoding watches for failures that repeat.
type decoding struct {
	// furthest is the place up to which a session came that failed, and failures how many
	// failed there.
	furthest uint64
	failures int
}

// failed says what is known after a session ended with the error. pos is the place before
// which it had read every commit.
func (d *decoding) failed(err error, pos uint64) unreadable {
	var pg *pgconn.PgError
	switch {
	case !errors.Is(err, errStream) || !errors.As(err, &pg):
		return ""
	case pg.Code == undefinedObject: // what the walsender says of the publication
		return noPublication
	case !strings.HasPrefix(pg.Code, internalErrors) && pg.Code != undefinedFile:
		return ""
	case pos > d.furthest:
		d.furthest, d.failures = pos, 0
	}
	if d.failures++; d.failures < giveUpAfter {
		return ""
	}
	return undecodable
}
