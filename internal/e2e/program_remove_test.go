package e2e_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"bridge/internal/publish"
	"bridge/internal/testenv"

	"github.com/nats-io/nats.go"
)

// A relation is taken out of BRIDGE_TABLES. The log and bridge check name the stream that is left over. bridge remove
// refuses while a bridge has the relation, and names that bridge; then it removes the stream. The clients of the stream
// are cut, and get 404. The edge is ready again.
func TestBridge_RemoveTakesARelationAway(t *testing.T) {
	needServers(t)
	db, broker := testenv.Postgres(t), testenv.NATS(t).URL()
	testenv.Exec(t, db, append(append([]string{stampSQL}, tableSQL("stays", 3)...), tableSQL("goes", 3)...)...)
	conn := connect(t, db)
	first := startBridge(t, db, broker, "stays,goes")
	first.awaitReady()
	standby := startBridge(t, db, broker, "stays,goes")
	standby.awaitReady()
	_, addr := start(t, broker)
	client := openStream(t, "http://"+addr+"/goes")
	env := []string{"DATABASE_URL=" + db, "NATS_URL=" + broker}

	for want, refused := range map[string]struct {
		code      int
		env, args []string
	}{
		"--yes": {2, env, []string{"goes"}},
		"is in BRIDGE_TABLES of a running bridge": {1, env, []string{"--yes", "goes"}},
		"(standby)":                                 {1, env, []string{"--yes", "goes"}},
		fmt.Sprintf("/%d/", first.PID()):            {1, env, []string{"--yes", "goes"}},
		fmt.Sprintf("/%d/", standby.PID()):          {1, env, []string{"--yes", "goes"}},
		"is in BRIDGE_TABLES here":                  {1, append(env, "BRIDGE_TABLES=stays,goes"), []string{"goes", "--yes"}},
		"there is nothing of nowhere to remove":     {1, env, []string{"--yes", "nowhere"}},
		"name one relation, for example users":      {2, env, []string{"--yes"}},
		`no stream LOCKSTEP-public-nowhere, and pu`: {1, env, []string{"--yes", "nowhere"}},
	} {
		if code, out, stderr := command(t, refused.env, append([]string{"remove"}, refused.args...)...); code != refused.code || !strings.Contains(stderr, want) || out != "" {
			t.Errorf("bridge remove %q: exit status %d, want %d and %q\n%s%s", refused.args, code, refused.code, want, out, stderr)
		}
	}

	first.stop()
	standby.stop()
	first.setTables("stays")
	first.start()
	first.logged("a stream is left over", `"level":"warn"`, `"table":"goes"`)
	checked := append(env, "BRIDGE_TABLES=stays")
	if code, out, _ := command(t, checked, "check"); code != 0 || !strings.Contains(out, "WARNING goes: a stream of it is left over") || !strings.Contains(out, "bridge remove goes") {
		t.Errorf("bridge check: exit status %d, and it does not name the stream that is left over\n%s", code, out)
	}
	testenv.Eventually(t, long, func() error {
		if status, _, body := get(t, "http://"+addr+"/readyz"); status != http.StatusServiceUnavailable || !strings.Contains(body, "goes: the last heartbeat is") {
			return fmt.Errorf("/readyz of the edge: status %d %s", status, body)
		}
		return nil
	})

	// On a terminal it asks.
	if out := onTerminal(t, env, "n\n", "remove", "goes"); !strings.Contains(out, "stream LOCKSTEP-public-goes, with") || !strings.Contains(out, "nothing was removed") {
		t.Errorf("with the answer n: %s", out)
	}
	if out := onTerminal(t, env, "y\n", "remove", "goes"); !strings.Contains(out, "goes is removed") {
		t.Errorf("with the answer y: %s", out)
	}
	if err := client(); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("a client of the stream that was removed got %v, want a cut", err)
	}
	if status, _, body := get(t, "http://"+addr+"/goes"); status != http.StatusNotFound {
		t.Errorf("/goes: status %d %s, want 404", status, body)
	}
	if _, _, body := get(t, "http://"+addr+"/"); strings.Contains(body, "goes") || !strings.Contains(body, "stays") {
		t.Errorf("the list of relations: %s", body)
	}
	if status, _, body := get(t, "http://"+addr+"/readyz"); status != http.StatusOK {
		t.Errorf("/readyz of the edge: status %d %s", status, body)
	}
	if _, out, _ := command(t, checked, "check"); strings.Contains(out, "left over") {
		t.Errorf("bridge check names a stream that is removed:\n%s", out)
	}
	js := testenv.JetStream(t, broker)
	if holder, err := publish.LeaseHolder(t.Context(), js, "lockstep", "LOCKSTEP-public-goes"); holder != "" || err != nil {
		t.Errorf("the lease is held by %q (%v), want nobody", holder, err)
	}
	f := follow(t, testenv.NATSConn(t, broker), named("stays"))
	run(t, conn, "UPDATE stays SET v = 'still'")
	f.converge(conn)
}

