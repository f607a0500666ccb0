package lockstep

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
)

// Row is one version of one row.
type Row struct {
	// Txid is the ID of the transaction that last wrote the row.
	Txid uint64 `json:"txid"`
	// CurrentXmin is the xmin of the snapshot it was read under.
	CurrentXmin uint64 `json:"current_xmin"`
	// Since is the position to resume from after this row.
	Since uint64 `json:"since"`
	// Deleted is true where the row no longer exists.
	Deleted bool `json:"deleted"`
	// Data is the JSON object of the row's columns.
	Data json.RawMessage `json:"data"`
	// Action and Old are set in streams that keep every change, filled from the
	// WAL: what changed the row, and the columns it had before.
	Action Action          `json:"action,omitempty"`
	Old    json.RawMessage `json:"old,omitempty"`
}

// Types of control rows.
const (
	SnapshotCompleted = "snapshot_completed"
	HeartbeatType     = "heartbeat"
	Oversize          = "oversize"
	Truncate          = "truncate"
)

// Control is a document that is not a row. Which fields are set depends on
// Type; see the package comment.
type Control struct {
	Type      string          `json:"type"`
	Timestamp int64           `json:"timestamp,omitempty"`
	Since     uint64          `json:"since,omitempty"`
	Cursor    string          `json:"cursor,omitempty"`
	Txid      uint64          `json:"txid,omitempty"`
	Key       json.RawMessage `json:"key,omitempty"`
	Bytes     int64           `json:"bytes,omitempty"`
	Limit     int64           `json:"limit,omitempty"`
}

// Message is one document of a stream: exactly one of the two is not nil.
type Message struct {
	Row     *Row
	Control *Control
}

// ErrMalformed is wrapped by Decode's errors for bytes that are not one
// document of the protocol.
var ErrMalformed = errors.New("malformed lockstep document")

