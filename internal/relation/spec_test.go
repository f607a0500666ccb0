package relation_test

import (
	"errors"
	"reflect"
	"strings"
	"testing"
	"time"

	"bridge/internal/relation"
)

func spec(schema, table string, change ...func(*relation.Spec)) relation.Spec {
	s := relation.NewSpec(relation.Name{Schema: schema, Table: table})
	for _, c := range change {
		c(&s)
	}
	return s
}

// all returns the options of *.
func all(change ...func(*relation.Spec)) *relation.Spec {
	s := spec("", "", change...)
	return &s
}

// An argument without options has those of BRIDGE_TABLES; one with options has
// only these, also if they are the defaults.
func TestParseArguments(t *testing.T) {
	t.Parallel()
	configured := mustParse(t, `users(capture=wal),*(txid=ls),"a)"(key=k)`)
	for _, tt := range []struct{ args, want string }{
		{"users", "users(capture=wal)"},
		{"users(capture=poll)", "users"},
		{"users|other.users(key=id)|b", "users(capture=wal),other.users(key=id),b"},
		{"*,-b|users", "*(txid=ls),-b,users(capture=wal)"},
		{"*(capture=wal)", "*(capture=wal)"},
		{`"a)"`, `"a)"(key=k)`},
	} {
		got, err := relation.ParseArguments(strings.Split(tt.args, "|"), configured)
		if err != nil || got.String() != tt.want {
			t.Errorf("%s: got %s, %v; want %s", tt.args, got, err, tt.want)
		}
	}
	if _, err := relation.ParseArguments([]string{"users", "users"}, configured); err == nil || !strings.Contains(err.Error(), "users is already entry 1") {
		t.Errorf("got %v, want that users is there twice", err)
	}
}

func TestParseSpecs(t *testing.T) {
	t.Parallel()
	type S = relation.Spec
	tests := []struct {
		in   string
		want relation.Specs
	}{
		{"users", relation.Specs{List: []S{spec("public", "users")}}},
		{" Users , Sales.Orders ,\n", relation.Specs{List: []S{spec("public", "users"), spec("sales", "orders")}}},
		{`"Users","my ""schema""".Ünï$1`, relation.Specs{List: []S{spec("public", "Users"), spec(`my "schema"`, "Ünï$1")}}},
		{`"a,b(c;d)"(key="x;y"+"("+Z)`, relation.Specs{List: []S{spec("public", "a,b(c;d)", func(s *S) { s.Key = []string{"x;y", "(", "z"} })}}},
		{"users,public.domains_lockstep(key=name),audit(history=log;max_age=24h),lines(key=order_id+pos)", relation.Specs{List: []S{
			spec("public", "users"),
			spec("public", "domains_lockstep", func(s *S) { s.Key = []string{"name"} }),
			spec("public", "audit", func(s *S) { s.History, s.MaxAge = relation.HistoryLog, 24*time.Hour }),
			spec("public", "lines", func(s *S) { s.Key = []string{"order_id", "pos"} }),
		}}},
		{"*, -secrets, -\"Old\",v ( key = id ; txid = t ; deleted = \"Gone\" ; tombstones = 30d ; )", relation.Specs{
			All: all(), Except: []relation.Name{{Schema: "public", Table: "secrets"}, {Schema: "public", Table: "Old"}},
			List: []S{spec("public", "v", func(s *S) {
				s.Key, s.Txid, s.Deleted, s.Tombstones = []string{"id"}, "t", "Gone", 30*24*time.Hour
			})},
		}},
		{"a(history=LOG;max_bytes=10GiB),b(history=log;max_bytes=500 mb),c(max_bytes=7;history=log),d(history=log;max_age=1d12h)", relation.Specs{List: []S{
			spec("public", "a", func(s *S) { s.History, s.MaxBytes = relation.HistoryLog, 10<<30 }),
			spec("public", "b", func(s *S) { s.History, s.MaxBytes = relation.HistoryLog, 500e6 }),
			spec("public", "c", func(s *S) { s.History, s.MaxBytes = relation.HistoryLog, 7 }),
			spec("public", "d", func(s *S) { s.History, s.MaxAge = relation.HistoryLog, 36*time.Hour }),
		}}},
		{"*(capture=wal;history=log;max_age=1d),a", relation.Specs{
			All:  all(func(s *S) { s.Capture, s.History, s.MaxAge = relation.CaptureWAL, relation.HistoryLog, 24*time.Hour }),
			List: []S{spec("public", "a")},
		}},
		{"users(capture=wal;actions=insert+update)", relation.Specs{List: []S{spec("public", "users", func(s *S) {
			s.Capture, s.Actions = relation.CaptureWAL, []string{"insert", "update"}
		})}}},
	}
	for _, tt := range tests {
		got, err := relation.ParseSpecs(tt.in)
		if err != nil {
			t.Errorf("%s: %v", tt.in, err)
			continue
		}
		if !reflect.DeepEqual(got, tt.want) {
			t.Errorf("%s:\n got %+v\nwant %+v", tt.in, got, tt.want)
		}
		again, err := relation.ParseSpecs(got.String())
		if err != nil || !reflect.DeepEqual(again, got) {
			t.Errorf("%s: String() is %s, which parses to %+v, %v", tt.in, got, again, err)
		}
	}
}

