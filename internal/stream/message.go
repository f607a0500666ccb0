package stream

import (
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"bridge/internal/capture"
	"bridge/lockstep"

	"github.com/nats-io/nats.go"
)

// Headers of messages.
const (
	// HighHeader, on every message, is High: the highest position published so far
	// in the incarnation. It never falls along the stream.
	HighHeader = "Lockstep-High"
	// KeyHeader is a row's key, if its subject does not contain it.
	KeyHeader = "Lockstep-Key"
	// EventHeader, on rows of a stream of latest versions that says it, is the change
	// that they come from: lockstep.Change.AppendText.
	EventHeader = "Lockstep-Event"
	// DigestHeader, on oversize control rows, is the largest message that the broker
	// took then, and capture.Digest of the row's data.
	DigestHeader = "Lockstep-Digest"
	// EpochsHeader, on heartbeats and fences, is the list of epochs.
	EpochsHeader = "Lockstep-Epochs"
	// FloorHeader, on heartbeats and fences, is the floor of the stream's incarnation
	// when the message was sent: Meta.Floor.
	FloorHeader = "Lockstep-Floor"
	// IncarnationHeader, on fences, is the stream's incarnation.
	IncarnationHeader = "Lockstep-Incarnation"
	// SnapshotHeader, on heartbeats, is capture.Heartbeat.Snapshot.
	SnapshotHeader = "Lockstep-Snapshot"
	// DurableHeader, on heartbeats, is capture.Heartbeat.Durable.
	DurableHeader = "Lockstep-Durable"
	// LSNHeader, on heartbeats, is capture.Heartbeat.LSN as a decimal number.
	LSNHeader = "Lockstep-LSN"
	// PublishedHeader, on heartbeats, is capture.Heartbeat.Published.
	PublishedHeader = "Lockstep-Published"
	// SourceHeader, on heartbeats, is the capture.Source.
	SourceHeader = "Lockstep-Source"
)

// ErrLayout is wrapped by errors for a message or stream that this package did not
// write.
var ErrLayout = errors.New("not of the bridge's layout")

// High returns the value of HighHeader.
func High(h nats.Header) (uint64, error) {
	n, err := strconv.ParseUint(h.Get(HighHeader), 10, 64)
	if err != nil {
		return 0, fmt.Errorf("%w: header %s: %w", ErrLayout, HighHeader, err)
	}
	return n, nil
}

// maxEpochs bounds the epoch list. A cursor of an older epoch is no longer valid;
// its client falls back to since.
const maxEpochs = 64

// Epoch is one uninterrupted run of one writer.
type Epoch struct {
	ID string
	// First is the sequence of its fence.
	First uint64
}

// Epochs is the list of the last epochs, oldest first.
type Epochs []Epoch

// Append returns the list with one more epoch. It leaves out epochs that begin at or
// after it: the broker lost them. It also leaves out the oldest beyond maxEpochs.
func (e Epochs) Append(next Epoch) Epochs {
	out := make(Epochs, 0, len(e)+1)
	for _, old := range e {
		if old.First < next.First {
			out = append(out, old)
		}
	}
	out = append(out, next)
	return out[max(0, len(out)-maxEpochs):]
}

// Holds says whether the stream still has the place (epoch, seq). last is the
// stream's last sequence. The epoch is the one in which the message at seq was stored, or
// a later one of the same stream: while a stream has an epoch, it has all that was before
// it.
func (e Epochs) Holds(epoch string, seq, last uint64) bool {
	for i, ep := range e {
		if ep.ID != epoch {
			continue
		}
		if i+1 < len(e) {
			last = e[i+1].First - 1
		}
		return seq <= last
	}
	return false
}

// Newest returns the last epoch, "" if there is none.
func (e Epochs) Newest() string {
	if len(e) == 0 {
		return ""
	}
	return e[len(e)-1].ID
}

// At returns the epoch in which the message at seq was stored, or "" if that epoch
// is older than the list.
func (e Epochs) At(seq uint64) string {
	id := ""
	for _, ep := range e {
		if ep.First <= seq {
			id = ep.ID
		}
	}
	return id
}

// String returns the list in the form of EpochsHeader.
func (e Epochs) String() string {
	var b []byte
	for i, ep := range e {
		if i > 0 {
			b = append(b, ',')
		}
		b = append(b, ep.ID...)
		b = append(b, '@')
		b = strconv.AppendUint(b, ep.First, 10)
	}
	return string(b)
}

// ParseEpochs parses what String returned.
func ParseEpochs(text string) (Epochs, error) {
	var e Epochs
	if text == "" {
		return nil, nil
	}
	for part := range strings.SplitSeq(text, ",") {
		id, seq, ok := strings.Cut(part, "@")
		first, err := strconv.ParseUint(seq, 10, 64)
		if !ok || id == "" || err != nil {
			return nil, fmt.Errorf("%w: header %s: %q", ErrLayout, EpochsHeader, part)
		}
		e = append(e, Epoch{ID: id, First: first})
	}
	return e, nil
}

