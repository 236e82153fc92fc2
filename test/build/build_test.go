// Package build tests the Makefile and the scripts below build/: what they ask of the machine, what they say where something
// is missing, what has to be made anew. Nothing is built here: the programs they call are stubs, and make only says what it
// would do.
package build

import (
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"k1s.io/k1s/internal/testenv"
)

// needs is for every test here: where it can run, and what its result depends on, which bash and make read.
func needs(t *testing.T) {
	t.Helper()
	testenv.DependsOn(t, "../../Makefile", "../../build", "../../go.mod")
	if runtime.GOOS != "linux" {
		t.Skipf("k1s is built on Linux, this is %s", runtime.GOOS)
	}
}

func TestScripts(t *testing.T) {
	needs(t)
	top, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata",
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Setup: func(e *testscript.Env) error {
			e.Setenv("TOP", top)
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){"serve": serve},
	})
}

// serve is `serve STATUS BODY`: from now on something answers at port $PORT of 127.0.0.1, always this.
func serve(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: serve STATUS BODY")
	}
	status, err := strconv.Atoi(args[0])
	ts.Check(err)
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(status)
		_, _ = io.WriteString(w, args[1]+" to "+r.Host+"\n")
	}))
	ts.Defer(s.Close)
	_, port, found := strings.Cut(s.Listener.Addr().String(), ":")
	if !found {
		ts.Fatalf("no port in %s", s.Listener.Addr())
	}
	ts.Setenv("PORT", port)
}

// makeWould is what `make ARG…` would run, a command a line.
func makeWould(t *testing.T, args ...string) []string {
	t.Helper()
	needs(t)
	program, err := exec.LookPath("make")
	if err != nil {
		t.Skipf("make is not installed: %v", err)
	}
	cmd := exec.Command(program, append([]string{"--dry-run", "--no-print-directory", "--directory=../.."}, args...)...)
	// The make that runs this test tells its children what it was told.
	cmd.Env = slices.DeleteFunc(os.Environ(), func(kv string) bool {
		name, _, _ := strings.Cut(kv, "=")
		return slices.Contains([]string{"MAKEFLAGS", "MFLAGS", "MAKELEVEL", "MAKEOVERRIDES", "ARCH", "OUT", "K1S", "VERSION", "COMMIT", "LEVEL", "CLUSTER", "PORT"}, name)
	})
	var said strings.Builder
	cmd.Stderr = &said
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("make %s: %v\n%s%s", strings.Join(args, " "), err, out, said.String())
	}
	joined := strings.ReplaceAll(string(out), "\\\n", " ")
	return strings.Split(strings.TrimSpace(joined), "\n")
}

// The light program knows its commit. Nothing else may, or every commit would link the heavy programs and pack them for minutes.
func TestACommitIsLinkedIntoTheLightProgramAlone(t *testing.T) {
	a, b := makeWould(t, "build", "COMMIT=aaaaaaa"), makeWould(t, "build", "COMMIT=bbbbbbb")
	if len(a) != len(b) {
		t.Fatalf("%d commands for one commit, %d for another", len(a), len(b))
	}
	differ := 0
	for i := range a {
		if a[i] == b[i] {
			continue
		}
		differ++
		if !strings.HasSuffix(a[i], " ./cmd/k1s") {
			t.Errorf("for another commit this is another command:\n%s\n%s", a[i], b[i])
		}
	}
	if differ == 0 {
		t.Error("the commit is linked into nothing")
	}
	for _, program := range []string{"./cmd/k1s-kube", "./cmd/k1s-pods", "./cmd/k1s-cni", "-payload out/", "pack -dir"} {
		if !slices.ContainsFunc(a, func(c string) bool { return strings.Contains(c, program) }) {
			t.Errorf("make build does not run anything with %s: this test looks for the wrong things\n%s", program, strings.Join(a, "\n"))
		}
	}
}

func TestTheLightProgramIsLinkedWithoutPacking(t *testing.T) {
	would := makeWould(t, "cli")
	for _, c := range would {
		for _, heavy := range []string{" pack -dir", " notice ", " upstream ", "./cmd/k1s-kube", "./cmd/k1s-pods", "./cmd/k1s-cni", "deps.sh"} {
			if strings.Contains(c, heavy) {
				t.Errorf("make cli would run what is for the payload: %s", c)
			}
		}
	}
	if !slices.ContainsFunc(would, func(c string) bool { return strings.HasSuffix(c, " ./cmd/k1s") }) ||
		!slices.ContainsFunc(would, func(c string) bool { return strings.Contains(c, " join ") }) {
		t.Errorf("make cli would neither link nor join, or one of both:\n%s", strings.Join(would, "\n"))
	}
}

// `make up` of a continuous integration must not meet the cluster of the person whose machine it is.
func TestUpAndDownAreOfTheClusterThatIsNamed(t *testing.T) {
	for _, c := range []struct {
		args     []string
		up, down string
	}{
		{nil, "CLUSTER=demo PORT=8080 build/up.sh ./k1s", "./k1s cluster delete demo --yes"},
		{
			[]string{"CLUSTER=ci", "PORT=18080", "K1S=/somewhere/k1s"},
			"CLUSTER=ci PORT=18080 build/up.sh /somewhere/k1s", "/somewhere/k1s cluster delete ci --yes",
		},
	} {
		for target, want := range map[string]string{"up": c.up, "down": c.down} {
			// As build/try.sh calls it: with a program that is there.
			if got := makeWould(t, append([]string{"--old-file=build", target}, c.args...)...); !slices.Equal(got, []string{want}) {
				t.Errorf("make %s %s would run\n%s\nwant\n%s", target, strings.Join(c.args, " "), strings.Join(got, "\n"), want)
			}
		}
	}
}

// Packing takes minutes at the level that is released, and shows nothing more: both builds are packed at one that takes seconds.
func TestTwoBuildsAreComparedAtTheLevelThatIsNamed(t *testing.T) {
	for level, args := range map[string][]string{"3": {"reproducible"}, "22": {"reproducible", "LEVEL=22"}} {
		args = append(args, "ARCH=arm64")
		if got, want := makeWould(t, args...), []string{"build/reproducible.sh arm64 " + level}; !slices.Equal(got, want) {
			t.Errorf("make %s would run %q, want %q", strings.Join(args, " "), got, want)
		}
	}
}
