package lockstep

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"time"
)

// Row is one version of one row.
type Row struct {
	// Txid is the ID of the transaction that last wrote the row.
	Txid uint64 `json:"txid"`
	// CurrentXmin is the xmin of the snapshot under which the row was read, or lower.
	CurrentXmin uint64 `json:"current_xmin"`
	// Since is the position from which to resume after this row.
	Since uint64 `json:"since"`
	// Deleted is true if the row no longer exists.
	Deleted bool `json:"deleted"`
	// Data is a JSON object of the row's columns.
	Data json.RawMessage `json:"data"`
	// The others are set only in a stream that keeps every change and is filled from
	// the write-ahead log. Action says what changed the row.
	Action Action `json:"action,omitempty"`
	// Event identifies the change, and CommittedAt is when its transaction was
	// committed. They are not set for ActionRead.
	Event       string    `json:"event,omitempty"`
	CommittedAt time.Time `json:"committed_at,omitzero"`
	// Old is the row's data before the change, as far as it is known.
	Old json.RawMessage `json:"old,omitempty"`
	// Unchanged are the columns that are not in Data.
	Unchanged []string `json:"unchanged,omitempty"`
}

// Types of control rows.
const (
	SnapshotCompleted = "snapshot_completed"
	HeartbeatType     = "heartbeat"
	Oversize          = "oversize"
	Truncate          = "truncate"
	Gap               = "gap"
	PositionType      = "position"
)

// Control is a control row. Which fields are set depends on Type; see the package
// comment.
type Control struct {
	Type      string          `json:"type"`
	Timestamp int64           `json:"timestamp,omitempty"`
	Since     uint64          `json:"since,omitempty"`
	Cursor    string          `json:"cursor,omitempty"`
	Txid      uint64          `json:"txid,omitempty"`
	Key       json.RawMessage `json:"key,omitempty"`
	Bytes     int64           `json:"bytes,omitempty"`
	Limit     int64           `json:"limit,omitempty"`
	Reason    string          `json:"reason,omitempty"`
	// Action, Event and CommittedAt are as in Row.
	Action      Action    `json:"action,omitempty"`
	Event       string    `json:"event,omitempty"`
	CommittedAt time.Time `json:"committed_at,omitzero"`
}

// Message is one document of a stream. Exactly one of its fields is not nil.
type Message struct {
	Row     *Row
	Control *Control
}

// ErrMalformed is wrapped by errors for text that is not what the protocol says it
// should be: a document for Decode and AppendFlat, a cursor for ParseCursor.
var ErrMalformed = errors.New("malformed lockstep document")

// Decode parses one document, with or without the newline that ends it. The message
// shares no memory with line.
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

// AppendRowHead appends a row's document up to the value of data. The caller appends
// that value, a JSON object, and then calls AppendRowTail. So a row is encoded in
// place, without a copy.
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
	// ActionRead marks a row that was found when the relation was read.
	ActionRead Action = "read"
)

// Change is what a stream that keeps every change says of a row beside its data. What
// is nil is left out.
type Change struct {
	Action Action
	// Event and CommittedAt are as in Row, as text.
	Event, CommittedAt []byte
	// Old is a JSON object, Unchanged a JSON array.
	Old, Unchanged []byte
}

// AppendChangeHead is AppendRowHead with the members of c.
func AppendChangeHead(dst []byte, txid, currentXmin uint64, deleted bool, c Change) []byte {
	dst = AppendRowHead(dst, txid, currentXmin, deleted)
	dst = c.appendEvent(dst[:len(dst)-len(rowData)])
	if c.Old != nil {
		dst = append(append(dst, `,"old":`...), c.Old...)
	}
	if c.Unchanged != nil {
		dst = append(append(dst, `,"unchanged":`...), c.Unchanged...)
	}
	return append(dst, rowData...)
}

// appendEvent appends the members that say which change it was.
func (c Change) appendEvent(dst []byte) []byte {
	if c.Event != nil {
		dst = append(append(append(dst, `,"event":"`...), c.Event...), '"')
	}
	if c.Action != "" {
		dst = append(append(append(dst, `,"action":"`...), c.Action...), '"')
	}
	if c.CommittedAt != nil {
		dst = append(append(append(dst, `,"committed_at":"`...), c.CommittedAt...), '"')
	}
	return dst
}

// AppendText appends Event, Action and CommittedAt with blanks between them. If there
// is no event, it appends nothing.
func (c Change) AppendText(dst []byte) []byte {
	if c.Event == nil {
		return dst
	}
	dst = append(append(dst, c.Event...), ' ')
	dst = append(append(dst, c.Action...), ' ')
	return append(dst, c.CommittedAt...)
}

// ParseChange parses what AppendText appended.
func ParseChange(text []byte) (Change, error) {
	event, rest, ok := bytes.Cut(text, []byte{' '})
	action, at, more := bytes.Cut(rest, []byte{' '})
	if !ok || !more || len(event) == 0 || len(action) == 0 || len(at) == 0 {
		return Change{}, fmt.Errorf("%w: an event is an ID, an action and a time: %q", ErrMalformed, text)
	}
	return Change{Action: Action(action), Event: event, CommittedAt: at}, nil
}

// AppendTime appends a time in the form of CommittedAt: RFC 3339 in UTC, with
// microseconds.
func AppendTime(dst []byte, t time.Time) []byte {
	return t.UTC().AppendFormat(dst, "2006-01-02T15:04:05.000000Z")
}

