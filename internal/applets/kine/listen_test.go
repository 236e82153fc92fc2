package kine

import (
	"io/fs"
	"os"
	"path/filepath"
	"testing"
)

func TestTheGroupConnectsOnlyWhereThatIsAskedFor(t *testing.T) {
	for group, want := range map[bool]fs.FileMode{false: 0o600, true: 0o660} {
		socket := filepath.Join(t.TempDir(), "s")
		l, _, err := listen(t.Context(), "unix://"+socket, group)
		if err != nil {
			t.Fatal(err)
		}
		st, err := os.Stat(socket)
		if err != nil || st.Mode().Perm() != want {
			t.Errorf("with group %t the socket is %v, %v; want %o", group, st, err, want)
		}
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	}
}