// Two bridges have different relations under one prefix: no stream of theirs is left over, also while one stands by or
// can't read its relation.
func TestBridge_StreamOfAnotherBridgeIsNotLeftOver(t *testing.T) {
	needServers(t)
	db, broker := testenv.Postgres(t), testenv.NATS(t).URL()
	testenv.Exec(t, db, append(append([]string{stampSQL}, tableSQL("a", 3)...), tableSQL("b", 3)...)...)
	one := startBridge(t, db, broker, "a", "LOG_LEVEL=debug")
	two := startBridge(t, db, broker, "b", "LOG_LEVEL=debug")
	one.awaitReady()
	two.awaitReady()
	run(t, connect(t, db), "ALTER TABLE b RENAME TO c")
	two.awaitReason("b", "no such table")
	for _, b := range []*bridge{one, two} {
		b.logged("looked for streams that are left over", `"relations":0`)
	}
	// A bridge gives the lease of a relation up that it can't read. Only what BRIDGE_TABLES says still tells that it has it.
	js := testenv.JetStream(t, broker)
	testenv.Eventually(t, long, func() error {
		holder, err := publish.LeaseHolder(t.Context(), js, "lockstep", "LOCKSTEP-public-b")
		if err == nil && holder != "" {
			err = fmt.Errorf("the lease is held by %s", holder)
		}
		return err
	})
	one.restart()
	one.logged("looked for streams that are left over", `"relations":0`)
	env := []string{"DATABASE_URL=" + db, "NATS_URL=" + broker, "BRIDGE_TABLES=a"}
	if _, out, _ := command(t, env, "check"); strings.Contains(out, "left over") {
		t.Errorf("bridge check calls the stream of another bridge left over:\n%s", out)
	}
}

// A relation that was read from the WAL is removed while the bridge reads others from the same slot: only its place in
// the publication goes. With the last relation, slot and publication go, too.
func TestWAL_RemoveTakesARelationAway(t *testing.T) {
	needServers(t)
	db, broker := testenv.Postgres(t), testenv.NATS(t).URL()
	newBare(t, db, "stays", 3)
	newBare(t, db, "goes", 3)
	conn := connect(t, db)
	env := []string{"DATABASE_URL=" + db, "NATS_URL=" + broker, "BRIDGE_NAME=" + slotOf(db)}
	for _, name := range []string{"stays", "goes"} {
		code, sql, stderr := command(t, env, "sql", "-role", "remove_"+databaseOf(db), name+"(capture=wal)")
		if code != 0 {
			t.Fatal(stderr)
		}
		psql(t, db, sql)
	}
	t.Cleanup(func() {
		testenv.Exec(t, db, "DROP OWNED BY remove_"+databaseOf(db), "DROP ROLE remove_"+databaseOf(db))
	})
	b := startWAL(t, db, broker, "stays(capture=wal),goes(capture=wal)")
	b.awaitReady()
	b.stop()
	b.setTables("stays(capture=wal)")
	b.start()
	b.awaitReady()
	published := func() []string {
		t.Helper()
		return query[[]string](t, conn, "SELECT COALESCE(array_agg(tablename::text ORDER BY 1), '{}') FROM pg_publication_tables WHERE pubname = $1", slotOf(db))
	}
	f := follow(t, testenv.NATSConn(t, broker), bare("stays"))
	code, out, stderr := command(t, env, "remove", "--yes", "goes")
	if got := published(); code != 0 || !slices.Equal(got, []string{"stays"}) {
		t.Fatalf("bridge remove: exit status %d, and the publication has %q\n%s%s", code, got, out, stderr)
	}
	run(t, conn, "UPDATE stays SET v = 'still'", "INSERT INTO goes VALUES (9, 'unseen')", "DELETE FROM stays WHERE id = 1")
	f.converge(conn)
	b.stop()

	if code, out, stderr = command(t, env, "remove", "--yes", "stays"); code != 0 {
		t.Fatalf("bridge remove: exit status %d\n%s%s", code, out, stderr)
	}
	if n := query[int](t, conn, `SELECT (SELECT count(*) FROM pg_replication_slots WHERE slot_name = $1) + (SELECT count(*) FROM pg_publication WHERE pubname = $1)`, slotOf(db)); n != 0 {
		t.Errorf("%d of slot and publication are left", n)
	}
}

