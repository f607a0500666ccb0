package edge

import (
	"errors"
	"net"
	"syscall"
	"time"

	"github.com/rs/zerolog"
)

// sayAgain is how often a lack of file descriptors is logged.
const sayAgain = time.Minute

// listener says in the log why it accepts no connection. net/http tries again, and waits
// up to a second in between.
type listener struct {
	net.Listener
	log zerolog.Logger
	// said is when it said so last. Owned by the goroutine that accepts.
	said time.Time
}

// Accept implements net.Listener.
func (l *listener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if (errors.Is(err, syscall.EMFILE) || errors.Is(err, syscall.ENFILE)) && time.Since(l.said) > sayAgain {
		l.said = time.Now()
		l.log.Warn().Err(err).Msg("no file descriptor is left: new clients wait; raise the limit of open files (ulimit -n)")
	}
	return c, err
}
