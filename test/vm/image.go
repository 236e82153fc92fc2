package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	_ "embed"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"k1s.io/k1s/internal/errs"
	"k1s.io/k1s/test/images/testimage"
)

// platform is what differs between architectures.
type platform struct {
	qemu    string
	machine []string // arguments of qemu
	clock   string   // arguments of the kernel, so that reading the clock need not leave the processor
	console string   // the kernel's name of the first serial port
	kernel  string   // Debian's package
}

var platforms = map[string]platform{
	"amd64": {"qemu-system-x86_64", []string{"-machine", "q35", "-cpu", "max,la57=off"}, "tsc=reliable clocksource=tsc", "ttyS0", "linux-image-cloud-amd64"},
	"arm64": {"qemu-system-aarch64", []string{"-machine", "virt", "-cpu", "max,pauth-impdef=on"}, "", "ttyAMA0", "linux-image-cloud-arm64"},
}

// packages are all the machine has beside those Debian calls essential: no container runtime, no nftables,
// no iptables, no CNI plugins. AppArmor comes with every stock kernel of Debian.
var packages = []string{"systemd", "systemd-sysv", "udev", "dbus", "kmod", "iproute2", "apparmor"}

// files are written into the root image.
var files = map[string]string{
	"etc/hostname":       "stock\n",
	"etc/hosts":          "127.0.0.1 localhost\n127.0.1.1 stock\n",
	"etc/machine-id":     "", // made at the first boot
	"etc/resolv.conf":    "# no name servers: there is no way out\n",
	"etc/fstab":          "LABEL=root / ext4 defaults 0 1\nLABEL=checks /checks ext4 ro 0 0\n",
	"checks/.mountpoint": "",
	// A card that is connected to nothing, and no route: like a machine of a site without a way out. A match of
	// Type=ether would give the address to the links of pods, too, and take their routes away.
	"etc/systemd/network/lan.network": "[Match]\nName=en*\n[Network]\nAddress=10.88.0.10/24\nLinkLocalAddressing=no\nIPv6AcceptRA=no\n",
	"etc/systemd/system/checks.service": `[Unit]
Description=Checks of k1s
RequiresMountsFor=/checks
After=network-online.target
Wants=network-online.target

[Service]
Environment=HOME=/root
ExecStart=/checks/guest
StandardOutput=journal+console
StandardError=journal+console

[Install]
WantedBy=multi-user.target
`,
	// Its own journal is what a failure is explained by.
	"etc/systemd/journald.conf.d/checks.conf": "[Journal]\nStorage=persistent\nRateLimitIntervalSec=0\n",
}

// rootImage returns the directory with root.img, vmlinuz and initrd.img, and makes it where it is not there.
func rootImage(ctx context.Context, o options) (string, error) {
	p := platforms[o.arch]
	include := append(slices.Clone(packages), p.kernel)
	recipe := fmt.Sprint(o.arch, include, files, enabled)
	sum := sha256.Sum256([]byte(recipe))
	dir := filepath.Join(o.cache, o.arch+"-"+hex.EncodeToString(sum[:6]))
	if _, err := os.Stat(filepath.Join(dir, "root.img")); err == nil {
		return dir, nil
	}
	from, err := debianSources(ctx)
	if err != nil {
		return "", err
	}
	fmt.Fprintf(os.Stderr, "making the root image %s\n", dir)
	if old, err := filepath.Glob(filepath.Join(o.cache, o.arch+"-*")); err == nil {
		for _, d := range old {
			if err := os.RemoveAll(d); err != nil {
				return "", err
			}
		}
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	tree := filepath.Join(dir, "tree")
	defer os.RemoveAll(tree)
	args := append([]string{"--quiet", "--mode=root", "--variant=minbase", "--architectures=" + o.arch,
		"--include=" + strings.Join(include, ","), "--aptopt=Acquire::Languages none", from.suite, tree}, from.lines...)
	if err := command(ctx, "mmdebstrap", args...); err != nil {
		return "", err
	}
	for name, content := range files {
		file := filepath.Join(tree, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(file), 0o755), os.WriteFile(file, []byte(content), 0o644)); err != nil {
			return "", err
		}
	}
	if err := command(ctx, "chroot", append([]string{tree, "systemctl", "--quiet", "enable"}, enabled...)...); err != nil {
		return "", err
	}
	for _, name := range []string{"vmlinuz", "initrd.img"} {
		found, err := filepath.Glob(filepath.Join(tree, "boot", name+"-*"))
		if err != nil || len(found) != 1 {
			return "", fmt.Errorf("the kernel package has %d files boot/%s-*: %w", len(found), name, err)
		}
		if err := os.Rename(found[0], filepath.Join(dir, name)); err != nil {
			return "", err
		}
	}
	// Complete or not there.
	if err := command(ctx, "mke2fs", "-q", "-t", "ext4", "-L", "root", "-d", tree, filepath.Join(dir, "root.part"), "8G"); err != nil {
		return "", err
	}
	return dir, os.Rename(filepath.Join(dir, "root.part"), filepath.Join(dir, "root.img"))
}

