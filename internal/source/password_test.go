package source_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"bridge/internal/source"
)

// A file that holds no password is refused by an error that names the file, says what to do, and tells no password.
func TestCheckPassword_SaysWhatIsWrongWithTheFile(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	file := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	link := filepath.Join(dir, "link")
	if err := os.Symlink(file("linked", "Zq9"), link); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct{ path, want string }{
		{"", ""},
		{file("unix", "Zq9\n"), ""},
		{file("windows", "Zq9\r\n"), ""},
		{file("bare", " Zq9 "), ""},
		{link, ""},
		{file("empty", ""), "is empty; to do: write the password to it"},
		{file("newline", "\n"), "is empty"},
		{file("lines", "h:5432:db:u:Zq9\nh:5433:db:u:Zq9\n"), "has more than one line"},
		{file("zero", "Zq9\x00"), "has more than one line"},
		{file("large", strings.Repeat("Zq9", 10_000)), "has 30000 bytes"},
		{dir, "is not a file"},
		{filepath.Join(dir, "gone"), "does not exist; to do: write the password to it, or correct the path"},
	} {
		err := source.Server{PasswordFile: tc.path}.CheckPassword()
		switch {
		case tc.want == "" && err == nil:
		case tc.want == "" || err == nil:
			t.Errorf("%s: got %v, want %q", tc.path, err, tc.want)
		case !strings.Contains(err.Error(), "DATABASE_PASSWORD_FILE: "+tc.path+" "+tc.want) || strings.Contains(err.Error(), "Zq9"):
			t.Errorf("%s: got %v, want the file and %q", tc.path, err, tc.want)
		}
	}
	// The password itself in place of the path.
	for _, password := range []string{"Zq9", "/Zq9", "/a/Zq9=", "a/Zq9"} {
		err := source.Server{PasswordFile: password}.CheckPassword()
		if err == nil || strings.Contains(err.Error(), "Zq9") {
			t.Errorf("%s: got %v, want an error that does not repeat it", password, err)
		}
	}
}
