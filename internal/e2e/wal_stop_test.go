package e2e_test

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

// A bridge that is told to stop while rows come has nothing to warn of.
func TestWAL_StopsWithoutAWarning(t *testing.T) {
	s := newScene(t, 3)
	writer, done := connect(t, s.db), make(chan struct{})
	go func() { // until its connection is closed
		defer close(done)
		for i := 1; ; i++ {
			if _, err := writer.Exec(t.Context(), "INSERT INTO t (id) SELECT g FROM generate_series($1::int, $2::int) g", i*1000, i*1000+999); err != nil {
				return
			}
		}
	}()
	select {
	case <-t.Context().Done():
	case <-time.After(300 * time.Millisecond):
	}
	s.b.stop()
	run(t, s.conn, fmt.Sprintf("SELECT pg_terminate_backend(%d)", writer.PgConn().PID()))
	<-done
	_, after, ok := strings.Cut(s.b.Stderr(), `"stopping"`)
	if !ok || strings.Contains(after, `"level":"warn"`) {
		t.Errorf("it stopped with the log %s", after)
	}
}