var enabled = []string{"systemd-networkd.service", "checks.service"}

// sources is where apt on this machine gets Debian from.
type sources struct {
	suite string
	lines []string
}

func debianSources(ctx context.Context) (sources, error) {
	out, err := exec.CommandContext(ctx, "apt-get", "indextargets", "--format", "$(REPO_URI) $(RELEASE) $(COMPONENT)",
		"Created-By: Packages", "Origin: Debian").Output()
	if err != nil {
		return sources{}, fmt.Errorf("asking apt where it gets Debian from: %w", err)
	}
	return parseSources(string(out))
}

// parseSources reads lines of URI, release and component; the first release is the main one.
func parseSources(targets string) (sources, error) {
	var s sources
	for line := range strings.Lines(targets) {
		f := strings.Fields(line)
		if len(f) != 3 {
			continue
		}
		l := "deb " + strings.Join(f, " ")
		if !slices.Contains(s.lines, l) {
			s.lines = append(s.lines, l)
		}
		if s.suite == "" {
			s.suite = f[1]
		}
	}
	if s.suite == "" {
		return s, errs.Hint(errs.New(errs.Unsupported, "apt on this machine does not know Debian's packages, of which the virtual machine is made"),
			"run it on Debian, after: apt-get update")
	}
	return s, nil
}

//go:embed manifests.yaml
var manifests []byte

// checksDisk makes the second disk: k1s, what makes the checks, and what they need.
func checksDisk(ctx context.Context, o options, dir string) (string, error) {
	stage := filepath.Join(dir, "stage")
	if err := os.MkdirAll(filepath.Join(stage, "images"), 0o755); err != nil {
		return "", err
	}
	defer os.RemoveAll(stage)
	err := errors.Join(
		testimage.WriteBusybox(ctx, filepath.Join(stage, "images/busybox.tar"), testimage.DefaultBusybox, o.arch),
		testimage.WriteApp(ctx, filepath.Join(stage, "images/app.tar"), o.arch),
		testimage.Build(ctx, "k1s.io/k1s/test/vm/guest", filepath.Join(stage, "guest"), o.arch),
		copyFile(o.program, filepath.Join(stage, "k1s"), 0o755),
		copyFile("docs/how-to/k1s.service", filepath.Join(stage, "k1s.service"), 0o644),
		os.WriteFile(filepath.Join(stage, "manifests.yaml"), manifests, 0o644),
	)
	if err != nil {
		return "", err
	}
	disk := filepath.Join(dir, "checks.img")
	return disk, command(ctx, "mke2fs", "-q", "-t", "ext4", "-L", "checks", "-d", stage, disk, "400M")
}

func copyFile(from, to string, mode os.FileMode) error {
	b, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return os.WriteFile(to, b, mode)
}

// command runs a program whose output matters only when it fails.
func command(ctx context.Context, name string, args ...string) error {
	var out bytes.Buffer
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("running %s: %w\n%s", name, err, out.String())
	}
	return nil
}
