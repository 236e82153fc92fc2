package main

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/mod/modfile"

	"k1s.io/k1s/internal/errs"
	"k1s.io/k1s/internal/image"
)

// What is tested must be of the versions that k1s is made from, and the go command need not compile it a second time.
func TestUpstreamIsOfTheVersionsThatAreTested(t *testing.T) {
	read := func(name string) *modfile.File {
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		f, err := modfile.Parse(name, b, nil)
		if err != nil {
			t.Fatal(err)
		}
		return f
	}
	ours, theirs := read("../../go.mod"), read("upstream/go.mod")
	versions := map[string]string{}
	for _, r := range ours.Require {
		versions[r.Mod.Path] = r.Mod.Version
	}
	found := 0
	for _, r := range theirs.Require {
		if v, ok := versions[r.Mod.Path]; ok {
			found++
			if v != r.Mod.Version {
				t.Errorf("%s is %s in go.mod and %s in test/conformance/upstream/go.mod; set the latter and run there: go mod tidy", r.Mod.Path, v, r.Mod.Version)
			}
		}
	}
	if found == 0 {
		t.Error("they have no module in common")
	}
	replaced := map[string]string{}
	for _, r := range ours.Replace {
		replaced[r.Old.Path] = r.New.String()
	}
	for _, r := range theirs.Replace {
		if replaced[r.Old.Path] != r.New.String() {
			t.Errorf("%s is replaced by %q in go.mod and by %q in test/conformance/upstream/go.mod", r.Old.Path, replaced[r.Old.Path], r.New)
		}
	}
}

const list = `I1122 11:00:00.000000       1 test_context.go:564] The --provider flag is not set.
The following spec names can be used with 'ginkgo run --focus/skip':
    k8s.io/kubernetes/test/e2e/network/dns.go:51: [sig-network] DNS should provide DNS for the cluster [Conformance]
    k8s.io/kubernetes/test/e2e/network/netpol/network_policy.go:80: [sig-network] Netpol NetworkPolicy between server and client should support a 'default-deny-ingress' policy [Feature:NetworkPolicy]
    k8s.io/kubernetes/test/e2e/network/netpol/network_policy.go:1405: [sig-network] Netpol [Feature:SCTPConnectivity] [LinuxOnly] NetworkPolicy between server and client using SCTP should enforce policy based on Ports [Feature:NetworkPolicy]

`

const (
	dns    = "[sig-network] DNS should provide DNS for the cluster [Conformance]"
	policy = "[sig-network] Netpol NetworkPolicy between server and client should support a 'default-deny-ingress' policy [Feature:NetworkPolicy]"
	sctp   = "[sig-network] Netpol [Feature:SCTPConnectivity] [LinuxOnly] NetworkPolicy between server and client using SCTP should enforce policy based on Ports [Feature:NetworkPolicy]"
)

func TestTestsAreChosenByName(t *testing.T) {
	all, err := parseTests(list)
	if err != nil || !slices.Equal(all, []string{dns, policy, sctp}) {
		t.Fatalf("%v %q", err, all)
	}
	without := conditions(facts{noSCTP: errors.New("no such protocol")})
	for _, c := range []struct {
		name, focus, skip string
		forbidden         []condition
		want              []string
	}{
		{"all", "", "", nil, all},
		{"by focus", defaultFocus, "", nil, []string{policy, sctp}},
		{"ginkgo sets the suite before the name", `^Kubernetes e2e suite \[sig-network\] DNS`, "", nil, []string{dns}},
		{"without what is skipped", defaultFocus, "SCTP", nil, []string{policy}},
		{"what cannot be is told", "", "", without, []string{dns, policy,
			sctp + " (not run: this kernel has no SCTP (no such protocol), and pods cannot open a socket of it)"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			var skip *regexp.Regexp
			if c.skip != "" {
				skip = regexp.MustCompile(c.skip)
			}
			p, err := choose(all, regexp.MustCompile(c.focus), skip, c.forbidden)
			if err != nil || !slices.Equal(p.names(), c.want) {
				t.Errorf("%v %q", err, p.names())
			}
		})
	}
	for _, focus := range []string{"no such test", "SCTP"} {
		if _, err := choose(all, regexp.MustCompile(focus), nil, without); !errs.Is(err, errs.Usage) {
			t.Errorf("%q leaves nothing to run, and the error is %v", focus, err)
		}
	}
	if _, err := parseTests("flag provided but not defined"); err == nil {
		t.Error("a list without a test is no error")
	}
}

