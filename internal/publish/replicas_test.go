package publish_test

import (
	"errors"
	"fmt"
	"testing"

	"bridge/internal/publish"
	"bridge/internal/stream"
	"bridge/internal/testenv"
)

// replicasOf returns the number of replicas of the relation's stream and of the
// lease bucket.
func (w *writer) replicasOf(t *testing.T) (string, error) {
	t.Helper()
	var out string
	for _, name := range []string{"LOCKSTEP-public-t", "KV_" + stream.LeaseBucket("lockstep")} {
		s, err := w.js.Stream(t.Context(), name)
		if err != nil {
			return "", err // a stream that gets replicas has no leader for a moment
		}
		out += fmt.Sprint(" ", s.CachedInfo().Config.Replicas)
	}
	return out, nil
}

// If no number of replicas is configured, streams and leases get as many as the
// broker has servers for, and never fewer than they had.
func TestPublish_ReplicasByTheBroker_I8(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		servers int
		set     []int // by one writer after the other
		want    []string
	}{
		{1, []int{0}, []string{" 1 1"}},
		{2, []int{0}, []string{" 1 1"}},
		{3, []int{1, 0, 1, 0}, []string{" 1 1", " 3 3", " 1 3", " 3 3"}},
	} {
		t.Run(fmt.Sprint(tc.servers, " servers"), func(t *testing.T) {
			t.Parallel()
			var url string
			if tc.servers == 1 {
				url = testenv.NATS(t).URL()
			} else {
				url = testenv.NATSCluster(t, tc.servers)[0].URL()
			}
			for i, set := range tc.set {
				w := startWriter(t, url, fmt.Sprint("writer ", i), publish.Options{Settings: stream.Settings{Replicas: set}})
				testenv.Eventually(t, testenv.Patience(), func() error {
					_, err := w.Begin(t.Context(), source, func() {})
					return err
				})
				w.mustRow(t, i, uint64(5+i))
				w.mustHeartbeat(t, uint64(6+i))
				testenv.Eventually(t, testenv.Patience(), func() error {
					got, err := w.replicasOf(t)
					if err == nil && got != tc.want[i] {
						err = errors.New("replicas are" + got + ", want" + tc.want[i])
					}
					return err
				})
				w.stop()
			}
		})
	}
}
