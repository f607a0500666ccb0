package capture

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// Snapshot is a pg_snapshot: it says which transactions had ended when it was
// taken. On a standby Xip is always empty, and Visible may be wrong for
// transaction IDs from Xmin on.
type Snapshot struct {
	// Xmin is the lowest ID that was running; all below it had ended.
	Xmin uint64
	// Xmax is one past the highest ID that had ended: no ID from it on is visible.
	Xmax uint64
	// Xip has the IDs that were running, Xmin <= id < Xmax, in rising order. They
	// are IDs of top-level transactions.
	Xip []uint64
}

// ParseSnapshot parses the text form of a pg_snapshot or txid_snapshot:
// xmin:xmax:xip,xip,…. It refuses what Postgres refuses, and repeated IDs.
func ParseSnapshot(s string) (Snapshot, error) {
	errSyntax := fmt.Errorf("not a snapshot: %q", s)
	parts := strings.Split(s, ":")
	if len(parts) != 3 {
		return Snapshot{}, errSyntax
	}
	var sn Snapshot
	var err, err2 error
	sn.Xmin, err = parseXID(parts[0])
	sn.Xmax, err2 = parseXID(parts[1])
	if err != nil || err2 != nil || sn.Xmin == 0 || sn.Xmax < sn.Xmin {
		return Snapshot{}, errSyntax
	}
	if parts[2] == "" {
		return sn, nil
	}
	for _, part := range strings.Split(parts[2], ",") {
		x, err := parseXID(part)
		if err != nil || x < sn.Xmin || x >= sn.Xmax || len(sn.Xip) > 0 && x <= sn.Xip[len(sn.Xip)-1] {
			return Snapshot{}, errSyntax
		}
		sn.Xip = append(sn.Xip, x)
	}
	return sn, nil
}

// parseXID parses a transaction ID as Postgres writes it: without sign and
// leading zeros.
func parseXID(s string) (uint64, error) {
	if s == "" || s[0] < '0' || s[0] > '9' || s[0] == '0' && len(s) > 1 {
		return 0, errors.New("not a transaction ID")
	}
	return strconv.ParseUint(s, 10, 64)
}

// String returns the text form that Postgres uses.
func (s Snapshot) String() string {
	b := strconv.AppendUint(nil, s.Xmin, 10)
	b = append(b, ':')
	b = strconv.AppendUint(b, s.Xmax, 10)
	b = append(b, ':')
	for i, x := range s.Xip {
		if i > 0 {
			b = append(b, ',')
		}
		b = strconv.AppendUint(b, x, 10)
	}
	return string(b)
}

// Visible reports whether the transaction had ended when the snapshot was
// taken, as pg_visible_in_snapshot does. It is true also for a transaction that
// rolled back, which left no rows.
func (s Snapshot) Visible(txid uint64) bool {
	if txid < s.Xmin {
		return true
	}
	if txid >= s.Xmax {
		return false
	}
	_, running := slices.BinarySearch(s.Xip, txid)
	return !running
}
