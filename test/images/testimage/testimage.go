// Package testimage builds the images that tests and examples run: busybox from the static program of
// this machine, and a small HTTP server that can be told to misbehave. Equal inputs give equal archives.
// Used by `go run ./test/images` and by tests directly.
package testimage

import (
	"context"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"k1s.io/k1s/internal/image"
)

// Names of the images.
const (
	BusyboxHub = "docker.io/library/busybox:latest"
	Busybox    = "k1s.io/test/busybox:1"
	App        = "k1s.io/test/app:1"
)

// DefaultBusybox is where Debian's package busybox-static puts it.
const DefaultBusybox = "/bin/busybox"

// Programs of the images, see there.
const (
	appPackage = "k1s.io/k1s/test/images/app" // App
	askPackage = "k1s.io/k1s/test/images/ask" // wget and nslookup of Busybox
)

// Arch is the architecture images are built for unless told otherwise.
func Arch() string { return runtime.GOARCH }

// BusyboxSpec describes the busybox image. program must be statically linked and run on this machine,
// because it is asked for its applets.
func BusyboxSpec(ctx context.Context, program, arch string) (image.Spec, error) {
	if err := static(program); err != nil {
		return image.Spec{}, fmt.Errorf("%w; install the package busybox-static", err)
	}
	list, err := exec.CommandContext(ctx, program, "--list").Output()
	if err != nil {
		return image.Spec{}, fmt.Errorf("asking %s for its applets: %w", program, err)
	}
	spec := image.Spec{
		Names: []string{BusyboxHub, Busybox},
		Arch:  arch,
		Config: image.Config{
			Cmd: []string{"sh"},
			Env: []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"},
		},
		Files: append(common(),
			image.FromDisk("/bin/busybox", 0o755, program),
			image.Dir("/root", 0o700),
			image.Dir("/var/www", 0o755),
		),
	}
	for applet := range strings.FieldsSeq(string(list)) {
		if applet != "busybox" {
			spec.Files = append(spec.Files, image.Symlink("/bin/"+applet, "busybox"))
		}
	}
	return spec, nil
}

// AppSpec describes the image of a statically linked program.
func AppSpec(program, arch string) (image.Spec, error) {
	if err := static(program); err != nil {
		return image.Spec{}, err
	}
	return image.Spec{
		Names: []string{App},
		Arch:  arch,
		Config: image.Config{
			Entrypoint:   []string{"/app"},
			Env:          []string{"PATH=/"},
			ExposedPorts: map[string]struct{}{"8080/tcp": {}},
			User:         "65534:65534",
		},
		Files: append(common(), image.FromDisk("/app", 0o755, program), image.Dir("/data", 0o777)),
	}, nil
}

func common() []image.File {
	return []image.File{
		image.Text("/etc/passwd", "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n"),
		image.Text("/etc/group", "root:x:0:\nnobody:x:65534:\n"),
		image.Text("/etc/nsswitch.conf", "passwd: files\ngroup: files\nhosts: files dns\n"),
		image.Dir("/tmp", 0o777|os.ModeSticky),
	}
}

// WriteBusybox writes the busybox image as an OCI archive, with wget and nslookup that work in it.
func WriteBusybox(ctx context.Context, file, program, arch string) error {
	spec, err := BusyboxSpec(ctx, program, arch)
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "k1s-test-ask-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	ask := filepath.Join(dir, "ask")
	if err := Build(ctx, askPackage, ask, arch); err != nil {
		return err
	}
	spec.Files = slices.DeleteFunc(spec.Files, func(f image.File) bool {
		return f.Path == "/bin/wget" || f.Path == "/bin/nslookup"
	})
	spec.Files = append(spec.Files,
		image.FromDisk("/bin/wget", 0o755, ask),
		image.Symlink("/bin/nslookup", "wget"))
	return WriteFile(file, image.OCI, spec)
}

// WriteApp builds the test program and writes its image as a docker archive.
func WriteApp(ctx context.Context, file, arch string) error {
	dir, err := os.MkdirTemp("", "k1s-test-app-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	program := filepath.Join(dir, "app")
	if err := Build(ctx, appPackage, program, arch); err != nil {
		return err
	}
	spec, err := AppSpec(program, arch)
	if err != nil {
		return err
	}
	return WriteFile(file, image.Docker, spec)
}

// Build compiles a Go package to a static, reproducible program.
func Build(ctx context.Context, pkg, output, arch string) error {
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-buildvcs=false", "-ldflags=-s -w -buildid=", "-o", output, pkg)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH="+arch)
	if arch == "arm" {
		cmd.Env = append(cmd.Env, "GOARM=7")
	}
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("building %s: %w\n%s", pkg, err, out)
	}
	return nil
}

// WriteFile writes an archive; a file that cannot be completed is not left behind.
func WriteFile(name string, format image.Format, specs ...image.Spec) (err error) {
	tmp := name + ".tmp"
	f, err := os.OpenFile(tmp, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o644)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("writing %s: %w", name, err), os.Remove(tmp))
		}
	}()
	if _, err := image.Write(f, format, specs...); err != nil {
		return errors.Join(err, f.Close())
	}
	if err := f.Close(); err != nil {
		return err
	}
	return os.Rename(tmp, name)
}

// static makes sure that a program runs in an image without libraries.
func static(program string) error {
	f, err := elf.Open(program)
	if err != nil {
		return fmt.Errorf("reading program %s: %w", program, err)
	}
	defer f.Close()
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			interp, err := io.ReadAll(p.Open())
			if err != nil {
				return fmt.Errorf("reading program %s: %w", program, err)
			}
			return fmt.Errorf("program %s is not static, it needs %s", program, strings.TrimRight(string(interp), "\x00"))
		}
	}
	return nil
}
