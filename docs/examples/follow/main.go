// Follow keeps a copy of a relation from its stream of latest versions, whatever happens to the bridge and to NATS. It
// is an example for docs/nats.md: the numbers in comments are those of the rules there.
//
//	go run ./docs/examples/follow LOCKSTEP-public-users
package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// follower holds the copy. To survive its own restart, a program stores these fields, in one transaction.
type follower struct {
	rows map[string]json.RawMessage // by subject: each key has its own
	// cursor is that of the last heartbeat that was applied, "" before the first (5).
	cursor string
	// since is the heartbeat's, too: from it on, deletes must still be in the stream.
	since uint64
}

func main() {
	if len(os.Args) != 2 {
		log.Fatal("usage: follow STREAM")
	}
	nc, err := nats.Connect(cmp.Or(os.Getenv("NATS_URL"), nats.DefaultURL), nats.MaxReconnects(-1))
	if err != nil {
		log.Fatal(err)
	}
	js, err := jetstream.New(nc)
	if err != nil {
		log.Fatal(err)
	}
	f := &follower{}
	for {
		err := f.read(context.Background(), js, os.Args[1])
		log.Print("reading again from the last heartbeat: ", err)
		time.Sleep(time.Second)
	}
}

// read goes on after the last heartbeat, until something is not as it must be. It begins with the comparison that rule 6
// asks for. So the comparison comes with each start, after each lost connection, and after silence.
func (f *follower) read(ctx context.Context, js jetstream.JetStream, stream string) error {
	s, err := js.Stream(ctx, stream)
	if err != nil {
		return err
	}
	info := s.CachedInfo()
	subjects := strings.Trim(info.Config.Subjects[0], "_>") // for example lockstep.public.users.
	newest, err := newestMark(ctx, s, subjects)
	if err != nil {
		return err
	}
	incarnation, epoch, start := parseCursor(f.cursor)
	good := incarnation == newest.incarnation && holds(newest.epochs, epoch, start) && start <= info.State.LastSeq // (6)
	if !good || f.since < floor(info) {                                                                            // (8)
		// What was deleted before now does not come as a living row.
		*f = follower{rows: map[string]json.RawMessage{}, since: max(newest.high, floor(info))}
		start = 0
		log.Print("reading from the start")
	}
	consumer, err := s.CreateConsumer(ctx, jetstream.ConsumerConfig{ // (1)
		DeliverPolicy: jetstream.DeliverByStartSequencePolicy, OptStartSeq: start + 1,
		AckPolicy: jetstream.AckNonePolicy, MemoryStorage: true, InactiveThreshold: time.Minute,
	})
	if err != nil {
		return err
	}
	messages, err := consumer.Messages()
	if err != nil {
		return err
	}
	defer messages.Stop()

	at := start             // the last message that was read
	epochs := newest.epochs // the list that was read last
	gap := false            // a gap was met, and the end of the stream not yet asked for
	var end uint64          // heartbeats before it do not count
	for delivered := uint64(1); ; delivered++ {
		// Silence may mean that this is no longer the stream that was read: then what comes is below start (7).
		msg, err := messages.Next(jetstream.NextMaxWait(3 * interval(info)))
		if err != nil {
			return err
		}
		md, err := msg.Metadata()
		if err != nil {
			return err
		}
		if md.Sequence.Consumer != delivered { // (4)
			return errors.New("messages were lost on the way")
		}
		seq := md.Sequence.Stream
		gap = gap || seq != at+1
		kind, _, _ := strings.Cut(strings.TrimPrefix(msg.Subject(), subjects), ".")
		switch kind {
		case "row":
			f.apply(msg) // (2)
		case "heartbeat", "fence":
			m := parseMark(msg.Headers(), msg.Data())
			e := epochAt(epochs, at)
			if m.incarnation != newest.incarnation || e != "" && !holds(m.epochs, e, at) { // (7)
				return errors.New("the stream is not the one that was read")
			}
			epochs = m.epochs
			if kind == "fence" || seq < end {
				break
			}
			if gap { // (4)
				info, err := s.Info(ctx)
				if err != nil {
					return err
				}
				if f.since < floor(info) { // (8)
					return errors.New("deletes may be missing")
				}
				gap, end = false, info.State.LastSeq
			}
			if seq >= end { // (3)
				f.cursor, f.since = m.cursor, m.since
				log.Printf("consistent at %s: %d rows", f.cursor, len(f.rows))
			}
		}
		at = seq
	}
}

