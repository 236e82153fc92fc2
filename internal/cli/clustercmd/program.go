package clustercmd

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"k1s.io/k1s/internal/errs"
	"k1s.io/k1s/internal/payload"
)

// findProgram finds the k1s that nodes are to run, and its version; "" is this one.
func (o createOptions) findProgram(ctx context.Context, e env, f *written, here string) (file, version string, err error) {
	file, dir := o.image, here
	if file == "" {
		file, dir = f.Image, f.dir
	}
	wanted := o.version
	if wanted == "" && o.image == "" {
		wanted = f.Version
	}
	if file == "" && wanted == "" {
		return "", "", nil
	}
	if file == "" {
		if file, err = programOfVersion(wanted); err != nil {
			return "", "", err
		}
	}
	if !filepath.IsAbs(file) {
		file = filepath.Join(dir, file)
	}
	check := e.deps.ProgramVersion
	if check == nil {
		check = programVersion
	}
	if version, err = check(ctx, file); err != nil {
		return "", "", errs.Hint(errs.New(errs.Invalid, "nodes cannot run %s: %w", file, err), "name a k1s executable for this machine, as make build leaves it")
	}
	if wanted != "" && !sameVersion(wanted, version) {
		return "", "", errs.New(errs.Invalid, "%s is k1s %s, not %s", file, version, wanted)
	}
	return file, "k1s " + version, nil
}

func sameVersion(a, b string) bool { return strings.TrimPrefix(a, "v") == strings.TrimPrefix(b, "v") }

// programOfVersion finds k1s-VERSION in PATH, or beside this program.
func programOfVersion(version string) (string, error) {
	name := "k1s-" + version
	if filepath.Base(name) != name {
		return "", errs.New(errs.Usage, "--version %q is no version; a file is named with --image", version)
	}
	if file, err := exec.LookPath(name); err == nil {
		return filepath.Abs(file)
	}
	exe, err := os.Executable()
	if err != nil {
		return "", fmt.Errorf("finding this program's own file: %w", err)
	}
	if beside := filepath.Join(filepath.Dir(exe), name); isFile(beside) {
		return beside, nil
	}
	return "", errs.Hint(errs.New(errs.Invalid, "there is no %s in PATH or beside %s", name, exe),
		"put it there; or name the file with --image. Nothing is downloaded")
}

func isFile(path string) bool {
	st, err := os.Stat(path)
	return err == nil && st.Mode().IsRegular()
}

// programVersion asks an executable which k1s it is. What carries no payload is not run at all.
func programVersion(ctx context.Context, file string) (string, error) {
	st, err := os.Stat(file)
	switch {
	case err != nil:
		return "", err
	case !st.Mode().IsRegular() || st.Mode()&0o111 == 0:
		return "", errors.New("it is no executable file")
	}
	if _, err := payload.Open(file); err != nil {
		return "", fmt.Errorf("%w: %w", errNoK1s, err)
	}
	ctx, cancel := context.WithTimeoutCause(ctx, askProgram, fmt.Errorf("no answer within %s", askProgram))
	defer cancel()
	out, err := exec.CommandContext(ctx, file, "version", "-o", "json").Output()
	if err != nil {
		return "", fmt.Errorf("asking it for its version: %w", err)
	}
	var v struct {
		Version string `json:"version"`
	}
	if err := json.Unmarshal(out, &v); err != nil || v.Version == "" {
		return "", errNoK1s
	}
	return v.Version, nil
}

var errNoK1s = errors.New("it is no k1s")

// askProgram is how long a program may take to say its version.
const askProgram = 10 * time.Second
