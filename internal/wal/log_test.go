package wal_test

import (
	"bytes"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"bridge/internal/testenv"
	"bridge/internal/wal"

	"github.com/rs/zerolog"
)

// logged is a log that can be read while it is written.
type logged struct {
	mu sync.Mutex
	b  bytes.Buffer // guarded by mu
}

func (l *logged) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logged) count(text string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Count(l.b.String(), text)
}

// What a publication lacks is said when the relation begins, not at each look at
// the catalog.
func TestCapture_WarnsOnceOfAPublication(t *testing.T) {
	if testing.Short() {
		t.Skip("needs servers")
	}
	t.Parallel()
	db := testenv.Postgres(t)
	testenv.Exec(t, db, "CREATE TABLE a (id int PRIMARY KEY)", "CREATE TABLE b (id int PRIMARY KEY)",
		fmt.Sprintf("CREATE PUBLICATION %s FOR TABLE a, b WITH (publish = 'insert, update, delete')", slotOf(t, db)))
	var log logged
	m := newMemory()
	capturingTo(t, zerolog.New(&log), db, wal.Options{ShapeInterval: 50 * time.Millisecond}, map[string]*memory{"a": m, "b": newMemory()})
	const warning = " leaves out its truncate: "
	m.awaitBeat(t)
	select {
	case <-t.Context().Done():
	case <-time.After(time.Second): // some looks
	}
	if n := log.count(warning); n != 2 {
		t.Errorf("two relations, and %d warnings", n)
	}
}
