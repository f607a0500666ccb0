package wal_test

import (
	"errors"
	"testing"
	"time"

	"bridge/internal/capture"
	"bridge/internal/testenv"
	"bridge/internal/wal"
)

// Heartbeats say that Postgres is heard: they end when it falls silent, though
// its connections stay.
func TestCapture_NoHeartbeatsWhilePostgresIsSilent_I2(t *testing.T) {
	if testing.Short() {
		t.Skip("needs servers")
	}
	t.Parallel()
	pg := testenv.NewCluster(t, "wal_level=logical")
	db := pg.Database()
	testenv.Exec(t, db, "CREATE TABLE a (id int PRIMARY KEY)")
	m := newMemory()
	capturing(t, db, wal.Options{}, map[string]*memory{"a": m})
	last := func() *capture.Heartbeat {
		m.mu.Lock()
		defer m.mu.Unlock()
		return m.pos.Heartbeat
	}
	// beats says whether another heartbeat comes within a time.
	beats := func(within time.Duration) error {
		before := last()
		for end := time.Now().Add(within); time.Now().Before(end); {
			select {
			case <-t.Context().Done():
			case <-time.After(50 * time.Millisecond):
			}
			if last() != before {
				return nil
			}
		}
		return errors.New("no heartbeat")
	}
	testenv.Eventually(t, long, func() error { return beats(2 * time.Second) })
	pg.Pause()
	testenv.Eventually(t, long, func() error {
		if beats(2*time.Second) == nil { // the first may be of what had been heard
			return errors.New("heartbeats, of a server that has stopped")
		}
		return nil
	})
	pg.Resume()
	if err := beats(long); err != nil {
		t.Error(err)
	}
}
