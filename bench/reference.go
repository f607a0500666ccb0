package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"runtime/debug"
	"strconv"
	"sync/atomic"
	"time"

	"bridge/internal/capture"
	"bridge/internal/stream"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/synadia-io/orbit.go/jetstreamext"
)

// referenceCommand makes this program the reference, which publishes from memory.
// Its arguments are the broker's URL and process ID, the table whose stream it
// fills, and the file with the messages.
const referenceCommand = "reference"

// The reference's flow control, the fastest of all that were tried.
const (
	referenceFlow = 500 // the server allows no more
	referenceAcks = 3
)

// runReference publishes the file's parts, and prints a phase for each.
func runReference(args []string) error {
	if len(args) != 4 {
		return errors.New("usage: reference URL PID TABLE FILE")
	}
	pid, err := strconv.Atoi(args[1])
	if err != nil {
		return fmt.Errorf("reference: %w", err)
	}
	parts, err := readParts(args[3])
	if err != nil {
		return err
	}
	nc, err := connect(args[0])
	if err != nil {
		return err
	}
	defer nc.Close()
	js, err := jetstream.New(nc)
	if err != nil {
		return err
	}
	meta := stream.Meta{Schema: "public", Table: args[2], Incarnation: "reference", Source: capture.Source{Database: "reference"}}
	if _, err := js.CreateStream(context.Background(), stream.Config(layoutOf(args[2]), meta, stream.Settings{})); err != nil {
		return err
	}
	debug.SetGCPercent(-1)
	phases := make([]phase, len(parts))
	last := uint64(0)
	for i, part := range parts {
		if i > 0 { // the broker rests, as it does while Postgres runs the updates that the bridge captures
			<-time.After(5 * time.Second)
		}
		if phases[i], err = publishAll(js, part, last, pid); err != nil {
			return err
		}
		last += uint64(len(part))
	}
	return json.NewEncoder(os.Stdout).Encode(phases)
}

// publishAll publishes the messages into a stream that ends at sequence last. It
// returns when the broker has acknowledged all of them.
func publishAll(js jetstream.JetStream, all []message, last uint64, broker int) (phase, error) {
	before, err := readUsage(broker)
	if err != nil {
		return phase{}, err
	}
	begun := time.Now()
	var fault atomic.Pointer[error]
	fp, err := jetstreamext.NewFastPublisher(js,
		jetstreamext.FastPublishFlowControl{Flow: referenceFlow, MaxOutstandingAcks: referenceAcks, AckTimeout: 10 * time.Second},
		jetstreamext.WithFastPublisherErrorHandler(func(err error) { fault.CompareAndSwap(nil, &err) }))
	if err != nil {
		return phase{}, err
	}
	var expected, high [1]string
	msg := nats.Msg{Header: nats.Header{jetstream.ExpectedLastSeqHeader: expected[:], stream.HighHeader: high[:]}}
	for i, m := range all {
		expected[0], high[0] = strconv.FormatUint(last+uint64(i), 10), m.high
		msg.Subject, msg.Data = m.subject, m.payload
		if _, err := fp.AddMsg(&msg); err != nil {
			return phase{}, err
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	ack, err := fp.Close(ctx)
	took := time.Since(begun)
	if err != nil {
		return phase{}, fmt.Errorf("end the batch: %w", err)
	}
	if err := fault.Load(); err != nil {
		return phase{}, fmt.Errorf("batch: %w", *err)
	}
	if want := last + uint64(len(all)); ack.Sequence != want {
		return phase{}, fmt.Errorf("the stream ends at %d, not at %d", ack.Sequence, want)
	}
	after, err := readUsage(broker)
	if err != nil {
		return phase{}, err
	}
	p := phase{Rows: len(all), Seconds: took.Seconds(), Publisher: (after.own - before.own).Seconds(), Broker: (after.broker - before.broker).Seconds()}
	p.Others = (after.machine - before.machine).Seconds() - p.Publisher - p.Broker
	return p, nil
}

// usage is the CPU time until now: of this process, of the broker, and of the whole
// machine.
type usage struct{ own, broker, machine time.Duration }

func readUsage(broker int) (usage, error) {
	me, err1 := readStat(os.Getpid())
	it, err2 := readStat(broker)
	machine, err3 := machineCPU()
	return usage{me.own, it.own, machine}, errors.Join(err1, err2, err3)
}
