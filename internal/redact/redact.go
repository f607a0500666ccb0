// Package redact turns the error of a connection into text that holds nothing of the password in its connection string.
// The errors of the drivers name hosts, users, databases and settings as the driver understood the string. If somebody
// wrote a special character of the password as it is, the driver took a piece of the password for one of these.
//
// The rule is strict. If a connection string can be read in one way only, [Setting.Error] keeps the driver's text. Else the text
// says what failed in words of this package, and nothing of the connection string. Where the string is read in one way
// only, a name in it is a name: nobody can tell that a user wrote the password in the place of the host.
//
// The package knows no driver. source calls it for Postgres, broker for NATS.
package redact

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"
	"regexp"
	"strings"
	"syscall"
)

// Setting is a setting that holds a connection string.
type Setting string

const (
	Postgres Setting = "DATABASE_URL"
	NATS     Setting = "NATS_URL"
)

// What a user does about a connection string that could be read in several ways.
const (
	adviseURL    = "percent-encode every special character of user and password: @ is %40, # is %23, / is %2F, : is %3A, % is %25"
	adviseQuotes = "write it without quotes around it"
	adviseScheme = "begin it with postgres://; " + adviseURL
	adviseDSN    = "make the password its last setting, in single quotes; in it, write \\' for ' and \\\\ for \\"
)

// Error returns an error that wraps err, and whose text holds nothing of a password. value is the connection string. It
// returns nil if err is nil.
func (s Setting) Error(err error, value string) error {
	if err == nil {
		return nil
	}
	advice := s.Advice(value)
	if advice == "" {
		return err
	}
	return &redacted{
		text: fmt.Sprintf("%s (no names are shown, because %s can be read in several ways; %s)", words(err), s, advice),
		err:  err,
	}
}

// redacted is an error with another text.
type redacted struct {
	text string
	err  error
}

func (r *redacted) Error() string { return r.text }
func (r *redacted) Unwrap() error { return r.err }

// Public returns an error with the text of shown, which holds nothing of a connection string. It wraps err, too, if err
// is not nil. Error keeps the text.
func Public(shown, err error) error { return &public{shown, err} }

type public struct{ shown, err error }

func (p *public) Error() string { return p.shown.Error() }

func (p *public) Unwrap() []error {
	if p.err == nil {
		return []error{p.shown}
	}
	return []error{p.shown, p.err}
}

// words says what failed, and names nothing.
func words(err error) string {
	var (
		said     *public
		state    interface{ SQLState() string } // an error of Postgres
		dns      *net.DNSError
		errno    syscall.Errno
		alert    tls.AlertError
		record   tls.RecordHeaderError
		verify   *tls.CertificateVerificationError
		hostname x509.HostnameError
		unknown  x509.UnknownAuthorityError
		invalid  x509.CertificateInvalidError
	)
	switch {
	case errors.As(err, &said):
		return said.Error()
	case errors.As(err, &state):
		return refusal(state.SQLState())
	case errors.Is(err, context.Canceled):
		return context.Canceled.Error()
	case errors.As(err, &dns):
		return "the host's name could not be resolved"
	case errors.As(err, &errno):
		return errno.Error()
	case errors.As(err, &verify), errors.As(err, &hostname), errors.As(err, &unknown), errors.As(err, &invalid):
		return "the certificate of the server is not accepted"
	case errors.As(err, &alert), errors.As(err, &record):
		return "TLS failed"
	case errors.Is(err, context.DeadlineExceeded), os.IsTimeout(err):
		return "timeout"
	}
	return "no connection"
}

// refusal says in other words what Postgres said. Its own message repeats names and values.
func refusal(code string) string {
	text := "the server refused the connection"
	switch {
	case code == "28P01":
		text = "password authentication failed"
	case strings.HasPrefix(code, "28"):
		text = "the server does not accept the user"
	case code == "3D000":
		text = "the database does not exist"
	case code == "53300":
		text = "too many clients already"
	case strings.HasPrefix(code, "57P"):
		text = "the server is starting up, or shutting down"
	}
	if !sqlState.MatchString(code) {
		return text
	}
	return text + " (SQLSTATE " + code + ")"
}

var sqlState = regexp.MustCompile(`^[0-9A-Z]{5}$`)

