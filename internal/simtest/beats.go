package simtest

import (
	"sync"
	"time"

	"bridge/internal/capture"
	"bridge/internal/stream"
	"bridge/lockstep"

	"github.com/nats-io/nats.go"
)

// Beats knows the snapshot of each heartbeat that a bridge sent to the broker. Clients of an edge are shown its since
// alone, which may be lower. At the snapshot the rule about finished transactions is at its strictest.
type Beats struct {
	mu sync.Mutex
	// Guarded by mu.
	snapshots map[lockstep.Cursor]capture.Snapshot
}

// NewBeats returns Beats that know no heartbeat.
func NewBeats() *Beats { return &Beats{snapshots: map[lockstep.Cursor]capture.Snapshot{}} }

// Snapshot returns the snapshot of the heartbeat with this cursor, if it is known. It is not if the broker was away for
// this reader when the heartbeat came.
func (b *Beats) Snapshot(c lockstep.Cursor) (capture.Snapshot, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	sn, ok := b.snapshots[c]
	return sn, ok
}

// recordBeats listens to the heartbeats of all relations until the test ends. It gets them as the bridges send them,
// also those that the broker refuses to store; no client sees these.
func (w *World) recordBeats() {
	w.T.Helper()
	w.Beats = NewBeats()
	nc, err := nats.Connect(w.NATS.URL(), nats.MaxReconnects(-1), nats.ReconnectWait(20*time.Millisecond), nats.ReconnectJitter(0, 0))
	if err != nil {
		w.T.Fatal(err)
	}
	w.T.Cleanup(nc.Close)
	if _, err := nc.Subscribe(stream.DefaultPrefix+".*.*.heartbeat", w.Beats.take); err != nil {
		w.T.Fatal(err)
	}
	if err := nc.Flush(); err != nil {
		w.T.Fatal(err)
	}
}

func (b *Beats) take(msg *nats.Msg) {
	m, err := lockstep.Decode(msg.Data)
	if err != nil || m.Control == nil {
		return
	}
	cursor, err := lockstep.ParseCursor(m.Control.Cursor)
	if err != nil {
		return
	}
	sn, err := capture.ParseSnapshot(msg.Header.Get(stream.SnapshotHeader))
	if err != nil {
		return
	}
	b.Add(cursor, sn)
}

// Add records a heartbeat.
func (b *Beats) Add(c lockstep.Cursor, sn capture.Snapshot) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.snapshots[c] = sn
}