func TestGinkgoIsToldWhatIsLeftOut(t *testing.T) {
	o, err := parse([]string{"-skip", "Slow", "-procs", "3", "-limit", "10m"})
	if err != nil {
		t.Fatal(err)
	}
	p, err := choose([]string{policy, sctp}, o.chosen, o.left, conditions(facts{noSCTP: errors.New("none")}))
	if err != nil {
		t.Fatal(err)
	}
	got := strings.Join(testCommand(o, p), "\n")
	for _, want := range []string{"--focus=" + defaultFocus, `--skip=\[Feature:SCTPConnectivity\]`, "--skip=Slow", "--procs=3", "--timeout=10m0s", "--report-dir=" + resultsInNode} {
		if !strings.Contains(got, want+"\n") {
			t.Errorf("%s is missing:\n%s", want, got)
		}
	}
}

func TestWrongFlagsAreRefused(t *testing.T) {
	for _, args := range [][]string{{"-nodes", "1"}, {"-procs", "0"}, {"-focus", "("}, {"-skip", "["}, {"-only", "x"}, {"Netpol"}} {
		if _, err := parse(args); !errs.Is(err, errs.Usage) {
			t.Errorf("%q: %v", args, err)
		}
	}
}

func TestEveryTestHasAnOutcome(t *testing.T) {
	r, err := readReport("testdata/report.json")
	if err != nil {
		t.Fatal(err)
	}
	p := plan{
		run:  []string{"[sig-a] A passes", "[sig-a] A fails", "[sig-b] B is skipped", "[sig-b] B has no time left", "[sig-b] B is not in the report"},
		left: []leftOut{{"[sig-b] B cannot run here", condition{reason: "no SCTP"}}},
	}
	o := r.outcomes(p)
	dir := filepath.Join(t.TempDir(), "failed")
	if err := o.writeLogs(dir); err != nil {
		t.Fatal(err)
	}
	want := `GROUP      PASSED   FAILED   SKIPPED   NOT RUN
(others)   0        1        0         0
[sig-a]    1        1        0         0
[sig-b]    0        0        2         2
all        1        2        2         2
FAILED  (AfterSuite)
         the end failed
         log: DIR/001-AfterSuite.log
FAILED  [sig-a] A fails
         expected 1
         log: DIR/003-sig-a-A-fails.log
NOT RUN  [sig-b] B has no time left
NOT RUN  [sig-b] B is not in the report
skipped  [sig-b] B is skipped
         needs 3 nodes
skipped  [sig-b] B cannot run here
         no SCTP
`
	if got := strings.ReplaceAll(o.table(), dir, "DIR"); got != want {
		t.Errorf("table:\n%s\nwant:\n%s", got, want)
	}
	log, err := os.ReadFile(o[2].log)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"failed after 1.5s", "expected 1\nto equal 2", "a.go:12", "the stack", "also: no cleanup", "STEP: one", "klog says"} {
		if !strings.Contains(string(log), want) {
			t.Errorf("the log has no %q:\n%s", want, log)
		}
	}
	if got := o.list(); !strings.Contains(got, "FAILED      2s  [sig-a] A fails: expected 1\n") || strings.Count(got, "\n") != 7 {
		t.Errorf("list:\n%s", got)
	}
	if err := o.verdict(r); err == nil || err.Error() != "2 tests failed and 2 were not run, of 7\nSuite Timeout Elapsed" {
		t.Errorf("verdict: %v", err)
	}
	if err := o[1:2].verdict(report{}); err != nil {
		t.Errorf("one test passed, and the verdict is %v", err)
	}
	if err := o[6:].verdict(report{}); err == nil {
		t.Error("nothing was run, and that is a success")
	}
}

func TestAReportIsReadOrRefused(t *testing.T) {
	for _, content := range []string{"", "{}", "[]", "[{},{}]"} {
		file := filepath.Join(t.TempDir(), "report.json")
		if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := readReport(file); err == nil {
			t.Errorf("%q is taken for a report", content)
		}
	}
}

