package wal

import (
	"strconv"

	"bridge/internal/relation"
)

const (
	// lastRowsBytes bounds each of the two halves of lastRows, longRow what is
	// kept of one row.
	lastRowsBytes = 8 << 20
	longRow       = lastRowsBytes / 8
	// entryBytes is about what a row's place in the map takes.
	entryBytes = 100
)

// size is what keeping a row takes, 0 for none.
func size(name string, data []byte) int {
	if data == nil {
		return 0
	}
	return len(name) + len(data) + entryBytes
}

// lastRows keeps rows that a session has published, for the values that an
// UPDATE leaves alone and Postgres does not send. The stream has them, too; but
// to ask it costs a round trip for each row, and a wait where the row is still
// on its way.
type lastRows struct {
	// Where young is full, it becomes old: what is in use stays.
	young, old map[string][]byte
	bytes      int
}

// get returns the row's JSON object, nil where it is not kept.
func (l *lastRows) get(name string) []byte {
	data := l.young[name]
	if data == nil {
		if data = l.old[name]; data != nil {
			l.put(name, data)
		}
	}
	return data
}

// put keeps data, which must not change any more.
func (l *lastRows) put(name string, data []byte) {
	if len(data) > longRow {
		l.forget(name)
		return
	}
	if l.young == nil || l.bytes+size(name, data) > lastRowsBytes {
		l.young, l.old, l.bytes = make(map[string][]byte), l.young, 0
	}
	l.bytes += size(name, data) - size(name, l.young[name])
	l.young[name] = data
}

func (l *lastRows) forget(name string) {
	l.bytes -= size(name, l.young[name])
	delete(l.young, name)
	delete(l.old, name)
}

// keep keeps a row that was published, and forget forgets one that is no longer
// what Postgres has, where such rows were asked for before: other relations pay
// nothing.
func (f *feed) keep(key [][]byte, data []byte) {
	if f.keeps {
		f.last.put(f.rowName(key), append([]byte(nil), data...))
	}
}

func (f *feed) forget(key [][]byte) {
	if f.keeps {
		f.last.forget(f.rowName(key))
	}
}

func (f *feed) rowName(key [][]byte) string {
	return strconv.FormatUint(uint64(f.rel.OID), 36) + " " + relation.KeyName(key)
}
