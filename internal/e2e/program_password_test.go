package e2e_test

import (
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"bridge/internal/testenv"
)

// A password that changes while the bridge runs needs no restart: every connection reads the file again, those of the
// pool, of LISTEN and of replication. A file that is gone is named.
func TestBridge_PasswordIsRotated(t *testing.T) {
	needServers(t)
	for _, variable := range []string{"DATABASE_PASSWORD_FILE", "PGPASSFILE"} {
		t.Run(variable, func(t *testing.T) {
			t.Parallel()
			db, broker := testenv.Postgres(t), testenv.NATS(t)
			newTable(t, db, "t", 3)
			newBare(t, db, "w", 3)
			conn := connect(t, db)
			role, file := "role_"+databaseOf(db), filepath.Join(t.TempDir(), "password")
			write := func(password string) {
				t.Helper()
				if variable == "PGPASSFILE" {
					password = "*:*:*:" + role + ":" + password
				}
				if err := os.WriteFile(file+".new", []byte(password+"\n"), 0o600); err != nil {
					t.Fatal(err)
				}
				if err := os.Rename(file+".new", file); err != nil {
					t.Fatal(err)
				}
			}
			run(t, conn, "CREATE ROLE "+role+" LOGIN SUPERUSER PASSWORD 'first:1'")
			t.Cleanup(func() { testenv.Exec(t, db, "REASSIGN OWNED BY "+role+" TO CURRENT_USER", "DROP ROLE "+role) })
			as, err := url.Parse(db)
			if err != nil {
				t.Fatal(err)
			}
			as.User = url.User(role)
			first := "first:1"
			if variable == "PGPASSFILE" {
				first = `first\:1`
			}
			write(first)
			b := startWAL(t, as.String(), broker.URL(), "t,w(capture=wal)", variable+"="+file)
			nc := testenv.NATSConn(t, broker.URL())
			polled, read := follow(t, nc, named("t")), follow(t, nc, bare("w"))
			polled.converge(conn)
			read.converge(conn)
			b.awaitReady()

			cut := func() {
				t.Helper()
				run(t, conn, fmt.Sprintf("SELECT count(*) FROM pg_stat_activity, pg_terminate_backend(pid) WHERE usename = '%s'", role))
			}
			change := func() {
				t.Helper()
				run(t, conn, "UPDATE t SET v = v || '+'", "UPDATE w SET v = v || '+'")
			}
			// The old password no longer works, and the error says where it came from.
			run(t, conn, "ALTER ROLE "+role+" PASSWORD 'second'")
			cut()
			change()
			b.awaitReason("t", "password authentication failed", file)
			b.awaitReason("w", "password authentication failed", file)
			write("second")
			polled.converge(conn)
			read.converge(conn)
			b.awaitReady()

			if err := os.Remove(file); err != nil {
				t.Fatal(err)
			}
			cut()
			change()
			want := "does not exist; to do: write the password to it"
			if variable == "PGPASSFILE" {
				want = "can't be read: no such file"
			}
			b.awaitReason("t", variable+": "+file+" "+want)
			b.awaitReason("w", variable+": "+file+" "+want)
			write("second")
			polled.converge(conn)
			read.converge(conn)
			b.awaitReady()
			b.running()
			if strings.Contains(b.Stderr(), "second") || strings.Contains(b.Stderr(), "first:1") {
				t.Error("the log tells the password")
			}
			for _, args := range [][]string{{"check"}, {"sql", "t"}} {
				if code, stdout, stderr := command(t, b.env, args...); code != 0 {
					t.Errorf("bridge %v: status %d: %s%s", args, code, stdout, stderr)
				}
			}
			b.stop()
			dropSlot(t, conn, as.String())
		})
	}
}
