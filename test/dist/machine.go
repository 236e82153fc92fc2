package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"k1s.io/k1s/internal/errs"
)

// machine runs programs of an architecture.
type machine struct {
	enter []string // in front of a command; empty where programs simply run
	env   []string
}

// findMachine finds out how programs run here: as they are, because it is this machine's architecture or the
// kernel has been told about an emulator; or with an emulator in a user namespace. k1s finds everything it
// would write to the machine below dir instead.
func findMachine(ctx context.Context, arch, dir string) (machine, error) {
	m := machine{env: append(os.Environ(),
		"K1S_DATA_DIR="+filepath.Join(dir, "data"), "K1S_RUN_DIR="+filepath.Join(dir, "run"),
		"K1S_CONFIG_DIR="+filepath.Join(dir, "etc"), "K1S_KUBELET_DIR="+filepath.Join(dir, "kubelet"), "HOME="+dir)}
	if arch == runtime.GOARCH {
		return m, nil
	}
	qemu, err := exec.LookPath(platforms[arch].qemu)
	if err != nil {
		return m, errs.Hint(errs.New(errs.Unsupported, "programs for %s need an emulator that is not installed: %s", arch, platforms[arch].qemu),
			"as root, run: apt-get install --no-install-recommends qemu-user")
	}
	register := filepath.Join(dir, "register")
	if err := os.WriteFile(register, []byte(registration(arch, qemu)), 0o600); err != nil {
		return m, err
	}
	// What is registered in a user namespace is so for it alone, since Linux 6.7.
	m.enter = []string{"unshare", "--user", "--map-root-user", "--mount", "/bin/sh", "-ec",
		`mount -t binfmt_misc k1s-dist /proc/sys/fs/binfmt_misc; cat "$1" >/proc/sys/fs/binfmt_misc/register; shift; exec "$@"`, "sh", register}
	if out, err := m.sh(ctx, "true"); err != nil {
		return m, errs.Hint(errs.As(errs.Unsupported, fmt.Errorf("the kernel cannot be told about %s in a user namespace: %w\n%s", qemu, err, out)),
			"this needs Linux 6.7 and permission to make user namespaces")
	}
	return m, nil
}

// registration is a line for the file register of binfmt_misc(5): which files are run by which interpreter. What is
// compared are the magic number, class, byte order and version of an ELF file, that it is a program or a
// position-independent one, and its machine. P: the name a program is called by is kept; it says which applet is meant.
func registration(arch, qemu string) string {
	p := platforms[arch]
	const ident = `\x7fELF`
	magic := fmt.Sprintf(`%s\x%02x\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\x%02x\x%02x`, ident, byte(p.class), byte(p.machine), byte(p.machine>>8))
	mask := strings.Repeat(`\xff`, 7) + `\x00` + strings.Repeat(`\xff`, 8) + `\xfe\xff\xff\xff`
	return ":k1s-dist-" + arch + ":M::" + magic + ":" + mask + ":" + qemu + ":P"
}

// sh runs a shell script in it and returns all it prints.
func (m machine) sh(ctx context.Context, script string) (string, error) {
	// An emulator that hangs must not keep everybody waiting; the slowest command takes a minute on one processor.
	ctx, cancel := context.WithTimeoutCause(ctx, 10*time.Minute, errors.New("it was not done after 10m"))
	defer cancel()
	args := append(append([]string{}, m.enter...), "/bin/sh", "-ec", script)
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Env = m.env
	cmd.WaitDelay = 5 * time.Second
	out, err := cmd.CombinedOutput()
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	return strings.TrimSpace(string(out)), err
}

// says runs a script whose output must contain each of the words.
func (m machine) says(ctx context.Context, script string, words ...string) (string, error) {
	out, err := m.sh(ctx, script)
	for _, w := range words {
		if err == nil && !strings.Contains(out, w) {
			err = fmt.Errorf("it does not say %q", w)
		}
	}
	return out, err
}
