// Package archtest tests the code itself: which package may import which, that light programs stay
// light, that pure packages are pure, that every package says what it is. docs/architecture.md draws
// the same picture.
package archtest

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"path"
	"strings"
	"sync"
	"testing"

	"k1s.io/k1s/internal/testenv"
)

const module = "k1s.io/k1s/"

// code is what go list reads here.
var code = []string{"../../go.mod", "../../cmd", "../../internal"}

type pkg struct {
	ImportPath string
	Doc        string
	Imports    []string
	GoFiles    []string
}

func packages(t *testing.T) []pkg {
	t.Helper()
	testenv.DependsOn(t, code...)
	all, err := listed()
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// listed is the same for every test, and takes seconds to find out.
var listed = sync.OnceValues(func() ([]pkg, error) {
	cmd := exec.Command("go", "list", "-json=ImportPath,Doc,Imports,GoFiles", "./cmd/...", "./internal/...")
	cmd.Dir = "../.."
	out, err := cmd.Output()
	if err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			return nil, fmt.Errorf("go list: %s", exit.Stderr)
		}
		return nil, err
	}
	var all []pkg
	dec := json.NewDecoder(strings.NewReader(string(out)))
	for {
		var p pkg
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return nil, err
		}
		all = append(all, p)
	}
	if len(all) < 20 {
		return nil, fmt.Errorf("only %d packages found", len(all))
	}
	return all, nil
})

// layers from the top down; a package may import packages of lower layers, and of its own where
// neighbours lists it. The first matching prefix counts.
var layers = []struct {
	prefix string
	level  int
}{
	{"cmd/", 9},
	{"internal/applets", 8}, // the payload's programs: leaves seen from k1s, they use what they need
	{"internal/cli", 8},
	{"internal/daemon", 7},
	{"internal/cluster", 6},
	{"internal/control", 6},
	{"internal/components", 6},
	{"internal/supervise", 6},
	{"internal/runner", 6},
	{"internal/addons", 6},
	{"internal/step", 6},
	{"internal/kubeapi", 6},
	{"internal/etcdapi", 6},
	{"internal/join", 6},
	{"internal/balancer", 5},
	{"internal/tunnel", 5},
	{"internal/platform", 5},
	{"internal/addon", 5},
	{"internal/image", 5},
	{"internal/payload", 5},
	{"internal/pki", 5},
	{"internal/kubeconfig", 5},
	{"internal/audit", 5},
	{"internal/encryption", 5},
	{"internal/migration", 5},
	{"internal/rotation", 5},
	{"internal/upgrade", 5},
	{"internal/etcdcare", 5},
	{"internal/backup/dump", 4},
	{"internal/backup", 5},
	{"internal/restore", 4},
	{"internal/claim", 5},
	{"internal/health", 4},
	{"internal/ledger", 4},
	{"internal/component", 4},
	{"internal/token", 4},
	{"internal/unitlog", 4},
	{"internal/config", 3},
	{"internal/paths", 2},
	{"internal/probe", 2},
	{"internal/durable", 2},
	{"internal/printer", 2},
	{"internal/strictyaml", 2},
	{"internal/wait", 1},
	{"internal/timers", 0},
	{"internal/errs", 0},
	{"internal/record", 0},
	{"internal/iostreams", 0},
	{"internal/version", 0},
	{"internal/archtest", 0},
	{"internal/testenv", 0},
}

// neighbours are the arrows between packages of one layer that the picture draws.
var neighbours = map[string][]string{
	"internal/supervise": {},
	"internal/platform":  {},
}

func level(rel string) (int, bool) {
	for _, l := range layers {
		if rel == l.prefix || strings.HasPrefix(rel, l.prefix+"/") || strings.HasSuffix(l.prefix, "/") && strings.HasPrefix(rel, l.prefix) {
			return l.level, true
		}
	}
	return 0, false
}

func TestArrowsPointDown(t *testing.T) {
	for _, p := range packages(t) {
		from, ok := strings.CutPrefix(p.ImportPath, module)
		if !ok {
			continue
		}
		fl, ok := level(from)
		if !ok {
			t.Errorf("%s has no layer: add it to the table and to docs/architecture.md", from)
			continue
		}
		for _, imp := range p.Imports {
			to, ok := strings.CutPrefix(imp, module)
			if !ok || family(from) == family(to) || strings.HasPrefix(to, from+"/") {
				continue
			}
			tl, ok := level(to)
			if !ok || tl < fl || drawn(from, to) {
				continue
			}
			t.Errorf("%s imports %s: that arrow does not point down (layer %d to %d); move what both need to a lower package", from, to, fl, tl)
		}
	}
}

// family is the package a sub-package belongs to: internal/cluster/netns is of internal/cluster.
func family(rel string) string {
	parts := strings.Split(rel, "/")
	return path.Join(parts[:min(2, len(parts))]...)
}

func drawn(from, to string) bool {
	for _, n := range neighbours[family(from)] {
		if family(to) == n {
			return true
		}
	}
	return false
}

