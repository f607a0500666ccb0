package relation_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"bridge/internal/relation"
	"bridge/internal/testenv"

	"github.com/jackc/pgx/v5"
)

// session is a connection with the settings that the Encoder needs.
type session struct {
	*testing.T
	conn *pgx.Conn
}

func newSession(t *testing.T) *session {
	t.Helper()
	if testing.Short() {
		t.Skip("needs Postgres")
	}
	t.Parallel()
	s := &session{T: t, conn: testenv.Conn(t, testenv.Postgres(t))}
	s.exec(`SET TimeZone = 'UTC'; SET DateStyle = 'ISO, MDY'; SET IntervalStyle = postgres; SET bytea_output = hex;
		SET extra_float_digits = 1; SET client_min_messages = error; SET search_path = public`)
	return s
}

func (s *session) exec(sql string) {
	s.Helper()
	if _, err := s.conn.Exec(context.Background(), sql); err != nil {
		s.Fatalf("%v in %s", err, sql)
	}
}

// strings returns the only column of a query.
func (s *session) strings(sql string) []string {
	s.Helper()
	rows, err := s.conn.Query(context.Background(), sql)
	if err != nil {
		s.Fatalf("%v in %s", err, sql)
	}
	got, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		s.Fatalf("%v in %s", err, sql)
	}
	return got
}

// columns returns the columns of a table or view.
func (s *session) columns(name string) []relation.Column {
	s.Helper()
	rows, err := s.conn.Query(context.Background(), `SELECT attname, format_type(atttypid, atttypmod), atttypid FROM pg_attribute
		WHERE attrelid = $1::text::regclass AND attnum > 0 AND NOT attisdropped ORDER BY attnum`, name)
	if err != nil {
		s.Fatal(err)
	}
	cols, err := pgx.CollectRows(rows, func(r pgx.CollectableRow) (c relation.Column, err error) {
		return c, r.Scan(&c.Name, &c.Type, &c.TypeOID)
	})
	if err != nil {
		s.Fatal(err)
	}
	return cols
}

func (s *session) types(cols []relation.Column) relation.Types {
	s.Helper()
	types, err := relation.LoadTypes(context.Background(), s.conn, cols)
	if err != nil {
		s.Fatal(err)
	}
	return types
}

func (s *session) encoder(cols []relation.Column) *relation.Encoder {
	s.Helper()
	enc, err := relation.NewEncoder(s.types(cols), cols, nil)
	if err != nil {
		s.Fatal(err)
	}
	return enc
}

// rows returns the rows of a query in text form.
func (s *session) rows(sql string) [][][]byte {
	s.Helper()
	res := s.conn.PgConn().ExecParams(context.Background(), sql, nil, nil, nil, nil).Read()
	if res.Err != nil {
		s.Fatalf("%v in %s", res.Err, sql)
	}
	return res.Rows
}

// compare checks for each expression that the Encoder does what to_json does. It
// returns those that only the server can turn into JSON.
func (s *session) compare(exprs ...string) (server []string) {
	s.Helper()
	var list []string
	for i, e := range exprs {
		list = append(list, fmt.Sprintf("%s AS c%d", e, i))
	}
	s.exec("CREATE TEMP VIEW exprs AS SELECT " + strings.Join(list, ", "))
	cols := s.columns("exprs")
	types := s.types(cols)
	encoders := make([]*relation.Encoder, len(cols))
	var values, want []string
	for i, c := range cols {
		var err error
		if encoders[i], err = relation.NewEncoder(types, cols[i:i+1], nil); err != nil {
			s.Fatal(err)
		}
		json := "to_json(" + c.Name + ")::text"
		want = append(want, json)
		if encoders[i].ServerSide()[0] {
			server = append(server, exprs[i])
			values = append(values, json)
		} else {
			values = append(values, c.Name)
		}
	}
	// With OFFSET 0 each expression is evaluated only once.
	const from = " FROM (SELECT * FROM exprs OFFSET 0) e"
	row := s.rows("SELECT " + strings.Join(append(values, want...), ", ") + from)[0]
	s.exec("DROP VIEW exprs")
	for i := range cols {
		got, err := encoders[i].AppendObject(nil, row[i:i+1])
		json := row[len(cols)+i]
		if json == nil {
			json = []byte("null")
		}
		if want := fmt.Sprintf(`{"%s":%s}`, cols[i].Name, json); err != nil || string(got) != want {
			s.Errorf("%.300s (%s)\n text %.300q\n  got %.300q %v\n want %.300q", exprs[i], cols[i].Type, row[i], got, err, want)
		}
	}
	return server
}

