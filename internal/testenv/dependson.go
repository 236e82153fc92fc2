package testenv

import (
	"io/fs"
	"os"
	"path/filepath"
	"testing"
)

// DependsOn tells `go test` that a test's result depends on files, and on all below directories, which other processes
// read for it: a result is taken from go's cache as long as nothing changed that the test itself has opened.
func DependsOn(t testing.TB, names ...string) {
	t.Helper()
	for _, name := range names {
		// Of a directory names, sizes and times of what is in it count, of a file what is in it.
		err := filepath.WalkDir(name, func(file string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() || file != name {
				return err
			}
			_, err = os.ReadFile(file)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
}
