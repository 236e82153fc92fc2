//go:build system

package system

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"
)

// host plays a machine on which clusters are made: a network and mounts of its own, and nothing in that network
// but what the test puts there. It shares this machine's processes and cgroups.
type host struct {
	network
	dir string
	pid int // of the process that keeps it
}

const keepHost = `set -e
mount --make-rprivate /
mount --bind "$1" /etc/resolv.conf
ip link set lo up
echo ready
read nothing || true
`

// newHost makes one; resolvConf is its /etc/resolv.conf. It goes with the test, which removes its clusters
// first.
func newHost(t *testing.T, resolvConf string) *host {
	t.Helper()
	root(t)
	dir, err := os.MkdirTemp(the.dir, "h") // short, see newBench
	if err != nil {
		t.Fatal(err)
	}
	h := &host{dir: dir}
	for _, d := range []string{h.clusters(), h.dir + "/own"} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	file := h.dir + "/resolv.conf"
	if err := os.WriteFile(file, []byte(resolvConf), 0o644); err != nil {
		t.Fatal(err)
	}
	var errOut bytes.Buffer
	cmd := exec.Command("/bin/sh", "-c", keepHost, "sh", file)
	cmd.Stderr = &errOut
	cmd.SysProcAttr = &unix.SysProcAttr{Cloneflags: unix.CLONE_NEWNET | unix.CLONE_NEWNS}
	stdin, err := cmd.StdinPipe() // it ends with us, whatever happens to us
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		stdin.Close()
		if err := cmd.Wait(); err != nil {
			t.Errorf("the host ended: %v\n%s", err, errOut.String())
		}
		if err := os.RemoveAll(h.dir); err != nil {
			t.Error(err)
		}
	})
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil {
		t.Fatalf("making a host: %q %v\n%s", line, err, errOut.String())
	}
	h.pid = cmd.Process.Pid
	h.network = networkOf(t, h.pid)
	return h
}

func (h *host) clusters() string { return h.dir + "/c" }

// enter is the beginning of command lines that run on it.
func (h *host) enter() []string {
	return []string{"nsenter", "--target", strconv.Itoa(h.pid), "--net", "--mount", "--"}
}

func (h *host) environ() []string {
	return append(outside(),
		"K1S_CLUSTERS_DIR="+h.clusters(), "KUBECONFIG="+h.dir+"/kubeconfig", "HOME="+h.dir,
		"K1S_DATA_DIR="+h.dir+"/own", "K1S_RUN_DIR="+h.dir+"/own/run", "K1S_CONFIG_DIR="+h.dir+"/own/etc",
	)
}

// run runs programs inside that must succeed, each given as one line.
func (n network) run(t *testing.T, lines ...string) {
	t.Helper()
	for _, line := range lines {
		cmd := exec.CommandContext(within(t, limit), "/bin/sh", "-c", line)
		var out []byte
		err := n.do(func() (err error) {
			out, err = cmd.CombinedOutput()
			return err
		})
		if err != nil {
			t.Fatal(fmt.Errorf("%s: %w\n%s", line, err, out))
		}
	}
}
