package relation

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"bridge/internal/spell"
	"bridge/internal/topic"

	"github.com/dustin/go-humanize"
	"github.com/jackc/pgx/v5"
)

// History says what a relation's stream keeps.
type History string

const (
	// HistoryLatest keeps the last version of each row.
	HistoryLatest History = "latest"
	// HistoryLog keeps every version, for MaxAge and up to MaxBytes.
	HistoryLog History = "log"
)

// Capture says how the bridge finds changes of a relation.
type Capture string

const (
	// CapturePoll reads the rows whose txid is new.
	CapturePoll Capture = "poll"
	// CaptureWAL reads logical replication.
	CaptureWAL Capture = "wal"
)

// Spec is one entry of BRIDGE_TABLES: a relation and its options. The parser
// fills in all defaults, except those of Key and Deleted, which depend on the
// catalog.
type Spec struct {
	Name Name
	// Key has the columns of the key. If it is empty, the key is the primary key,
	// else a unique index. A view must name its key.
	Key []string
	// Txid is the column with the row's transaction ID, by default txid.
	Txid string
	// Deleted is the column that marks deleted rows, and must exist. If it is
	// empty, that is the column named deleted, if there is one.
	Deleted string
	History History
	// MaxAge and MaxBytes limit a log; 0 is no limit.
	MaxAge   time.Duration
	MaxBytes int64
	// Tombstones is how long a latest stream keeps deleted rows; 0 is for ever.
	Tombstones time.Duration
	Capture    Capture
	// Reconcile is how often the stream is compared with the relation; 0 is as often
	// as with others.
	Reconcile time.Duration
	// Republish is where the broker sends copies of what the stream stores.
	Republish topic.Topic
	// Events is whether a latest stream says, in a header, which change of the WAL a row
	// comes from. A log always says it.
	Events bool
	// Actions are those of the package's Actions that a relation with capture=wal
	// publishes; empty for all.
	Actions []string
}

// Actions are the kinds of changes in the WAL.
var Actions = []string{"insert", "update", "delete", "truncate"}

// Publishes reports whether the spec has the action published.
func (s Spec) Publishes(action string) bool {
	return len(s.Actions) == 0 || slices.Contains(s.Actions, action)
}

// LeftOut returns a warning if the spec has actions published that the
// publication never sends, else nil.
func (s Spec) LeftOut(publication string, sent []string) *Problem {
	var missing []string
	for _, action := range Actions {
		if s.Publishes(action) && !slices.Contains(sent, action) {
			missing = append(missing, action)
		}
	}
	if len(missing) == 0 {
		return nil
	}
	return &Problem{
		Relation: s.Name, Severity: SeverityWarning,
		What: fmt.Sprintf("publication %s leaves out its %s: the bridge finds such changes only when it compares the relation with its stream", publication, strings.Join(missing, ", ")),
		Do:   fmt.Sprintf("ALTER PUBLICATION %s SET (publish = 'insert, update, delete, truncate'), or name the actions that you want in BRIDGE_TABLES, for example actions=insert+update", pgx.Identifier{publication}.Sanitize()),
	}
}

// Specs is what BRIDGE_TABLES says.
type Specs struct {
	// List has the relations that BRIDGE_TABLES names, in its order.
	List []Spec
	// All is set if there is a *: every table of schema public that qualifies and
	// is neither in List nor in Except. It has the options of these tables, and no
	// name.
	All    *Spec
	Except []Name
}

// ReadsWAL reports whether relations are read from the WAL. With * it may be that
// none is.
func (s Specs) ReadsWAL() bool {
	fromWAL := func(spec Spec) bool { return spec.Capture == CaptureWAL }
	return s.All != nil && fromWAL(*s.All) || slices.ContainsFunc(s.List, fromWAL)
}

const (
	defaultTxid    = "txid"
	defaultDeleted = "deleted"
	defaultSchema  = "public"
)

