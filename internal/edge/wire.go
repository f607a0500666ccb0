package edge

import (
	"io"
	"net"
	"net/http"
	"time"
)

// wire is what a stream is written to: a connection, or a stream of one.
type wire interface {
	// Write and SetWriteDeadline are those of net.Conn.
	io.Writer
	SetWriteDeadline(t time.Time) error
	// look says what is seen of the client's side, and does not wait.
	look() peer
	// finish ends a response that is whole, once the client has taken it. It waits for that
	// no longer than Write.
	finish() error
	// Close ends the response. Where that was not finished, the client sees an error.
	Close() error
}

// http1 is a connection that was taken over from net/http.
type http1 struct{ net.Conn }

// takeOver takes the connection of a request over from net/http.
func takeOver(w http.ResponseWriter) (http1, error) {
	// What the client sent after its request is not heard.
	conn, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return http1{}, err
	}
	// The deadlines of the request end here: from now on each write has its own. If the
	// connection is broken, the first write says so.
	_ = conn.SetDeadline(time.Time{})
	return http1{conn}, nil
}

func (c http1) look() peer { return look(c.Conn) }

// finish implements wire: the final chunk says that the response is whole.
func (c http1) finish() error { return nil }

// Close implements wire.
func (c http1) Close() error {
	look(c.Conn) // what was not read would destroy what the client has not taken
	return c.Conn.Close()
}
