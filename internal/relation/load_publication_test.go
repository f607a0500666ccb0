package relation_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"bridge/internal/relation"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// ourPublication is the bridge's in these tests.
const ourPublication = "ours"

// breakCase is one shape of a table t, which the bridge is to publish.
type breakCase struct {
	name, create, spec string
	// others makes publications: the application's, or one under the bridge's name.
	others string
	// later changes the table while it is in the bridge's publication.
	later string
	// breaks has what Postgres then refuses, "t UPDATE" or "t" for both UPDATE and
	// DELETE. It does so from this version on, 15 if it is 0.
	breaks string
	from   int
	// needs is the first version that knows the statements.
	needs int
}

const (
	plainTable = `CREATE TABLE t (id int PRIMARY KEY, v text, o int NOT NULL);`
	bareTable  = `CREATE TABLE t (id int NOT NULL, v text, o int NOT NULL);`
	genTable   = `CREATE TABLE t (id int PRIMARY KEY, v text, g text GENERATED ALWAYS AS (upper(v)) STORED);`
	genKey     = `CREATE TABLE t (id int, v text, g int NOT NULL GENERATED ALWAYS AS (id + 1) STORED, PRIMARY KEY (g));`
	virtTable  = `CREATE TABLE t (id int PRIMARY KEY, v text, g text GENERATED ALWAYS AS (upper(v)) VIRTUAL);`
	parted     = `CREATE TABLE t (id int NOT NULL, v text, o int NOT NULL) PARTITION BY RANGE (id);
		CREATE TABLE t1 PARTITION OF t FOR VALUES FROM (0) TO (10); CREATE TABLE t2 PARTITION OF t FOR VALUES FROM (10) TO (20);`
	partedKey = `CREATE TABLE t (id int PRIMARY KEY, v text, o int NOT NULL) PARTITION BY RANGE (id);
		CREATE TABLE t1 PARTITION OF t FOR VALUES FROM (0) TO (10); CREATE TABLE t2 PARTITION OF t FOR VALUES FROM (10) TO (20);`
	full   = `ALTER TABLE t REPLICA IDENTITY FULL;`
	noID   = `ALTER TABLE t REPLICA IDENTITY NOTHING;`
	byO    = `CREATE UNIQUE INDEX t_o ON t (o); ALTER TABLE t REPLICA IDENTITY USING INDEX t_o;`
	server = `CREATE EXTENSION file_fdw; CREATE SERVER s FOREIGN DATA WRAPPER file_fdw;`
	stored = ` WITH (publish_generated_columns = stored)`
	// A transaction looks a table that it made up again only when the table changes.
	anew   = `; GRANT SELECT ON ALL TABLES IN SCHEMA public TO PUBLIC`
	unsent = ` WITH (publish_via_partition_root = true, publish_generated_columns = none)`
)

