package relation

import (
	"regexp"
	"slices"
	"strings"
)

// sourceToken matches a piece of PL/pgSQL: comments too, which are left out.
var sourceToken = regexp.MustCompile(`(?s)--[^\n]*|/\*.*?\*/|"(?:[^"]|"")*"|'(?:[^']|'')*'|[\pL_][\pL\pN_$]*|:=|::|\pN+|[^\s]`)

// tokens splits the source of a function. Names are folded as Postgres folds them,
// and names in double quotes lose these. Strings keep their quotes.
func tokens(source string) []string {
	var list []string
	for _, t := range sourceToken.FindAllString(source, -1) {
		switch {
		case strings.HasPrefix(t, "--"), strings.HasPrefix(t, "/*"):
			continue
		case len(t) > 1 && t[0] == '"':
			t = strings.ReplaceAll(t[1:len(t)-1], `""`, `"`)
		case t[0] != '\'':
			t = strings.ToLower(t)
		}
		list = append(list, t)
	}
	return list
}

var (
	givesIDs = []string{"txid_current", "pg_current_xact_id"}
	// An expression of only these is the transaction's ID, perhaps of another type.
	idTokens = append([]string{"(", ")", ".", "::", "cast", "as", "pg_catalog", "bigint", "int8", "int", "integer", "numeric", "text", "xid8"}, givesIDs...)
	// A condition of only these asks whether the row changes, not for its values.
	changeTokens = []string{"tg_op", "=", "(", ")", ".", "*", "or", "is", "distinct", "from", "new", "old", "row", "'INSERT'", "'UPDATE'"}
	starts       = []string{";", "begin", "then", "else", "loop"}
)

func only(list, allowed []string) bool {
	return !slices.ContainsFunc(list, func(t string) bool { return !slices.Contains(allowed, t) })
}

// isID reports whether an expression is the ID of the current transaction.
func isID(expr []string) bool {
	return only(expr, idTokens) && slices.ContainsFunc(expr, func(t string) bool { return slices.Contains(givesIDs, t) })
}

// asksForChange reports whether a condition holds for each row that changes,
// whatever its values are: NEW IS DISTINCT FROM OLD, perhaps OR TG_OP = 'INSERT'.
// An attribute in it, as in NEW.a, is a value.
func asksForChange(condition []string) bool {
	for i, t := range condition {
		if t == "." && (i+1 == len(condition) || condition[i+1] != "*") {
			return false
		}
	}
	return only(condition, changeTokens) && slices.Contains(condition, "distinct")
}

// setsID reports whether a trigger function in PL/pgSQL sets the column to the
// transaction's ID whatever the writer gave, and uses the column for nothing else.
func setsID(source, column string) bool {
	list := tokens(source)
	sets := false
	for i, t := range list {
		switch {
		case (t == "if" || t == "elsif" || t == "elseif") && (i == 0 || list[i-1] != "end"):
			end := slices.Index(list[i:], "then")
			if end < 0 || !asksForChange(list[i+1:i+end]) {
				return false
			}
		case t == "case", t == "when", t == "coalesce", t == "nullif":
			return false
		case t == "new" && i > 0 && i+1 < len(list) && (slices.Contains(starts, list[i-1]) || list[i-1] == "into") && list[i+1] != ".":
			return false // the whole row is replaced
		case t == "new" && i+3 < len(list) && list[i+1] == "." && list[i+2] == column:
			start := i
			for start > 0 && !slices.Contains(starts, list[start-1]) {
				start--
			}
			end := i + slices.Index(list[i:], ";")
			switch {
			case end < i:
				return false
			case start == i && (list[i+3] == ":=" || list[i+3] == "="):
				if !isID(list[i+4 : end]) {
					return false
				}
			case list[start] == "select" && end == i+3:
				before := list[start+1 : i]
				if n := len(before); n > 0 && before[n-1] == "strict" {
					before = before[:n-1]
				}
				if n := len(before); n == 0 || before[n-1] != "into" || !isID(before[:n-1]) {
					return false
				}
			default:
				return false
			}
			sets = true
		}
	}
	return sets
}

// mayStamp reports whether a trigger function in any language may set the column
// to a transaction ID: it names both. The column may also be an argument.
func mayStamp(source, column string) bool {
	list := tokens(source)
	var ids, names bool
	for _, t := range list {
		ids = ids || slices.Contains(givesIDs, t) || strings.Contains(t, "txid_current") || strings.Contains(t, "pg_current_xact_id")
		names = names || strings.EqualFold(strings.Trim(t, `'"`), column) || t == "tg_argv"
	}
	return ids && names
}

// notifies reports whether a trigger function notifies the bridge's channel.
func notifies(source string) bool {
	list := tokens(source)
	return slices.Contains(list, "pg_notify") && slices.Contains(list, "'"+NotifyChannel+"'")
}