// NewSpec returns the spec of a relation without options.
func NewSpec(n Name) Spec {
	return Spec{Name: n, Txid: defaultTxid, History: HistoryLatest, Capture: CapturePoll}
}

// String returns the specs in the form of BRIDGE_TABLES. ParseSpecs parses it to
// specs equal to s.
func (s Specs) String() string {
	var parts []string
	if s.All != nil {
		parts = append(parts, "*"+s.All.options())
	}
	for _, n := range s.Except {
		parts = append(parts, "-"+n.Quoted())
	}
	for _, spec := range s.List {
		parts = append(parts, spec.String())
	}
	return strings.Join(parts, ",")
}

// of returns the spec with the name of a relation.
func (s Spec) of(n Name) Spec {
	s.Name = n
	return s
}

// String returns the spec as an entry of BRIDGE_TABLES, without the options that
// have their default.
func (s Spec) String() string { return s.Name.Quoted() + s.options() }

// options returns the options in parentheses, or nothing.
func (s Spec) options() string {
	var opts []string
	add := func(name, value string, is bool) {
		if is {
			opts = append(opts, name+"="+value)
		}
	}
	add("key", quoteList(s.Key), len(s.Key) > 0)
	add("txid", quoteIdent(s.Txid), s.Txid != "" && s.Txid != defaultTxid)
	add("deleted", quoteIdent(s.Deleted), s.Deleted != "")
	add("history", string(s.History), s.History != "" && s.History != HistoryLatest)
	add("max_age", formatDuration(s.MaxAge), s.MaxAge > 0)
	add("max_bytes", formatBytes(s.MaxBytes), s.MaxBytes > 0)
	add("tombstones", formatDuration(s.Tombstones), s.Tombstones > 0)
	add("reconcile", formatDuration(s.Reconcile), s.Reconcile > 0)
	add("capture", string(s.Capture), s.Capture != "" && s.Capture != CapturePoll)
	add("events", "true", s.Events)
	add("republish", string(s.Republish), s.Republish != "")
	add("actions", strings.Join(s.Actions, "+"), len(s.Actions) > 0)
	if len(opts) == 0 {
		return ""
	}
	return "(" + strings.Join(opts, ";") + ")"
}

// Quoted returns the name for BRIDGE_TABLES and the command line: each part in
// double quotes if it needs them, and without the schema public.
func (n Name) Quoted() string {
	if n.Schema == defaultSchema {
		return quoteIdent(n.Table)
	}
	return quoteIdent(n.Schema) + "." + quoteIdent(n.Table)
}

func quoteList(names []string) string {
	quoted := make([]string, len(names))
	for i, n := range names {
		quoted[i] = quoteIdent(n)
	}
	return strings.Join(quoted, "+")
}

// quoteIdent puts a name into double quotes if BRIDGE_TABLES would read it
// differently without. Reserved words of SQL need none here.
func quoteIdent(name string) string {
	plain := name != ""
	for i := 0; i < len(name) && plain; i++ {
		c := name[i]
		plain = (i == 0 && isIdentStart(c) || i > 0 && isIdentByte(c)) && (c < 'A' || c > 'Z')
	}
	if plain {
		return name
	}
	return `"` + strings.ReplaceAll(name, `"`, `""`) + `"`
}

func isIdentStart(c byte) bool {
	return c == '_' || 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || c >= 0x80
}

func isIdentByte(c byte) bool {
	return isIdentStart(c) || '0' <= c && c <= '9' || c == '$'
}

// SpecError is one mistake in BRIDGE_TABLES.
type SpecError struct {
	// Entry is the entry as it was written, shortened if it is long.
	Entry string
	// Number counts entries, Position characters of BRIDGE_TABLES, both from 1.
	Number, Position int
	// What says what is wrong, and what would be right.
	What string
}

func (e *SpecError) Error() string {
	return fmt.Sprintf("entry %d %s, character %d: %s", e.Number, e.Entry, e.Position, e.What)
}