var breakCases = []breakCase{
	// What the table itself is.
	{name: "primary key", create: plainTable},
	{name: "full", create: bareTable + full, spec: "t(capture=wal;key=id)"},
	{name: "index", create: plainTable + byO, spec: "t(capture=wal;key=o)"},
	{name: "index with include", create: plainTable + `CREATE UNIQUE INDEX x ON t (o) INCLUDE (v); ALTER TABLE t REPLICA IDENTITY USING INDEX x`},
	{name: "no key", create: bareTable, spec: "t(capture=wal;key=id)", breaks: "t"},
	{name: "no key at all", create: bareTable, breaks: "t"},
	{name: "unique, which is no identity by itself", create: bareTable + `ALTER TABLE t ADD UNIQUE (id)`, breaks: "t"},
	{name: "identity nothing", create: plainTable + noID, breaks: "t"},
	{name: "identity nothing, inserts only", create: plainTable + noID, spec: "t(capture=wal;actions=insert)", breaks: "t"},
	{name: "deferrable key", create: `CREATE TABLE t (id int PRIMARY KEY DEFERRABLE, v text)`, breaks: "t"},
	{name: "deferred key", create: `CREATE TABLE t (id int PRIMARY KEY DEFERRABLE INITIALLY DEFERRED, v text)`, breaks: "t"},
	{name: "identity's index dropped", create: plainTable + byO + `DROP INDEX t_o`, breaks: "t"},
	{name: "primary key dropped", create: plainTable + `ALTER TABLE t DROP CONSTRAINT t_pkey`, breaks: "t"},
	{name: "a dropped column before the key", create: `CREATE TABLE t (x int, id int PRIMARY KEY, v text); ALTER TABLE t DROP COLUMN x`},
	{name: "unlogged", create: `CREATE UNLOGGED TABLE t (id int, v text)`},
	{name: "temporary", create: `CREATE TEMPORARY TABLE t (id int, v text)`},
	{name: "history=log", create: plainTable, spec: "t(capture=wal;history=log;max_age=1h)"},
	{name: "history=log without a key", create: bareTable, spec: "t(capture=wal;key=id;history=log;max_age=1h)", breaks: "t"},
	// Generated columns.
	{name: "generated", create: genTable},
	{name: "generated and full", create: genTable + full},
	{name: "generated, full, history=log", create: genTable + full, spec: "t(capture=wal;history=log;max_age=1h)"},
	{name: "generated and full, not published", create: genTable + full, others: `CREATE PUBLICATION ours` + unsent, breaks: "t", needs: 18},
	{name: "generated, full, log, not published", create: genTable + full, spec: "t(capture=wal;history=log;max_age=1h)", others: `CREATE PUBLICATION ours` + unsent, breaks: "t", needs: 18},
	{name: "generated, log, not published, not yet full", create: genTable, spec: "t(capture=wal;history=log;max_age=1h)", others: `CREATE PUBLICATION ours` + unsent, needs: 18},
	{name: "generated and full in a publication of inserts", create: genTable + full, others: `CREATE PUBLICATION ours WITH (publish = 'insert', publish_via_partition_root)`},
	{name: "generated key", create: genKey},
	{name: "generated key, not published", create: genKey, others: `CREATE PUBLICATION ours` + unsent, breaks: "t", needs: 18},
	{
		name: "generated column in an identity's index", create: genTable + `ALTER TABLE t ALTER g SET NOT NULL; CREATE UNIQUE INDEX x ON t (id, g); ALTER TABLE t REPLICA IDENTITY USING INDEX x`,
		others: `CREATE PUBLICATION ours` + unsent, breaks: "t", needs: 18,
	},
	{name: "generated column in an index that is no identity", create: genTable + `CREATE UNIQUE INDEX x ON t (id, g)`},
	{name: "virtual", create: virtTable, needs: 18},
	{name: "virtual and full", create: virtTable + full, breaks: "t", needs: 18},
	{name: "virtual, log", create: virtTable, spec: "t(capture=wal;history=log;max_age=1h)", needs: 18},
	{name: "virtual, full, log", create: virtTable + full, spec: "t(capture=wal;history=log;max_age=1h)", breaks: "t", needs: 18},
	{
		name: "virtual, stored and full", create: `CREATE TABLE t (id int PRIMARY KEY, v text, g text GENERATED ALWAYS AS (upper(v)) STORED, h text GENERATED ALWAYS AS (lower(v)) VIRTUAL);` + full,
		breaks: "t", needs: 18,
	},
	{name: "no identity, and generated", create: genTable + noID, others: `CREATE PUBLICATION ours` + unsent, breaks: "t", needs: 18},
	// The bridge's publication, made by somebody.
	{name: "a publication of inserts", create: bareTable, spec: "t(capture=wal;key=id;actions=insert)", others: `CREATE PUBLICATION ours WITH (publish = 'insert')`},
	{name: "a publication of updates", create: bareTable, spec: "t(capture=wal;key=id)", others: `CREATE PUBLICATION ours WITH (publish = 'insert, update')`, breaks: "t UPDATE"},
	{name: "a publication of deletes", create: bareTable, spec: "t(capture=wal;key=id)", others: `CREATE PUBLICATION ours WITH (publish = 'delete')`, breaks: "t DELETE"},
	{name: "in it already", create: plainTable, others: `CREATE PUBLICATION ours FOR TABLE t`},
	{name: "in it already, without identity", create: bareTable, others: `CREATE PUBLICATION ours FOR TABLE t`, breaks: "t"},
	{name: "all tables", create: bareTable, spec: "t(capture=wal;key=id;actions=insert)", others: `CREATE PUBLICATION ours FOR ALL TABLES`, breaks: "t"},
	{name: "row filter on the key", create: plainTable, others: `CREATE PUBLICATION ours FOR TABLE t WHERE (id > 5)`},
	{name: "row filter beside the key", create: plainTable, others: `CREATE PUBLICATION ours FOR TABLE t WHERE (o > 5 AND id > 1)`, breaks: "t"},
	{name: "row filter and full", create: plainTable + full, others: `CREATE PUBLICATION ours FOR TABLE t WHERE (o > 5)`},
	{name: "row filter on the identity", create: plainTable + byO, others: `CREATE PUBLICATION ours FOR TABLE t WHERE (o > 5)`},
	{name: "row filter of inserts", create: plainTable, others: `CREATE PUBLICATION ours FOR TABLE t WHERE (o > 5) WITH (publish = 'insert')`},
	{name: "row filter without a column", create: plainTable, others: `CREATE PUBLICATION ours FOR TABLE t WHERE (true)`},
	{name: "row filter without identity", create: bareTable, others: `CREATE PUBLICATION ours FOR TABLE t WHERE (o > 5)`, breaks: "t"},
	{name: "row filter after a dropped column", create: `CREATE TABLE t (x int, id int PRIMARY KEY, v text, o int); ALTER TABLE t DROP COLUMN x`, others: `CREATE PUBLICATION ours FOR TABLE t WHERE (o > 5)`, breaks: "t"},
	{name: "list of columns", create: plainTable, others: `CREATE PUBLICATION ours FOR TABLE t (id, v)`},
	{name: "list without the key", create: plainTable, others: `CREATE PUBLICATION ours FOR TABLE t (v)`, breaks: "t"},
	{name: "list without all of the key", create: `CREATE TABLE t (id int, b int, v text, PRIMARY KEY (id, b))`, others: `CREATE PUBLICATION ours FOR TABLE t (id, v)`, breaks: "t"},
	{name: "list and full", create: plainTable + full, others: `CREATE PUBLICATION ours FOR TABLE t (id, v, o)`, breaks: "t"},
	{name: "list without the key, updates only", create: plainTable, others: `CREATE PUBLICATION ours FOR TABLE t (v) WITH (publish = 'update')`, breaks: "t UPDATE"},
	{name: "list with a generated key", create: genKey, others: `CREATE PUBLICATION ours FOR TABLE t (g, v)`, needs: 18},
	{name: "list and no identity", create: bareTable, others: `CREATE PUBLICATION ours FOR TABLE t (id, v)`, breaks: "t"},
	{name: "list, generated and full", create: genTable + full, others: `CREATE PUBLICATION ours FOR TABLE t (id, v)`, breaks: "t"},
	// Publications of the application.
	{name: "another publication", create: plainTable, others: `CREATE PUBLICATION app FOR TABLE t`},
	{name: "another of all tables, which breaks", create: bareTable, others: `CREATE PUBLICATION app FOR ALL TABLES`, breaks: "t"},
	{name: "another of the schema, which breaks", create: bareTable, others: `CREATE PUBLICATION app FOR TABLES IN SCHEMA public`, breaks: "t"},
	{name: "another of the schema", create: plainTable, others: `CREATE PUBLICATION app FOR TABLES IN SCHEMA public`},
	{name: "another's row filter breaks", create: plainTable, others: `CREATE PUBLICATION app FOR TABLE t WHERE (o > 5)`, breaks: "t"},
	{name: "another's list breaks", create: plainTable, others: `CREATE PUBLICATION app FOR TABLE t (v) WITH (publish = 'delete')`, breaks: "t DELETE"},
	{name: "another's row filter on the identity", create: `CREATE TABLE t (id int NOT NULL UNIQUE, v text, o int NOT NULL);` + byO, spec: "t(capture=wal;key=id)", others: `CREATE PUBLICATION app FOR TABLE t WHERE (o > 5)`},
	{name: "another leaves generated columns out", create: genTable, spec: "t(capture=wal;history=log;max_age=1h)", others: `CREATE PUBLICATION app FOR TABLE t`},
	{name: "another leaves generated columns out, and full", create: genTable + full, others: `CREATE PUBLICATION app FOR TABLE t`, breaks: "t", from: 18},
	{name: "another of all tables leaves generated columns out", create: genTable + full, others: `CREATE PUBLICATION app FOR ALL TABLES`, breaks: "t", from: 18},
	{name: "another has generated columns", create: genTable + full, others: `CREATE PUBLICATION app FOR TABLE t` + stored, needs: 18},
	{name: "two that break each one", create: bareTable, spec: "t(capture=wal;key=id)", others: `CREATE PUBLICATION app FOR TABLE t WITH (publish = 'update'); CREATE PUBLICATION ours WITH (publish = 'delete')`, breaks: "t"},
	// Partitions.
	{name: "partitions with the key", create: partedKey},
	{name: "partitions without identity", create: parted, spec: "t(capture=wal;key=id)", breaks: "t1,t2"},
	{name: "one full, one without identity", create: parted + `ALTER TABLE t1 REPLICA IDENTITY FULL`, spec: "t(capture=wal;key=id)", breaks: "t2"},
	{name: "identity of the root has no effect", create: parted + full, spec: "t(capture=wal;key=id)", breaks: "t1,t2"},
	{name: "root nothing, partitions with the key", create: partedKey + noID},
	{name: "one partition nothing", create: partedKey + `ALTER TABLE t2 REPLICA IDENTITY NOTHING`, breaks: "t2"},
	{name: "partition by another index", create: partedKey + `CREATE UNIQUE INDEX x ON t1 (o); ALTER TABLE t1 REPLICA IDENTITY USING INDEX x`},
	{name: "partitions, deferrable key", create: `CREATE TABLE t (id int PRIMARY KEY DEFERRABLE, v text) PARTITION BY RANGE (id); CREATE TABLE t1 PARTITION OF t DEFAULT`, breaks: "t1"},
	{
		name: "partitions of partitions", create: `CREATE TABLE t (id int NOT NULL, v text) PARTITION BY RANGE (id); CREATE TABLE s PARTITION OF t DEFAULT PARTITION BY RANGE (id); CREATE TABLE s1 PARTITION OF s DEFAULT`,
		spec: "t(capture=wal;key=id)", breaks: "s1",
	},
	{name: "no partitions yet", create: `CREATE TABLE t (id int NOT NULL, v text) PARTITION BY RANGE (id)`, spec: "t(capture=wal;key=id)"},
	{
		name: "foreign partition beside full ones", create: server + parted + `ALTER TABLE t1 REPLICA IDENTITY FULL; ALTER TABLE t2 REPLICA IDENTITY FULL; CREATE FOREIGN TABLE t3 PARTITION OF t FOR VALUES FROM (20) TO (30) SERVER s OPTIONS (filename '/dev/null')`,
		spec: "t(capture=wal;key=id)",
	},
	{name: "unlogged partition", create: partedKey + `CREATE UNLOGGED TABLE t3 (id int NOT NULL, v text, o int NOT NULL); ALTER TABLE t ATTACH PARTITION t3 FOR VALUES FROM (20) TO (30); ALTER TABLE t3 REPLICA IDENTITY NOTHING`},
	{name: "published as partitions", create: partedKey, others: `CREATE PUBLICATION ours WITH (publish_via_partition_root = false)`},
	{name: "a partition of another publication with a filter", create: partedKey, others: `CREATE PUBLICATION app FOR TABLE t1 WHERE (o > 5)`, breaks: "t1"},
	{name: "the root's filter", create: partedKey, others: `CREATE PUBLICATION app FOR TABLE t WHERE (o > 5) WITH (publish_via_partition_root)`, breaks: "t1,t2"},
	{name: "the root's filter takes the place of the partition's", create: partedKey, others: `CREATE PUBLICATION app FOR TABLE t, t1 WHERE (o > 5) WITH (publish_via_partition_root)`},
	{name: "the partition's filter, not as the root", create: partedKey, others: `CREATE PUBLICATION app FOR TABLE t, t1 WHERE (o > 5)`, breaks: "t1"},
	{name: "a partition by itself, with a filter, in ours", create: partedKey, others: `CREATE PUBLICATION ours FOR TABLE t1 WHERE (o > 5) WITH (publish_via_partition_root)`},
	{
		name: "columns of a partition in another order", create: `CREATE TABLE t (id int PRIMARY KEY, v text, o int) PARTITION BY RANGE (id); CREATE TABLE t1 (o int, x int, v text, id int NOT NULL); ALTER TABLE t1 DROP COLUMN x; ALTER TABLE t ATTACH PARTITION t1 DEFAULT`,
		others: `CREATE PUBLICATION app FOR TABLE t (id) WITH (publish_via_partition_root); CREATE PUBLICATION app2 FOR TABLE t WHERE (id > 2) WITH (publish_via_partition_root)`,
	},
	{name: "a partition's schema", create: `CREATE SCHEMA p; CREATE TABLE t (id int NOT NULL, v text) PARTITION BY RANGE (id); CREATE TABLE p.t1 PARTITION OF t DEFAULT`, spec: "t(capture=wal;key=id)", others: `CREATE PUBLICATION app FOR TABLES IN SCHEMA p WITH (publish = 'update')`, breaks: "t1"},
	{
		name: "partitions, generated, full, not published", create: `CREATE TABLE t (id int PRIMARY KEY, v text, g text GENERATED ALWAYS AS (upper(v)) STORED) PARTITION BY RANGE (id); CREATE TABLE t1 PARTITION OF t DEFAULT; ALTER TABLE t1 REPLICA IDENTITY FULL`,
		others: `CREATE PUBLICATION ours` + unsent, breaks: "t1", needs: 18,
	},
	{
		name: "partitions, generated, full", create: `CREATE TABLE t (id int PRIMARY KEY, v text, g text GENERATED ALWAYS AS (upper(v)) STORED) PARTITION BY RANGE (id); CREATE TABLE t1 PARTITION OF t DEFAULT; ALTER TABLE t1 REPLICA IDENTITY FULL`,
		spec: "t(capture=wal;history=log;max_age=1h)",
	},
	// What happens to a table that is in the bridge's publication.
	{name: "later identity nothing", create: plainTable, later: noID, breaks: "t"},
	{name: "later without primary key", create: plainTable, later: `ALTER TABLE t DROP CONSTRAINT t_pkey`, breaks: "t"},
	{name: "later without the identity's index", create: plainTable + byO, spec: "t(capture=wal;key=o)", later: `DROP INDEX t_o`, breaks: "t"},
	{name: "later full", create: plainTable, later: full},
	{name: "later a deferrable key", create: plainTable, later: `ALTER TABLE t DROP CONSTRAINT t_pkey, ADD PRIMARY KEY (id) DEFERRABLE`, breaks: "t"},
	{name: "later generated, in full", create: plainTable + full, later: `ALTER TABLE t ADD COLUMN g int GENERATED ALWAYS AS (o + 1) STORED`},
	{name: "later generated, in full, not published", create: plainTable + full, others: `CREATE PUBLICATION ours` + unsent, later: `ALTER TABLE t ADD COLUMN g int GENERATED ALWAYS AS (o + 1) STORED`, breaks: "t", needs: 18},
	{name: "later virtual, in full", create: plainTable + full, later: `ALTER TABLE t ADD COLUMN g int GENERATED ALWAYS AS (o + 1) VIRTUAL`, breaks: "t", needs: 18},
	{name: "later full, generated, not published", create: genTable, others: `CREATE PUBLICATION ours` + unsent, later: full, breaks: "t", needs: 18},
	{name: "later a partition without identity", create: parted + `ALTER TABLE t1 REPLICA IDENTITY FULL; ALTER TABLE t2 REPLICA IDENTITY FULL`, spec: "t(capture=wal;key=id)", later: `CREATE TABLE t3 PARTITION OF t FOR VALUES FROM (20) TO (30)`, breaks: "t3"},
	{name: "later a partition that has none", create: partedKey, later: `CREATE TABLE t3 (id int PRIMARY KEY, v text, o int NOT NULL); ALTER TABLE t3 REPLICA IDENTITY NOTHING; ALTER TABLE t ATTACH PARTITION t3 FOR VALUES FROM (20) TO (30)`, breaks: "t3"},
	{name: "later a partition", create: partedKey, later: `CREATE TABLE t3 PARTITION OF t FOR VALUES FROM (20) TO (30)`},
	{name: "later the first partition", create: `CREATE TABLE t (id int NOT NULL, v text, o int) PARTITION BY RANGE (id)`, spec: "t(capture=wal;key=id)", later: `CREATE TABLE t1 PARTITION OF t DEFAULT`, breaks: "t1"},
	{name: "later a detached partition", create: partedKey, later: `ALTER TABLE t DETACH PARTITION t2; ALTER TABLE t2 REPLICA IDENTITY NOTHING`},
	{name: "later a partition's identity", create: partedKey, later: `ALTER TABLE t1 REPLICA IDENTITY NOTHING`, breaks: "t1"},
	{name: "later a row filter", create: plainTable, later: `ALTER PUBLICATION ours SET TABLE t WHERE (o > 5)`, breaks: "t"},
	{name: "later a list of columns", create: plainTable, later: `ALTER PUBLICATION ours SET TABLE t (v)`, breaks: "t"},
}

