package replay_test

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"bridge/internal/replay"
	"bridge/internal/testenv"

	"github.com/prometheus/client_golang/prometheus"
)

// onDisk is a hub whose memory has no room for what the clients of a test read. All of it has been read once.
type onDisk struct {
	*replay.Hub
	dir      string
	registry *prometheus.Registry
	rows     int
}

func newOnDisk(t *testing.T, opt replay.Options) *onDisk {
	t.Helper()
	w, url := beginWriter(t)
	const rows = 20_000
	manyRows(t, w, rows)
	d := &onDisk{dir: filepath.Join(t.TempDir(), "cache"), registry: prometheus.NewRegistry(), rows: rows}
	if err := os.Mkdir(d.dir, 0o700); err != nil {
		t.Fatal(err)
	}
	opt.CacheBytes, opt.CacheDir = 256<<10, d.dir
	d.Hub = hubWith(t, url, opt, d.registry)
	tail := open(t, d.Hub, request(uint64(rows))) // so that cold readers read the rest
	t.Cleanup(tail.Close)
	d.read(t)
	return d
}

// read has a client read everything, and returns how many blocks came from the broker, and from disk.
func (d *onDisk) read(t *testing.T) (fills, reads float64) {
	t.Helper()
	const filled, read = "lockstep_edge_cache_fills_total", "lockstep_edge_cache_disk_reads_total"
	fills, reads = gauge(t, d.registry, filled), gauge(t, d.registry, read)
	r, err := d.Open(t.Context(), request(1))
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if got, err := count(t, r); err != nil || got != d.rows {
		t.Fatalf("%d rows, %v; want %d", got, err, d.rows)
	}
	return gauge(t, d.registry, filled) - fills, gauge(t, d.registry, read) - reads
}

func (d *onDisk) files(t *testing.T) []string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(d.dir, "*"))
	if err != nil {
		t.Fatal(err)
	}
	return files
}

// TestDisk_ServesWhatMemoryHasNoRoomFor_I9: what was read once is read from disk, not from the broker again, within the bound of
// memory. The files are the hub's alone.
func TestDisk_ServesWhatMemoryHasNoRoomFor_I9(t *testing.T) {
	t.Parallel()
	d := newOnDisk(t, replay.Options{})
	var fills, reads float64
	testenv.Eventually(t, testenv.Patience(), func() error { // blocks that came too fast for the disk are read again
		if fills, reads = d.read(t); fills > 0 {
			return errAgain
		}
		return nil
	})
	if reads < 5 {
		t.Errorf("%v blocks were read from disk, and none from the broker, with room for one in memory", reads)
	}
	if n := replay.BlockBytes(d.Hub); n > 256<<10+16<<20 { // with those that wait to be written
		t.Errorf("the blocks take %d bytes", n)
	}
	for _, file := range d.files(t) {
		info, err := os.Stat(file)
		if err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", file, info.Mode(), err)
		}
	}
}

// TestDisk_BadFolderIsRepaired_I8: files that are gone, cut short or changed are noticed, and what they had is read from the
// broker again. So it is if the folder itself is gone.
func TestDisk_BadFolderIsRepaired_I8(t *testing.T) {
	t.Parallel()
	for name, damage := range map[string]func(t *testing.T, d *onDisk){
		"files gone": func(t *testing.T, d *onDisk) {
			for _, file := range d.files(t) {
				if err := os.Remove(file); err != nil {
					t.Fatal(err)
				}
			}
		},
		"files cut short": func(t *testing.T, d *onDisk) {
			for _, file := range d.files(t) {
				if err := os.Truncate(file, 1000); err != nil {
					t.Fatal(err)
				}
			}
		},
		"files changed": func(t *testing.T, d *onDisk) {
			for _, file := range d.files(t) {
				b, err := os.ReadFile(file)
				if err != nil {
					t.Fatal(err)
				}
				b[len(b)-10] ^= 1
				if err := os.WriteFile(file, b, 0o600); err != nil {
					t.Fatal(err)
				}
			}
		},
		"folder gone": func(t *testing.T, d *onDisk) {
			if err := os.RemoveAll(d.dir); err != nil {
				t.Fatal(err)
			}
		},
		"folder a file": func(t *testing.T, d *onDisk) {
			if err := os.RemoveAll(d.dir); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(d.dir, nil, 0o600); err != nil {
				t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d := newOnDisk(t, replay.Options{})
			testenv.Eventually(t, testenv.Patience(), func() error {
				if len(d.files(t)) == 0 {
					d.read(t)
					return errAgain
				}
				return nil
			})
			damage(t, d)
			if fills, _ := d.read(t); fills == 0 {
				t.Error("nothing was read from the broker")
			}
			d.read(t)
		})
	}
}

// TestDisk_IsBounded_I9: the files together have no more bytes than they may.
func TestDisk_IsBounded_I9(t *testing.T) {
	t.Parallel()
	const limit = 600 << 10
	d := newOnDisk(t, replay.Options{CacheDiskBytes: limit})
	for range 5 {
		d.read(t)
		testenv.Eventually(t, testenv.Patience(), func() error { // the last one is written, and then the others are looked at
			sum := int64(0)
			for _, file := range d.files(t) {
				if info, err := os.Stat(file); err == nil {
					sum += info.Size()
				}
			}
			if sum > limit {
				return errAgain
			}
			return nil
		})
	}
	if len(d.files(t)) == 0 {
		t.Error("there are no files")
	}
}

var errAgain = errors.New("not yet")
