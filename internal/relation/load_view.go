package relation

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"bridge/internal/view"
)

// proposedReconcile is how often to compare a view whose rows change without a new
// transaction ID. Comparisons take at most a quarter of the time, whatever it says.
const proposedReconcile = 10 * time.Second

// checkView reads the query of a view. It marks the columns that are the
// protocol's own, and warns of what polls don't see.
func (l *looked) checkView() {
	o := l.self
	if o.Kind != "v" {
		return
	}
	found, err := view.Read(l.catalog, o.OID, l.spec.Txid)
	if err != nil {
		l.warn(o, "its query can't be read ("+err.Error()+"): nobody knows whether its rows can change without a new transaction ID",
			"see the limits of views in docs/limits.md, and use a newer bridge with this version of Postgres")
		return
	}
	for i := range o.Columns {
		o.Columns[i].protocol = slices.Contains(found.Protocol, o.Columns[i].Name)
	}
	l.vanish = len(found.Constructs)+len(found.Conditions) > 0
	if len(found.Constructs) > 0 {
		l.warnVanish("it has " + joinWords(found.Constructs) + ", so its rows can change or vanish without a new transaction ID, which polls don't see")
	}
	if len(found.Conditions) > 0 {
		l.warnVanish("its conditions call " + joinWords(found.Conditions) + ", so its rows come and go without a new transaction ID, which polls don't see")
	}
	for _, m := range found.Moving {
		calls := joinWords(m.Functions)
		l.warn(o, fmt.Sprintf("its column %s calls %s, whose result changes although no row does: each comparison then publishes all its rows again", quoteIdent(m.Column), calls),
			"leave the column out of the view; or, if "+calls+" gives the same result for the same row, declare it IMMUTABLE or STABLE")
	}
}

// warnVanish warns of changes that only a comparison finds, unless the user has
// said how often to compare.
func (l *looked) warnVanish(what string) {
	spec := l.spec
	if spec.Reconcile > 0 {
		return
	}
	spec.Reconcile = proposedReconcile
	do := "say in BRIDGE_TABLES how often to compare: " + spec.String()
	if spec.History == HistoryLog {
		spec.Reconcile = 0
		do = "name the tables below it instead: a stream with history=log can't be compared"
	}
	l.warn(l.self, what+". Until the next comparison clients keep the old rows, and a heartbeat may stand for a state that Postgres never had", do)
}

// joinWords joins words as a sentence does.
func joinWords(words []string) string {
	if len(words) < 2 {
		return strings.Join(words, "")
	}
	return strings.Join(words[:len(words)-1], ", ") + " and " + words[len(words)-1]
}
