package edge

import (
	"context"
	"net"
	"net/http"
	"os"
	"sync"
	"time"
)

// http2Piece is how much is handed over to a stream of HTTP/2 at a time. A client that
// takes nothing is kept as much.
const http2Piece = 32 << 10

// http2 is a stream of an HTTP/2 connection. Only the goroutine of its handler may write
// to it, in serve. What serves the client hands it pieces. So a write may wait with a
// deadline and go on after that, as on a connection.
type http2 struct {
	// Static after construction.
	w    http.ResponseWriter
	ctrl *http.ResponseController
	// full has a piece to be written, or none; free the room for the next one. full is
	// closed when there will be no more, gone when serve has returned.
	full, free chan []byte
	gone       chan struct{}

	mu sync.Mutex
	// Guarded by mu: the deadline of writes, a channel that is closed when that changes,
	// whether the response is whole, and whether serve has returned.
	deadline        time.Time
	changed         chan struct{}
	whole, returned bool
}

func newHTTP2(w http.ResponseWriter) *http2 {
	s := &http2{
		w: w, ctrl: http.NewResponseController(w), full: make(chan []byte, 1), free: make(chan []byte, 1), gone: make(chan struct{}), changed: make(chan struct{}),
	}
	s.free <- make([]byte, http2Piece)
	return s
}

// serve sends the headers, and then writes what Write gets, until Close or until the
// stream is broken.
func (s *http2) serve(ctx context.Context) {
	defer func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.returned = true
		close(s.gone)
	}()
	s.w.WriteHeader(http.StatusOK)
	_ = s.ctrl.Flush() // if the stream is broken, so is what follows
	for {
		select {
		case <-ctx.Done():
			return
		case piece, more := <-s.full:
			if !more {
				return
			}
			if _, err := s.w.Write(piece); err != nil {
				return
			}
			if err := s.ctrl.Flush(); err != nil {
				return
			}
			s.free <- piece[:cap(piece)]
		}
	}
}

// Write implements wire.
func (s *http2) Write(b []byte) (n int, err error) {
	for len(b) > 0 {
		piece, err := s.room()
		if err != nil {
			return n, err
		}
		taken := copy(piece, b)
		s.full <- piece[:taken]
		n, b = n+taken, b[taken:]
	}
	return n, nil
}

// room waits until the piece before is written.
func (s *http2) room() ([]byte, error) {
	select {
	case piece := <-s.free: // also after the deadline
		return piece, nil
	default:
	}
	for {
		s.mu.Lock()
		deadline, changed := s.deadline, s.changed
		s.mu.Unlock()
		t := time.NewTimer(time.Until(deadline))
		select {
		case piece := <-s.free:
			t.Stop()
			return piece, nil
		case <-s.gone:
			t.Stop()
			return nil, &net.OpError{Op: "write", Net: "http2", Err: net.ErrClosed}
		case <-changed:
			t.Stop()
		case <-t.C:
			return nil, os.ErrDeadlineExceeded
		}
	}
}

// SetWriteDeadline implements wire. It may be called during Write.
func (s *http2) SetWriteDeadline(t time.Time) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.deadline = t
	close(s.changed)
	s.changed = make(chan struct{})
	return nil
}

func (s *http2) look() peer {
	select {
	case <-s.gone:
		return peerGone
	default:
		return peerOpen
	}
}

// finish implements wire.
func (s *http2) finish() error {
	piece, err := s.room()
	if err != nil {
		return err
	}
	s.free <- piece
	s.mu.Lock()
	defer s.mu.Unlock()
	s.whole = true
	return nil
}

// Close implements wire. What was written before still goes out, until the deadline.
func (s *http2) Close() error {
	if piece, err := s.room(); err == nil {
		s.free <- piece
	}
	s.mu.Lock()
	if !s.whole && !s.returned {
		// A deadline in the past resets the stream. A write that waits for the client ends.
		_ = s.ctrl.SetWriteDeadline(time.Now().Add(-time.Second))
	}
	s.mu.Unlock()
	close(s.full)
	<-s.gone
	return nil
}