// Each case is made, published as the bridge does it, and written to. What Postgres
// refuses is what LoadFor expected, no more and no less; and what LoadFor advises
// breaks nothing. So no table gets into the publication that makes the
// application's own writes fail (issue 14, number 1).
func TestLoadFor_WritesThatAPublicationBreaks(t *testing.T) {
	conn := ready(t, `DROP TABLE users`)
	var version int
	if err := conn.QueryRow(t.Context(), "SELECT current_setting('server_version_num')::int").Scan(&version); err != nil {
		t.Fatal(err)
	}
	for _, c := range breakCases {
		if c.needs*10000 > version {
			continue
		}
		t.Run(c.name, func(t *testing.T) {
			tx, err := conn.Begin(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = tx.Rollback(context.WithoutCancel(t.Context())) }()
			c.check(t, tx, version)
		})
	}
}

// A published table forbids some changes of itself; the documents name them.
func TestLoadFor_ChangesThatAPublicationForbids(t *testing.T) {
	conn := ready(t)
	for sql, from := range map[string]int{
		`CREATE TABLE t (id int PRIMARY KEY); CREATE PUBLICATION p FOR TABLE t; ALTER TABLE t SET UNLOGGED`:                                                                   15,
		`CREATE TABLE t (id int PRIMARY KEY, v int GENERATED ALWAYS AS (id + 1) VIRTUAL); CREATE PUBLICATION p FOR TABLE t; ALTER TABLE t ALTER v SET EXPRESSION AS (id + 2)`: 18,
	} {
		var version int
		if err := conn.QueryRow(t.Context(), "SELECT current_setting('server_version_num')::int / 10000").Scan(&version); err != nil {
			t.Fatal(err)
		}
		if _, err := conn.Exec(t.Context(), sql); version >= from && (err == nil || !strings.Contains(err.Error(), "publication")) {
			t.Errorf("%v in %s", err, sql)
		}
	}
}

