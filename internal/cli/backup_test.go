package cli

import (
	"os"
	"path/filepath"
	"testing"

	"k1s.io/k1s/internal/backup"
)

// Whoever may write to the directory of archives could have put something where one is going to be written.
func TestAnArchiveIsWrittenToAFileThatWasNotThere(t *testing.T) {
	dir := t.TempDir()
	file, victim := filepath.Join(dir, "a"+backup.FileEnd), filepath.Join(dir, "victim")
	if err := os.WriteFile(victim, []byte("stays"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(victim, filepath.Join(dir, "."+filepath.Base(file)+backup.PartEnd)); err != nil {
		t.Fatal(err)
	}
	names := map[string]bool{}
	for range 2 {
		f, err := newPart(file)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		st, err := f.Stat()
		if err != nil || st.Mode().Perm() != 0o600 {
			t.Errorf("%v, %v", st, err)
		}
		if ok, err := filepath.Match(".*"+backup.FileEnd+"*"+backup.PartEnd, filepath.Base(f.Name())); err != nil || !ok {
			t.Errorf("retention does not find %s", f.Name())
		}
		if e, ok := backup.ParseFile(f.Name(), st.ModTime()); ok {
			t.Errorf("it is taken for an archive: %+v", e)
		}
		names[f.Name()] = true
	}
	if b, err := os.ReadFile(victim); err != nil || string(b) != "stays" || len(names) != 2 {
		t.Errorf("%q, %v, %v", b, err, names)
	}
}
