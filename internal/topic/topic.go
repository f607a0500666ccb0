// Package topic is the setting that says where the broker sends a copy of each message
// that a relation's stream has stored.
package topic

import (
	"errors"
	"fmt"
	"strings"
)

// Topic is empty, Off, or a template. If it is empty, a copy goes to the message's own
// subject, so that a subscriber of the stream's subjects sees exactly what is stored.
// A template is a subject for copies of the rows, with these placeholders:
//
//	{schema}, {table}   the relation's names, escaped as in the stream's subjects
//	{key}               the row's key as in the stream's subjects; a token by itself
type Topic string

// Off says that no copies are sent.
const Off Topic = "off"

// Key is the placeholder of the row's key.
const Key = "{key}"

// maxLen bounds a template, so that the subject has room for names and key: the server
// closes a connection that sends a subject above 4 KB.
const maxLen = 200

// IsTemplate says whether rows are sent to subjects of the user's choice.
func (t Topic) IsTemplate() bool { return t != "" && t != Off }

// HasKey says whether the subject holds the row's key.
func (t Topic) HasKey() bool { return strings.Contains(string(t), Key) }

// EndsWithKey says whether the key is the end of the subject. Then it may have any
// number of tokens. Elsewhere the broker can only copy one token.
func (t Topic) EndsWithKey() bool { return strings.HasSuffix(string(t), "."+Key) }

// Expand returns the subject with these values in place of the placeholders.
func (t Topic) Expand(schema, table, key string) string {
	return strings.NewReplacer("{schema}", schema, "{table}", table, Key, key).Replace(string(t))
}

// Parse returns an error if the text is neither Off nor a template.
func Parse(text string) (Topic, error) {
	t := Topic(text)
	if t == Off {
		return t, nil
	}
	if len(text) > maxLen {
		return "", fmt.Errorf("the subject is longer than %d bytes", maxLen)
	}
	for i, token := range strings.Split(text, ".") {
		rest := strings.NewReplacer("{schema}", "s", "{table}", "t").Replace(token)
		switch {
		case token == "":
			return "", errors.New("a subject needs something before, between and after its dots; for example events.{schema}.{table}")
		case token == Key && i > 0 && strings.Count(text, Key) == 1:
		case strings.Contains(token, Key):
			return "", errors.New("{key} may come once, between two dots or after the last")
		case strings.ContainsAny(rest, "{}"):
			return "", fmt.Errorf("unknown placeholder in %q: there are {schema}, {table} and {key}", token)
		case strings.ContainsAny(rest, "*>$"):
			return "", fmt.Errorf("%q has one of the characters *, > and $, which have a meaning for the broker", token)
		case strings.ContainsFunc(rest, func(c rune) bool { return c <= ' ' || c > '~' }):
			return "", fmt.Errorf("%q has a character that is not a visible one of ASCII", token)
		}
	}
	return t, nil
}
