package redact_test

import (
	"errors"
	"fmt"
	"net"
	"strings"
	"syscall"
	"testing"

	"bridge/internal/redact"
)

// Where a string can be read in one way only, the driver's words stay: operators need them.
func TestAdvice_OnlyForWhatCanBeReadInSeveralWays(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		setting redact.Setting
		value   string
		plain   bool
	}{
		{redact.Postgres, "postgres://lockstep@localhost:5432/app", true},
		{redact.Postgres, "postgres://lockstep:s3#cret@db-1.internal/app?sslmode=verify-full&sslrootcert=/etc/ca.pem", true},
		{redact.Postgres, "postgresql://u:p%40ss@[::1]:5432,h2:5433/app_1", true},
		{redact.Postgres, "postgres://u@%2Fvar%2Frun%2Fpostgresql/app", true},
		{redact.Postgres, "postgres://h/app?user=u&password=x", true},
		{redact.Postgres, "postgres://h/app?password=x&user=u", false},
		{redact.Postgres, "postgres://u:p@ss@h/app", false},
		{redact.Postgres, "postgres://u:p/ss@h/app", false},
		{redact.Postgres, "postgres://u:p?ss@h/app", false},
		{redact.Postgres, "postgres://u:5432/p@h/app", false},
		{redact.Postgres, "postgres://u:p%zs@h/app", false},
		{redact.Postgres, "postgres://u%3Ap@h/app", false},
		{redact.Postgres, "postgress://u:p@h/app?sslmode=disable", false},
		{redact.Postgres, `"postgres://u:p@h/app"`, false},
		{redact.Postgres, " postgres://u:p@h/app", false},
		{redact.Postgres, "u:a=p@h", false},
		{redact.Postgres, "host=/var/run/postgresql dbname=app user = 'u'", true},
		{redact.Postgres, "host=h dbname=app user=u password = s3cret", true},
		{redact.Postgres, `host=h password='s3 \'cret' `, true},
		{redact.Postgres, "host=h passfile=/run/pgpass dbname=app", true},
		{redact.Postgres, "host=h password=s3 cret=x", false},
		{redact.Postgres, "host=h PASSWORD=s3cret dbname=app", false},
		{redact.Postgres, "host=h user=u:p", false},
		{redact.Postgres, "host=h password s3cret", false},
		{redact.NATS, "nats://a:4222, tls://b", true},
		{redact.NATS, "nats://u:p@a:4222,b:4222", true},
		{redact.NATS, "wss://[::1]:443/", true},
		{redact.NATS, "nats://u:p@ss@a", false},
		{redact.NATS, "nats://u:1#p@a", false},
		{redact.NATS, "nats://u:1,p,x@a", false},
	} {
		if got := tc.setting.Advice(tc.value); (got == "") != tc.plain {
			t.Errorf("%s=%s: advice %q, want none: %v", tc.setting, tc.value, got, tc.plain)
		}
	}
}

// Who wrote quotes around a URL, or the URL of another library, has no special character to encode.
func TestAdvice_NamesWhatIsWrongAtTheBeginning(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		setting     redact.Setting
		value, want string
	}{
		{redact.Postgres, `"postgres://u:p@h/app"`, "without quotes"},
		{redact.Postgres, `'host=h user=u'`, "without quotes"},
		{redact.NATS, `"nats://a:4222"`, "without quotes"},
		{redact.Postgres, "jdbc:postgresql://h/app?user=u", "begin it with postgres://"},
		{redact.Postgres, "u:p@h/app", "begin it with postgres://"},
	} {
		if got := tc.setting.Advice(tc.value); !strings.HasPrefix(got, tc.want) && !strings.HasPrefix(got, "write it "+tc.want) {
			t.Errorf("%s=%s: advice %q, want %q", tc.setting, tc.value, got, tc.want)
		}
	}
}

func TestError_SaysWhatFailedInItsOwnWords(t *testing.T) {
	t.Parallel()
	const several = "postgres://u:p@Zq9@h/app"
	for _, tc := range []struct {
		err  error
		want string
	}{
		{fmt.Errorf("dial Zq9@h: %w", &net.DNSError{Err: "no such host", Name: "Zq9@h"}), "the host's name could not be resolved"},
		{fmt.Errorf("dial Zq9: %w", &net.OpError{Op: "dial", Err: syscall.ECONNREFUSED}), "connection refused"},
		{errors.Join(errors.New("Zq9"), redact.Public(errors.New("the file is gone"), errors.New("Zq9"))), "the file is gone"},
		{refused{"28P01"}, "password authentication failed (SQLSTATE 28P01)"},
		{refused{"Zq9"}, "the server refused the connection"},
		{errors.New("Zq9"), "no connection"},
	} {
		err := redact.Postgres.Error(tc.err, several)
		if got := err.Error(); !strings.HasPrefix(got, tc.want+" (no names are shown, because DATABASE_URL can be read in several ways; percent-encode") {
			t.Errorf("%v: got %q", tc.err, got)
		}
		if strings.Contains(err.Error(), "Zq9") || !errors.Is(err, tc.err) {
			t.Errorf("%v: got %q, which tells the password or wraps something else", tc.err, err)
		}
	}
	refusal := errors.New(`database "app" does not exist`)
	if err := redact.Postgres.Error(refusal, "postgres://u:p@h/app"); err != refusal { //nolint:errorlint // the same error is wanted
		t.Errorf("got %v, want the error as it is", err)
	}
	if err := redact.Postgres.Error(nil, several); err != nil {
		t.Errorf("got %v for no error", err)
	}
}

type refused struct{ state string }

func (r refused) Error() string    { return "Zq9" }
func (r refused) SQLState() string { return r.state }