// Advice says what to do about a connection string that can be read in several ways. It is empty for one that can be
// read in one way only: then every name in it is a name, and no part of a password.
func (s Setting) Advice(value string) string {
	quoted := strings.HasPrefix(strings.TrimSpace(value), `"`) || strings.HasPrefix(strings.TrimSpace(value), "'")
	switch {
	case quoted: // as by an env file of Docker
		return adviseQuotes
	case s == NATS:
		if !plainServers(value) {
			return adviseURL
		}
	case strings.HasPrefix(value, "postgres://"), strings.HasPrefix(value, "postgresql://"):
		if !plainURL(value) {
			return adviseURL
		}
	case keyword.MatchString(value):
		if !plainDSN(value) {
			return adviseDSN
		}
	default: // a URL of something else
		return adviseScheme
	}
	return ""
}

const (
	host = `(?:[A-Za-z0-9._-]*|(?:%2[Ff][A-Za-z0-9._-]+)+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?`
	name = `[A-Za-z0-9._$-]*`
	// pass is what a password may be written as before the @ of a URL.
	pass = `[^@/?%]*(?:%[0-9A-Fa-f]{2}[^@/?%]*)*`
)

var (
	urlForm    = regexp.MustCompile(`^postgres(?:ql)?://(?:` + name + `(?::` + pass + `)?@)?` + host + `(?:,` + host + `)*(?:/` + name + `)?(?:\?(.*))?$`)
	parameter  = regexp.MustCompile(`^([A-Za-z_][A-Za-z0-9_.]*)=([^=@]*)$`)
	keyword    = regexp.MustCompile(`^\s*[A-Za-z_]+\s*=`)
	setting    = regexp.MustCompile(`(?s)^[\s\v]*([A-Za-z_][A-Za-z0-9_.]*)[\s\v]*=[\s\v]*('(?:[^'\\]|\\.)*'|[^'\\\s\v]*)(?:[\s\v]+|$)`)
	plainValue = regexp.MustCompile(`^(?:[A-Za-z0-9._$,-]*|/[A-Za-z0-9._/-]*|[0-9A-Fa-f:]+)$`)
	servers    = regexp.MustCompile(`^(?:(?:nats|tls|ws|wss)://)?(?:[^@/?#,]*@)?` + host + `/?$`)
)

// plainURL is true for a URL of Postgres in which no piece of a password can stand for anything else. A password before
// the host has no @, / and ?, so that the only @ ends it. A password among the parameters comes last.
func plainURL(value string) bool {
	m := urlForm.FindStringSubmatch(value)
	if m == nil {
		return false
	}
	if m[1] == "" {
		return true
	}
	all := strings.Split(m[1], "&")
	for i, p := range all {
		kv := parameter.FindStringSubmatch(p)
		if kv == nil || secret(kv[1]) && i < len(all)-1 || named(kv[1]) && !plainValue.MatchString(kv[2]) {
			return false
		}
	}
	return true
}

// plainDSN is true for a DSN in which no piece of the password can stand for another setting, because the password is
// its last setting.
func plainDSN(value string) bool {
	for value != "" {
		m := setting.FindStringSubmatch(value)
		if m == nil {
			return false
		}
		value = value[len(m[0]):]
		if secret(m[1]) && value != "" || named(m[1]) && !plainValue.MatchString(strings.Trim(m[2], "'")) {
			return false
		}
	}
	return true
}

// plainServers is true for URLs of NATS in which no piece of a password can stand for a host. A password may have a
// comma, as the list has. So the only @ is in the first URL.
func plainServers(value string) bool {
	for i, s := range strings.Split(value, ",") {
		if !servers.MatchString(strings.TrimSpace(s)) || i > 0 && strings.Contains(s, "@") {
			return false
		}
	}
	return true
}

// secret is true for the names of settings that hold a password, and for misspelt ones.
func secret(key string) bool {
	key = strings.ToLower(key)
	return key != "passfile" && (strings.Contains(key, "pass") || strings.Contains(key, "pw") || strings.Contains(key, "secret"))
}

// named is true for settings whose values are repeated by errors.
func named(key string) bool {
	switch key {
	case "host", "hostaddr", "port", "user", "dbname", "database":
		return true
	}
	return false
}
