package lockstep

import (
	"errors"
	"fmt"
	"slices"
	"strings"
)

// PublicSchema is the schema of the relations whose names in requests have none.
const PublicSchema = "public"

// ReservedNames returns the names that stand for no relation. A relation of schema
// public that is called so has the schema in its name, as in public.metrics.
func ReservedNames() []string {
	return []string{"healthz", "readyz", "metrics", "_flat", "_clients", "_ticket"}
}

// RelationName returns the name of a relation in requests. Each relation has one
// such name, and ParseRelation takes it back to that relation alone. It is the
// table's name for most relations of schema public, else QualifiedName.
func RelationName(schema, table string) string {
	if schema == PublicSchema && !strings.Contains(table, ".") && !slices.Contains(ReservedNames(), table) {
		return table
	}
	return QualifiedName(schema, table)
}

// QualifiedName returns a relation's name with its schema. ParseRelation takes it
// back to that relation alone, too.
func QualifiedName(schema, table string) string {
	if strings.Contains(schema, ".") {
		return `."` + strings.ReplaceAll(schema, `"`, `""`) + `".` + table
	}
	return schema + "." + table
}

// ParseRelation returns the relation that a name stands for, whether it exists or
// not. Several names may stand for one relation, as users and public.users do, but
// no name stands for two. The error says why a name stands for none.
func ParseRelation(name string) (schema, table string, err error) {
	if slices.Contains(ReservedNames(), name) {
		return "", "", fmt.Errorf("the name %s is reserved; a table that is called so is %s.%[1]s", name, PublicSchema)
	}
	if quoted, ok := strings.CutPrefix(name, `."`); ok {
		schema, table, ok = cutQuoted(quoted)
		if !ok || !strings.Contains(schema, ".") || table == "" {
			return "", "", errors.New(`a name that begins with a dot must be ."schema".table, for a schema with a dot in its name`)
		}
		return schema, table, nil
	}
	schema, table, ok := strings.Cut(name, ".")
	if !ok {
		schema, table = PublicSchema, name
	}
	if schema == "" || table == "" {
		return "", "", errors.New("a name must be table or schema.table")
	}
	return schema, table, nil
}

// cutQuoted splits s after the quote and dot that end a quoted name.
func cutQuoted(s string) (name, rest string, ok bool) {
	for i := 0; i < len(s); i++ {
		if s[i] != '"' {
			continue
		}
		if i++; i == len(s) || s[i] != '"' { // a doubled quote is one of the name
			rest, ok = strings.CutPrefix(s[i:], ".")
			return strings.ReplaceAll(s[:i-1], `""`, `"`), rest, ok
		}
	}
	return "", "", false
}