// AppendRowTail ends the document that AppendRowHead or AppendChangeHead began.
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

// AppendPosition appends, with its newline, the control row that tells a client where it
// is.
func AppendPosition(dst []byte, cursor Cursor) []byte {
	dst = append(dst, `{"control":true,"type":"position"`...)
	dst = strconv.AppendUint(append(dst, rowSince...), cursor.Since, 10)
	dst = append(dst, `,"cursor":"`...)
	dst = append(dst, cursor.String()...)
	return append(dst, '"', '}', '\n')
}

// AppendSnapshotCompleted appends a snapshot_completed document with its newline.
func AppendSnapshotCompleted(dst []byte, timestamp int64) []byte {
	dst = append(dst, `{"control":true,"type":"snapshot_completed","timestamp":`...)
	dst = strconv.AppendInt(dst, timestamp, 10)
	return append(dst, '}', '\n')
}

// AppendOversize appends, with its newline, the control row that replaces a row which
// is too large. key is a JSON object of the row's key columns. Of c, only what
// identifies the change is taken.
func AppendOversize(dst []byte, txid, currentXmin uint64, c Change, key []byte, size, limit int64) []byte {
	dst = appendOversizeHead(dst, txid, currentXmin, c, key, size)
	dst = append(dst, `,"limit":`...)
	dst = strconv.AppendInt(dst, limit, 10)
	return append(dst, '}', '\n')
}

// AppendRefused is AppendOversize for a row that the broker refused for a reason of
// its own. reason is what it said.
func AppendRefused(dst []byte, txid, currentXmin uint64, c Change, key []byte, size int64, reason string) []byte {
	dst = appendOversizeHead(dst, txid, currentXmin, c, key, size)
	dst = appendString(append(dst, `,"reason":`...), reason)
	return append(dst, '}', '\n')
}

// AppendGap appends, with its newline, the control row which says that changes may be
// missing before the next row.
func AppendGap(dst []byte, since uint64, reason string) []byte {
	dst = append(dst, `{"control":true,"type":"gap"`...)
	dst = strconv.AppendUint(append(dst, rowSince...), since, 10)
	dst = appendString(append(dst, `,"reason":`...), reason)
	return append(dst, '}', '\n')
}

func appendString(dst []byte, s string) []byte {
	text, _ := json.Marshal(s) // a string always has a JSON form
	return append(dst, text...)
}

// oversizeTxid is the beginning of an oversize control row.
const oversizeTxid = `{"control":true,"type":"oversize","txid":`

func appendOversizeHead(dst []byte, txid, currentXmin uint64, c Change, key []byte, size int64) []byte {
	dst = append(dst, oversizeTxid...)
	dst = strconv.AppendUint(dst, txid, 10)
	dst = append(dst, rowSince...)
	dst = strconv.AppendUint(dst, min(txid, currentXmin), 10)
	dst = c.appendEvent(dst)
	dst = append(dst, `,"key":`...)
	dst = append(dst, key...)
	dst = append(dst, `,"bytes":`...)
	return strconv.AppendInt(dst, size, 10)
}

// AppendTruncate appends, with its newline, the control row which says that a
// TRUNCATE removed all rows.
func AppendTruncate(dst []byte, txid, currentXmin uint64, c Change) []byte {
	dst = append(dst, `{"control":true,"type":"truncate","txid":`...)
	dst = strconv.AppendUint(dst, txid, 10)
	dst = append(dst, rowSince...)
	dst = strconv.AppendUint(dst, min(txid, currentXmin), 10)
	dst = c.appendEvent(dst)
	return append(dst, '}', '\n')
}

// Txid returns the txid of a row's or an oversize control row's document, as the
// bridge encodes them. It does not decode the rest. It returns false for anything
// else.
func Txid(line []byte) (uint64, bool) {
	rest, ok := bytes.CutPrefix(line, []byte(rowTxid))
	if !ok {
		rest, ok = bytes.CutPrefix(line, []byte(oversizeTxid))
	}
	if !ok {
		return 0, false
	}
	txid, err := strconv.ParseUint(string(rest[:digits(rest)]), 10, 64)
	return txid, err == nil
}

// Since returns the since of a document as the bridge encodes them. It is 0 where there
// is none. It does not decode the rest.
func Since(line []byte) uint64 {
	_, rest, _ := bytes.Cut(line, []byte(rowSince)) // before it stands nothing that a user wrote
	since, _ := strconv.ParseUint(string(rest[:digits(rest)]), 10, 64)
	return since
}

// Parts takes a row's document as the bridge encodes it in a stream of latest
// versions. It returns whether the row is deleted, and its data, which shares line's
// memory. For anything else ok is false. Parts does not parse the data and does not
// allocate.
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

// cutHead cuts off the members with which every row's document begins, and returns
// the value of deleted.
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

// cutNumber cuts off a member's name and the digits after it.
func cutNumber(line []byte, name string) (rest []byte, ok bool) {
	if rest, ok = cutPrefix(line, name); !ok {
		return line, false
	}
	n := digits(rest)
	return rest[n:], n > 0
}

// digits returns how many decimal digits the text begins with.
func digits(text []byte) (n int) {
	for n < len(text) && '0' <= text[n] && text[n] <= '9' {
		n++
	}
	return n
}

func cutPrefix(line []byte, prefix string) (rest []byte, ok bool) {
	if len(line) < len(prefix) || string(line[:len(prefix)]) != prefix {
		return line, false
	}
	return line[len(prefix):], true
}