func (c breakCase) check(t *testing.T, tx pgx.Tx, version int) {
	t.Helper()
	text := c.spec
	if text == "" {
		text = "t(capture=wal)"
	}
	spec := mustParse(t, text).List[0]
	if strings.Contains(c.create, "TEMPORARY") {
		spec.Name.Schema = "pg_temp"
	}
	must(t, tx, c.create)
	if got := refusedWrites(t, tx); len(got) > 0 {
		t.Fatalf("%v fail without any publication", got)
	}
	must(t, tx, c.others+anew)
	now := refusedWrites(t, tx)
	if spec.Name.Schema == "pg_temp" {
		if len(now) > 0 {
			t.Errorf("%v fail", now)
		}
		return
	}
	expect(t, tx, spec, now, nil)
	_, warnings, err := relation.LoadFor(t.Context(), tx, spec, ourPublication)
	c.heal(t, tx, spec, version, now, err, 0)
	published := publishAsTheBridge(t, tx, version)
	then := refusedWrites(t, tx)
	if !published {
		then = now
	} else {
		_, predicted, err := relation.Refused(t.Context(), tx, spec, ourPublication)
		if err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(predicted, then) {
			t.Errorf("published, Postgres refuses %v, expected %v", then, predicted)
		}
	}
	breaks := errors.Is(err, relation.ErrBreaksWrites)
	if isNew := func(w string) bool { return !slices.Contains(now, w) }; slices.ContainsFunc(then, isNew) && !breaks || breaks && len(then) == 0 {
		t.Errorf("Postgres refuses %v before and %v then, LoadFor says %v", now, then, err)
	}
	if len(now) > 0 && len(then) > 0 && !breaks && len(warnings) == 0 {
		t.Errorf("no warning that %v fail already", now)
	}
	if c.later != "" {
		if len(then) > 0 {
			t.Errorf("%v fail before the change", then)
		}
		must(t, tx, c.later+anew)
		then = refusedWrites(t, tx)
		expect(t, tx, spec, then, then)
		_, warnings, err := relation.LoadFor(t.Context(), tx, spec, ourPublication)
		if len(then) > 0 && !errors.Is(err, relation.ErrBreaksWrites) && len(warnings) == 0 {
			t.Errorf("nothing says that %v fail: %v", then, err)
		}
		c.heal(t, tx, spec, version, nil, err, 0)
	}
	want := c.want(version)
	if !slices.Equal(then, want) {
		t.Errorf("Postgres refuses %v, the list says %v", then, want)
	}
}

