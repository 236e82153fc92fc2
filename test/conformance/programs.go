package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"k1s.io/k1s/internal/errs"
)

// upstream is the directory of the module that has the modules of the programs in its go.mod, from the root of the repository.
const upstream = "test/conformance/upstream"

// programs are upstream's, built.
type programs struct {
	dir     string // e2e.test, agnhost, ginkgo, and kubectl, which works in nodes
	source  string // directory of k8s.io/kubernetes in the module cache
	agnhost string // version of agnhost, as in its image's name
}

// recipe is how one of them is built.
type recipe struct {
	name string
	args []string // of the go command; -o and the package follow
	pkg  string
}

func recipes(kubernetes, agnhost string) []recipe {
	const version = "k8s.io/component-base/version."
	numbers := strings.Split(strings.TrimPrefix(kubernetes, "v"), ".")
	set := fmt.Sprintf("-X %[1]sgitVersion=%[2]s -X %[1]sgitMajor=%[3]s -X %[1]sgitMinor=%[4]s -X %[1]sgitTreeState=clean", version, kubernetes, numbers[0], numbers[1])
	return []recipe{
		{"agnhost", []string{"build", "-ldflags", "-s -w -X main.Version=" + agnhost}, "k8s.io/kubernetes/test/images/agnhost"},
		{"ginkgo", []string{"build", "-ldflags", "-s -w"}, "github.com/onsi/ginkgo/v2/ginkgo"},
		{"e2e.test", []string{"test", "-c", "-vet=off", "-ldflags", "-s -w " + set}, "k8s.io/kubernetes/test/e2e"},
	}
}

// build makes the programs in a directory below cache that is named by all that goes into them, as far as they are not there yet, and removes
// those made from something else. Modules do not change, so go.sum stands for the source. Linking alone takes the test binary half a minute each
// time, because the go command keeps none of a test.
func build(ctx context.Context, cache string) (programs, error) {
	if _, err := os.Stat(upstream); err != nil {
		return programs{}, errs.Hint(fmt.Errorf("the module to build from: %w", err), "run this from the root of the repository: make conformance")
	}
	settings, err := goSays(ctx, "env", "GOVERSION", "GOOS", "GOARCH", "GOFLAGS", "GOEXPERIMENT", "GOAMD64", "GOARM64", "GOARM")
	if err != nil {
		return programs{}, err
	}
	module, err := goSays(ctx, "list", "-m", "-f", "{{.Version}} {{.Dir}}", "k8s.io/kubernetes")
	if err != nil {
		return programs{}, err
	}
	kubernetes, source, _ := strings.Cut(strings.TrimSpace(module), " ")
	p := programs{source: source}
	if p.agnhost, err = readWord(filepath.Join(source, "test/images/agnhost/VERSION")); err != nil {
		return p, err
	}
	todo := recipes(kubernetes, p.agnhost)
	inputs := []string{settings, fmt.Sprint(todo)}
	for _, f := range []string{"go.mod", "go.sum"} {
		b, err := os.ReadFile(filepath.Join(upstream, f))
		if err != nil {
			return p, err
		}
		inputs = append(inputs, string(b))
	}
	p.dir = filepath.Join(cache, key(inputs))
	if err := os.MkdirAll(p.dir, 0o755); err != nil {
		return p, err
	}
	for _, r := range todo {
		if err := r.build(ctx, filepath.Join(p.dir, r.name)); err != nil {
			return p, err
		}
	}
	// The program that is tested brings kubectl, and knows it by that name.
	kubectl := filepath.Join(p.dir, "kubectl")
	if err := os.Symlink("/var/lib/k1s/payload/current/k1s-kube", kubectl); err != nil && !errors.Is(err, fs.ErrExist) {
		return p, err
	}
	return p, prune(cache, filepath.Base(p.dir))
}

// key names inputs.
func key(inputs []string) string {
	h := sha256.New()
	for _, in := range inputs {
		fmt.Fprintf(h, "%d\n%s\n", len(in), in)
	}
	return hex.EncodeToString(h.Sum(nil))[:16]
}

// prune removes what is in cache beside keep.
func prune(cache, keep string) error {
	entries, err := os.ReadDir(cache)
	for _, e := range entries {
		if e.Name() != keep {
			err = errors.Join(err, os.RemoveAll(filepath.Join(cache, e.Name())))
		}
	}
	return err
}

// build makes a program unless it is there. One that is there is complete.
func (r recipe) build(ctx context.Context, file string) error {
	if _, err := os.Stat(file); err == nil {
		return nil
	}
	fmt.Fprintf(os.Stderr, "building %s\n", r.pkg)
	start, tmp := time.Now(), file+".tmp"
	defer os.Remove(tmp)
	if _, err := goSays(ctx, append(r.args, "-o", tmp, r.pkg)...); err != nil {
		return err
	}
	if _, err := os.Stat(tmp); err != nil { // go test -c succeeds where there are no tests
		return fmt.Errorf("building %s: %w", r.pkg, err)
	}
	fmt.Fprintf(os.Stderr, "built %s in %s\n", file, time.Since(start).Round(time.Second))
	return os.Rename(tmp, file)
}

// goSays runs the go command in the module upstream, for static programs, and returns what it prints.
func goSays(ctx context.Context, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, "go", append([]string{"-C", upstream}, args...)...)
	// Images and nodes have no C library of this machine's.
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH="+runtime.GOARCH, "GOWORK=off")
	return says(cmd)
}

// says runs a command and returns what it prints; its error has what it complained of.
func says(cmd *exec.Cmd) (string, error) {
	var out, complaint bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &complaint
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("%s: %w\n%s", strings.Join(cmd.Args, " "), err, strings.TrimSpace(complaint.String()))
	}
	return out.String(), nil
}

// tests lists all tests of the test binary.
func (p programs) tests(ctx context.Context) ([]string, error) {
	out, err := says(exec.CommandContext(ctx, filepath.Join(p.dir, "e2e.test"), "--list-tests"))
	if err != nil {
		return nil, err
	}
	return parseTests(out)
}

func readWord(file string) (string, error) {
	b, err := os.ReadFile(file)
	return strings.TrimSpace(string(b)), err
}