// heavy are modules only the payload may contain: k1s itself has to start in milliseconds.
var heavy = []string{
	"k8s.io/", "sigs.k8s.io/", "github.com/containerd/", "go.etcd.io/", "github.com/k3s-io/", "github.com/coredns/",
	"github.com/flannel-io/", "google.golang.org/grpc", "github.com/minio/", "github.com/opencontainers/runc", "github.com/prometheus/",
}

func TestTheLightProgramCarriesNothingHeavy(t *testing.T) {
	testenv.DependsOn(t, code...)
	cmd := exec.Command("go", "list", "-deps", "./cmd/k1s")
	cmd.Dir = "../.."
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	for dep := range strings.FieldsSeq(string(out)) {
		for _, h := range heavy {
			if strings.HasPrefix(dep, h) {
				t.Errorf("cmd/k1s depends on %s: heavy modules belong into the payload (internal/applets)", dep)
			}
		}
		if strings.HasPrefix(dep, module+"internal/applets") {
			t.Errorf("cmd/k1s depends on %s: applets belong into the payload", dep)
		}
	}
}

// pure packages must not reach the outside, and why.
var pure = map[string]struct {
	banned []string
	why    string
}{
	"internal/components":      {[]string{"os", "net/http", "os/exec", "time/tzdata"}, "component Specs are pure so that they can be golden-tested anywhere"},
	"internal/component":       {[]string{"os", "net", "net/http", "os/exec"}, "it is vocabulary: data only"},
	"internal/addon":           {[]string{"os", "net", "net/http", "os/exec"}, "rendering an add-on is a pure function"},
	"internal/encryption":      {[]string{"os", "net", "net/http", "os/exec"}, "every stage and every crash is tested by tables; what touches the world is the daemon's"},
	"internal/migration":       {[]string{"os", "net", "net/http", "os/exec"}, "every phase and every crash is tested by tables; what touches the world is the daemon's and the copier's"},
	"internal/etcdcare":        {[]string{"os", "net", "net/http", "os/exec"}, "what is done to a database, and every crash of a restore, is tested by tables; what touches the world is the daemon's and the applet's"},
	"internal/restore":         {[]string{"os", "net", "net/http", "os/exec"}, "every phase and every crash of a restore is tested by tables; what touches the world is the daemon's"},
	"internal/backup":          {[]string{"os", "net", "net/http", "os/exec"}, "an archive is bytes: whatever can be wrong with one is tested without a disk"},
	"internal/rotation":        {[]string{"os", "net", "net/http", "os/exec"}, "every stage and every crash is tested by tables; what touches the world is the daemon's"},
	"internal/upgrade":         {[]string{"os", "net", "net/http", "os/exec"}, "what is allowed, and every crash, is tested by tables; what touches the world is the daemon's"},
	"internal/upgrade/rollout": {[]string{"os", "net", "net/http", "os/exec"}, "what a leader does next, and every crash, is tested by tables; what touches the world is the daemon's"},
	"internal/paths":           {[]string{"os", "path/filepath"}, "it names things on the node, whatever machine renders them"},
}

func TestPurePackagesStayPure(t *testing.T) {
	for _, p := range packages(t) {
		rel := strings.TrimPrefix(p.ImportPath, module)
		rule, ok := pure[rel]
		if !ok {
			continue
		}
		for _, imp := range p.Imports {
			for _, b := range rule.banned {
				if imp == b {
					t.Errorf("%s imports %s: %s", rel, imp, rule.why)
				}
			}
		}
	}
}

func TestEveryPackageSaysWhatItIs(t *testing.T) {
	for _, p := range packages(t) {
		if p.Doc == "" && len(p.GoFiles) > 0 {
			t.Errorf("%s has no package comment: say what it is, what it is not, who uses it", p.ImportPath)
		}
	}
}

// A change in the command line or the daemon must not link the payload's programs anew: packing them takes minutes.
func TestPayloadProgramsHaveNothingOfTheLightOneAlone(t *testing.T) {
	imports := map[string][]string{}
	for _, p := range packages(t) {
		imports[p.ImportPath] = p.Imports
	}
	for _, program := range []string{"cmd/k1s-kube", "cmd/k1s-pods", "cmd/k1s-cni"} {
		by := map[string]string{module + program: ""} // who imports it
		for next := []string{module + program}; len(next) > 0; next = next[1:] {
			for _, imp := range imports[next[0]] {
				if _, known := by[imp]; known || !strings.HasPrefix(imp, module) {
					continue
				}
				by[imp] = next[0]
				next = append(next, imp)
			}
		}
		if len(by) < 2 && program == "cmd/k1s-kube" { // what cmd/k1s-cni has depends on a tag
			t.Errorf("%s imports nothing of ours: this test looks at the wrong thing", program)
		}
		for _, light := range []string{"cmd/k1s", "internal/cli", "internal/daemon", "internal/cluster", "internal/supervise"} {
			for p, importer := range by {
				if rel := strings.TrimPrefix(p, module); rel == light || strings.HasPrefix(rel, light+"/") {
					t.Errorf("%s depends on %s through %s: every change of that would link and pack the payload anew", program, rel, importer)
				}
			}
		}
	}
}
