package main

import (
	"bytes"
	"fmt"
	"strings"
	"testing"
)

// No command shows the password of a wrong DATABASE_URL or NATS_URL, and bridge check says what to do about it.
func TestCommands_ShowNoPassword(t *testing.T) {
	t.Setenv("BRIDGE_TABLES", "users")
	for _, url := range []string{
		"postgres://u:a@Zq9@127.0.0.1:1/app", "postgres://u:a#Zq9@Zq9@127.0.0.1:1/app", "postgres://u:a/Zq9@127.0.0.1:1/app",
		"postgres://u:1/Zq9@127.0.0.1:1/app", "password = Zq9 host=127.0.0.1 port=1", "host=127.0.0.1 PASSWORD=Zq9 port=1",
		"host=127.0.0.1 password = 'Zq9", "postgress://u:Zq9@127.0.0.1:1/app?sslmode=disable", "host=127.0.0.1 port=1 password=a b=Zq9",
	} {
		t.Setenv("DATABASE_URL", url)
		t.Setenv("NATS_URL", "nats://u:1#Zq9@127.0.0.1:1")
		for _, args := range [][]string{{"check"}, {"check", "--json"}, {"sql", "users"}, {"adopt", "users"}, {"tail", "users"}, {}} {
			var out bytes.Buffer
			err := run(t.Context(), args, &out, &out)
			if err == nil {
				t.Fatalf("%s: bridge %v succeeded", url, args)
			}
			if told := out.String() + err.Error(); strings.Contains(told, "Zq9") {
				t.Errorf("%s: bridge %v shows the password: %s", url, args, told)
			} else if len(args) == 1 && args[0] == "check" && !strings.Contains(told, "percent-encode") {
				t.Errorf("%s: bridge check does not say what to do: %s", url, told)
			}
		}
	}
}

// Where nothing can be mistaken for a password, names are told.
func TestCommands_ShowTheHost(t *testing.T) {
	t.Setenv("BRIDGE_TABLES", "users")
	t.Setenv("DATABASE_URL", "postgres://u:Zq9@127.0.0.1:1/app?sslmode=disable")
	var out bytes.Buffer
	err := run(t.Context(), []string{"check"}, &out, &out)
	if told := fmt.Sprint(out.String(), err); strings.Contains(told, "Zq9") || !strings.Contains(told, "127.0.0.1:1") || !strings.Contains(told, "user=u database=app") {
		t.Errorf("got %s", told)
	}
}
