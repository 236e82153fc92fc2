package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"time"

	"k1s.io/k1s/internal/errs"
	"k1s.io/k1s/test/vm/report"
)

// cgroupArguments make systemd set up that version of cgroups.
var cgroupArguments = map[string]string{
	"v2": "systemd.unified_cgroup_hierarchy=1",
	"v1": "systemd.unified_cgroup_hierarchy=0 systemd.legacy_systemd_cgroup_controller=1",
}

// machine is one run of the virtual machine.
type machine struct {
	options
	root string // directory of the root image and the kernel
	disk string // what the checks need
	dir  string // for what the machine writes
}

// arguments are those of qemu. Both disks stay as they are: what the machine writes to the first is kept
// in a file without a name until it ends. The only card is alone on its hub.
func (m machine) arguments() []string {
	p := platforms[m.arch]
	kernel := fmt.Sprintf("root=/dev/vda rw quiet panic=10 mitigations=off %s console=%s k1s.cgroup=%s k1s.quick=%t %s", p.clock, p.console, m.cgroup, m.quick, cgroupArguments[m.cgroup])
	return append(append([]string{}, p.machine...),
		"-accel", m.accel, "-smp", strconv.Itoa(m.cpus), "-m", strconv.Itoa(m.memory),
		"-nodefaults", "-no-user-config", "-display", "none", "-monitor", "none",
		"-kernel", filepath.Join(m.root, "vmlinuz"), "-initrd", filepath.Join(m.root, "initrd.img"), "-append", kernel,
		"-drive", "if=virtio,format=raw,snapshot=on,cache=unsafe,file="+filepath.Join(m.root, "root.img"),
		"-drive", "if=virtio,format=raw,readonly=on,file="+m.disk,
		"-netdev", "hubport,id=lan,hubid=0", "-device", "virtio-net-pci,netdev=lan",
		"-device", "virtio-rng-pci",
		"-serial", "file:"+filepath.Join(m.logs, "console.log"),
		"-device", "virtio-serial-pci", "-chardev", "stdio,id=report,signal=off", "-device", "virtserialport,chardev=report,name="+report.Port,
	)
}

// run starts the machine and returns when it has ended: by itself, or killed after the limit.
func (m machine) run(ctx context.Context, show func(report.Result)) error {
	ctx, cancel := context.WithTimeoutCause(ctx, m.limit, errs.New(errs.Timeout, "the machine was not done after %s", m.limit))
	defer cancel()
	cmd := exec.CommandContext(ctx, platforms[m.arch].qemu, m.arguments()...) // killed, by its pid, when ctx ends
	cmd.Env = append(os.Environ(), "TMPDIR="+m.dir)
	cmd.Stderr = os.Stderr
	cmd.WaitDelay = 10 * time.Second
	// Held open: with the end of its standard input qemu would close the port.
	in, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("starting %s: %w", platforms[m.arch].qemu, err)
	}
	read := report.Read(out, show)
	err = cmd.Wait()
	if ctx.Err() != nil {
		return errs.Hint(context.Cause(ctx), "see what it was doing in %s", filepath.Join(m.logs, "console.log"))
	}
	return errors.Join(read, err)
}
