package program

import (
	"os"
	"os/signal"
	"syscall"

	"github.com/rs/zerolog"
)

// SurviveHangup logs each SIGHUP, which otherwise ends a program without a word, until stop is called. Many programs
// read their settings again on SIGHUP, so people and scripts send it. This one has nothing to read again.
func SurviveHangup(log zerolog.Logger) (stop func()) {
	hangups := make(chan os.Signal, 1) // the runtime sends; one more that comes before the last was logged is dropped
	done, ended := make(chan struct{}), make(chan struct{})
	signal.Notify(hangups, syscall.SIGHUP)
	go func() {
		defer close(ended)
		for {
			select {
			case <-hangups:
				log.Info().Str("component", "signal").Msg("SIGHUP changes nothing; restart the program to change its settings")
			case <-done:
				return
			}
		}
	}()
	return func() {
		signal.Stop(hangups)
		close(done)
		<-ended
	}
}
