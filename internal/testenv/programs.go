package testenv

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
)

// postgresBin returns the directory of Postgres' server programs. It is the one that LOCKSTEP_TEST_POSTGRES_BIN names,
// else that of the PATH, else Debian's. Debian keeps them off the PATH, in a directory for each version; postgresBin
// takes the newest.
func postgresBin() (string, error) {
	if dir := os.Getenv("LOCKSTEP_TEST_POSTGRES_BIN"); dir != "" {
		if !hasServer(dir) {
			return "", fmt.Errorf("LOCKSTEP_TEST_POSTGRES_BIN: %s does not have both initdb and postgres", dir)
		}
		return filepath.Abs(dir)
	}
	var dirs []string
	if p, err := exec.LookPath("postgres"); err == nil {
		if real, err := filepath.EvalSymlinks(p); err == nil {
			dirs = append(dirs, filepath.Dir(real))
		}
	}
	debian, _ := filepath.Glob("/usr/lib/postgresql/*/bin")
	slices.SortFunc(debian, func(a, b string) int { return version(b) - version(a) })
	for _, dir := range append(dirs, debian...) {
		if hasServer(dir) {
			return dir, nil
		}
	}
	return "", errors.New("the tests need Postgres 15 or later: neither the PATH nor /usr/lib/postgresql/*/bin has " +
		"initdb and postgres; on Debian: apt-get install postgresql postgresql-contrib (or run make deps)")
}

func hasServer(dir string) bool {
	_, noPostgres := os.Stat(filepath.Join(dir, "postgres"))
	_, noInitdb := os.Stat(filepath.Join(dir, "initdb"))
	return noPostgres == nil && noInitdb == nil
}

func version(debianDir string) int {
	n, _ := strconv.Atoi(filepath.Base(filepath.Dir(debianDir)))
	return n
}

// postgresUser returns the user under which Postgres runs, or nil for the user of the test process. Postgres refuses to
// run as root, so for root it is the user postgres.
func postgresUser() (*syscall.Credential, error) {
	if os.Geteuid() != 0 {
		return nil, nil
	}
	u, err := user.Lookup("postgres")
	if err != nil {
		return nil, fmt.Errorf("the tests run as root; Postgres refuses that and needs the user postgres: %w", err)
	}
	uid, err := strconv.ParseUint(u.Uid, 10, 32)
	if err != nil {
		return nil, err
	}
	gid, err := strconv.ParseUint(u.Gid, 10, 32)
	if err != nil {
		return nil, err
	}
	return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}, nil
}

// checkVersion checks that a server has the major version that LOCKSTEP_TEST_POSTGRES_VERSION asks for, if that is set.
// It prints the server's version, so that the output shows it.
func checkVersion(url string) error {
	asked := os.Getenv("LOCKSTEP_TEST_POSTGRES_VERSION")
	if asked == "" {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		return err
	}
	defer conn.Close(ctx)
	var num int
	var name string
	const sql = "SELECT current_setting('server_version_num')::int, current_setting('server_version')"
	if err := conn.QueryRow(ctx, sql).Scan(&num, &name); err != nil {
		return err
	}
	if strconv.Itoa(num/10000) != asked {
		return fmt.Errorf("LOCKSTEP_TEST_POSTGRES_VERSION asks for Postgres %s, but the server is %s", asked, name)
	}
	fmt.Fprintf(os.Stderr, "testenv: the server is Postgres %s\n", name)
	return nil
}