func (f *follower) apply(msg jetstream.Msg) {
	var row struct {
		Control, Deleted bool
		Data             json.RawMessage
	}
	switch err := json.Unmarshal(msg.Data(), &row); {
	case err != nil:
		log.Print(msg.Subject(), ": ", err)
	case row.Control:
		log.Print(msg.Subject(), ": the row is too large for the broker; what is held is out of date")
	case row.Deleted:
		delete(f.rows, msg.Subject())
	default:
		f.rows[msg.Subject()] = row.Data
	}
}

// mark is what a heartbeat or a fence says.
type mark struct {
	incarnation, cursor string
	epochs              []epoch
	since, high         uint64
}

type epoch struct {
	id    string
	first uint64
}

func parseMark(h nats.Header, data []byte) (m mark) {
	var doc struct {
		Cursor string
		Since  uint64
	}
	_ = json.Unmarshal(data, &doc)
	m.incarnation, _, _ = parseCursor(doc.Cursor)
	m.incarnation = cmp.Or(m.incarnation, h.Get("Lockstep-Incarnation"))
	m.cursor, m.since = doc.Cursor, doc.Since
	m.high, _ = strconv.ParseUint(h.Get("Lockstep-High"), 10, 64)
	for part := range strings.SplitSeq(h.Get("Lockstep-Epochs"), ",") {
		id, text, _ := strings.Cut(part, "@")
		first, _ := strconv.ParseUint(text, 10, 64)
		m.epochs = append(m.epochs, epoch{id, first})
	}
	return m
}

// newestMark returns the later of the last heartbeat and the last fence.
func newestMark(ctx context.Context, s jetstream.Stream, subjects string) (mark, error) {
	var m mark
	var at uint64
	for _, kind := range []string{"heartbeat", "fence"} {
		msg, err := s.GetLastMsgForSubject(ctx, subjects+kind)
		switch {
		case errors.Is(err, jetstream.ErrMsgNotFound):
		case err != nil:
			return mark{}, err
		case msg.Sequence > at:
			m, at = parseMark(msg.Header, msg.Data), msg.Sequence
		}
	}
	if at == 0 {
		return mark{}, errors.New("the stream is empty")
	}
	return m, nil
}

// holds says whether the sequence belongs to the epoch.
func holds(list []epoch, id string, seq uint64) bool {
	for i, e := range list {
		if e.id == id {
			return e.first <= seq && (i+1 == len(list) || seq < list[i+1].first)
		}
	}
	return false
}

// epochAt returns the epoch of the sequence, "" if that is older than the list.
func epochAt(list []epoch, seq uint64) (id string) {
	for _, e := range list {
		if e.first <= seq {
			id = e.id
		}
	}
	return id
}

// floor is the oldest since whose deletes the stream still has.
func floor(info *jetstream.StreamInfo) uint64 {
	n, _ := strconv.ParseUint(info.Config.Metadata["lockstep-floor"], 10, 64)
	return n
}

// interval is the longest time between two heartbeats while a bridge writes the stream.
func interval(info *jetstream.StreamInfo) time.Duration {
	d, _ := time.ParseDuration(info.Config.Metadata["lockstep-heartbeat"])
	return cmp.Or(d, 5*time.Second)
}

// parseCursor reads what a cursor begins with: 1.incarnation.epoch.sequence.
func parseCursor(cursor string) (incarnation, epoch string, seq uint64) {
	_, _ = fmt.Sscanf(strings.ReplaceAll(cursor, ".", " "), "1 %s %s %d", &incarnation, &epoch, &seq)
	return incarnation, epoch, seq
}