// want returns the case's breaks.
func (c breakCase) want(version int) []string {
	if c.breaks == "" || c.from*10000 > version {
		return nil
	}
	var want []string
	for b := range strings.SplitSeq(c.breaks, ",") {
		if strings.Contains(b, " ") {
			want = append(want, b)
			continue
		}
		want = append(want, b+" DELETE", b+" UPDATE")
	}
	slices.Sort(want)
	return want
}

// expect compares what Postgres refuses now with what Refused says; then too, if it
// is not nil.
func expect(t *testing.T, tx pgx.Tx, spec relation.Spec, now, then []string) {
	t.Helper()
	gotNow, gotThen, err := relation.Refused(t.Context(), tx, spec, ourPublication)
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(gotNow, now) {
		t.Errorf("Postgres refuses %v, expected %v", now, gotNow)
	}
	if then != nil && !slices.Equal(gotThen, then) {
		t.Errorf("Postgres refuses %v, expected %v in the publication", then, gotThen)
	}
}

// heal does what LoadFor advises, each way by itself. In the end the bridge may
// publish the table, and no more fails than before.
func (c breakCase) heal(t *testing.T, tx pgx.Tx, spec relation.Spec, version int, before []string, err error, depth int) {
	t.Helper()
	var p *relation.Problem
	if !errors.As(err, &p) || depth > 3 {
		return
	}
	for _, w := range p.Ways() {
		if !strings.HasPrefix(w, "ALTER ") || strings.Contains(w, "…") {
			continue
		}
		nested, err := tx.Begin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		must(t, nested, w)
		if strings.Contains(w, " DROP TABLE ") {
			if got := refusedWrites(t, nested); len(got) > 0 {
				t.Errorf("after %s, Postgres refuses %v", w, got)
			}
		} else if _, _, err := relation.LoadFor(t.Context(), nested, spec, ourPublication); err != nil {
			if depth == 3 {
				t.Errorf("after %s: %v", w, err)
			}
			c.heal(t, nested, spec, version, before, err, depth+1)
		} else {
			publishAsTheBridge(t, nested, version)
			if got := refusedWrites(t, nested); slices.ContainsFunc(got, func(w string) bool { return !slices.Contains(before, w) }) {
				t.Errorf("after %s, Postgres refuses %v; before %v", w, got, before)
			}
		}
		if err := nested.Rollback(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
}

func must(t *testing.T, tx pgx.Tx, sql string) {
	t.Helper()
	if _, err := tx.Exec(t.Context(), sql); err != nil {
		t.Fatalf("%v in %s", err, sql)
	}
}

// publishAsTheBridge makes the publication if there is none, and adds the table if
// it is not in it. What can't be published is not added.
func publishAsTheBridge(t *testing.T, tx pgx.Tx, version int) bool {
	t.Helper()
	var exists, in bool
	err := tx.QueryRow(t.Context(), `SELECT EXISTS (SELECT FROM pg_publication WHERE pubname = $1),
		EXISTS (SELECT FROM pg_publication_tables WHERE pubname = $1 AND tablename = 't') OR EXISTS (SELECT FROM pg_publication_rel WHERE prrelid = 't'::regclass AND prpubid = (SELECT oid FROM pg_publication WHERE pubname = $1))`, ourPublication).Scan(&exists, &in)
	if err != nil {
		t.Fatal(err)
	}
	if !exists {
		must(t, tx, relation.CreatePublication(ourPublication, version))
	}
	if in {
		return true
	}
	must(t, tx, "SAVEPOINT adding")
	_, err = tx.Exec(t.Context(), "ALTER PUBLICATION ours ADD TABLE ONLY t")
	var pg *pgconn.PgError
	if errors.As(err, &pg) && pg.Code == "22023" { // such a table can't be published
		must(t, tx, "ROLLBACK TO adding")
		return false
	}
	if err != nil {
		t.Fatal(err)
	}
	return true
}

// refusedWrites tries to write to t and its partitions, and returns what Postgres
// refuses because of publications. It changes nothing.
func refusedWrites(t *testing.T, tx pgx.Tx) []string {
	t.Helper()
	rows, err := tx.Query(t.Context(), `SELECT oid::regclass::text, relname::text FROM pg_class
		WHERE oid IN (SELECT 't'::regclass::oid UNION SELECT relid FROM pg_partition_tree('t'::regclass)) AND relkind IN ('r', 'p')`)
	if err != nil {
		t.Fatal(err)
	}
	tables, err := pgx.CollectRows(rows, pgx.RowToStructByPos[struct{ SQL, Name string }])
	if err != nil {
		t.Fatal(err)
	}
	var list []string
	for _, table := range tables {
		for what, sql := range map[string]string{
			"UPDATE":    "UPDATE ONLY %s SET v = v",
			"DELETE":    "DELETE FROM ONLY %s",
			"INSERT":    "INSERT INTO %[1]s (v) SELECT v FROM %[1]s WHERE false",
			"TRUNCATE":  "TRUNCATE ONLY %s",
			"FOR SHARE": "SELECT FROM ONLY %s FOR UPDATE",
		} {
			if what == "TRUNCATE" && !strings.HasPrefix(table.Name, "t1") { // a root can't be truncated alone
				continue
			}
			if refusedOne(t, tx, fmt.Sprintf(sql, table.SQL)) {
				list = append(list, table.Name+" "+what)
			}
		}
	}
	slices.Sort(list)
	return list
}

func refusedOne(t *testing.T, tx pgx.Tx, sql string) bool {
	t.Helper()
	nested, err := tx.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = nested.Rollback(t.Context()) }()
	_, err = nested.Exec(t.Context(), sql)
	var pg *pgconn.PgError
	switch {
	case err == nil:
		return false
	case errors.As(err, &pg) && (pg.Code == "55000" || pg.Code == "42P10"):
		return true
	}
	t.Fatalf("%v in %s", err, sql)
	return false
}
