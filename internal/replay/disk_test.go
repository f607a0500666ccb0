package replay_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"bridge/internal/replay"
	"bridge/internal/stream"
	"bridge/internal/testenv"

	"github.com/prometheus/client_golang/prometheus"
)

// onDisk is a hub whose memory has no room for what the clients of a test read. All of it has been read once.
type onDisk struct {
	*replay.Hub
	w        *writer
	dir      string
	registry *prometheus.Registry
	rows     int
	// restart ends the hub, and has another one begin.
	restart func()
}

func newOnDisk(t *testing.T, opt replay.Options) *onDisk {
	t.Helper()
	w, url := beginWriter(t)
	const rows = 20_000
	manyRows(t, w, rows)
	d := &onDisk{w: w, dir: filepath.Join(t.TempDir(), "cache"), rows: rows}
	if err := os.Mkdir(d.dir, 0o700); err != nil {
		t.Fatal(err)
	}
	opt.CacheBytes, opt.CacheDir = 256<<10, d.dir
	stop := func() {}
	t.Cleanup(func() { stop() })
	d.restart = func() {
		stop()
		d.registry = prometheus.NewRegistry()
		d.Hub, stop = startHub(t, url, opt, d.registry)
	}
	d.restart()
	d.follow(t)
	d.read(t)
	return d
}

// follow has a client follow the stream's end, so that cold readers read the rest.
func (d *onDisk) follow(t *testing.T) *client { return open(t, d.Hub, request(uint64(d.rows))) }

// written waits until a client that reads everything costs the broker nothing: blocks that came too fast for the disk are
// read again.
func (d *onDisk) written(t *testing.T) {
	t.Helper()
	testenv.Eventually(t, testenv.Patience(), func() error {
		if fills, _ := d.read(t); fills > 0 {
			return errAgain
		}
		return nil
	})
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
	d.written(t)
	if fills, reads := d.read(t); fills > 0 || reads < 5 {
		t.Errorf("%v blocks were read from disk, and %v from the broker, with room for one in memory", reads, fills)
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

// TestDisk_IsTakenUp_I9: a relation that nobody has read for a while, and an edge that begins with a folder of before, have from
// disk what was there.
func TestDisk_IsTakenUp_I9(t *testing.T) {
	t.Parallel()
	d := newOnDisk(t, replay.Options{CacheKept: true, IdleTime: 100 * time.Millisecond})
	d.written(t)
	again := func(after string) {
		d.follow(t)
		if fills, reads := d.read(t); fills > 2 || reads < 5 { // some were in memory only
			t.Errorf("after %s: %v blocks were read from disk, and %v from the broker", after, reads, fills)
		}
		d.written(t)
	}
	d.restart()
	again("a restart")
	d.restart() // its relation is idle from the beginning
	d.follow(t).Close()
	testenv.Eventually(t, testenv.Patience(), func() error {
		if replay.BlockBytes(d.Hub) > 0 {
			return errAgain
		}
		return nil
	})
	again("an idle time")
}

// TestDisk_BadFilesAreNotTakenUp_I8: an edge that begins removes the files that were not written to their end, those of another
// version, and those whose first line was damaged. Others of the folder stay.
func TestDisk_BadFilesAreNotTakenUp_I8(t *testing.T) {
	t.Parallel()
	d := newOnDisk(t, replay.Options{CacheKept: true})
	testenv.Eventually(t, testenv.Patience(), func() error {
		if d.read(t); len(d.files(t)) < 4 {
			return errAgain
		}
		return nil
	})
	d.restart() // nobody writes now
	bad := d.files(t)[:3]
	for i, damage := range []func([]byte) []byte{
		func(b []byte) []byte { return b[:len(b)-1] },
		func(b []byte) []byte { return bytes.Replace(b, []byte(`"last":`), []byte(`"Last":`), 1) },
		func([]byte) []byte { return []byte("text") },
	} {
		text, err := os.ReadFile(bad[i])
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(bad[i], damage(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	other := filepath.Join(d.dir, "other"+replay.BlockSuffix)
	if err := os.WriteFile(other, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	d.restart()
	for _, file := range bad {
		if _, err := os.Stat(file); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s is still there: %v", file, err)
		}
	}
	if _, err := os.Stat(other); err != nil {
		t.Error(err)
	}
	d.follow(t)
	d.read(t)
}

// TestDisk_FilesOfAnotherStreamAreNotTakenUp_I8: the files of a stream that was made anew are removed when it is read again.
func TestDisk_FilesOfAnotherStreamAreNotTakenUp_I8(t *testing.T) {
	t.Parallel()
	d := newOnDisk(t, replay.Options{CacheKept: true})
	d.written(t)
	d.restart()
	if err := d.w.js.DeleteStream(t.Context(), d.w.layout.Stream); err != nil {
		t.Fatal(err)
	}
	d.w.begin(t)
	d.w.row(t, 1, uint64(d.rows+2), "new")
	d.w.heartbeat(t, uint64(d.rows+3))
	c := open(t, d.Hub, request(0))
	c.until(t, uint64(d.rows+3))
	k, v := rowState(1, "new")
	c.mustState(t, map[string]string{k: v})
	if files := d.files(t); len(files) > 0 {
		t.Errorf("there are %d files of the old stream", len(files))
	}
}

// TestDisk_WhatTheStreamNoLongerHasIsNotTakenUp_I8 has the rules by which blocks of before are void.
func TestDisk_WhatTheStreamNoLongerHasIsNotTakenUp_I8(t *testing.T) {
	t.Parallel()
	epochs := stream.Epochs{{ID: "a", First: 1}, {ID: "b", First: 100}}
	good := replay.TestFile{Incarnation: "i", Epoch: "a", First: 10, Last: 50, HighBefore: 7, Until: 60, End: 70}
	for _, tt := range []struct {
		name   string
		change func(*replay.TestFile)
		taken  bool
	}{
		{"it has it", func(*replay.TestFile) {}, true},
		{"to the end of its epoch", func(f *replay.TestFile) { f.Last, f.Until, f.End = 99, 99, 99 }, true},
		{"to the end of the stream", func(f *replay.TestFile) { f.Epoch, f.Last, f.End = "b", 150, 200 }, true},
		{"a lower floor", func(f *replay.TestFile) { f.HighBefore = 5 }, true},
		{"a higher floor", func(f *replay.TestFile) { f.HighBefore = 4 }, false},
		{"another incarnation", func(f *replay.TestFile) { f.Incarnation = "j" }, false},
		{"an epoch that is gone", func(f *replay.TestFile) { f.Epoch = "c" }, false},
		{"no epoch", func(f *replay.TestFile) { f.Epoch = "" }, false},
		{"its last message is gone", func(f *replay.TestFile) { f.Last = 100 }, false},
		{"the end after its last hole is gone", func(f *replay.TestFile) { f.Until = 100 }, false},
		{"the end after it was read is gone", func(f *replay.TestFile) { f.End = 100 }, false},
		{"beyond the stream's end", func(f *replay.TestFile) { f.Epoch, f.Last = "b", 201 }, false},
		{"where the tail reads", func(f *replay.TestFile) { f.Epoch, f.Last = "b", 190 }, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := good
			tt.change(&f)
			if got := f.TakenUp("i", epochs, 200, 5, 190); got != tt.taken {
				t.Errorf("taken up: %v", got)
			}
		})
	}
}

var errAgain = errors.New("not yet")
