package testenv

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

// Standby creates and starts a hot standby that streams from the cluster.
func (c *Cluster) Standby(t testing.TB, set ...string) *Cluster {
	t.Helper()
	s, err := newCluster(slices.Concat(c.set[len(settings):], set))
	if err == nil {
		err = s.copyOf(c)
	}
	if err == nil {
		err = s.startFirst()
	}
	if err != nil {
		t.Fatalf("create a standby: %v", err)
	}
	return s.forTest(t)
}

// copyOf creates the data directory of a standby from that of a running cluster. It does so itself if the directory of
// the server programs has no pg_basebackup. (LOCKSTEP_TEST_POSTGRES_BIN may name such a directory. The pg_basebackup of
// an older version would refuse the server.)
func (c *Cluster) copyOf(primary *Cluster) error {
	if _, err := os.Stat(filepath.Join(c.bin, "pg_basebackup")); err == nil {
		return c.tool("pg_basebackup", "-D", c.dir, "-d", primary.URL(""), "-R", "--checkpoint=fast", "--no-sync", "-X", "stream")
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := c.backup(ctx, primary); err != nil {
		return fmt.Errorf("copy the data directory (%s has no pg_basebackup): %w", c.bin, err)
	}
	return nil
}

// backup does what pg_basebackup -R does, by copying the files itself. It uses the "low-level API" of Postgres 15 and
// later.
func (c *Cluster) backup(ctx context.Context, primary *Cluster) error {
	conn, err := pgx.Connect(ctx, primary.URL("postgres"))
	if err != nil {
		return err
	}
	defer conn.Close(ctx)
	if _, err := conn.Exec(ctx, "SELECT pg_backup_start('standby', true)"); err != nil {
		return err
	}
	if err := c.copyFiles(primary.dir, "."); err != nil {
		return err
	}
	var label string
	if err := conn.QueryRow(ctx, "SELECT labelfile FROM pg_backup_stop(false)").Scan(&label); err != nil {
		return err
	}
	if err := c.copyFiles(primary.dir, "pg_wal"); err != nil { // only now it has all WAL of the backup
		return err
	}
	if err := c.write("backup_label", label); err != nil {
		return err
	}
	if err := c.write("standby.signal", ""); err != nil {
		return err
	}
	return c.write("postgresql.auto.conf", fmt.Sprintf("primary_conninfo = '%s'\n", primary.URL("")))
}

// notCopied are files, and directories whose contents, belong to the running primary alone. pg_wal is copied later.
var notCopied = []string{
	"postmaster.pid", "postmaster.opts", "pg_wal", "pg_dynshmem", "pg_notify", "pg_replslot", "pg_serial", "pg_snapshots",
	"pg_stat_tmp", "pg_subtrans",
}

// copyFiles copies a part of another cluster's data directory. Files may come and go meanwhile; the WAL makes up for
// that.
func (c *Cluster) copyFiles(from, part string) error {
	return filepath.WalkDir(filepath.Join(from, part), func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		name, err := filepath.Rel(from, path)
		if err != nil {
			return err
		}
		left := part == "." && slices.Contains(notCopied, name)
		switch {
		case d.IsDir():
			if err := c.mkdir(name); err != nil || !left {
				return err
			}
			return fs.SkipDir
		case left || strings.HasPrefix(d.Name(), "pgsql_tmp"):
			return nil
		}
		b, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		return c.write(name, string(b))
	})
}

// mkdir creates a directory in the data directory, or the data directory itself, unless it exists.
func (c *Cluster) mkdir(name string) error {
	if err := os.Mkdir(filepath.Join(c.dir, name), 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return c.own(name)
}

// write creates or replaces a file in the data directory.
func (c *Cluster) write(name, content string) error {
	if err := os.WriteFile(filepath.Join(c.dir, name), []byte(content), 0o600); err != nil {
		return err
	}
	return c.own(name)
}

// own gives a file of the data directory to the user under which the server runs.
func (c *Cluster) own(name string) error {
	if c.cred == nil {
		return nil
	}
	return os.Chown(filepath.Join(c.dir, name), int(c.cred.Uid), int(c.cred.Gid))
}

// Promote makes a standby a primary, on a new timeline. It returns when the server accepts writes.
func (c *Cluster) Promote() {
	c.t.Helper()
	Exec(c.t, c.URL("postgres"), "SELECT pg_promote(true, 60)")
	Eventually(c.t, time.Minute, func() error {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		conn, err := pgx.Connect(ctx, c.URL("postgres"))
		if err != nil {
			return err
		}
		defer conn.Close(ctx)
		_, err = conn.Exec(ctx, "SELECT txid_current()")
		return err
	})
}