// Decode reads one document, with or without the newline that ends it. The
// message shares no memory with line.
func Decode(line []byte) (Message, error) {
	var doc struct {
		Control bool
		Type    *string
		Txid    *uint64
		Data    json.RawMessage
	}
	if err := json.Unmarshal(line, &doc); err != nil {
		return Message{}, fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	if doc.Control {
		if doc.Type == nil {
			return Message{}, fmt.Errorf("%w: a control row without a type", ErrMalformed)
		}
		c := new(Control)
		if err := json.Unmarshal(line, c); err != nil {
			return Message{}, fmt.Errorf("%w: %w", ErrMalformed, err)
		}
		return Message{Control: c}, nil
	}
	if doc.Txid == nil || len(doc.Data) == 0 || doc.Data[0] != '{' {
		return Message{}, fmt.Errorf("%w: neither a control row nor a row with txid and data", ErrMalformed)
	}
	r := new(Row)
	if err := json.Unmarshal(line, r); err != nil {
		return Message{}, fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	return Message{Row: r}, nil
}

// The fixed parts of an encoded row, in order.
const (
	rowTxid    = `{"txid":`
	rowXmin    = `,"current_xmin":`
	rowSince   = `,"since":`
	rowDeleted = `,"deleted":`
	rowData    = `,"data":`
	rowTail    = "}\n"
)

// AppendRowHead appends a row's document up to the value of data. The caller
// appends that, a JSON object, and then calls AppendRowTail; so a row is
// encoded in place, once.
func AppendRowHead(dst []byte, txid, currentXmin uint64, deleted bool) []byte {
	dst = append(dst, rowTxid...)
	dst = strconv.AppendUint(dst, txid, 10)
	dst = append(dst, rowXmin...)
	dst = strconv.AppendUint(dst, currentXmin, 10)
	dst = append(dst, rowSince...)
	dst = strconv.AppendUint(dst, min(txid, currentXmin), 10)
	dst = append(dst, rowDeleted...)
	dst = strconv.AppendBool(dst, deleted)
	return append(dst, rowData...)
}

// Action says what changed a row, in streams that keep every change.
type Action string

// Actions.
const (
	ActionInsert   Action = "insert"
	ActionUpdate   Action = "update"
	ActionDelete   Action = "delete"
	ActionTruncate Action = "truncate"
	// ActionRead is a row that was found when the relation was read.
	ActionRead Action = "read"
)

// AppendChangeHead is AppendRowHead with the action and, if not nil, the JSON
// object of the row before it.
func AppendChangeHead(dst []byte, txid, currentXmin uint64, deleted bool, action Action, old []byte) []byte {
	dst = AppendRowHead(dst, txid, currentXmin, deleted)
	dst = dst[:len(dst)-len(rowData)]
	dst = append(append(append(dst, `,"action":"`...), action...), '"')
	if old != nil {
		dst = append(append(dst, `,"old":`...), old...)
	}
	return append(dst, rowData...)
}

// AppendRowTail ends the document that AppendRowHead began.
func AppendRowTail(dst []byte) []byte {
	return append(dst, rowTail...)
}

// AppendHeartbeat appends a heartbeat's document with its newline.
func AppendHeartbeat(dst []byte, timestamp int64, since uint64, cursor Cursor) []byte {
	dst = append(dst, `{"control":true,"type":"heartbeat","timestamp":`...)
	dst = strconv.AppendInt(dst, timestamp, 10)
	dst = append(dst, rowSince...)
	dst = strconv.AppendUint(dst, since, 10)
	dst = append(dst, `,"cursor":"`...)
	dst = append(dst, cursor.String()...)
	return append(dst, '"', '}', '\n')
}

// AppendSnapshotCompleted appends that control row's document with its newline.
func AppendSnapshotCompleted(dst []byte, timestamp int64) []byte {
	dst = append(dst, `{"control":true,"type":"snapshot_completed","timestamp":`...)
	dst = strconv.AppendInt(dst, timestamp, 10)
	return append(dst, '}', '\n')
}

// AppendOversize appends the control row that stands for a row that is too
// large. key is the JSON object of its key's columns.
func AppendOversize(dst []byte, txid, currentXmin uint64, key []byte, size, limit int64) []byte {
	dst = append(dst, `{"control":true,"type":"oversize","txid":`...)
	dst = strconv.AppendUint(dst, txid, 10)
	dst = append(dst, rowSince...)
	dst = strconv.AppendUint(dst, min(txid, currentXmin), 10)
	dst = append(dst, `,"key":`...)
	dst = append(dst, key...)
	dst = append(dst, `,"bytes":`...)
	dst = strconv.AppendInt(dst, size, 10)
	dst = append(dst, `,"limit":`...)
	dst = strconv.AppendInt(dst, limit, 10)
	return append(dst, '}', '\n')
}

// AppendTruncate appends the control row that says that all rows were removed
// at once, with its newline.
func AppendTruncate(dst []byte, txid, currentXmin uint64) []byte {
	dst = append(dst, `{"control":true,"type":"truncate","txid":`...)
	dst = strconv.AppendUint(dst, txid, 10)
	dst = append(dst, rowSince...)
	dst = strconv.AppendUint(dst, min(txid, currentXmin), 10)
	return append(dst, '}', '\n')
}

// Txid reads the txid of a row's or an oversize control row's document as the
// bridge encodes them, without decoding the rest; false for anything else.
func Txid(line []byte) (uint64, bool) {
	rest, ok := bytes.CutPrefix(line, []byte(rowTxid))
	if !ok {
		rest, ok = bytes.CutPrefix(line, []byte(`{"control":true,"type":"oversize","txid":`))
	}
	if !ok {
		return 0, false
	}
	n := 0
	for n < len(rest) && '0' <= rest[n] && rest[n] <= '9' {
		n++
	}
	txid, err := strconv.ParseUint(string(rest[:n]), 10, 64)
	return txid, err == nil
}

// Parts reads whether a row's document, as the bridge encodes it, is of a
// deleted row, and returns its data, which shares the line's memory; false for
// anything else. It does not look into the data, and does not allocate.
func Parts(line []byte) (deleted bool, data []byte, ok bool) {
	deleted, rest, ok := cutHead(line)
	if !ok {
		return false, nil, false
	}
	rest, ok = cutPrefix(rest, rowData)
	if end := len(rest) - len(rowTail); ok && end >= len("{}") && rest[0] == '{' && rest[end-1] == '}' && string(rest[end:]) == rowTail {
		return deleted, rest[:end], true
	}
	return false, nil, false
}

// cutHead cuts off the members that every row's document begins with, and
// returns whether it says deleted.
func cutHead(line []byte) (deleted bool, rest []byte, ok bool) {
	rest, ok = line, true
	for _, name := range [...]string{rowTxid, rowXmin, rowSince} {
		if rest, ok = cutNumber(rest, name); !ok {
			return false, nil, false
		}
	}
	if rest, ok = cutPrefix(rest, rowDeleted); !ok {
		return false, nil, false
	}
	if rest, deleted = cutPrefix(rest, "true"); !deleted {
		if rest, ok = cutPrefix(rest, "false"); !ok {
			return false, nil, false
		}
	}
	return deleted, rest, true
}

// cutNumber cuts a member's name and the digits behind it off.
func cutNumber(line []byte, name string) (rest []byte, ok bool) {
	if rest, ok = cutPrefix(line, name); !ok {
		return line, false
	}
	n := 0
	for n < len(rest) && '0' <= rest[n] && rest[n] <= '9' {
		n++
	}
	return rest[n:], n > 0
}

func cutPrefix(line []byte, prefix string) (rest []byte, ok bool) {
	if len(line) < len(prefix) || string(line[:len(prefix)]) != prefix {
		return line, false
	}
	return line[len(prefix):], true
}
