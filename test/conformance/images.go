package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"

	"k1s.io/k1s/internal/image"
	"k1s.io/k1s/internal/payload"
	"k1s.io/k1s/test/images/testimage"
)

// Names of images without their tags, as upstream's tests have them.
const (
	agnhostImage = "registry.k8s.io/e2e-test-images/agnhost"
	busyboxImage = "registry.k8s.io/e2e-test-images/busybox"
	pauseImage   = "registry.k8s.io/pause"
)

// tagged returns the names in list that have this repository, and this version; an empty one stands for any.
func tagged(list []string, repository, version string) ([]string, error) {
	var found []string
	for _, name := range list {
		if r, v, ok := strings.Cut(name, ":"); ok && r == repository && (version == "" || v == version) {
			found = append(found, name)
		}
	}
	slices.Sort(found)
	found = slices.Compact(found)
	if len(found) == 0 {
		return nil, fmt.Errorf("the tests name no image %s:%s", repository, version)
	}
	return found, nil
}

// writeImages writes an archive of the images that tests run from as far as they can be made here, under the names that the test binary
// says, and returns its name.
func (p programs) writeImages(ctx context.Context, o options) (string, error) {
	out, err := says(exec.CommandContext(ctx, filepath.Join(p.dir, "e2e.test"), "--list-images"))
	if err != nil {
		return "", err
	}
	specs, err := p.images(ctx, o, strings.Fields(out))
	if err != nil {
		return "", err
	}
	file := filepath.Join(o.out, "images.tar")
	return file, testimage.WriteFile(file, image.OCI, specs...)
}

// images describes them; list has all names that tests use. agnhost's version is that of the program; busybox is this machine's whatever a
// test calls it, and pause does in each version what k1s' own does.
func (p programs) images(ctx context.Context, o options, list []string) ([]image.Spec, error) {
	shell, err := testimage.BusyboxSpec(ctx, o.busybox, runtime.GOARCH)
	if err != nil {
		return nil, err
	}
	if shell.Names, err = tagged(list, busyboxImage, ""); err != nil {
		return nil, err
	}
	agnhost, err := agnhostSpec(shell, p)
	if err != nil {
		return nil, err
	}
	if agnhost.Names, err = tagged(list, agnhostImage, p.agnhost); err != nil {
		return nil, err
	}
	carried, err := payload.Open(o.program)
	if err != nil {
		return nil, err
	}
	program, err := payload.ReadFile(carried, "pause")
	if err != nil {
		return nil, err
	}
	pause := image.Spec{
		Arch:   runtime.GOARCH,
		Config: image.Config{Entrypoint: []string{"/pause"}, User: "65535:65535"},
		Files:  []image.File{image.FromBytes("/pause", 0o755, program)},
	}
	pause.Names, err = tagged(list, pauseImage, "")
	return []image.Spec{shell, agnhost, pause}, err
}

// agnhostSpec is upstream's test/images/agnhost/Dockerfile over another base: a shell and the tools that busybox has stand for Alpine's
// packages. dig, iperf, CoreDNS and the images of the fake registry are not there.
func agnhostSpec(base image.Spec, p programs) (image.Spec, error) {
	s := image.Spec{
		Arch: base.Arch,
		Config: image.Config{
			Entrypoint:   []string{"/agnhost"},
			Cmd:          []string{"pause"},
			Env:          base.Config.Env,
			ExposedPorts: map[string]struct{}{},
		},
		Files: slices.DeleteFunc(slices.Clone(base.Files), func(f image.File) bool { return f.Path == "/etc/passwd" || f.Path == "/etc/group" }),
	}
	dockerfile, err := os.ReadFile(filepath.Join(p.source, "test/images/agnhost/Dockerfile"))
	if err != nil {
		return s, err
	}
	for _, port := range exposed(string(dockerfile)) {
		s.Config.ExposedPorts[port+"/tcp"] = struct{}{}
	}
	s.Files = append(s.Files,
		image.FromDisk("/agnhost", 0o755, filepath.Join(p.dir, "agnhost")),
		image.Symlink("/agnhost-2", "agnhost"), // tests of entry points run it
		image.Dir("/uploads", 0o755),
		// A test of supplementary groups runs as this user.
		image.Text("/etc/passwd", "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n"+
			"user-defined-in-image:x:1000:1000::/home/user-defined-in-image:/bin/sh\n"),
		image.Text("/etc/group", "root:x:0:\nnobody:x:65534:\nuser-defined-in-image:x:1000:\ngroup-defined-in-image:x:50000:user-defined-in-image\n"),
	)
	for _, f := range []string{"localhost.crt", "localhost.key"} {
		s.Files = append(s.Files, image.FromDisk("/"+f, 0o644, filepath.Join(p.source, "test/images/agnhost/porter", f)))
	}
	return s, nil
}

var expose = regexp.MustCompile(`(?m)^EXPOSE (.+)$`)

// exposed are the ports that a Dockerfile says are listened at.
func exposed(dockerfile string) []string {
	var ports []string
	for _, m := range expose.FindAllStringSubmatch(dockerfile, -1) {
		ports = append(ports, strings.Fields(m[1])...)
	}
	return ports
}