const day = 24 * time.Hour

// ParseDuration parses a Go duration that may begin with days, such as 30d, 1d12h
// or 90m. It must be at least a second.
func ParseDuration(s string) (time.Duration, error) {
	errUsage := errors.New("want a duration of at least 1s, such as 30d, 24h or 90m")
	rest := s
	var days time.Duration
	if i := strings.IndexByte(s, 'd'); i >= 0 {
		n, err := strconv.ParseUint(s[:i], 10, 32)
		if err != nil || n > uint64(math.MaxInt64/day) {
			return 0, errUsage
		}
		days, rest = time.Duration(n)*day, s[i+1:]
	}
	var d time.Duration
	if rest != "" || days == 0 {
		var err error
		if d, err = time.ParseDuration(rest); err != nil || d < 0 {
			return 0, errUsage
		}
	}
	if d > math.MaxInt64-days || days+d < time.Second {
		return 0, errUsage
	}
	return days + d, nil
}

// formatDuration returns a text that ParseDuration parses to the same value.
func formatDuration(d time.Duration) string {
	if d < day {
		return d.String()
	}
	s := strconv.FormatInt(int64(d/day), 10) + "d"
	if rest := d % day; rest > 0 {
		s += rest.String()
	}
	return s
}

var byteUnits = []struct {
	name string
	n    int64
}{
	{"TiB", 1 << 40},
	{"TB", 1e12},
	{"GiB", 1 << 30},
	{"GB", 1e9},
	{"MiB", 1 << 20},
	{"MB", 1e6},
	{"KiB", 1 << 10},
	{"KB", 1e3},
	{"B", 1},
}

func parseBool(s string) (bool, error) {
	if s != "true" && s != "false" {
		return false, errors.New("want true or false")
	}
	return s == "true", nil
}

// parseBytes parses a number of bytes from 1 to 2⁶³ − 1, with or without a unit:
// 10GiB, 500MB, 1048576.
func parseBytes(s string) (int64, error) {
	n, err := humanize.ParseBytes(s)
	if err != nil || n == 0 || n > math.MaxInt64 {
		return 0, errors.New("want a number of bytes, such as 10GiB, 500MB or 1048576")
	}
	return int64(n), nil
}

// formatBytes returns a text that parseBytes parses to the same value.
func formatBytes(n int64) string {
	for _, u := range byteUnits {
		if u.n > 1 && n%u.n == 0 && n > 0 {
			return strconv.FormatInt(n/u.n, 10) + u.name
		}
	}
	return strconv.FormatInt(n, 10)
}

// nearest returns the name most similar to s, or "" if none is so similar that s
// may be a typing error.
func nearest(s string, names []string) string {
	name, _ := spell.Nearest(s, names, max(1, len(s)/3))
	return name
}

func oneOf[T ~string](v string, values ...T) (T, error) {
	if i := slices.Index(values, T(lowerASCII(v))); i >= 0 {
		return values[i], nil
	}
	return "", fmt.Errorf("want %s or %s", values[0], values[1])
}

func lowerASCII(s string) string {
	b := []byte(s)
	for i, c := range b {
		if 'A' <= c && c <= 'Z' {
			b[i] = c + 'a' - 'A'
		}
	}
	return string(b)
}

type rawEntry struct {
	text string
	pos  int
}

// splitEntries splits s at the commas outside quotes and parentheses.
func splitEntries(s string) []rawEntry {
	var entries []rawEntry
	start, quoted, inside := 0, false, false
	for i := 0; i < len(s); i++ {
		switch c := s[i]; {
		case c == '"':
			quoted = !quoted
		case quoted:
		case c == '(':
			inside = true
		case c == ')':
			inside = false
		case c == ',' && !inside:
			entries = append(entries, rawEntry{s[start:i], start})
			start = i + 1
		}
	}
	return append(entries, rawEntry{s[start:], start})
}
