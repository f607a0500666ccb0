package testenv

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/url"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

// Postgres returns the URL of a fresh database, for a superuser, in the cluster that the tests of this process share.
// LOCKSTEP_TEST_DATABASE_URL names another server in which to create the databases. When the test ends, the database's
// connections are cut and it is dropped.
func Postgres(t testing.TB) string {
	t.Helper()
	admin, err := sharedCluster()
	if err != nil {
		t.Fatal(err)
	}
	name := fmt.Sprintf("lockstep_test_%08x", rand.Uint32())
	Exec(t, admin, "CREATE DATABASE "+name)
	t.Cleanup(func() {
		if err := dropDatabase(admin, name); err != nil {
			t.Logf("drop the test database: %v", err)
		}
	})
	return withDatabase(admin, name)
}

// sharedCluster starts the cluster of this process at the first call. The watchdog ends it.
var sharedCluster = sync.OnceValues(func() (string, error) {
	if u := os.Getenv("LOCKSTEP_TEST_DATABASE_URL"); u != "" {
		return u, checkVersion(u)
	}
	c, err := newCluster(nil)
	if err != nil {
		return "", err
	}
	if err := c.initdb(); err != nil {
		return "", err
	}
	if err := c.startFirst(); err != nil {
		return "", err
	}
	return c.URL("postgres"), nil
})

// dropDatabase also drops the replication slots that the test left. They would otherwise keep WAL for ever.
func dropDatabase(admin, name string) error {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	conn, err := pgx.Connect(ctx, admin)
	if err != nil {
		return err
	}
	defer conn.Close(ctx)
	const cut = `SELECT pg_terminate_backend(active_pid, 5000) FROM pg_replication_slots
		WHERE database = $1 AND active_pid IS NOT NULL`
	const slots = `SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE database = $1`
	const prepared = `SELECT count(*) FROM pg_prepared_xacts WHERE database = $1`
	if _, err := conn.Exec(ctx, cut, name); err != nil {
		return err
	}
	if _, err := conn.Exec(ctx, slots, name); err != nil {
		return err
	}
	var n int
	if err := conn.QueryRow(ctx, prepared, name).Scan(&n); err != nil {
		return err
	}
	if n > 0 {
		return fmt.Errorf("the test left %d prepared transactions, which hold back xmin for all tests: use NewCluster", n)
	}
	_, err = conn.Exec(ctx, "DROP DATABASE "+name+" WITH (FORCE)")
	return err
}

// withDatabase returns dsn, a URL or a keyword DSN, with another database.
func withDatabase(dsn, name string) string {
	if strings.HasPrefix(dsn, "postgres://") || strings.HasPrefix(dsn, "postgresql://") {
		if u, err := url.Parse(dsn); err == nil {
			u.Path = "/" + name
			return u.String()
		}
	}
	return dsn + " dbname=" + name // the last one counts
}