func TestAProgramIsBuiltOncePerInputs(t *testing.T) {
	all := []string{key([]string{"a", "b"}), key([]string{"ab", ""}), key([]string{"b", "a"}), key([]string{"a"})}
	slices.Sort(all)
	if len(slices.Compact(all)) != 4 {
		t.Errorf("different inputs have one name: %q", all)
	}
	cache := t.TempDir()
	for _, d := range []string{"old", "new"} {
		if err := os.MkdirAll(filepath.Join(cache, d, "below"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := prune(cache, "new"); err != nil {
		t.Fatal(err)
	}
	entries, err := os.ReadDir(cache)
	if err != nil || len(entries) != 1 || entries[0].Name() != "new" {
		t.Errorf("%v %v", entries, err)
	}
	there := filepath.Join(cache, "new", "program")
	if err := os.WriteFile(there, nil, 0o755); err != nil {
		t.Fatal(err)
	}
	// The package does not exist: building it would fail.
	if err := (recipe{"program", []string{"build"}, "k1s.io/none"}).build(t.Context(), there); err != nil {
		t.Error(err)
	}
}

func TestImagesHaveTheNamesThatTestsAskFor(t *testing.T) {
	names := []string{"registry.k8s.io/pause:3.10.2", "registry.k8s.io/e2e-test-images/agnhost:2.55", "registry.k8s.io/e2e-test-images/agnhost:2.63.0",
		"gcr.io/authenticated-image-pulling/agnhost:2.6"}
	if got, err := tagged(names, agnhostImage, "2.63.0"); err != nil || !slices.Equal(got, names[2:3]) {
		t.Errorf("%q %v", got, err)
	}
	if got, err := tagged(append(names, names...), agnhostImage, ""); err != nil || !slices.Equal(got, names[1:3]) {
		t.Errorf("%q %v", got, err)
	}
	for repository, version := range map[string]string{agnhostImage: "2.6", busyboxImage: "", pauseImage: "4"} {
		if got, err := tagged(names, repository, version); err == nil {
			t.Errorf("%s:%s is taken for %s", repository, version, got)
		}
	}
}

func TestAgnhostIsAsItsDockerfileSays(t *testing.T) {
	p := programs{dir: t.TempDir(), source: t.TempDir()}
	for name, content := range map[string]string{
		"agnhost": "program", "test/images/agnhost/Dockerfile": "FROM x\nEXPOSE 80 8080\nADD a b\n",
		"test/images/agnhost/porter/localhost.crt": "crt", "test/images/agnhost/porter/localhost.key": "key",
	} {
		root := p.source
		if name == "agnhost" {
			root = p.dir
		}
		file := filepath.Join(root, filepath.FromSlash(name))
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	base := image.Spec{Arch: "amd64", Files: []image.File{image.Text("/etc/passwd", ""), image.Text("/etc/group", ""), image.Symlink("/bin/sh", "busybox")}}
	s, err := agnhostSpec(base, p)
	if err != nil {
		t.Fatal(err)
	}
	s.Names = []string{agnhostImage + ":1"}
	if _, err := image.Write(io.Discard, image.OCI, s); err != nil {
		t.Error(err)
	}
	if len(s.Config.ExposedPorts) != 2 || !slices.ContainsFunc(s.Files, func(f image.File) bool { return f.Path == "/bin/sh" }) {
		t.Errorf("%+v", s)
	}
}

func TestMountsBelowADirectoryAreFound(t *testing.T) {
	mounts := "proc /proc proc rw 0 0\nnsfs /var/tmp/k1s-conformance-1/c/net nsfs rw 0 0\nnsfs /var/tmp/k1s-conformance-12/c nsfs rw 0 0\n"
	if got := mountsBelow(mounts, "/var/tmp/k1s-conformance-1"); !slices.Equal(got, []string{"/var/tmp/k1s-conformance-1/c/net"}) {
		t.Errorf("%q", got)
	}
}

func TestTheFirstLineOfAMessageIsShort(t *testing.T) {
	if got := firstLine("\n  one\ntwo"); got != "one" {
		t.Errorf("%q", got)
	}
	if got := []rune(firstLine(strings.Repeat("ü", 300))); len(got) != 201 {
		t.Errorf("%d", len(got))
	}
	if o := (outcomes{{test: "x", result: passed, took: 90 * time.Second}}); !strings.Contains(o.list(), "1m30s  x") {
		t.Errorf("%q", o.list())
	}
}