// Each error names the entry, the position, what is wrong and what would be right.
func TestParseSpecs_Errors(t *testing.T) {
	t.Parallel()
	tests := []struct{ in, want string }{
		{"", "names no relation: list some"},
		{"  ", "names no relation: list some"},
		{"a,,b", "entry 2 (empty), character 3: no relation between two commas"},
		{"a\x00", "not valid UTF-8"},
		{"\xff", "not valid UTF-8"},
		{"my-table", `entry 1 my-table, character 3: unexpected "-" after the relation: a name with such characters needs double quotes`},
		{"a.b.c", `character 4: unexpected "." after the relation`},
		{"9to5", `character 1: unexpected "9": want the name of a table or view, in double quotes if`},
		{"a b", `character 3: unexpected "b" after the relation: put commas between entries`},
		{`"a`, "character 1: the quote is never closed"},
		{`""`, "the name is empty"},
		{"é,a,a", "entry 3 a, character 5: a is already entry 2"},
		{"a,public.A", "a is already entry 1"},
		{"*,*", "entry 2 *, character 3: * is there twice"},
		{"*(kye=id)", "unknown option kye: did you mean key?"},
		{"*(key=id", "the ( is never closed"},
		{"-a", "-a leaves a relation out of *, but there is no *"},
		{"*,-a,a", "a is already entry 2"},
		{"*,-a(key=x)", "character 5: a relation that - leaves out has no options"},
		{"a(kye=id)", "character 3: unknown option kye: did you mean key?"},
		{"a(nonsense=\";\";key=id+)", "unknown option nonsense: the options are key, txid"},
		{"a(key=id", "character 2: the ( is never closed"},
		{"a(key=id,pos)", "character 9: unexpected comma: put ; between options, and + between the columns of a list"},
		{"a(key=id;key=b)", "character 10: option key is there twice"},
		{"a(key=id+ID)", "character 10: id is there twice"},
		{"a(key)", `character 6: want = after option key, got ")"`},
		{"a()", `character 3: unexpected ")": want an option: key, txid`},
		{"a(txid=)", "want the name of a column"},
		{"a(key=txid)", "column txid can't be in the key"},
		{"a(deleted=txid)", "txid and deleted are the same column"},
		{"a(history=some)", "character 11: history=some: want latest or log"},
		{"a(capture=logical)", "capture=logical: want poll or wal"},
		{"a(tombstones=30)", "tombstones=30: want a duration of at least 1s, such as 30d"},
		{"a(tombstones=-1d)", "want a duration"},
		{"a(tombstones=1h;history=log)", "tombstones is for history=latest"},
		{"a(tombstones=999999999999d)", "want a duration"},
		{"a(tombstones=106751d24h)", "want a duration"},
		{"a(max_age=1d)", "max_age limits a log: add history=log"},
		{"a(history=log;max_age=0s)", "want a duration"},
		{"a(history=log;max_bytes=lots)", "want a number of bytes, such as 10GiB"},
		{"a(history=log;max_bytes=0)", "want a number of bytes"},
		{"a(history=log;max_bytes=9000000TiB)", "want a number of bytes"},
		{"a(reconcile=1)", "reconcile=1: want a duration of at least 1s"},
		{"a(reconcile=10s;history=log)", "character 3: reconcile compares a stream with its relation: one with history=log or actions= can't be compared"},
		{"a(capture=wal;actions=insert;reconcile=10s)", "character 30: reconcile compares"},
		{"a(actions=insert)", "actions needs capture=wal"},
		{"a(capture=wal;actions=upsert)", `unknown action "upsert": want some of insert, update, delete, truncate`},
		{"a(events=true)", "events needs capture=wal"},
		{"a(capture=wal;events=yes)", "events=yes: want true or false"},
		{"a(capture=wal;history=log;events=true)", "a log always says"},
		{"a(republish=x.*)", "republish=x.*: \"*\" has one of the characters"},
		{"a(republish=)", "republish=: "},
		{"a(history=log;max_age=1h;republish=x.{key})", "all rows of a log have one subject"},
		{strings.Repeat("x", 64), "the name is 64 bytes long; Postgres cuts names at 63"},
	}
	for _, tt := range tests {
		_, err := relation.ParseSpecs(tt.in)
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s:\n got %v\nwant %s", tt.in, err, tt.want)
		}
	}
}

func TestParseSpecs_AllErrorsAtOnce(t *testing.T) {
	t.Parallel()
	_, err := relation.ParseSpecs("a(kye=id;histroy=log;max_bytes=x),b-c,,good,a,A")
	if err == nil {
		t.Fatal("no error")
	}
	if got := strings.Count(err.Error(), "\n") + 1; got != 7 {
		t.Errorf("got %d problems, want 7:\n%v", got, err)
	}
	var se *relation.SpecError
	if !errors.As(err, &se) || se.Number != 1 || se.Position != 3 {
		t.Errorf("got %+v", se)
	}
}

func FuzzParseSpecs(f *testing.F) {
	for _, s := range []string{
		"users,public.domains_lockstep(key=name),audit(history=log;max_age=24h),lines(key=order_id+pos)",
		`*,-"A",s."b""c"(txid="T";deleted=d;tombstones=1d3h5m;capture=wal;actions=insert+delete)`,
		"users(capture=wal;events=true;republish=x.{schema}_{table}.{key}),b(republish=off)",
		"a(history=log;max_bytes=10KiB)", "v(key=id;reconcile=10s),w(key=id;reconcile=1d1h)", `a("key"=b)`, "a(((", "\u3000,", `"`, "*,*", "-", "a(key=b;", "É.é",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, in string) {
		specs, err := relation.ParseSpecs(in)
		if err != nil {
			return
		}
		again, err := relation.ParseSpecs(specs.String())
		if err != nil {
			t.Fatalf("%q parses, but %q, its String, does not: %v", in, specs.String(), err)
		}
		if !reflect.DeepEqual(again, specs) {
			t.Fatalf("%q: got %+v, and %+v after String", in, specs, again)
		}
	})
}