// A publication that is not the bridge's stays as it is: bridge remove says what its owner has to do.
func TestWAL_RemoveLeavesAPublicationOfOthers(t *testing.T) {
	needServers(t)
	db, broker := testenv.Postgres(t), testenv.NATS(t).URL()
	newBare(t, db, "t", 3)
	testenv.Exec(t, db, "CREATE TABLE other (id int PRIMARY KEY)", fmt.Sprintf("CREATE PUBLICATION %s FOR TABLE t, other", slotOf(db)))
	b := startWAL(t, db, broker, "t(capture=wal)")
	b.awaitReady()
	b.stop()
	env := []string{"DATABASE_URL=" + db, "NATS_URL=" + broker, "BRIDGE_NAME=" + slotOf(db)}
	code, out, stderr := command(t, env, "remove", "--yes", "t")
	if want := fmt.Sprintf(`ALTER PUBLICATION "%s" DROP TABLE "public"."t"`, slotOf(db)); code != 1 || !strings.Contains(stderr, want) || !strings.Contains(stderr, "was not made by the bridge") {
		t.Errorf("exit status %d, want 1 and %s\n%s%s", code, want, out, stderr)
	}
	conn := connect(t, db)
	if n := query[int](t, conn, "SELECT count(*) FROM pg_publication_tables WHERE pubname = $1", slotOf(db)); n != 2 {
		t.Errorf("the publication of somebody else has %d tables, want 2", n)
	}
	dropSlot(t, conn, db)
	if _, _, stderr := command(t, env, "tail", "t"); !strings.Contains(stderr, "no stream for t") {
		t.Errorf("the stream is not removed: %s", stderr)
	}
}

// openStream opens a stream of an edge and reads its first line. wait reads on, until the stream ends.
func openStream(t *testing.T, url string) (wait func() error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*long)
	t.Cleanup(cancel)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = resp.Body.Close() })
	in := bufio.NewReader(resp.Body)
	if line, err := in.ReadString('\n'); err != nil || !strings.Contains(line, `"txid"`) {
		t.Fatalf("%s: %q, %v", url, line, err)
	}
	return func() error {
		_, err := io.Copy(io.Discard, in)
		return err
	}
}

// onTerminal runs a command of the bridge on a terminal, with what somebody types. It returns what the terminal shows.
func onTerminal(t *testing.T, env []string, typed string, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), long)
	defer cancel()
	line := testenv.Build(t, "./cmd/bridge") + " " + strings.Join(args, " ")
	cmd := exec.CommandContext(ctx, "script", "-qec", line, "/dev/null")
	cmd.Env = append(os.Environ(), env...)
	cmd.WaitDelay = time.Second
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(stdin, typed); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = stdin.Close() }()
	out, err := cmd.CombinedOutput()
	if err != nil && ctx.Err() != nil {
		t.Fatalf("%s: %v\n%s", line, err, out)
	}
	return string(out)
}

// A program that listens to all that streams store, as docs/nats.md says, is not taken for a bridge that does not answer.
func TestBridge_RemoveBesideASubscriber(t *testing.T) {
	needServers(t)
	db, broker := testenv.Postgres(t), testenv.NATS(t)
	newTable(t, db, "t", 1)
	b := startBridge(t, db, broker.URL(), "t")
	b.awaitReady()
	b.stop()
	nc := testenv.NATSConn(t, broker.URL())
	if _, err := nc.Subscribe("lockstep.>", func(*nats.Msg) {}); err != nil {
		t.Fatal(err)
	}
	if err := nc.Flush(); err != nil {
		t.Fatal(err)
	}
	testenv.Eventually(t, long, func() error {
		if code, out, stderr := command(t, []string{"DATABASE_URL=" + db, "NATS_URL=" + broker.URL()}, "remove", "--yes", "t"); code != 0 {
			return fmt.Errorf("exit status %d\n%s%s", code, out, stderr)
		}
		return nil
	})
}