// NewHeartbeat returns a heartbeat's message. cursor is the place that the message
// itself will have in the stream, for a client that has applied everything up to it.
func NewHeartbeat(l Layout, hb capture.Heartbeat, src capture.Source, epochs Epochs, floor uint64, timestamp int64, cursor lockstep.Cursor) *nats.Msg {
	header := nats.Header{
		SnapshotHeader: {hb.Snapshot},
		DurableHeader:  {hb.Durable},
		SourceHeader:   {src.String()},
		EpochsHeader:   {epochs.String()},
		FloorHeader:    {strconv.FormatUint(floor, 10)},
	}
	if hb.LSN != 0 {
		header[LSNHeader] = []string{strconv.FormatUint(hb.LSN, 10)}
		header[PublishedHeader] = []string{hb.Published}
	}
	return &nats.Msg{
		Subject: Ingest(l.Heartbeat()), Header: header,
		Data: lockstep.AppendHeartbeat(nil, timestamp, hb.Since, cursor),
	}
}

// ParseHeartbeat parses a heartbeat's message.
func ParseHeartbeat(h nats.Header, data []byte) (capture.Heartbeat, error) {
	m, err := lockstep.Decode(data)
	if err != nil {
		return capture.Heartbeat{}, fmt.Errorf("%w: heartbeat: %w", ErrLayout, err)
	}
	if m.Control == nil || m.Control.Type != lockstep.HeartbeatType {
		return capture.Heartbeat{}, fmt.Errorf("%w: not a heartbeat", ErrLayout)
	}
	hb := capture.Heartbeat{Snapshot: h.Get(SnapshotHeader), Since: m.Control.Since, Durable: h.Get(DurableHeader), Published: h.Get(PublishedHeader)}
	if hb.High, err = High(h); err != nil {
		return capture.Heartbeat{}, err
	}
	if text := h.Get(LSNHeader); text != "" {
		if hb.LSN, err = strconv.ParseUint(text, 10, 64); err != nil {
			return capture.Heartbeat{}, fmt.Errorf("%w: header %s: %w", ErrLayout, LSNHeader, err)
		}
	}
	return hb, nil
}

// Shows says whether a heartbeat stands for what the transaction wrote, if it wrote
// anything: whether every row of it is before the heartbeat, in this version or a later
// one.
func Shows(h nats.Header, data []byte, txid uint64) (bool, error) {
	hb, err := ParseHeartbeat(h, data)
	if err != nil {
		return false, err
	}
	if hb.LSN != 0 {
		return txid < hb.Since, nil
	}
	sn, err := capture.ParseSnapshot(hb.Snapshot)
	if err != nil {
		return false, fmt.Errorf("%w: heartbeat: %w", ErrLayout, err)
	}
	return sn.Visible(txid), nil
}

// Incarnation returns the incarnation to which a heartbeat belongs. data is the
// heartbeat's document.
func Incarnation(data []byte) (string, error) {
	m, err := lockstep.Decode(data)
	if err != nil || m.Control == nil {
		return "", fmt.Errorf("%w: not a heartbeat", ErrLayout)
	}
	c, err := lockstep.ParseCursor(m.Control.Cursor)
	if err != nil {
		return "", fmt.Errorf("%w: heartbeat: %w", ErrLayout, err)
	}
	return c.Incarnation, nil
}

type batchDoc struct {
	Control   bool     `json:"control"`
	Type      string   `json:"type"`
	Snapshot  string   `json:"snapshot,omitempty"`
	Previous  string   `json:"previous,omitempty"`
	Durable   string   `json:"durable,omitempty"`
	LSN       uint64   `json:"lsn,omitempty"`
	After     [][]byte `json:"after,omitempty"`
	Compare   bool     `json:"compare,omitempty"`
	Published string   `json:"published,omitempty"`
}

// NewBatch returns an announcement's message.
func NewBatch(l Layout, b capture.Batch) *nats.Msg {
	data, err := json.Marshal(batchDoc{true, "batch", b.Snapshot, b.Previous, b.Durable, b.LSN, b.After, b.Compare, b.Published})
	if err != nil {
		panic("stream: encode batch: " + err.Error())
	}
	return &nats.Msg{Subject: Ingest(l.Batch()), Header: nats.Header{}, Data: append(data, '\n')}
}

// ParseBatch parses an announcement's message.
func ParseBatch(data []byte) (capture.Batch, error) {
	var d batchDoc
	if err := json.Unmarshal(data, &d); err != nil || d.Type != "batch" {
		return capture.Batch{}, fmt.Errorf("%w: batch: %w", ErrLayout, err)
	}
	return capture.Batch{Snapshot: d.Snapshot, Previous: d.Previous, Durable: d.Durable, LSN: d.LSN, After: d.After, Compare: d.Compare, Published: d.Published}, nil
}

// NewFence returns a fence's message.
func NewFence(l Layout, incarnation string, epochs Epochs, floor uint64) *nats.Msg {
	return &nats.Msg{
		Subject: Ingest(l.Fence()),
		Header:  nats.Header{IncarnationHeader: {incarnation}, EpochsHeader: {epochs.String()}, FloorHeader: {strconv.FormatUint(floor, 10)}},
		Data:    []byte(`{"control":true,"type":"fence"}` + "\n"),
	}
}

// NewAlive returns the message that keeps a batch open while nothing happens.
func NewAlive(l Layout) *nats.Msg {
	return &nats.Msg{Subject: Ingest(l.Alive()), Header: nats.Header{}, Data: []byte(`{"control":true,"type":"alive"}` + "\n")}
}

// NewSchema returns the message with a relation's columns.
func NewSchema(l Layout, schema []byte) *nats.Msg {
	return &nats.Msg{Subject: Ingest(l.SchemaSubject()), Header: nats.Header{}, Data: schema}
}
