package publish

import (
	"context"
	"errors"
	"time"

	"github.com/nats-io/nats.go"
)

// errLost says that the connection to the broker was lost. What was in flight may
// be lost with it, and an answer that was awaited never comes. nats.go says so in
// words that mislead: "outbound buffer limit exceeded", or nothing until a request
// times out.
var errLost = errors.New("the connection to the broker was lost")

// errAway says that there is no connection to the broker.
var errAway = errors.New("there is no connection to the broker")

// awaitConnected waits until the broker is connected. A session that ended with
// its connection comes back long before the connection does, so its next try
// would fail, too. It waits for requestTimeout at most, so that a broker that
// stays away is reported.
func (p *Publisher) awaitConnected(ctx context.Context) error {
	up := p.nc.StatusChanged(nats.CONNECTED)
	defer p.nc.RemoveStatusListener(up)
	if p.nc.IsConnected() {
		return nil
	}
	select {
	case <-up:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(requestTimeout):
		return errAway
	}
}

// whileConnected returns a context that ends with the connection, so that nobody
// waits for an answer that was lost. The caller calls cancel.
func (p *Publisher) whileConnected(ctx context.Context) (_ context.Context, cancel func()) {
	ctx, end := context.WithCancelCause(ctx)
	lost := p.nc.StatusChanged(nats.RECONNECTING, nats.CLOSED)
	go func() {
		defer p.nc.RemoveStatusListener(lost)
		select {
		case <-lost:
			end(errLost)
		case <-ctx.Done():
		}
	}()
	return ctx, func() { end(nil) }
}

// orLost returns errLost for an error that a lost connection caused. ctx is the
// context under which the error came.
func orLost(ctx context.Context, err error) error {
	if err == nil {
		return nil
	}
	for _, e := range []error{nats.ErrReconnectBufExceeded, nats.ErrDisconnected, nats.ErrConnectionReconnecting} {
		if errors.Is(err, e) {
			return errLost
		}
	}
	if errors.Is(context.Cause(ctx), errLost) {
		return errLost
	}
	return err
}

// cut says whether the connection was lost since the epoch began, also if it is
// back by now.
func (e *epoch) cut() bool {
	return !e.nc.IsConnected() || e.nc.Stats().Reconnects != e.reconnects
}
