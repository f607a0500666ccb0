package e2e_test

import (
	"context"
	"fmt"
	"strings"
	"time"

	"bridge/internal/stream"
	"bridge/internal/testenv"
)

// end is the stream's own last sequence.
func (f *follower) end() uint64 {
	f.t.Helper()
	var last uint64
	testenv.Eventually(f.t, long, func() error {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		s, err := f.js.Stream(ctx, f.layout.Stream)
		if err == nil {
			last = s.CachedInfo().State.LastSeq
		}
		return err
	})
	return last
}

// settled waits until the stream has stopped to grow, and returns its end.
func (f *follower) settled() (end uint64) {
	f.t.Helper()
	testenv.Eventually(f.t, long, func() error {
		end = f.end()
		<-time.After(time.Second)
		if now := f.end(); now != end {
			return fmt.Errorf("the stream has grown from %d to %d", end, now)
		}
		return nil
	})
	return end
}

// killAt kills a bridge as soon as the stream ends n messages after from. It asks the stream, because a subscriber lags.
// It returns the last sequence when the follower has read the stream to its end.
func (f *follower) killAt(b *bridge, from, n uint64) (end uint64) {
	f.t.Helper()
	testenv.Eventually(f.t, long, func() error {
		if got := f.end(); got < from+n {
			return fmt.Errorf("the stream ends at %d, want %d", got, from+n)
		}
		return nil
	})
	b.Kill()
	return f.caughtUp()
}

// beganDurable says whether a durable snapshot was known when the last long batch began. A slow machine may not flush its
// WAL in time for that. What goes on with such a batch must read everything again, to be safe.
func (f *follower) beganDurable() bool {
	f.t.Helper()
	ctx, cancel := context.WithTimeout(f.t.Context(), 5*time.Second)
	defer cancel()
	msg, _, err := stream.Last(ctx, f.js, f.layout.Stream, f.layout.Batch())
	if err != nil {
		f.t.Fatal(err)
	}
	batch, err := stream.ParseBatch(msg.Data)
	if err != nil {
		f.t.Fatal(err)
	}
	return batch.Durable != ""
}

// meta returns what the stream's configuration says: its incarnation, floor and source.
func (f *follower) meta() stream.Meta {
	f.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	s, err := f.js.Stream(ctx, f.layout.Stream)
	if err != nil {
		f.t.Fatal(err)
	}
	m, err := stream.ReadMeta(s.CachedInfo().Config)
	if err != nil {
		f.t.Fatal(err)
	}
	return m
}

// floor returns the oldest since that the stream can honour.
func (f *follower) floor() uint64 {
	f.t.Helper()
	s, err := f.js.Stream(f.t.Context(), f.layout.Stream)
	if err != nil {
		f.t.Fatal(err)
	}
	meta, err := stream.ReadMeta(s.CachedInfo().Config)
	if err != nil {
		f.t.Fatal(err)
	}
	return meta.Floor
}

// epochs returns the list of epochs in the newest heartbeat.
func (f *follower) epochs() stream.Epochs {
	f.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	msg, _, err := stream.Last(ctx, f.js, f.layout.Stream, f.layout.Heartbeat())
	if err != nil {
		f.t.Fatal(err)
	}
	list, err := stream.ParseEpochs(msg.Header.Get(stream.EpochsHeader))
	if err != nil {
		f.t.Fatal(err)
	}
	return list
}

// forget removes a key's row from the stream. No bridge does that.
func (f *follower) forget(key string) {
	f.t.Helper()
	s, err := f.js.Stream(f.t.Context(), f.layout.Stream)
	if err != nil {
		f.t.Fatal(err)
	}
	msg, err := s.GetLastMsgForSubject(f.t.Context(), strings.TrimSuffix(f.layout.Rows(), ">")+key)
	if err == nil {
		err = s.DeleteMsg(f.t.Context(), msg.Sequence)
	}
	if err != nil {
		f.t.Fatal(err)
	}
}