// TestEncode_EveryType tries all types that a column can have (I12).
func TestEncode_EveryType(t *testing.T) {
	s := newSession(t)
	for _, e := range extensions {
		s.exec("CREATE EXTENSION " + e)
	}
	s.exec(`CREATE TABLE "we ird,"(a int, b int); INSERT INTO "we ird," SELECT i % 7, i % 7 FROM generate_series(1, 500) i;
		CREATE STATISTICS st (ndistinct, dependencies, mcv) ON a, b FROM "we ird,"; ANALYZE "we ird,"`)
	names := s.strings(`SELECT typname::text FROM pg_type t WHERE typtype IN ('b', 'd', 'e', 'r', 'm')
		AND typnamespace::regnamespace::text IN ('pg_catalog', 'information_schema', 'public')
		AND NOT (typelem <> 0 AND typoutput = 'array_out'::regproc) ORDER BY oid`)
	if len(names) < 90 {
		t.Fatalf("found only %d types", len(names))
	}
	for _, name := range names {
		c, ok := typeCases[name]
		if !ok || len(c.literals)+len(c.exprs) == 0 && c.exclude == "" {
			t.Errorf("type %s has no case", name)
			continue
		}
		s.everyForm(name, c)
	}
}

// everyForm compares the values by themselves, and in arrays, composites and domains.
func (s *session) everyForm(name string, c typeCase) {
	s.Helper()
	typ := s.strings(`SELECT quote_ident(nspname) || '.' || quote_ident(typname) FROM pg_type t JOIN pg_namespace n ON n.oid = typnamespace
		WHERE typname = '` + name + `' AND typtype <> 'c'`)[0]
	values := []string{"NULL::" + typ}
	for _, l := range c.literals {
		values = append(values, pgQuote(l)+"::"+typ)
	}
	for _, e := range c.exprs {
		values = append(values, "("+e+")::"+typ)
	}
	exprs := slices.Clone(values)
	s.exec("CREATE DOMAIN dom AS " + typ + "; CREATE DOMAIN dom2 AS dom CHECK (true)")
	s.exec("CREATE TYPE one AS (v " + typ + `); CREATE TYPE comp AS ("a ""\ä" text, v ` + typ + ", d dom2, o one)")
	if s.strings("SELECT (typarray <> 0)::text FROM pg_type WHERE oid = '" + typ + "'::regtype")[0] == "true" {
		s.exec("CREATE DOMAIN domarr AS " + typ + "[]; CREATE TYPE comparr AS (v " + typ + "[], n int, d dom[], da domarr, das domarr[], c comp[])")
		all := "ARRAY[" + strings.Join(values, ", ") + "]"
		exprs = append(exprs, all, all+"::dom2[]", all+"::domarr", "array_append(array_fill("+all+"::domarr, ARRAY[2]), NULL)", "'{}'::"+typ+"[]",
			"ROW("+all+", 1, "+all+", NULL, array_fill("+all+"::domarr, ARRAY[1]), NULL)::comparr",
			"ROW('{}', NULL, '{}', "+all+", '{}', ARRAY[ROW('', NULL, NULL, NULL)::comp, NULL])::comparr")
		for _, v := range values {
			exprs = append(exprs, "ARRAY["+v+"]", "ARRAY[ARRAY["+v+", NULL], ARRAY["+v+", "+v+"]]",
				"array_fill("+v+", ARRAY[2, 1, 2], ARRAY[-3, 0, 5])", "ARRAY[ROW('', "+v+", "+v+", ROW("+v+"))::comp, NULL]")
		}
	}
	for _, v := range values {
		exprs = append(exprs, v+"::dom", v+"::dom2", "ROW("+v+")::one", "ROW("+pgQuote(`x,"\`)+", "+v+", "+v+", ROW("+v+"))::comp")
	}
	if server := s.compare(exprs...); server != nil {
		s.Errorf("type %s is left to the server", name)
	}
	s.exec("DROP TYPE IF EXISTS comparr; DROP TYPE comp, one; DROP DOMAIN IF EXISTS domarr; DROP DOMAIN dom2, dom")
}

// TestEncode_CatalogRows tries the row types of all system tables and views, except
// those with an anyarray, which can't be the type of a column.
func TestEncode_CatalogRows(t *testing.T) {
	s := newSession(t)
	var exprs []string
	for _, name := range s.strings(`SELECT oid::regclass::text FROM pg_class c WHERE reltype <> 0 AND relkind IN ('r', 'v')
		AND relnamespace::regnamespace::text IN ('pg_catalog', 'information_schema')
		AND NOT EXISTS (SELECT FROM pg_attribute WHERE attrelid = c.oid AND atttypid IN ('anyarray'::regtype, 'pg_statistic[]'::regtype)) ORDER BY 1`) {
		if name == "pg_shmem_allocations_numa" { // can't be read on a machine without NUMA; Postgres 18 and later
			exprs = append(exprs, "json_populate_record(NULL::"+name+`, '{"name": "x,\"", "size": 1}')`)
			continue
		}
		exprs = append(exprs, "(SELECT r FROM "+name+" r LIMIT 1)", "ARRAY(SELECT r FROM "+name+" r LIMIT 2)")
	}
	if server := s.compare(exprs...); server != nil {
		t.Errorf("left to the server: %q", server)
	}
	cols := s.columns("pg_stats")
	for i, yes := range s.encoder(cols).ServerSide() {
		if yes != (cols[i].Type == "anyarray") {
			t.Errorf("%s of type %s: ServerSide is %v", cols[i].Name, cols[i].Type, yes)
		}
	}
}

// TestEncode_Casts: to_json prints a type that is not built in by its cast to json,
// if that cast is a function, and the type is no array, composite or domain.
func TestEncode_Casts(t *testing.T) {
	s := newSession(t)
	s.exec(`
CREATE TYPE mood AS ENUM ('sad', 'ha"pp,y', 'NULL', '');
CREATE TYPE plain AS ENUM ('sad', 'ha"pp,y', 'NULL', '');
CREATE TYPE span AS RANGE (subtype = int4, multirange_type_name = multispan);
CREATE TYPE pair AS (a int, b text);
CREATE DOMAIN word AS text;
CREATE TYPE withmood AS (a int, m mood[]);
CREATE TYPE empty AS ();
CREATE DOMAIN moody AS mood;
CREATE FUNCTION j(mood) RETURNS json LANGUAGE sql AS 'SELECT json_build_object(''mood'', $1::text)';
CREATE FUNCTION j(span) RETURNS json LANGUAGE sql AS 'SELECT json_build_array(lower($1), upper($1))';
CREATE FUNCTION j(pair) RETURNS json LANGUAGE sql AS 'SELECT ''1''::json';
CREATE FUNCTION j(word) RETURNS json LANGUAGE sql AS 'SELECT ''1''::json';
CREATE FUNCTION j(inet) RETURNS json LANGUAGE sql AS 'SELECT ''1''::json';
CREATE FUNCTION j(mood[]) RETURNS json LANGUAGE sql AS 'SELECT ''1''::json';
CREATE CAST (mood AS json) WITH FUNCTION j(mood);
CREATE CAST (span AS json) WITH FUNCTION j(span) AS ASSIGNMENT;
CREATE CAST (pair AS json) WITH FUNCTION j(pair) AS IMPLICIT;
CREATE CAST (word AS json) WITH FUNCTION j(word);
CREATE CAST (inet AS json) WITH FUNCTION j(inet);
CREATE CAST (plain AS json) WITH INOUT;
CREATE TYPE mytext;
CREATE FUNCTION myin(cstring) RETURNS mytext LANGUAGE internal IMMUTABLE STRICT AS 'textin';
CREATE FUNCTION myout(mytext) RETURNS cstring LANGUAGE internal IMMUTABLE STRICT AS 'textout';
CREATE TYPE mytext (INPUT = myin, OUTPUT = myout, LIKE = text, DELIMITER = '|');
CREATE DOMAIN mydom AS mytext;`)
	server := []string{
		`'sad'::mood`, `NULL::mood`, `'sad'::moody`, `ARRAY['sad', NULL, 'ha"pp,y']::mood[]`, `ARRAY['sad']::moody[]`,
		`ROW(1, ARRAY['sad']::mood[])::withmood`, `ARRAY[ROW(1, NULL)::withmood]`, `'[1,3)'::span`, `ARRAY['[1,3)'::span]`,
	}
	exprs := slices.Concat(server, []string{
		`'sad'::plain`, `ARRAY['ha"pp,y', 'NULL', '', NULL]::plain[]`, `'{[1,3)}'::multispan`, `ROW(1, 'x')::pair`, `ARRAY[ROW(1, NULL)::pair]`,
		`'a'::word`, `ARRAY['a', '']::word[]`, `'::1'::inet`, `ROW()::empty`, `ARRAY[ROW()::empty, NULL]`,
		`ARRAY['a|b', 'c,d', 'NULL', '', NULL, 'x}']::mytext[]`, `ARRAY['a|b', 'c,d', '"']::mydom[]`, `'a|b'::mydom`,
	})
	if got := s.compare(exprs...); !slices.Equal(got, server) {
		t.Errorf("left to the server %q, want %q", got, server)
	}
}

// TestEncode_Row compares whole rows whose names need escapes.
func TestEncode_Row(t *testing.T) {
	s := newSession(t)
	s.exec(`CREATE TYPE pair AS (a int, gone text, "b""," text)`)
	s.exec(`CREATE TABLE t("a""\b" int, gone int, "new
line" text, "ä😀" pair, p pair[], "" || '' int)`[:0] + `CREATE TABLE t("a""\b" int, gone int, "new
line" text, "ä😀" pair, p pair[])`)
	s.exec(`INSERT INTO t VALUES (1, 2, E'\t', ROW(1, 'x', '"'), ARRAY[ROW(1, 'x', '"')::pair, ROW(NULL, NULL, '')::pair]), (NULL, NULL, NULL, NULL, NULL)`)
	s.exec(`ALTER TABLE t DROP gone; ALTER TYPE pair DROP ATTRIBUTE gone; ALTER TYPE pair ADD ATTRIBUTE c timestamptz`)
	s.exec(`INSERT INTO t VALUES (1, '', ROW(1, 'x', '2020-01-01'), '{}')`)
	enc := s.encoder(s.columns("t"))
	for _, row := range s.rows("SELECT t.*, row_to_json(t) FROM t") {
		n := len(row) - 1
		if got, err := enc.AppendObject([]byte("> "), row[:n]); err != nil || string(got) != "> "+string(row[n]) {
			t.Errorf("got %s %v, want %s", got, err, row[n])
		}
	}
}

// TestEncode_TypeAltered: a value that no longer fits its type gives ErrStaleTypes,
// a broken one another error.
func TestEncode_TypeAltered(t *testing.T) {
	s := newSession(t)
	s.exec(`CREATE TYPE pair AS (a int, b text); CREATE TYPE outside AS (n int, p pair); CREATE TABLE t(v outside[]);
		INSERT INTO t VALUES (ARRAY[ROW(1, ROW(2, 'x'))::outside])`)
	cols := s.columns("t")
	enc, before := s.encoder(cols), s.types(cols)
	if !before.Equal(s.types(cols)) {
		t.Error("types differ from themselves")
	}
	for _, alter := range []string{"ADD ATTRIBUTE c int", "DROP ATTRIBUTE c CASCADE", "DROP ATTRIBUTE b"} {
		s.exec("ALTER TYPE pair " + alter)
		got, err := enc.AppendObject([]byte("x"), s.rows("SELECT * FROM t")[0])
		if alter == "DROP ATTRIBUTE c CASCADE" {
			if want := `x{"v":[{"n":1,"p":{"a":2,"b":"x"}}]}`; err != nil || string(got) != want {
				t.Errorf("after %s got %s %v, want %s", alter, got, err, want)
			}
		} else if !errors.Is(err, relation.ErrStaleTypes) || string(got) != "x" || before.Equal(s.types(cols)) {
			t.Errorf("after %s got %s %v, want ErrStaleTypes", alter, got, err)
		}
	}
	s.exec("ALTER TYPE pair RENAME ATTRIBUTE a TO z; ALTER TYPE pair ADD ATTRIBUTE b text")
	if before.Equal(s.types(cols)) {
		t.Error("types are equal after a new name")
	}
	s.exec("DROP TABLE t; DROP TYPE outside")
	if _, err := relation.NewEncoder(s.types(cols), cols, nil); !errors.Is(err, relation.ErrStaleTypes) {
		t.Errorf("got %v for a type that is gone, want ErrStaleTypes", err)
	}
}

// TestLoadTypes_Under: labels and attributes have their order, and are found below
// domains, arrays and ranges.
func TestLoadTypes_Under(t *testing.T) {
	s := newSession(t)
	s.exec(`CREATE TYPE mood AS ENUM ('sad', 'ok'); CREATE TYPE empty AS ENUM (); CREATE TYPE moods AS RANGE (subtype = mood, multirange_type_name = manymoods);
		CREATE DOMAIN feelings AS mood[]; CREATE TYPE pair AS (gone int, a varchar(3), b mood);
		ALTER TYPE pair DROP ATTRIBUTE gone; ALTER TYPE mood ADD VALUE 'so so' BEFORE 'ok'; ALTER TYPE mood RENAME VALUE 'ok' TO 'fine'`)
	s.exec(`CREATE TABLE t(e mood, f feelings, r moods[], m manymoods, n empty, i int[], v int2vector, ir int4range, p pair[])`)
	cols := s.columns("t")
	types := s.types(cols)
	for i, c := range cols {
		u := types.Under(c.TypeOID)
		switch c.Name {
		case "p":
			want := []relation.Attribute{
				{Num: 2, Name: "a", Type: "character varying(3)", TypeOID: 1043}, {Num: 3, Name: "b", Type: "mood", TypeOID: cols[0].TypeOID},
			}
			if u.Kind != relation.TypeComposite || !slices.Equal(u.Attributes, want) || u.Labels != nil {
				t.Errorf("%s: got %+v, want attributes %+v", c.Name, u, want)
			}
		case "n":
			if u.Labels == nil || len(u.Labels) > 0 {
				t.Errorf("%s: got labels %#v, want none, but not nil", c.Name, u.Labels)
			}
		default:
			want := []string{"sad", "so so", "fine"}
			if i >= 4 {
				want = nil
			}
			if !slices.Equal(u.Labels, want) || (u.Labels == nil) != (want == nil) {
				t.Errorf("%s: got labels %q, want %q", c.Name, u.Labels, want)
			}
		}
	}
	s.exec(`ALTER TYPE mood RENAME VALUE 'fine' TO 'ok'`)
	if types.Equal(s.types(cols)) {
		t.Error("types are equal after a label's new name")
	}
}

func pgQuote(s string) string { return "'" + strings.ReplaceAll(s, "'", "''") + "'" }
