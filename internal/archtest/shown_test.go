package archtest

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

var (
	testName   = regexp.MustCompile(`\bTest[A-Z]\w*`)
	testFunc   = regexp.MustCompile(`(?m)^func (Test\w+)\(`)
	scriptName = regexp.MustCompile(`\b\w+\.txtar\b`)
	makeTarget = regexp.MustCompile("`make ([a-z-]+)[^`]*`")
)

// docs/shown.md says which test shows what. A test that is renamed or removed shows nothing any more.
func TestWhatIsShownIsShownByTestsThatExist(t *testing.T) {
	there := map[string]bool{}
	for _, dir := range []string{"../../cmd", "../../internal", "../../test"} {
		err := filepath.WalkDir(dir, func(file string, _ fs.DirEntry, err error) error {
			switch {
			case err != nil:
				return err
			case strings.HasSuffix(file, ".txtar"):
				there[filepath.Base(file)] = true
			case strings.HasSuffix(file, "_test.go"):
				source, err := os.ReadFile(file)
				if err != nil {
					return err
				}
				for _, f := range testFunc.FindAllSubmatch(source, -1) {
					there[string(f[1])] = true
				}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	page, err := os.ReadFile("../../docs/shown.md")
	if err != nil {
		t.Fatal(err)
	}
	makefile, err := os.ReadFile("../../Makefile")
	if err != nil {
		t.Fatal(err)
	}
	names := append(testName.FindAllString(string(page), -1), scriptName.FindAllString(string(page), -1)...)
	if len(names) < 50 {
		t.Errorf("the page names %d tests: this test looks at the wrong thing", len(names))
	}
	for _, name := range names {
		if !there[name] {
			t.Errorf("docs/shown.md names %s, and there is none", name)
		}
	}
	for _, target := range makeTarget.FindAllStringSubmatch(string(page), -1) {
		if !strings.Contains(string(makefile), "\n"+target[1]+":") {
			t.Errorf("docs/shown.md names make %s, and there is no such target", target[1])
		}
	}
}
