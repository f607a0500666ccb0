// Package program holds what bridge and httpedge share: settings from the
// environment, help, logs, version, and the health check of a container.
package program

import (
	"errors"
	"fmt"
	"io"
	"os"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"bridge/internal/broker"
	"bridge/internal/spell"

	"github.com/dustin/go-humanize"
	"github.com/kelseyhightower/envconfig"
)

// Settings reads the environment into cfg, a pointer to a struct of string
// fields. It returns a warning for each variable that is probably a misspelt
// setting. An empty variable counts as not set. All fields are strings, so that
// the caller can report every bad value together.
func Settings(prefix string, cfg any) (warnings []string, err error) {
	for _, f := range fields(prefix, cfg) {
		if os.Getenv(f.name) == "" { // an .env file sets variables to nothing
			_ = os.Unsetenv(f.name)
		}
	}
	if err := envconfig.Process(prefix, cfg); err != nil {
		return nil, fmt.Errorf("read the environment: %w", err)
	}
	var known []string
	for _, f := range fields(prefix, cfg) {
		known = append(known, f.name)
	}
	for _, kv := range os.Environ() {
		name, value, _ := strings.Cut(kv, "=")
		if w := misspelt(name, strings.ToUpper(prefix)+"_", known); w != "" && value != "" {
			warnings = append(warnings, w)
		}
	}
	return warnings, nil
}

// misspelt returns a warning if the variable name is no setting and was probably
// meant to be one: it has the prefix, or it resembles a setting that is not set.
func misspelt(name, prefix string, known []string) string {
	if slices.Contains(known, name) {
		return ""
	}
	short, prefixed := strings.CutPrefix(name, prefix)
	if !prefixed {
		// Other programs have variables, too, so it must resemble the setting
		// closely: NATS_PORT, which Kubernetes sets, is no NATS_CERT.
		near, _ := spell.Nearest(name, known, max(1, len(name)/6))
		if near == "" || os.Getenv(near) != "" {
			return ""
		}
		return didYouMean(name, near)
	}
	near, differ := spell.Nearest(name, known, len(name)/4)
	if other, less := spell.Nearest(short, known, 1); other != "" && less < differ { // HTTPEDGE_NATS_URL is NATS_URL
		near = other
	}
	for _, k := range known {
		if near == "" && (strings.HasPrefix(k, name+"_") || strings.HasSuffix(k, "_"+short)) { // a word is missing
			near = k
		}
	}
	if near == "" {
		return name + " is not a setting; --help lists the settings"
	}
	return didYouMean(name, near)
}

func didYouMean(name, near string) string {
	return fmt.Sprintf("%s is not a setting; did you mean %s?", name, near)
}

// ErrUsage marks the errors that end a program with status 2: a bad
// configuration or command line.
var ErrUsage = errors.New("bad configuration")

// Invalid collects what is wrong with a configuration.
type Invalid []Setting

// Setting is one variable and what is wrong with its value. Problem repeats the
// value only if the value can't be a secret.
type Setting struct{ Variable, Problem string }

// Add notes that the variable's value is wrong.
func (inv *Invalid) Add(variable, problem string) {
	*inv = append(*inv, Setting{variable, problem})
}

// Duration parses a duration and notes a problem unless it is from least to
// most.
func (inv *Invalid) Duration(variable, text string, least, most time.Duration) time.Duration {
	d, err := time.ParseDuration(text)
	if err != nil || d < least || d > most {
		inv.Add(variable, fmt.Sprintf("%q is not a duration from %s to %s, such as 250ms or 5s", text, least, most))
	}
	return d
}

// Bytes parses a number of bytes, with or without a unit, and notes a problem
// unless it is from least to most.
func (inv *Invalid) Bytes(variable, text string, least, most int64) int64 {
	n, err := humanize.ParseBytes(text)
	if err != nil || n < uint64(least) || n > uint64(most) {
		inv.Add(variable, fmt.Sprintf("%q is not a size from %s to %s, such as 64MiB (without a unit it is bytes)", text, humanize.IBytes(uint64(least)), humanize.IBytes(uint64(most))))
		return 0
	}
	return int64(n)
}

// Count parses a whole number and notes a problem unless it is from least to most.
func (inv *Invalid) Count(variable, text string, least, most int) int {
	n, err := strconv.Atoi(text)
	if err != nil || n < least || n > most {
		inv.Add(variable, fmt.Sprintf("%q is not a whole number from %d to %d", text, least, most))
		return 0
	}
	return n
}

// Broker notes what is wrong with NATS_URL, NATS_CREDS and the other variables
// for the connection to the broker.
func (inv *Invalid) Broker(c broker.Config) {
	for _, p := range c.Problems() {
		inv.Add("NATS_"+strings.ToUpper(p.Field), p.Err.Error())
	}
}

// Err returns all problems as one error that wraps ErrUsage, or nil.
func (inv Invalid) Err() error {
	if len(inv) == 0 {
		return nil
	}
	lines := make([]string, len(inv))
	for i, s := range inv {
		lines[i] = s.Variable + ": " + s.Problem
	}
	return fmt.Errorf("%w:\n  %s", ErrUsage, strings.Join(lines, "\n  "))
}

// WithWarnings adds the warnings of Settings to a configuration's error: if a
// variable is missing, its name was often misspelt.
func WithWarnings(err error, warnings []string) error {
	if len(warnings) == 0 {
		return err
	}
	return fmt.Errorf("%w\n  %s", err, strings.Join(warnings, "\n  "))
}

type field struct{ name, value, desc string }

// fields lists the variables of a configuration, from the tags of envconfig:
// split_words or envconfig, default, desc.
func fields(prefix string, cfg any) []field {
	var out []field
	t := reflect.TypeOf(cfg).Elem()
	for i := range t.NumField() {
		f := t.Field(i)
		if !f.IsExported() || f.Tag.Get("ignored") == "true" {
			continue
		}
		name := f.Tag.Get("envconfig")
		if name == "" {
			name = strings.ToUpper(prefix + "_" + words(f.Name))
		}
		out = append(out, field{name: name, value: f.Tag.Get("default"), desc: f.Tag.Get("desc")})
	}
	return out
}

// words splits CamelCase as envconfig's split_words does.
func words(name string) string {
	var b strings.Builder
	for i, c := range name {
		upper := 'A' <= c && c <= 'Z'
		if upper && i > 0 {
			prev := name[i-1]
			next := byte('A')
			if i+1 < len(name) {
				next = name[i+1]
			}
			if 'a' <= prev && prev <= 'z' || 'a' <= next && next <= 'z' {
				b.WriteByte('_')
			}
		}
		b.WriteRune(c)
	}
	return b.String()
}

// PrintSettings writes the table of settings for --help.
func PrintSettings(w io.Writer, prefix string, cfg any) {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, f := range fields(prefix, cfg) {
		value := f.value
		if value == "" {
			value = "-"
		}
		_, _ = fmt.Fprintf(tw, "  %s\t%s\t%s\n", f.name, value, f.desc)
	}
	_ = tw.Flush()
}

// MarkdownSettings returns the same table as docs/settings.md has it.
func MarkdownSettings(prefix string, cfg any) string {
	var b strings.Builder
	b.WriteString("| variable | default | meaning |\n|---|---|---|\n")
	for _, f := range fields(prefix, cfg) {
		value := ""
		if f.value != "" {
			value = "`" + f.value + "`"
		}
		fmt.Fprintf(&b, "| `%s` | %s | %s |\n", f.name, value, strings.ReplaceAll(f.desc, "|", "\\|"))
	}
	return b.String()
}
