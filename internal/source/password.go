package source

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"bridge/internal/redact"

	"github.com/jackc/pgx/v5/pgconn"
)

// Server says how to reach Postgres.
type Server struct {
	// URL is the DATABASE_URL.
	URL string
	// PasswordFile is the DATABASE_PASSWORD_FILE, or "". The password in it
	// goes before every other one.
	PasswordFile string
}

// maxPassword is how many bytes a file with a password may have. It is more
// than any server takes.
const maxPassword = 4 << 10

// login gives a connection that is about to be made the password of now. So a
// password that was rotated needs no restart.
func (s Server) login(c *pgconn.Config) error {
	if s.PasswordFile != "" {
		password, err := readPassword(s.PasswordFile)
		c.Password = password
		return err
	}
	// pgx reads PGPASSFILE, or the file that passfile= names, when it parses.
	fresh, err := pgconn.ParseConfig(s.URL)
	if err != nil {
		return unusable(err, s.URL)
	}
	c.Password = fresh.Password
	return nil
}

// readPassword reads a file that holds a password, and nothing else but one end
// of a line.
func readPassword(file string) (string, error) {
	wrong := func(what, do string) (string, error) {
		return "", fmt.Errorf("DATABASE_PASSWORD_FILE: %s %s; to do: %s", shownPath(file), what, do)
	}
	if !filepath.IsAbs(file) {
		return wrong("is not an absolute path", "name the file that holds the password, such as /run/secrets/password")
	}
	info, err := os.Stat(file)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return wrong("does not exist", "write the password to it, or correct the path")
	case err == nil && !info.Mode().IsRegular():
		return wrong("is not a file", "name the file that holds the password")
	case err == nil && info.Size() > maxPassword:
		return wrong(fmt.Sprintf("has %d bytes, too many for a password", info.Size()), "write the password to it, and nothing else")
	}
	b, err := os.ReadFile(file)
	if err != nil {
		return wrong("can't be read: "+reason(err), "let the user that runs the bridge read it")
	}
	password := strings.TrimSuffix(strings.TrimSuffix(string(b), "\n"), "\r")
	switch {
	case password == "":
		return wrong("is empty", "write the password to it")
	case strings.ContainsAny(password, "\n\r\x00"):
		return wrong("has more than one line", "write the password to it, and nothing else; a file of several passwords belongs into PGPASSFILE")
	}
	return password, nil
}

// reason returns the text of an error of a file, without the path.
func reason(err error) string {
	var path *os.PathError
	if errors.As(err, &path) {
		return path.Err.Error()
	}
	return err.Error()
}

// path matches what looks like the path of a file in some directory.
var path = regexp.MustCompile(`^(?:/[A-Za-z0-9._-]+){2,}$`)

// shownPath returns the path of a file for an error. If it does not look like
// one, somebody may have put the password itself in its place.
func shownPath(file string) string {
	if path.MatchString(file) {
		return file
	}
	if _, err := os.Stat(file); err == nil && filepath.IsAbs(file) {
		return file
	}
	return "its value (which is not shown, because it may be the password itself)"
}

// from says where a password that Postgres refused came from. It is "" for the
// one of the connection string.
func (s Server) from(err error) string {
	var pg *pgconn.PgError
	if !errors.As(err, &pg) || !strings.HasPrefix(pg.Code, "28") {
		return ""
	}
	if s.PasswordFile != "" {
		return "; the password is that of DATABASE_PASSWORD_FILE, " + shownPath(s.PasswordFile)
	}
	file := os.Getenv("PGPASSFILE")
	if fresh, err := pgconn.ParseConfig(s.URL); file == "" || err != nil {
		return ""
	} else if fresh.Password != "" {
		return "; the password is that of DATABASE_URL or PGPASSWORD, else of PGPASSFILE, " + shownPath(file)
	}
	if f, err := os.Open(file); err != nil {
		return fmt.Sprintf("; PGPASSFILE: %s can't be read: %s", shownPath(file), reason(err))
	} else {
		_ = f.Close()
	}
	return fmt.Sprintf("; PGPASSFILE: %s has no line for this host, port, database and user", shownPath(file))
}

// safe is the error of a connection, with a text that holds nothing of a
// password. Other errors are not changed.
func (s Server) safe(err error) error {
	if !isConnect(err) {
		return err
	}
	told := redact.Postgres.Error(err, s.URL)
	if redact.Postgres.Advice(s.URL) == "" {
		told = plainer(err)
	}
	if from := s.from(err); from != "" {
		return fmt.Errorf("%w%s", told, from)
	}
	return told
}

// plainer leaves out of the text of an error what does not help. pgx has one line
// for each try. Without sslmode it tries with TLS first, and then without: that
// the server has no TLS is not why the other try failed. The addresses of a host
// often fail in the same way.
func plainer(err error) error {
	lines := strings.Split(err.Error(), "\n\t")
	var tries, tls []string
	for _, line := range lines[1:] {
		switch {
		case strings.HasSuffix(line, refusedTLS):
			tls = append(tls, line)
		case !slices.Contains(tries, line):
			tries = append(tries, line)
		}
	}
	if len(tries) == 0 {
		tries = tls
	}
	switch len(tries) {
	case 0:
		return err
	case 1:
		return &retold{lines[0] + " " + tries[0], err}
	}
	return &retold{lines[0] + "\n\t" + strings.Join(tries, "\n\t"), err}
}

// retold is an error with another text.
type retold struct {
	text string
	err  error
}

func (r *retold) Error() string { return r.text }
func (r *retold) Unwrap() error { return r.err }
