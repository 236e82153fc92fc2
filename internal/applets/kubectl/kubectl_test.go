package kubectl

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"testing"

	"k8s.io/kubectl/pkg/cmd/options"
)

// asked makes the test's program say how it translates what everything else in this package's program sees.
const asked = "K1S_TEST_TRANSLATIONS"

func TestMain(m *testing.M) {
	if os.Getenv(asked) == "" {
		os.Exit(m.Run())
	}
	fmt.Println(options.NewCmdOptions(io.Discard).Short)
}

// kubectl translates some texts while its packages are initialised, so translations have to be there before, or never.
func TestTranslationsAreLoadedByKubectlAlone(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		argv []string
		want string
	}{
		{[]string{"kubectl", "options"}, "Schreibt die Liste von Optionen, die alle Befehle erben"},
		{[]string{"k1s-kube", "kubectl", "options"}, "Schreibt die Liste von Optionen, die alle Befehle erben"},
		{[]string{"k1s-kube", "group", "node.json"}, "Print the list of flags inherited by all commands"},
	} {
		cmd := exec.Cmd{Path: self, Args: c.argv, Env: append(os.Environ(), asked+"=1", "LC_ALL=de_DE.UTF-8")}
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%q: %v: %s", c.argv, err, out)
		}
		if got := strings.TrimSpace(string(out)); got != c.want {
			t.Errorf("%q says %q, want %q", c.argv, got, c.want)
		}
	}
}
